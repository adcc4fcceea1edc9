"""Every way in which ksmtuned can fail, each with its one-line text and its exit status."""

from __future__ import annotations

import os
from enum import IntEnum
from errno import EACCES, EBUSY, EINTR, EINVAL, ENOENT, ENOMEM, EPERM, EROFS, errorcode
from pathlib import Path

from ksmtuned.units import printable, size


class ExitStatus(IntEnum):
    """What the shell sees."""

    DONE = 0
    BAD_NEWS = 1  # the command ran and its answer is bad news
    USAGE = 2  # wrong usage or invalid configuration
    NO_KSM = 3  # this kernel has no KSM
    NOT_PERMITTED = 4
    ALREADY_RUNNING = 5
    BUG = 70


class KsmtunedError(Exception):
    """A failure that was foreseen: its text is one line and says what to do."""

    exit_status = ExitStatus.BAD_NEWS
    errno_name: str | None = None  # "EINVAL", where the kernel gave one


class UsageError(KsmtunedError):
    """The command line asks for something that does not exist."""

    exit_status = ExitStatus.USAGE


class ConfigError(KsmtunedError):
    """A configuration file says something that cannot be."""

    exit_status = ExitStatus.USAGE

    def __init__(self, path: Path, key: str | None, problem: str) -> None:
        self.path, self.key, self.problem = path, key, problem
        place = f"{path}: {key}" if key else str(path)
        super().__init__(printable(f"{place}: {problem}"))


class NoKsm(KsmtunedError):
    """The kernel was built without CONFIG_KSM, or its sysfs is not where --root says."""

    exit_status = ExitStatus.NO_KSM

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{printable(str(folder))}: no such folder: this kernel has no KSM (CONFIG_KSM), "
            "or sysfs is not mounted there"
        )


class AlreadyRunning(KsmtunedError):
    """Somebody else holds the lease on this host's KSM."""

    exit_status = ExitStatus.ALREADY_RUNNING

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{printable(str(folder))}: another ksmtuned holds the lock; "
            "see `ksmtuned status`, or stop it first"
        )


class NoSuchGuest(KsmtunedError):
    """No guest, or more than one, answers to what was typed."""


class GuestGone(KsmtunedError):
    """The guest ended while it was worked on."""

    def __init__(self, guest: str, meanwhile: str) -> None:
        super().__init__(printable(f"{guest}: it ended {meanwhile}; no other guest was touched"))


class CannotShare(KsmtunedError):
    """This running guest cannot be taken in or out of KSM. The text says what would work."""

    def __init__(self, guest: str, why: str) -> None:
        super().__init__(printable(f"{guest}: {why}"))


class NoRoom(KsmtunedError):
    """A guest's merged pages would not find room once each has its own memory again."""

    def __init__(self, guest: str, need_bytes: int, place: str, room_bytes: int) -> None:
        super().__init__(
            printable(
                f"{guest}: not taken out of KSM: that needs {size(need_bytes)}, and {place} has "
                f"{size(room_bytes)} to give; nothing was changed; --force does it all the same"
            )
        )


class WrongPeer(KsmtunedError):
    """A socket that is named for a guest belongs to another process: a mistake, or a trap."""


class MonitorBroken(KsmtunedError):
    """QEMU's monitor does not speak, or not as it should: hung up, silent, garbled, too long."""


class MonitorRefused(KsmtunedError):
    """QEMU understood a command and said no."""


class RunDirError(KsmtunedError):
    """RUN_DIR cannot be used: full, read-only, or not ours."""

    def __init__(self, path: Path, error: OSError, consequence: str) -> None:
        self.exit_status = _status_of(error.errno)
        super().__init__(printable(f"{path}: {_strerror(error.errno)}: {consequence}"))


class Garbled(KsmtunedError):
    """A kernel file holds something else than its format says."""

    def __init__(self, path: Path, found: str, wanted: str) -> None:
        super().__init__(printable(f"{path}: {found[:60]!r} is not {wanted}"))


# What helps, by file name ("*": any) and errno.
_HINTS: dict[tuple[str, int], str] = {
    ("pages_to_scan", EINVAL): (
        "the kernel's advisor sets this file; write none to advisor_mode first"
    ),
    ("merge_across_nodes", EBUSY): (
        "pages are merged: it can change only after an unmerge (run=2)"
    ),
    ("max_page_sharing", EBUSY): ("pages are merged: it can change only after an unmerge (run=2)"),
    ("run", ENOMEM): "a guest's memory limit is reached: unmerged in part, ksmd stopped",
    ("run", EINTR): "a signal ended it: unmerged in part, ksmd stopped",
    ("*", EACCES): "run as root",
    ("*", EPERM): "run as root",
    ("*", EROFS): "sysfs is mounted read-only here; a container needs the host's, writable",
    ("*", ENOENT): "this kernel has no such file",
}


class KernelRefused(KsmtunedError):
    """The kernel said no. Carries what was tried, so that a log line is enough to reproduce it."""

    def __init__(
        self, path: Path, errno: int, tried: int | str | None = None, hint: str | None = None
    ) -> None:
        self.path, self.errno, self.tried = path, errno, tried
        self.errno_name = errorcode.get(errno, str(errno))
        self.exit_status = _status_of(errno)
        text = f"{path}: {_strerror(errno)}"
        if tried is not None:
            text += f" (tried {tried})"
        hint = hint or _HINTS.get((path.name, errno)) or _HINTS.get(("*", errno))
        super().__init__(printable(f"{text}: {hint}" if hint else text))

    @property
    def is_missing_right(self) -> bool:
        """Would another user be allowed to?"""
        return self.errno in (EACCES, EPERM)


class WriteBlocked(KsmtunedError):
    """A write has not come back in time; a child still waits for it."""

    def __init__(self, path: Path, tried: int | str) -> None:
        self.path, self.tried = path, tried
        super().__init__(
            printable(
                f"{path}: the kernel has not taken the value yet (tried {tried}): "
                "ksmd finishes its batch first; lower pages_to_scan"
            )
        )


class NotUnmerged(KsmtunedError):
    """Merged pages stay merged, though they were to be given back."""

    def __init__(self, why: str) -> None:
        super().__init__(f"not unmerged: {why}; merged pages stay merged")


class SharingLeftOff(KsmtunedError):
    """Guests that should be in KSM again, and may not be."""

    def __init__(self, who: str) -> None:
        super().__init__(f"sharing was not switched on again ({who}); do that by hand")


class DoesNotFit(KsmtunedError):
    """Unmerging would need more memory than there is."""

    def __init__(self, need_bytes: int, room_bytes: int, reserve_bytes: int) -> None:
        super().__init__(
            f"not unmerged: that needs {size(need_bytes)} and {size(reserve_bytes)} to spare, "
            f"and only {size(room_bytes)} of memory and swap are there; merged pages stay merged"
        )


class LimitTooLow(KsmtunedError):
    """A cgroup's memory limit leaves too little room for the copies that are charged to it."""

    def __init__(self, whose: str, path: Path, need_bytes: int, room_bytes: int) -> None:
        super().__init__(
            printable(
                f"not unmerged: {whose}: that needs {size(need_bytes)}, and {path} leaves only "
                f"{size(room_bytes)}; merged pages stay merged; raise that limit first"
            )
        )


class WriterKilled(KsmtunedError):
    """The child that wrote was killed: out of memory, most likely (mm/ksm.c, run=2)."""

    def __init__(self, path: Path, tried: int | str, signal_number: int) -> None:
        text = f"{path}: the writer was killed by signal {signal_number} (tried {tried})"
        super().__init__(printable(text))


class Withdrawn(KsmtunedError):
    """Whoever asked for it wants it no more."""


class NoAnswer(KsmtunedError):
    """The daemon did not do, or did not tell, what it was asked for."""


class Busy(KsmtunedError):
    """Somebody else is at it."""

    exit_status = ExitStatus.ALREADY_RUNNING


class WriteNotTaken(KsmtunedError):
    """The kernel took the write and reads back something else."""

    def __init__(self, path: Path, tried: int | str, found: int | str | None) -> None:
        self.path, self.tried, self.found = path, tried, found
        super().__init__(printable(f"{path}: reads back {found} (tried {tried})"))


def _status_of(errno: int | None) -> ExitStatus:
    rights = (EACCES, EPERM, EROFS)
    return ExitStatus.NOT_PERMITTED if errno in rights else ExitStatus.BAD_NEWS


def _strerror(errno: int | None) -> str:
    return os.strerror(errno) if errno else "unknown error"
