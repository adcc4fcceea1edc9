"""Debian's own ksmtuned script, run step by step on a small host of its own."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
from workplace import REPOSITORY

TWO_TIB_KB = 2**31  # from here on Debian's awk loses digits
SCRIPT = REPOSITORY / "build/debian-ksmtuned/usr/sbin/ksmtuned"

# The paths come from ROOT; the guests' memory is told instead of measured. An empty PIDFILE cannot
# be touched, so the script starts no loop of its own. Each line on stdin is one command.
_DRIVER = """
PIDFILE=
while read -r verb told; do
    case $verb in
        host) unset "${!KSM_@}"; . "$SCRIPT" 2>/dev/null
              committed_memory () { echo "$told"; } ;;
        step) adjust ;;
    esac
    echo done
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The seven numbers of ksmtuned.conf that change a decision, at their defaults."""

    boost: int = 300
    decay: int = -50
    npages_min: int = 64
    npages_max: int = 1250
    sleep_msec: int = 10
    thres_coef: int = 20
    thres_const_kb: int = 2048

    def as_shell(self) -> str:
        """ksmtuned.conf."""
        return (
            f"KSM_NPAGES_BOOST={self.boost}\nKSM_NPAGES_DECAY={self.decay}\n"
            f"KSM_NPAGES_MIN={self.npages_min}\nKSM_NPAGES_MAX={self.npages_max}\n"
            f"KSM_SLEEP_MSEC={self.sleep_msec}\n"
            f"KSM_THRES_COEF={self.thres_coef}\nKSM_THRES_CONST={self.thres_const_kb}\n"
        )

    def as_toml(self) -> str:
        """ksmtuned.toml."""
        return (
            'policy = "classic"\ninterval = "1 d"\n[classic]\n'
            f"npages_boost = {self.boost}\nnpages_decay = {self.decay}\n"
            f"npages_min = {self.npages_min}\nnpages_max = {self.npages_max}\n"
            f"sleep_msec = {self.sleep_msec}\n"
            f'thres_coef = {self.thres_coef}\nthres_const = "{self.thres_const_kb} KiB"\n'
        )

    def threshold_kb(self, total_kb: int) -> int:
        """Where the decisions change."""
        return max(total_kb * self.thres_coef // 100, self.thres_const_kb)


@dataclass(frozen=True, slots=True)
class Pace:
    """What ksmd is told."""

    run: int
    pages_to_scan: int
    sleep_millisecs: int


class DebianScript:
    """One bash process that obeys; use it in a with statement."""

    def __init__(self, folder: Path) -> None:
        skip_without_script()
        self.root = folder / "debian"
        self._ksm = self.root / "sys/kernel/mm/ksm"
        self._ksm.mkdir(parents=True)
        (self.root / "proc").mkdir()
        script = SCRIPT.read_text().replace("/sys/kernel/mm/ksm/", f"{self._ksm}/")
        script = script.replace("/proc/meminfo", f"{self.root}/proc/meminfo")
        script = script.replace("/etc/ksmtuned.conf", f"{self.root}/ksmtuned.conf")
        (self.root / "script").write_text(script)
        self._bash = subprocess.Popen(
            ["/bin/bash", "-c", _DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "SCRIPT": str(self.root / "script")},
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bash.communicate()

    def start(self, law: Law, meminfo: str, pace: Pace) -> None:
        """The script starts on a host; MemTotal is read now and never again."""
        (self.root / "ksmtuned.conf").write_text(law.as_shell())
        (self.root / "proc/meminfo").write_text(meminfo)
        for name in ("run", "pages_to_scan", "sleep_millisecs"):
            (self._ksm / name).write_text(f"{getattr(pace, name)}\n")
        self._command("host 0")

    def step(self, meminfo: str, committed_kb: int) -> Pace:
        """One call of adjust."""
        (self.root / "proc/meminfo").write_text(meminfo)
        self._command(f"step {committed_kb}")
        return read_pace(self._ksm)

    def _command(self, line: str) -> None:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(line + "\n")
        answer = self._bash.stdout.readline()
        assert answer == "done\n", f"Debian's script answered {answer!r} to {line!r}"


def read_pace(ksm: Path) -> Pace:
    """The three files of the classic law, below any root."""
    names = ("run", "pages_to_scan", "sleep_millisecs")
    return Pace(*(int((ksm / name).read_text()) for name in names))


def skip_without_script() -> None:
    """Skip where the Makefile has not fetched Debian's package; in CI that is a failure."""
    if SCRIPT.exists():
        return
    reason = f"{SCRIPT} is missing: `make test` fetches it from Debian's package ksmtuned"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
