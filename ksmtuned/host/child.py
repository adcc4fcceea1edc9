"""A disposable child for what may block or kill: it does one thing and tells how it went."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from ksmtuned.errors import KernelRefused, KsmtunedError, WriterKilled
from ksmtuned.units import printable

_TEXT_BYTES = 4000  # fits into a pipe, however small the kernel makes it
_FAILED = b"failed: "


class Child:
    """One call of `work` in a process of its own, begun at once.

    It keeps the lease of its parent: while it may still write, nobody else starts to.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            _become(work)
        self._status: int | None = None

    def has_ended(self, timeout_s: float = 0.0) -> bool:
        """Is it over, or is it within the time?"""
        deadline_s = time.monotonic() + timeout_s
        while self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = status
            elif (left_s := deadline_s - time.monotonic()) > 0:
                _wait_for_end(self._pid, left_s)
            else:
                return False
        return True

    def check(self, path: Path, tried: int | str) -> None:
        """Once it has ended: how did it go? Errors: KernelRefused (as it met it), WriterKilled."""
        code = os.waitstatus_to_exitcode(self._status or 0)
        if code < 0:
            raise WriterKilled(path, tried, -code)
        if code > 0:
            raise KernelRefused(path, code, tried)


class TellingChild(Child):
    """A child that tells in words what came of it, or went wrong. Errors: OSError."""

    def __init__(self, work: Callable[[], str]) -> None:
        self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            super().__init__(partial(_tell, work, writer))
        finally:
            os.close(writer)

    def __del__(self) -> None:
        os.close(self._reader)

    def kill(self) -> None:
        """End it, whatever it does: it has taken too long."""
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            self.has_ended(1.0)

    def result(self) -> tuple[str, str | None]:
        """Once it has ended: what it returned, and what went wrong in one line (None: nothing)."""
        code = os.waitstatus_to_exitcode(self._status or 0)
        text = b""
        with suppress(BlockingIOError):
            text = os.read(self._reader, len(_FAILED) + _TEXT_BYTES)
        if text.startswith(_FAILED):
            return "", printable(text.removeprefix(_FAILED).decode(errors="replace"))
        if code < 0:
            return "", f"its child was killed by signal {-code}"
        if code > 0:
            return "", f"its child ended with status {code}"
        return text.decode(errors="surrogateescape"), None


def _tell(work: Callable[[], str], writer: int) -> None:
    try:
        os.write(writer, work().encode(errors="surrogateescape")[:_TEXT_BYTES])
    except KsmtunedError as error:
        os.write(writer, _FAILED + str(error).encode(errors="replace")[:_TEXT_BYTES])


def _wait_for_end(pid: int, timeout_s: float) -> None:
    try:
        fd = os.pidfd_open(pid)
    except OSError:  # before 5.3, or no descriptor left: look again and again
        return time.sleep(min(0.01, timeout_s))
    try:
        poll = select.poll()  # not select(): a thousand guests' descriptors pass FD_SETSIZE
        poll.register(fd, select.POLLIN)
        poll.poll(timeout_s * 1000 + 1)
    finally:
        os.close(fd)


def _become(work: Callable[[], None]) -> None:
    """The child's life. Signals meant for the daemon must not end a write half way."""
    code = 255
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        work()
        code = 0
    except KernelRefused as error:
        code = error.errno
    finally:
        os._exit(code)
