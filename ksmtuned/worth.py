"""How short memory is, and how much more CPU a GiB of it is worth than usual."""

from __future__ import annotations

from ksmtuned.model import Snapshot
from ksmtuned.units import size

SHORT_RATIO = 0.20  # available, of RAM: below it memory is short
EASY_RATIO = 0.50  # above it memory is plentiful
_HYSTERESIS_RATIO = 0.02  # a scan that shortage began goes on until so much more is there
_PRESSED_PCT = 10.0  # memory pressure that counts as shortage
_DESPERATE_RATIO, _MOST = 0.02, 10.0  # here a GiB is worth ten times as much


def available_ratio(now: Snapshot) -> float:
    """Part of RAM that can be had without swapping; ZFS's cache counts as such."""
    meminfo = now.meminfo
    available = meminfo.available_bytes
    if available is None:
        available = meminfo.free_bytes + meminfo.buffers_bytes + meminfo.cached_bytes
    return min(1.0, (available + meminfo.arc_bytes) / meminfo.total_bytes)


def is_short(now: Snapshot, *, was_short: bool) -> bool:
    """Too little available, or tasks that wait for memory."""
    limit = SHORT_RATIO + (_HYSTERESIS_RATIO if was_short else 0.0)
    return available_ratio(now) < limit or (now.pressure_pct or 0.0) >= _PRESSED_PCT


def why_short(now: Snapshot) -> str:
    """In words, with figures."""
    if available_ratio(now) >= SHORT_RATIO:
        return f"memory pressure {now.pressure_pct or 0.0:.0f} %"
    return f"{_available(now)} available is below {_limit(now)} (20 % of RAM)"


def why_plenty(now: Snapshot) -> str:
    """In words, with figures."""
    limit = f"{_limit(now)} (20 % of RAM)"
    return f"{_available(now)} available is above {limit}: profile production waits"


def _available(now: Snapshot) -> str:
    return size(available_ratio(now) * now.meminfo.total_bytes)


def _limit(now: Snapshot) -> str:
    return size(SHORT_RATIO * now.meminfo.total_bytes)


def scarcity(now: Snapshot, *, is_easy: bool) -> float:
    """1 on an ordinary host; up to 10 as memory runs out, and more under pressure.

    is_easy: half as much while memory is plentiful.
    """
    ratio = available_ratio(now)
    factor = 0.5 if is_easy and ratio > EASY_RATIO else 1.0
    if ratio < SHORT_RATIO:
        span = SHORT_RATIO - _DESPERATE_RATIO
        factor += (_MOST - 1.0) * (SHORT_RATIO - max(ratio, _DESPERATE_RATIO)) / span
    return factor * (1.0 + (now.pressure_pct or 0.0) / 10.0)
