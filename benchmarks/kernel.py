"""The real KSM: lent to one controller after another, given back as it was found."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EPERM
from pathlib import Path

from benchmarks.figures import Sample
from ksmtuned.errors import KernelRefused, KsmtunedError, NoKsm
from ksmtuned.host.ksm import FOLDER
from ksmtuned.host.lease import Lease
from ksmtuned.model import RUN_MASK
from ksmtuned.units import PAGE_BYTES, size

KSM = Path("/", FOLDER)
PROC = Path("/proc")
# Every control but `run`, with the kernel's own default: each controller starts from these.
DEFAULTS = {
    "advisor_mode": "none",
    "advisor_max_cpu": "70",
    "advisor_max_pages_to_scan": "30000",
    "advisor_min_pages_to_scan": "500",
    "advisor_target_scan_time": "200",
    "max_page_sharing": "256",
    "merge_across_nodes": "1",
    "pages_to_scan": "100",
    "sleep_millisecs": "20",
    "smart_scan": "1",
    "stable_node_chains_prune_millisecs": "2000",
    "use_zero_pages": "0",
}


class ContestError(KsmtunedError):
    """The contest cannot go on."""


class Ksm:
    """The kernel's KSM, to read and to write."""

    def number(self, name: str) -> int | None:
        """The integer in that file; None: this kernel has none."""
        text = self.text(name)
        return None if text is None else int(text)

    def text(self, name: str) -> str | None:
        """What is in that file, of several modes the chosen one; None: this kernel has none."""
        try:
            content = (KSM / name).read_text().strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KernelRefused(KSM / name, error.errno or 0) from error
        return content.partition("[")[2].partition("]")[0] if "[" in content else content

    def write(self, name: str, value: int | str) -> None:
        """Errors: KernelRefused."""
        try:
            (KSM / name).write_text(f"{value}\n")
        except OSError as error:
            raise KernelRefused(KSM / name, error.errno or 0, value) from error

    def has(self, name: str) -> bool:
        """Does this kernel have that file?"""
        return (KSM / name).exists()

    def clean(self, values: dict[str, str]) -> None:
        """Nothing merged, nothing remembered, ksmd stopped, these values. Errors: the first."""
        refused: list[KsmtunedError] = []
        # The advisor allows no pages_to_scan. A small batch, because the next write waits for one.
        for name, value in (("advisor_mode", "none"), ("pages_to_scan", "100"), ("run", "0")):
            self._try(name, value, refused)
        self._try("run", "2", refused)
        self._try("run", "0", refused)
        last = values.get("advisor_mode", "none")
        for name, value in values.items():
            # While the advisor is on, pages_to_scan is its own.
            if name != "advisor_mode":
                self._try(name, value, refused)
        self._try("advisor_mode", last, refused)
        if refused:
            raise refused[0]

    def _try(self, name: str, value: str, refused: list[KsmtunedError]) -> None:
        try:
            now = self.text(name)
            if now is not None and (now != value or name == "run"):
                self.write(name, value)
        except KsmtunedError as error:
            refused.append(error)


def check_idle(ksm: Ksm) -> None:
    """Errors: NoKsm, KernelRefused, AlreadyRunning, ContestError: somebody needs KSM here."""
    if not KSM.is_dir():
        raise NoKsm(KSM)
    if os.geteuid() != 0:
        raise KernelRefused(KSM, EPERM)
    Lease(Path("/")).__exit__(None, None, None)
    run, shared = (ksm.number("run") or 0) & RUN_MASK, ksm.number("pages_shared") or 0
    zero = ksm.number("ksm_zero_pages") or 0
    if run or shared or zero:
        raise ContestError(
            f"{KSM}: not started: KSM is in use here (run {run}, {shared} pages shared, "
            f"{zero} zero pages); use a machine whose KSM nobody needs"
        )


@contextmanager
def lent() -> Iterator[Ksm]:
    """KSM, found idle; at the end nothing is merged and each control has its first value.

    Errors: as check_idle.
    """
    ksm = Ksm()
    check_idle(ksm)
    first = {name: text for name in DEFAULTS if (text := ksm.text(name)) is not None}
    try:
        yield ksm
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # a second Ctrl-C must not spoil it
        ksm.clean(first)


class Gauge:
    """Reads samples: what was counted before its making is left out."""

    def __init__(self, ksm: Ksm) -> None:
        self._ksm = ksm
        self._ksmd = _find_ksmd()
        self._cpu_s = self._ksmd_cpu_s()
        self._scanned = ksm.number("pages_scanned") or 0

    def sample(self, at_s: float) -> Sample:
        """One look at the kernel's counters."""
        number = self._ksm.number
        scanned = number("pages_scanned")
        saved = (number("pages_sharing") or 0) + (number("ksm_zero_pages") or 0)
        return Sample(
            at_s=round(at_s, 3),
            saving_bytes=saved * PAGE_BYTES,
            ksmd_cpu_s=round(self._ksmd_cpu_s() - self._cpu_s, 4),
            pages_scanned=None if scanned is None else scanned - self._scanned,
            full_scans=number("full_scans") or 0,
            run=number("run") or 0,
            pages_to_scan=number("pages_to_scan") or 0,
            sleep_millisecs=number("sleep_millisecs") or 0,
            available_bytes=available_bytes(),
        )

    def _ksmd_cpu_s(self) -> float:
        return int((self._ksmd / "schedstat").read_text().split()[0]) / 1e9


def available_bytes() -> int:
    """MemAvailable."""
    return meminfo_bytes("MemAvailable")


def meminfo_bytes(key: str) -> int:
    """A line of /proc/meminfo."""
    lines = (PROC / "meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def check_room(need_bytes: int) -> None:
    """Errors: ContestError, if the guests would leave too little memory even unmerged."""
    spare = max(2**30, meminfo_bytes("MemTotal") // 20)
    if (available := available_bytes()) < need_bytes + spare:
        raise ContestError(
            f"not started: the guests need {size(need_bytes)} and {size(spare)} must stay free, "
            f"but MemAvailable is {size(available)}; take another --scenario"
        )


def other_mergeable() -> list[str]:
    """Processes that offer memory to KSM now: ksmd will scan them too. Source: ksm_stat, 6.14."""
    found = []
    for process in PROC.glob("[0-9]*"):
        try:
            if "ksm_mergeable: yes" in (process / "ksm_stat").read_text():
                found.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
        except OSError:  # gone, or no such file on this kernel
            continue
    return found


def _find_ksmd() -> Path:
    for comm in PROC.glob("[0-9]*/comm"):
        try:
            if comm.read_text() == "ksmd\n":
                return comm.parent
        except OSError:  # gone
            continue
    raise ContestError("ksmd is not visible here (a container?): its CPU time cannot be measured")
