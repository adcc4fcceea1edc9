"""Signals as something to poll."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """The signals that came since last asked. One of a kind: it owns the process's handlers."""

    def __init__(self) -> None:
        self._came: set[signal.Signals] = set()
        # The pipe only wakes: it may be full, and then a byte is lost, but never what it stood for.
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in WATCHED:
            signal.signal(number, self._note)

    def fileno(self) -> int:
        """To poll."""
        return self._reader

    def take(self) -> set[signal.Signals]:
        """Which ones came; several of one kind count once."""
        with suppress(BlockingIOError):
            while os.read(self._reader, 65536):
                pass
        came, self._came = self._came, set()
        return came

    def _note(self, number: int, _: FrameType | None) -> None:
        self._came.add(signal.Signals(number))
