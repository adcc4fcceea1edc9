"""How far a burst of scanning is, what it found, what it costs.

A *lap* is one time around ksmd's list, from wherever its cursor stands: everything that was there
at the start is visited once. The kernel puts a new process just behind the cursor, so that it is
met at the end of a lap and merged at the end of the next, wherever a pass begins (mm/ksm.c,
__ksm_enter).
"""

from __future__ import annotations

from dataclasses import replace
from math import exp2

from ksmtuned import rates
from ksmtuned.growth import NOISE_BYTES, AdaptivePast, is_rewritten, ring_pages, unmet_pages
from ksmtuned.model import Phase, Snapshot
from ksmtuned.rates import Mark
from ksmtuned.units import PAGE_BYTES

HOPE_RATIO = 0.5  # of new memory that may merge, until it is seen
_GAUGE_S = 0.2  # the least time over which a page's cost is measured
_LAP_NS = 2000.0  # a page in a lap, until one was measured
_FOREIGN_RATIO, _DOUBT_STEP, _DOUBT_MOST = 0.1, 8, 64
_EVIDENCE_PAGES = 16384  # visited twice: before that, how many merge is chance
_GUEST_BYTES = 512 * 2**20  # a small guest
_SPARSE_NS = 100_000.0  # a page cannot cost so much: ksmd walks an empty mapping (before 6.18)


def is_lapped(mark: Mark, here: Mark, past: AdaptivePast, laps: int = 1) -> bool:
    """Has everything been visited so often that was there at that mark?"""
    ends = laps + 1 if mark.item_pages else laps  # never visited: the cursor stood at the head
    gone = rates.visited(mark, here)
    is_round = gone is not None and gone >= laps * ring_pages(here, past)
    return is_round or here.full_scans - mark.full_scans >= ends


def is_done(here: Mark, past: AdaptivePast) -> bool:
    """Has everything that counts been visited twice? What was rewritten in place is not met for
    the first time, and growth that ksmd never met is not for it: one lap shows that. Twins without
    a merged page find each other within one pass only, from the head on (the unstable tree)."""
    if past.is_thorough:
        return here.full_scans - past.grew.full_scans >= 2
    laps = 2 if is_rewritten(here, past) else 1
    return is_lapped(past.grew, here, past, laps) and is_lapped(past.met, here, past)


def is_lap_over(here: Mark, past: AdaptivePast) -> bool:
    """The lap under way; before 6.6 a pass."""
    if here.visited_pages is None:
        return here.full_scans > past.lap.full_scans
    return is_lapped(past.lap, here, past)


def after_lap(here: Mark, past: AdaptivePast) -> AdaptivePast:
    """The next lap begins; what the last one cost, and how much merges."""
    hit = past.hit
    if past.ripe_pages >= _EVIDENCE_PAGES:
        hit = min(1.0, max(0.02, past.saved_bytes / (past.ripe_pages * PAGE_BYTES)))
    past = replace(
        doubted(here, past),
        laps=past.laps + 1,
        lap_pages=ring_pages(here, past),
        lap_cpu_s=here.cpu_s - past.lap.cpu_s,
        hit=hit,
    )
    return lap_begun(here, past)


def doubted(here: Mark, past: AdaptivePast) -> AdaptivePast:
    """Where the kernel does not say who offers memory: was the growth before this lap for ksmd?
    Other programs grow, too."""
    due_bytes = past.due_pages * PAGE_BYTES
    if here.arrived_bytes is not None or due_bytes < NOISE_BYTES or is_rewritten(here, past):
        return past
    is_foreign = past.met_pages - past.ripe_pages < _FOREIGN_RATIO * past.due_pages
    return replace(past, doubt=min(_DOUBT_MOST, past.doubt * _DOUBT_STEP) if is_foreign else 1)


def lap_begun(here: Mark, past: AdaptivePast) -> AdaptivePast:
    """From here all pages are visited once more."""
    due_pages = unmet_pages(here, past)
    return replace(past, lap=here, ripe_pages=past.met_pages, due_pages=due_pages)


def lap_cost_s(here: Mark, past: AdaptivePast) -> float:
    """CPU seconds of a lap that would begin now."""
    ring = ring_pages(here, past)
    if past.lap_pages:
        return past.lap_cpu_s * ring / past.lap_pages
    return ring * _LAP_NS / 1e9


def left_pages(here: Mark, past: AdaptivePast) -> int | None:
    """To visit until all that is known of has been visited twice; None before 6.6."""
    since_growth, since_met = rates.visited(past.grew, here), rates.visited(past.met, here)
    if since_growth is None or since_met is None:
        return None
    ring = ring_pages(here, past)
    if past.is_probe or unmet_pages(here, past) * PAGE_BYTES < NOISE_BYTES:
        return max(0, ring - min(since_growth, since_met))
    return max(0, 2 * ring - since_growth)


def left_s(here: Mark, past: AdaptivePast, share: float) -> float:
    """Until it is done at that share of a core; 1 s where nobody can tell."""
    left = left_pages(here, past)
    return 1.0 if left is None else left * past.ns_per_page / 1e9 / max(0.05, share)


def progress(here: Mark, past: AdaptivePast) -> float | None:
    """Of the burst, as far as one can tell: 0 to 1."""
    left, gone = left_pages(here, past), rates.visited(past.begun, here)
    if left is None or gone is None:
        return None
    return gone / max(1, gone + left)


# -- what it costs and finds ----------------------------------------------------------------------


def measured(now: Snapshot, here: Mark, past: AdaptivePast) -> AdaptivePast:
    """What a page costs, in nanoseconds of ksmd's CPU, as lately seen."""
    if past.phase is not Phase.BURST:
        return replace(past, gauge=here)
    if here.time_s - past.gauge.time_s < _GAUGE_S:
        return past
    found = rates.ns_per_page(past.gauge, here)
    if here.scanned_pages is None:
        share = min(0.98, rates.cpu_share(past.gauge, here))
        sleep_ns = (now.ksm.sleep_millisecs or 1) * 1e6
        # A batch ends where a pass does.
        pages = min(now.ksm.pages_to_scan or 1, ring_pages(here, past))
        found = share / (1 - share) * sleep_ns / max(1, pages)
    if not found:
        return past
    # Dearer at once, cheaper by and by: the budget is a ceiling.
    lately = min(1e6, max(100.0, found, (past.ns_per_page + found) / 2))
    return replace(past, ns_per_page=lately, gauge=here)


def hit_ratio(here: Mark, past: AdaptivePast) -> float:
    """How much of what was met in this burst, or else ever, has merged."""
    met, saved = past.met_pages * PAGE_BYTES, past.saved_bytes
    if met < NOISE_BYTES:
        met, saved = here.item_pages * PAGE_BYTES, here.saving_bytes
    return min(1.0, max(0.02, saved / met)) if met > 0 else HOPE_RATIO


def left_behind(here: Mark, past: AdaptivePast) -> tuple[float, float]:
    """What one whole pass over every page may still find: bytes, and its CPU seconds.

    The twins of new pages may be among the older ones that smart_scan left out, or beyond the head.
    One guest that merges poorly may want its second; six have none.
    """
    left_out = rates.skipped(past.lap, here)
    alone = past.met_pages * (1 - hit_ratio(here, past))
    if past.met_pages < past.begun.item_pages:
        alone = min(alone, left_out)
    guests = past.met_pages * PAGE_BYTES / _GUEST_BYTES
    hope = HOPE_RATIO * exp2(-max(0.0, guests - 1.0) / 1.2)
    lap_s = max(past.lap_cpu_s, here.cpu_s - past.lap.cpu_s)
    lap_s += left_out * past.ns_per_page / 1e9
    return alone * PAGE_BYTES * hope, 1.5 * lap_s  # up to two laps, from here to the pass's end


def is_idle(here: Mark, past: AdaptivePast) -> bool:
    """Nothing is registered: ksmd sleeps though it may run."""
    for_s = here.time_s - past.lap.time_s
    scanned = rates.visited(past.lap, here)
    is_still = rates.cpu_share(past.lap, here) < 0.001 if scanned is None else scanned == 0
    return for_s > 1.0 and is_still and rates.cpu_share(past.lap, here) < 0.02


def is_sparse(here: Mark, past: AdaptivePast) -> bool:
    """Does ksmd walk an empty mapping?"""
    scanned = rates.visited(past.lap, here)
    cpu_s = here.cpu_s - past.lap.cpu_s
    return scanned is not None and cpu_s > 2.0 and cpu_s * 1e9 > _SPARSE_NS * max(1, scanned)


def why_sparse(here: Mark, past: AdaptivePast) -> str:
    """In words, with figures."""
    cpu_s = here.cpu_s - past.lap.cpu_s
    scanned = rates.visited(past.lap, here)
    return f"{cpu_s:.1f} CPU s for {scanned} pages: ksmd walks an empty mapping"
