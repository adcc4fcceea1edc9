"""The architecture, as the imports show it: they point down, and the pure half stays pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ksmtuned"
# From top to bottom: a module may import those of the layers below its own, and none beside it
# but those of its own folder.
LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"daemon"},
    {"orders", "progress", "events", "comings", "errands", "asking"},
    {"engine"},
    {"report", "guesttable"},
    {"guestlist"},
    {"leave", "claims", "shares", "share"},
    {"unmerging"},
    {"need"},
    {
        *("originals", "hold", "intents", "config_text", "config_import", "nudge"),
        *("guests.inventory", "guests.offerers", "guests.find", "guests.backends", "guests.qmp"),
        *("guests.passthrough",),
    },
    {"guests.others"},
    {"guests.details"},
    {"config"},
    {
        "shell",
        "host",
        "triggers",
        "policies",
        "plan",
        "rundir",
        "notify",
        "log",
        "settings",
        "guests.rules",
        "guests.monitors",
        "guests.verdict",
        "sharing",
    },
    {"policies", "guests.launch"},
    {"guests.options", "laps"},
    {"growth"},
    {"rates", "pace", "worth", "headroom"},
    {"model"},
    {"errors"},
    {"units"},
]
PURE = (
    "units",
    "model",
    "claims",
    "growth",
    "laps",
    "rates",
    "pace",
    "worth",
    "headroom",
    "sharing",
    "errors",
    "plan",
    "policies",
    "guests.rules",
    "guests.launch",
    "guests.options",
    "guestlist",
    "guesttable",
    "shares",
    "comings",
    "triggers.trial",
    "guests.monitors",
    "guests.verdict",
    "report",
    "orders",
)
IMPURE_LIBRARIES = {
    "time", "socket", "subprocess", "logging", "random", "psutil", "pyudev", "systemd", "select",
    "signal", "fcntl", "tempfile", "shutil", "ctypes", "asyncio", "threading",
}  # fmt: skip
HOME_OF = {
    "psutil": {"guests.inventory"},
    "pyudev": {"triggers.uevent"},
    "systemd": {"notify", "log"},
    "tomli": {"config"},
    "pydantic": {"config", "settings"},
    "qemu": {"guests.qmp"},
    "libvirt": {"guests.passthrough"},
}


def modules() -> list[str]:
    names = (p.relative_to(PACKAGE).with_suffix("").as_posix() for p in PACKAGE.rglob("*.py"))
    return sorted(name.replace("/", ".").removesuffix(".__init__") for name in names)


def imports(module: str) -> Iterator[str]:
    path = PACKAGE / module.replace(".", "/")
    source = path.with_suffix(".py") if not path.is_dir() else path / "__init__.py"
    if module == "__init__":
        source = PACKAGE / "__init__.py"
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    pytest.fail(f"{module} has no place in LAYERS: which room is it in?")


def ours(module: str) -> set[str]:
    known = set(modules())
    found = {name.removeprefix("ksmtuned.") for name in imports(module) if name != "ksmtuned"}
    return {name for name in found if name in known and name != "__init__"}


@pytest.mark.parametrize("module", [m for m in modules() if m not in ("__init__", "guests")])
def test_imports_point_down(module: str) -> None:
    folder = module.split(".")[0]
    for name in ours(module) - {"guests"}:
        is_sibling = name.split(".")[0] == folder and (PACKAGE / folder).is_dir()
        assert is_sibling or layer(module) < layer(name), f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in modules() if m.startswith(PURE)])
def test_the_pure_half_touches_no_clock_file_or_process(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(module)} & IMPURE_LIBRARIES


@pytest.mark.parametrize("module", [m for m in modules() if m.startswith("policies.")])
def test_policies_know_only_the_model(module: str) -> None:
    assert ours(module) <= {"model", "laps", "growth", "rates", "pace", "worth", "units"}


def test_only_the_registry_knows_a_policy() -> None:
    for module in modules():
        if module != "policies":
            assert not {name for name in ours(module) if name.startswith("policies.")}


@pytest.mark.parametrize(("library", "homes"), HOME_OF.items())
def test_each_library_has_one_home(library: str, homes: set[str]) -> None:
    users = {m for m in modules() if library in {name.split(".")[0] for name in imports(m)}}
    assert users == homes


def test_kernel_paths_are_spelled_in_the_host_alone() -> None:
    for module in modules():
        if module.startswith("host"):
            continue
        path = PACKAGE / f"{module.replace('.', '/')}.py"
        if not path.exists():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                is_path = node.value.startswith(("/proc", "/sys", "proc/", "sys/"))
                assert not is_path, f"{module}: {node.value}"
