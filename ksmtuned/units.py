"""Amounts as people write them, and text made fit to print."""

from __future__ import annotations

import os
import re

PAGE_BYTES: int = os.sysconf("SC_PAGE_SIZE")

_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DURATIONS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes in "2 MiB". Errors: ValueError, with the units that exist."""
    return int(_amount(text, _SIZES, '"2 MiB"'))


def parse_duration(text: str) -> float:
    """Seconds in "60 s". Errors: ValueError, with the units that exist."""
    return _amount(text, _DURATIONS, '"60 s"')


def _amount(text: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] not in units or len(match[1]) > 30:
        raise ValueError(f"a number with one of {', '.join(units)}, like {example}")
    return float(match[1]) * units[match[2]]


def size(amount: float) -> str:
    """Bytes for people: "3.0 GiB", "512 B"; signed."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(amount) >= _SIZES[unit]:
            return f"{amount / _SIZES[unit]:.1f} {unit}"
    return f"{amount:.0f} B"


def duration(seconds: float) -> str:
    """A length of time for people: "60 s", "2 min", "1.5 h"."""
    for unit in ("d", "h", "min"):
        if seconds >= _DURATIONS[unit] * 2:
            return f"{seconds / _DURATIONS[unit]:.3g} {unit}"
    return f"{seconds:.3g} s"


def printable(text: str) -> str:
    """The text on one line, with control characters and other traps for terminals escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
