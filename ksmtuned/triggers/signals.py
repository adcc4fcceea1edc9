"""Signals as something to poll: each arrives as one byte in a pipe."""

from __future__ import annotations

import os
import signal
from types import FrameType

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """The signals that came since last asked. One of a kind: it owns the process's handlers."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in WATCHED:
            signal.signal(number, _ignore)  # a handler that does nothing: only the byte counts

    def fileno(self) -> int:
        """To poll."""
        return self._reader

    def take(self) -> set[signal.Signals]:
        """Which ones came; several of one kind count once."""
        try:
            return {signal.Signals(number) for number in os.read(self._reader, 4096)}
        except BlockingIOError:
            return set()


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
