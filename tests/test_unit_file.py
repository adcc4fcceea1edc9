"""The unit: what the life cycle needs, a quiet `verify`, a small exposure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

UNIT = Path(__file__).parent.parent / "systemd" / "ksmtuned.service"
LAUNCHER = "/usr/local/bin/ksmtuned"

NEEDS_SYSTEMD = pytest.mark.skipif(
    not shutil.which("systemd-analyze") and os.environ.get("CI") != "true",
    reason="no systemd-analyze here (apt-get install systemd); under CI=true that is an error",
)


def directives() -> dict[str, list[str]]:
    """Every key with its values, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found[key].append(value)
    return found


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    """A copy whose program exists, as after `make install`."""
    program = tmp_path / "ksmtuned"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(LAUNCHER, str(program)))
    return unit


def analyze(*arguments: str | Path) -> str:
    """What systemd-analyze says on both channels; its status must be 0."""
    ran = subprocess.run(
        ["systemd-analyze", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("Type", ["notify"]),
        ("NotifyAccess", ["main"]),
        ("ExecStart", [f"{LAUNCHER} run"]),
        ("ExecReload", [f"{LAUNCHER} config check", "/bin/kill -HUP $MAINPID"]),
        ("ExecStopPost", [f"{LAUNCHER} restore"]),
        ("KillMode", ["mixed"]),
        ("OOMPolicy", ["continue"]),
        ("RuntimeDirectory", ["ksmtuned"]),
        ("RuntimeDirectoryPreserve", ["yes"]),
        ("Restart", ["on-failure"]),
        ("RestartPreventExitStatus", ["2 3 4 5"]),
        ("ConditionPathExists", ["/sys/kernel/mm/ksm"]),
        ("WantedBy", ["multi-user.target"]),
    ],
)
def test_the_unit_says_what_the_life_cycle_needs(key: str, values: list[str]) -> None:
    assert directives()[key] == values


def test_the_watchdog_is_on() -> None:
    assert directives()["WatchdogSec"] == ["60s"]


def test_it_conflicts_with_whoever_else_writes_ksm_and_waits_for_their_end() -> None:
    unit = directives()
    rivals = unit["Conflicts"][0].split()
    assert {"ksm.service", "momd.service", "mom-vdsm.service", "uksmd.service"} <= set(rivals)
    assert set(rivals) <= set(" ".join(unit["After"]).split())
    assert UNIT.name not in rivals


def test_only_the_ksm_folder_is_writable() -> None:
    unit = directives()
    assert unit["ReadWritePaths"] == ["/sys/kernel/mm/ksm"]
    assert unit["ProtectSystem"] == ["strict"]
    # "strict" alone does not cover these on systemd 257.
    read_only = " ".join(unit["ReadOnlyPaths"]).replace("-/", "/").split()
    assert {"/run", "/proc/dynamic_debug", *map(str, Path("/sys").iterdir())} <= set(read_only)


def test_root_keeps_three_rights() -> None:
    capabilities = directives()["CapabilityBoundingSet"]
    assert capabilities == ["CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_CHOWN"]


def test_it_reaches_the_journal_and_uevents_and_no_network() -> None:
    unit = directives()
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX AF_NETLINK"]
    assert unit["IPAddressDeny"] == ["any"]


def test_nothing_covers_what_events_come_from() -> None:
    """/proc/pressure is written to, sysfs says whether there is KVM, /proc shows every process."""
    unit = directives()
    covered = " ".join(
        path
        for key in ("ReadOnlyPaths", "InaccessiblePaths", "TemporaryFileSystem")
        for path in unit[key]
    )
    assert "/proc/pressure" not in covered
    assert not {"ProtectProc", "ProcSubset", "PrivatePIDs"} & set(unit)
    assert "/sys" not in " ".join(unit["InaccessiblePaths"])


def test_it_sees_the_same_ksm_folder_as_everybody_else() -> None:
    # Each of these mounts another sysfs, on which the lock on KSM's folder is another lock.
    assert not {"PrivateNetwork", "NetworkNamespacePath", "JoinsNamespaceOf"} & set(directives())


@NEEDS_SYSTEMD
def test_verify_says_nothing(rendered: Path) -> None:
    assert analyze("verify", rendered) == ""


@NEEDS_SYSTEMD
def test_the_exposure_is_at_most_2_3(rendered: Path) -> None:
    told = analyze("security", "--offline=yes", "--no-pager", rendered)
    match = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", told)
    assert match, told
    assert float(match[1]) <= 2.3
