"""`make install` and `make uninstall` below a DESTDIR: what is there, what is not, what stays."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import ksmtuned

SOURCE = Path(__file__).parent.parent
PREFIX = "/opt/ksm"  # not the default: a path that nobody adapted shows


def run(*command: str | Path) -> str:
    """What a command says on both channels; its status must be 0."""
    ran = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
        # Not the options of the make that runs these tests, nor what steers this Python.
        env={k: v for k, v in os.environ.items() if not k.startswith(("M", "PYTHON"))},
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def make(goal: str, destdir: Path) -> str:
    """Run make with DESTDIR and PREFIX; returns what it says."""
    return run("make", "-C", SOURCE, goal, f"DESTDIR={destdir}", f"PREFIX={PREFIX}")


def files(folder: Path) -> list[Path]:
    """Everything below that is no folder."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


@pytest.fixture(scope="module")
def destdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One installation for all the tests below that only look at it."""
    folder = tmp_path_factory.mktemp("dest dir")
    make("install", folder)
    return folder


@pytest.fixture
def installed(destdir: Path) -> Path:
    """The folder that stands for PREFIX."""
    return destdir / PREFIX.lstrip("/")


def environment_of(installed: Path) -> tuple[Path, Path]:
    """The interpreter and its site-packages."""
    (packages,) = installed.glob("lib/ksmtuned/lib/python3.*/site-packages")
    return installed / "lib/ksmtuned/bin/python", packages


def test_the_launcher_works_and_is_isolated(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "ksmtuned.py").write_text("raise SystemExit('code from PYTHONPATH ran as root')")
    launcher = installed / "bin/ksmtuned"
    shebang = launcher.read_text().splitlines()[0]
    assert shebang == f"#!{PREFIX}/lib/ksmtuned/bin/python -I"

    python, _ = environment_of(installed)
    told = run("env", "-C", tmp_path, f"PYTHONPATH={tmp_path}", python, "-I", launcher, "--version")

    assert told == f"ksmtuned {ksmtuned.__version__}\n"


def test_it_runs_from_its_own_environment(installed: Path) -> None:
    python, packages = environment_of(installed)
    script = (
        "import ksmtuned, pydantic, psutil, pyudev, systemd.daemon, tomli; print(ksmtuned.__file__)"
    )
    assert run(python, "-I", "-c", script).strip() == str(packages / "ksmtuned/__init__.py")


def test_no_installer_is_left(installed: Path) -> None:
    _, packages = environment_of(installed)
    names = {path.name.split("-")[0] for path in packages.iterdir()}
    assert not names & {"pip", "setuptools", "wheel", "bin"}
    assert [path.name for path in (installed / "lib/ksmtuned/bin").iterdir()] == ["python"]


def test_no_file_knows_where_it_was_built(destdir: Path) -> None:
    traces = (bytes(destdir), bytes(SOURCE / "build"))
    guilty = [
        path
        for path in files(destdir)
        if not path.is_symlink() and any(trace in path.read_bytes() for trace in traces)
    ]
    assert not guilty


def test_everybody_may_read_and_only_the_owner_may_write(destdir: Path) -> None:
    modes = {path: path.stat().st_mode for path in destdir.rglob("*") if not path.is_symlink()}
    assert not [path for path, mode in modes.items() if mode & 0o022 or not mode & 0o004]


def test_the_unit_starts_the_program_where_it_is(installed: Path) -> None:
    unit = (installed / "lib/systemd/system/ksmtuned.service").read_text()
    assert f"\nExecStart={PREFIX}/bin/ksmtuned run\n" in unit
    assert f"\nExecReload={PREFIX}/bin/ksmtuned config check\n" in unit
    assert f"\nExecStopPost={PREFIX}/bin/ksmtuned restore\n" in unit
    assert "/usr/local" not in unit


def test_the_configuration_is_the_shipped_one(destdir: Path) -> None:
    shipped = (SOURCE / "etc/ksmtuned.toml").read_bytes()
    assert (destdir / "etc/ksmtuned.toml").read_bytes() == shipped
    assert not list((destdir / "etc/ksmtuned.toml.d").iterdir())


def test_an_edited_configuration_outlives_both_and_nothing_else_does(tmp_path: Path) -> None:
    make("install", tmp_path)
    config = tmp_path / "etc/ksmtuned.toml"
    dropin = tmp_path / "etc/ksmtuned.toml.d/50-mine.toml"
    config.write_text('policy = "fixed"\n')
    dropin.write_text("")

    told = make("install", tmp_path)
    assert config.read_text() == 'policy = "fixed"\n'
    assert (tmp_path / "etc/ksmtuned.toml.new").exists()
    assert f"Kept your {config}" in told

    told = make("uninstall", tmp_path)
    assert files(tmp_path) == [config, dropin]
    assert f"Kept, because you edited it: {config}" in told


def test_an_old_configuration_that_nobody_edited_is_renewed(tmp_path: Path) -> None:
    make("install", tmp_path)
    config = tmp_path / "etc/ksmtuned.toml"
    for copy in (config, tmp_path / PREFIX.lstrip("/") / "lib/ksmtuned/ksmtuned.toml"):
        copy.write_text("# of the last version\n")

    make("install", tmp_path)
    assert config.read_bytes() == (SOURCE / "etc/ksmtuned.toml").read_bytes()

    make("uninstall", tmp_path)
    assert files(tmp_path) == []
