"""Whether the copies of merged pages would fit: into the host, and under every cgroup's limit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ksmtuned.errors import DoesNotFit, KsmtunedError, LimitTooLow
from ksmtuned.model import Meminfo
from ksmtuned.units import size

# Kept free beyond the need: allocators start to stall, and guests to swap, before the last page.
_RESERVE_RATIO = 0.02  # of RAM


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A cgroup's memory limit, and what would be charged to it."""

    path: Path  # the file that says so
    whose: str  # guests and other processes below it, for people
    need_bytes: int
    room_bytes: int  # limit - charged so far

    @property
    def fits(self) -> bool:
        """Is there room?"""
        return self.need_bytes <= self.room_bytes

    @property
    def spare_bytes(self) -> int:
        """What would be left, signed."""
        return self.room_bytes - self.need_bytes

    def __str__(self) -> str:
        verdict = "it fits" if self.fits else "it does not fit"
        need, room = size(self.need_bytes), size(self.room_bytes)
        return f"{self.whose}: needs {need}, {self.path} leaves {room}: {verdict}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """What unmerging needs, and what there is.

    unknown: why some limits could not be compared; empty: all were.
    """

    need_bytes: int
    room_bytes: int  # available memory and free swap
    reserve_bytes: int
    limits: tuple[Limit, ...] = ()
    unknown: str = ""

    @property
    def problems(self) -> tuple[KsmtunedError, ...]:
        """Why it does not fit: the host first, then the tightest limit; empty: it fits."""
        found: list[KsmtunedError] = []
        if self.need_bytes and self.need_bytes + self.reserve_bytes > self.room_bytes:
            found.append(DoesNotFit(self.need_bytes, self.room_bytes, self.reserve_bytes))
        tight = [limit for limit in self.tightest_first() if not limit.fits]
        found += [LimitTooLow(t.whose, t.path, t.need_bytes, t.room_bytes) for t in tight]
        return tuple(found)

    def check(self) -> None:
        """Errors: DoesNotFit, LimitTooLow."""
        for problem in self.problems:
            raise problem

    def tightest_first(self) -> list[Limit]:
        """The limits, least room to spare first."""
        return sorted(self.limits, key=lambda limit: limit.spare_bytes)

    def __str__(self) -> str:
        return (
            f"{size(self.need_bytes)} for the copies and {size(self.reserve_bytes)} to spare; "
            f"{size(self.room_bytes)} of memory and swap are there"
        )


def headroom(
    meminfo: Meminfo, need_bytes: int, limits: tuple[Limit, ...] = (), unknown: str = ""
) -> Headroom:
    """What this host offers to so much need."""
    available = meminfo.available_bytes
    if available is None:
        available = meminfo.free_bytes
    return Headroom(
        need_bytes=need_bytes,
        room_bytes=available + (meminfo.swap_free_bytes or 0),
        reserve_bytes=int(meminfo.total_bytes * _RESERVE_RATIO),
        limits=limits,
        unknown=unknown,
    )
