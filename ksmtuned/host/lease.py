"""The right to write KSM's controls: one holder a host, whatever its RUN_DIR."""

from __future__ import annotations

import fcntl
import os
import time
from errno import EACCES, EPERM
from pathlib import Path
from types import TracebackType

from ksmtuned.errors import AlreadyRunning, KernelRefused, NoKsm
from ksmtuned.host.ksm import FOLDER

# `ksmtuned status` tries the lock for an instant, and a child of a killed daemon may still hold it.
_PATIENCE_S = 1.0


class Lease:
    """flock(2) on the KSM folder, held until closed.

    Errors: NoKsm, KernelRefused, AlreadyRunning.
    """

    def __init__(self, root: Path, patience_s: float = _PATIENCE_S) -> None:
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
