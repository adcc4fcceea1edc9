"""The right to write KSM's controls: one holder a host, whatever its RUN_DIR."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress
from errno import EACCES, EPERM
from pathlib import Path
from types import TracebackType

from ksmtuned.errors import AlreadyRunning, KernelRefused, NoKsm
from ksmtuned.host.ksm import FOLDER

# `ksmtuned status` tries the lock for an instant, and a child of a killed daemon may still hold it.
PATIENCE_S = 1.0


class Lease:
    """flock(2) on the KSM folder, held until closed.

    Errors: NoKsm, KernelRefused, AlreadyRunning.
    """

    def __init__(self, root: Path, patience_s: float = PATIENCE_S) -> None:
        self._fd = _open_folder(root)
        deadline = time.monotonic() + patience_s
        while not _try_lock(self._fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                os.close(self._fd)
                raise AlreadyRunning(root / FOLDER)
            time.sleep(0.02)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)


def is_held(root: Path) -> bool:
    """Does somebody hold the lease now? Errors: NoKsm, KernelRefused."""
    fd = _open_folder(root)
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def daemon_pid(root: Path) -> int | None:
    """The process that took the lease, if it listens to USR1, as a daemon does; None: there is no
    such process, or it cannot be seen from here. Source: proc_locks(5), proc_pid_status(5).

    By the kernel's own word: a pid that a file names may be anybody's by now.
    Errors: NoKsm, KernelRefused.
    """
    fd = _open_folder(root)
    try:
        lease = os.fstat(fd)
    finally:
        os.close(fd)
    for pid in _flock_holders(lease.st_ino):
        if _has_open(pid, lease) and _catches(pid, signal.SIGUSR1):
            return pid
    return None


def _flock_holders(inode: int) -> list[int]:
    """Who locked a file with that inode number, on whatever device."""
    pids = []
    for line in _lines(Path("/proc/locks")):
        words = line.split()  # 1: FLOCK ADVISORY WRITE 1234 00:17:12345 0 EOF
        if len(words) >= 6 and words[1] == "FLOCK" and words[3] == "WRITE":
            is_it = words[5].rpartition(":")[2] == str(inode)
            pids += [int(words[4])] if is_it and words[4].isdecimal() else []
    return pids


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    try:
        for name in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found = name.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    except OSError:  # gone, or not ours to look into
        return False
    return False


def _catches(pid: int, number: signal.Signals) -> bool:
    for line in _lines(Path(f"/proc/{pid}/status")):
        key, _, value = line.partition(":")
        if key == "SigCgt":
            return bool(int(value, 16) >> (number - 1) & 1)
    return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _open_folder(root: Path) -> int:
    folder = root / FOLDER
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (EACCES, EPERM):
            raise KernelRefused(folder, error.errno) from error
        raise NoKsm(folder) from error


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
