"""Where messages go: journald with fields under systemd, plain lines on stderr elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum

from ksmtuned.units import printable


class Priority(IntEnum):
    """syslog(3)'s levels, as far as we use them."""

    ERR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


class Log:
    """One line a message. `fields` become journald fields KSMTUNED_NAME=value."""

    def __init__(self) -> None:
        self._to_journal = _stderr_is_journal()
        self._reported: set[str] = set()

    def say(self, text: str, priority: Priority = Priority.INFO, **fields: object) -> None:
        """Log one message."""
        text = printable(text)
        if self._to_journal:
            _send_to_journal(text, priority, fields)
            return
        with suppress(OSError):  # a closed stderr must not end the service
            print(f"ksmtuned: {text}", file=sys.stderr, flush=True)

    def report(self, troubles: Iterable[str]) -> None:
        """Log each trouble that was not there last time: once, until it changes."""
        now = set(troubles)
        for text in sorted(now - self._reported):
            self.say(text, Priority.WARNING)
        self._reported = now


def _stderr_is_journal() -> bool:
    """Did systemd connect our stderr to the journal? Source: systemd.exec(5), JOURNAL_STREAM."""
    try:
        stat = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def _send_to_journal(text: str, priority: Priority, fields: dict[str, object]) -> None:
    from systemd.journal import send  # loads logging: only where it is used

    named = {f"KSMTUNED_{name.upper()}": printable(str(value)) for name, value in fields.items()}
    with suppress(OSError):
        send(text, PRIORITY=str(int(priority)), SYSLOG_IDENTIFIER="ksmtuned", **named)
