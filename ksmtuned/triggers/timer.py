"""Something that is due again and again, by the monotonic clock."""

from __future__ import annotations

import time


class Timer:
    """Due every `interval_s` seconds, first one interval from now. None: never."""

    def __init__(self, interval_s: float | None) -> None:
        self.interval_s = interval_s
        self.restart()

    def restart(self) -> None:
        """Due one interval from now."""
        self._due_s = time.monotonic() + (self.interval_s or 0)

    def hasten(self, delay_s: float) -> None:
        """Due at the latest `delay_s` from now."""
        self._due_s = min(self._due_s, time.monotonic() + delay_s)

    def remaining_s(self) -> float | None:
        """0 when due; None: never."""
        return None if self.interval_s is None else max(0.0, self._due_s - time.monotonic())

    def take(self) -> bool:
        """Is it due? If so, it is due again one interval later; beats that were missed, as in a
        long suspend, are not made up for."""
        now_s = time.monotonic()
        if self.interval_s is None or now_s < self._due_s:
            return False
        following_s = self._due_s + self.interval_s
        self._due_s = following_s if following_s > now_s else now_s + self.interval_s
        return True
