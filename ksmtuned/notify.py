"""Tells the service manager how it stands: sd_notify(3); silent where nobody listens."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from systemd.daemon import notify

from ksmtuned.units import printable

_EXTEND_US = 30_000_000


def watchdog_s() -> float | None:
    """Seconds within which the service manager wants a sign of life; None: it does not ask."""
    with suppress(ValueError):
        usec = int(os.environ.get("WATCHDOG_USEC", "0"))
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if usec > 0 and for_us:
            return usec / 1e6
    return None


class Notifier:
    """Our end of NOTIFY_SOCKET. A message that cannot be sent is no reason to stop."""

    def ready(self, status: str) -> None:
        """Up, or done with reloading."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """What `systemctl status` shows."""
        self._send(_status(status))

    def reloading(self) -> None:
        """A reload begins; ready() ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end begins."""
        self._send("STOPPING=1", _status("giving the kernel its values back"))

    def busy(self) -> None:
        """Alive, and stopping needs more time: as often as wanted, for as long as it takes."""
        self._send("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={_EXTEND_US}")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        with suppress(OSError):
            notify("\n".join(lines))


def _status(text: str) -> str:
    return f"STATUS={printable(text)}"
