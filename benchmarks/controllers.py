"""Who decides about KSM in a run: each controller is started, watched, paid for and stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.figures import Cost
from benchmarks.kernel import PROC, ContestError, Ksm
from ksmtuned.errors import UsageError
from ksmtuned.host.lease import Lease

REPOSITORY = Path(__file__).resolve().parent.parent
DEBIAN_SCRIPT = REPOSITORY / "build/debian-ksmtuned/usr/sbin/ksmtuned"
DEBIAN_CONFIG = Path("/etc/ksmtuned.conf")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
STOP_PATIENCE_S = 15.0

NAMES = """\
ksmtuned[:POLICY[:PROFILE]]   this project's daemon (adaptive, test)
ksmtuned:FILE.toml            the same with that configuration
flat-out                      fixed:20000:1
debian                        Debian's script ksmtuned, told that memory is always short
advisor[:SECONDS]             the kernel's scan-time advisor and its target (200)
fixed:PAGES:MS                constant pages_to_scan and sleep_millisecs"""
ALL = ("ksmtuned", "flat-out", "debian", "advisor", "fixed:1250:10")


class Watched(Protocol):
    """A controller at work."""

    def check(self) -> None:
        """Errors: ContestError, if it is not there any more."""

    def cost(self) -> Cost | None:
        """What it used since its start; None: it has no process."""


class Controller(Protocol):
    """One that can be started, by the name that was asked for."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def why_not(self, ksm: Ksm) -> str | None:
        """Why it cannot be had here; None: it can."""

    def running(self, ksm: Ksm, folder: Path) -> AbstractContextManager[Watched]:
        """It works inside the with statement. folder: empty, its own."""


class KernelAlone:
    """No process: the kernel does it all."""

    def check(self) -> None:
        """Nothing can end."""

    def cost(self) -> None:
        """Nothing is used."""


@dataclass(frozen=True, slots=True)
class Process:
    """A controller that is a process."""

    name: str
    pid: int
    log: Path

    def check(self) -> None:
        """Errors: ContestError, with the last line that it wrote."""
        try:
            state = (PROC / str(self.pid) / "stat").read_text().rpartition(") ")[2][0]
        except OSError:
            state = "X"
        if state in "ZX":
            said = self.log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise ContestError(f"{self.name}: it ended; the last that it said: {said[-1]}")

    def cost(self) -> Cost:
        """CPU time of its threads and of its children that have ended. Errors: ContestError."""
        folder = PROC / str(self.pid)
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            tasks = [(task / "schedstat").read_text() for task in (folder / "task").iterdir()]
            status = (folder / "status").read_text()
        except OSError as error:
            raise ContestError(f"{self.name}: it ended") from error
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        children_s = (int(fields[13]) + int(fields[14])) * TICK_S
        return Cost(
            cpu_s=sum(int(task.split()[0]) for task in tasks) / 1e9 + children_s,
            rss_bytes=int(peak[1]) * 1024 if peak else 0,
        )


@dataclass(frozen=True, slots=True)
class Fixed:
    """Constant values, for ever."""

    name: str
    pages_to_scan: int
    sleep_millisecs: int

    def why_not(self, ksm: Ksm) -> str | None:
        """Every kernel can do it."""
        return None

    @contextmanager
    def running(self, ksm: Ksm, folder: Path) -> Iterator[Watched]:
        """Three writes."""
        with Lease(Path("/")):
            ksm.write("pages_to_scan", self.pages_to_scan)
            ksm.write("sleep_millisecs", self.sleep_millisecs)
            ksm.write("run", 1)
            yield KernelAlone()


@dataclass(frozen=True, slots=True)
class Advisor:
    """The kernel chooses pages_to_scan so that a pass takes the target."""

    name: str
    target_s: int = 200

    def why_not(self, ksm: Ksm) -> str | None:
        """Linux 6.8 brought it."""
        return None if ksm.has("advisor_mode") else "this kernel has no advisor_mode"

    @contextmanager
    def running(self, ksm: Ksm, folder: Path) -> Iterator[Watched]:
        """Three writes."""
        with Lease(Path("/")):
            ksm.write("advisor_target_scan_time", self.target_s)
            ksm.write("advisor_mode", "scan-time")
            ksm.write("run", 1)
            yield KernelAlone()


@dataclass(frozen=True, slots=True)
class Debian:
    """The shell script, with the whole RAM as its threshold: it scans faster at each turn."""

    name: str

    def why_not(self, ksm: Ksm) -> str | None:
        """`make contest` fetches it, where it can."""
        if not DEBIAN_SCRIPT.exists():
            return f"there is no {DEBIAN_SCRIPT.relative_to(REPOSITORY)}; make fetches it"
        if DEBIAN_CONFIG.exists():
            return f"{DEBIAN_CONFIG} would change what it does; move it away"
        return None

    @contextmanager
    def running(self, ksm: Ksm, folder: Path) -> Iterator[Watched]:
        """It goes into the background by itself, and leaves its pid in a file."""
        pid_file, log = folder / "pid", folder / "log"
        told = {"KSM_THRES_COEF": "100", "PIDFILE": str(pid_file), "PATH": os.environ["PATH"]}
        with Lease(Path("/")), _group(["bash", str(DEBIAN_SCRIPT)], log, told) as starter:
            starter.wait(STOP_PATIENCE_S)
            yield Process(self.name, int(pid_file.read_text()), log)


@dataclass(frozen=True, slots=True)
class Ours:
    """This project's daemon; it takes the lease itself."""

    name: str
    config: str  # TOML

    def why_not(self, ksm: Ksm) -> str | None:
        """It says so itself, when it is started."""
        return None

    @contextmanager
    def running(self, ksm: Ksm, folder: Path) -> Iterator[Watched]:
        """`ksmtuned run`, with nothing of this machine's configuration."""
        config, log = folder / "ksmtuned.toml", folder / "log"
        config.write_text(self.config)
        for name in ("dropins", "run"):
            (folder / name).mkdir()
        command = [sys.executable, "-m", "ksmtuned", "run", "--config", str(config)]
        command += ["--config-dir", str(folder / "dropins"), "--run-dir", str(folder / "run")]
        told = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        with _group(command, log, told) as process:
            yield Process(self.name, process.pid, log)


def parse(name: str) -> Controller:
    """The controller of that name. Errors: UsageError."""
    kind, *rest = name.split(":", 1)
    words = rest[0].split(":") if rest else []
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if kind == "ksmtuned":
        return Ours(name, _config(words))
    if name == "flat-out":
        return Fixed(name, 20000, 1)
    if name == "debian":
        return Debian(name)
    if kind == "advisor" and len(words) == len(numbers) <= 1:
        return Advisor(name, *numbers)
    if kind == "fixed" and len(words) == len(numbers) == 2:
        return Fixed(name, *numbers)
    raise UsageError(f"{name}: no such controller; there are\n{NAMES}")


def _config(words: list[str]) -> str:
    if len(words) == 1 and words[0].endswith(".toml"):
        try:
            return Path(words[0]).read_text()
        except OSError as error:
            raise UsageError(f"{words[0]}: {error.strerror}") from error
    policy, profile = [*words, *("adaptive", "test")[len(words) :]][:2]
    told = f'policy = "{policy}"\nprofile = "{profile}"\n'
    # Debian's script is told the same.
    return told + ("[classic]\nthres_coef = 100\n" if policy == "classic" else "")


@contextmanager
def _group(
    command: list[str], log: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own; at the end nobody of that group is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the contest, which stops things in order
        )
    try:
        yield process
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_PATIENCE_S
        if _signal_group(process.pid, signum):
            while _is_alive(process) and time.monotonic() < deadline:
                time.sleep(0.02)


def _is_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a zombie of ours would still be in its group
    return _signal_group(process.pid, 0)


def _signal_group(group: int, signum: int) -> bool:
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return False
    return True
