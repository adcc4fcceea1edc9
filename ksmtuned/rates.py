"""What ksmd did between two readings of the host, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ksmtuned.model import Snapshot
from ksmtuned.units import PAGE_BYTES

NS_PER_PAGE = 3500.0  # until it is measured: seen on 6.18, a page compared and half of them merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The counters that only mean something as a difference, at one moment."""

    time_s: float = 0.0  # monotonic
    cpu_s: float = 0.0  # of ksmd; 0 where it is not visible
    full_scans: int = 0
    scanned_pages: int | None = None  # None before 6.6
    visited_pages: int | None = None  # scanned and skipped
    item_pages: int = 0  # pages that ksmd keeps a reverse map item for: all that it has met
    volatile_pages: int = 0
    zero_pages: int = 0  # that became the zero page
    saving_bytes: int = 0
    anon_bytes: int = 0
    arrived_bytes: int | None = None  # to processes that offer theirs; None before 6.14
    cow_pages: int | None = None  # merged pages written to; None before 5.18


def mark(now: Snapshot) -> Mark:
    """This moment's counters."""
    ksm = now.ksm
    counts = (ksm.pages_shared, ksm.pages_sharing, ksm.pages_unshared, ksm.pages_volatile)
    scanned = ksm.pages_scanned
    return Mark(
        time_s=now.monotonic_s,
        cpu_s=now.ksmd_cpu_s or 0.0,
        full_scans=ksm.full_scans or 0,
        scanned_pages=scanned,
        visited_pages=None if scanned is None else scanned + (ksm.pages_skipped or 0),
        item_pages=sum(count or 0 for count in counts),
        volatile_pages=ksm.pages_volatile or 0,
        zero_pages=ksm.ksm_zero_pages or 0,
        saving_bytes=ksm.saving_bytes,
        anon_bytes=now.meminfo.anon_bytes,
        arrived_bytes=now.arrived_bytes,
        cow_pages=now.cow_ksm,
    )


def cpu_share(before: Mark, after: Mark) -> float:
    """Part of one core that ksmd took in between; 0 if no time passed."""
    seconds = after.time_s - before.time_s
    return max(0.0, after.cpu_s - before.cpu_s) / seconds if seconds > 0 else 0.0


def visited(before: Mark, after: Mark) -> int | None:
    """Pages that ksmd came by in between; None before 6.6 (or if the counter was reset)."""
    if before.visited_pages is None or after.visited_pages is None:
        return None
    pages = after.visited_pages - before.visited_pages
    return pages if pages >= 0 else None


def skipped(before: Mark, after: Mark) -> int:
    """Pages that smart_scan passed over in between."""
    came_by = visited(before, after) or 0
    scanned = (after.scanned_pages or 0) - (before.scanned_pages or 0)
    return max(0, came_by - scanned)


def ns_per_page(before: Mark, after: Mark) -> float | None:
    """What a scanned page cost; None if too few were scanned to tell."""
    if before.scanned_pages is None or after.scanned_pages is None:
        return None
    pages = after.scanned_pages - before.scanned_pages
    if pages < 1000:
        return None
    return (after.cpu_s - before.cpu_s) * 1e9 / pages


def grown_bytes(before: Mark, after: Mark) -> int:
    """New memory that may be mergeable: what came to processes that offer theirs, and merged pages
    that were written to. Where the kernel does not say who offers: growth of anonymous memory,
    without deducting what merging gave back meanwhile."""
    if before.arrived_bytes is None or after.arrived_bytes is None:
        saved_bytes = max(0, after.saving_bytes - before.saving_bytes)
        return after.anon_bytes - before.anon_bytes + saved_bytes
    copied = (after.cow_pages or 0) - (before.cow_pages or 0)
    return after.arrived_bytes - before.arrived_bytes + copied * PAGE_BYTES


def less(here: Mark, late_bytes: int) -> Mark:
    """The same moment, as if so much memory had not come yet."""
    arrived = None if here.arrived_bytes is None else here.arrived_bytes - late_bytes
    return replace(here, anon_bytes=here.anon_bytes - late_bytes, arrived_bytes=arrived)


def began_anew(before: Mark, after: Mark) -> bool:
    """Did a counter fall (run=2 resets full_scans) or go away? Then differences mean nothing."""
    pairs = (
        (before.full_scans, after.full_scans),
        (before.visited_pages, after.visited_pages),
        (before.cpu_s, after.cpu_s),
        (before.cow_pages, after.cow_pages),
        (before.arrived_bytes, after.arrived_bytes),
    )
    return any((b is None) != (a is None) or (b or 0) > (a or 0) for b, a in pairs)
