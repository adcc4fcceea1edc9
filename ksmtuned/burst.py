"""One burst of scanning, as it is remembered: how far it is, what it found, what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ksmtuned import rates
from ksmtuned.model import Phase, Snapshot
from ksmtuned.rates import Mark
from ksmtuned.units import PAGE_BYTES

NOISE_BYTES = 16 * 2**20  # anonymous memory of any host moves by so much
HOPE_RATIO = 0.5  # of new memory that may merge, until it is seen
PROBE_FIRST_S = 120.0  # until the first look after a burst whether anything changed unseen
_GAUGE_S = 0.2  # the least time over which a page's cost is measured
_REWRITTEN_RATIO = 0.03  # of the merged pages written to since: guests were changed in place
_SPARSE_NS = 100_000.0  # a page cannot cost so much: ksmd walks an empty mapping (before 6.18)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptivePast:
    """What the law remembers. Small, and plain values only."""

    phase: Phase = Phase.WATCH
    begun: Mark = field(default_factory=Mark)  # when the phase began
    last: Mark = field(default_factory=Mark)  # the tick before
    known: Mark = field(default_factory=Mark)  # when all memory had last been scanned
    passed: Mark = field(default_factory=Mark)  # the last end of a pass
    is_unknown: bool = True  # nothing was ever scanned to the end
    newest_start: int = 0  # start time of the newest guest that is accounted for
    grew_s: float = 0.0  # when memory last grew
    peak_bytes_s: float = 0.0  # the fastest that it grew in this settling
    gauge: Mark = field(default_factory=Mark)  # since when a page's cost is measured
    passes: int = 0  # ends of passes in this burst
    wanted_passes: int = 2
    is_probe: bool = False
    is_paused: bool = False  # a burst was broken off, since memory was short no longer
    is_thorough: bool = False  # this pass leaves no page out
    is_landing: bool = False
    landing_s: float = 0.0  # since when
    is_at_boundary: bool = True  # ksmd's cursor stands between two passes
    zeroed_pages: int = 0  # that became the zero page in the pass before the last
    visits: int = 0  # pages visited in one pass
    pass_cpu_s: float = 0.0
    pass_s: float = 0.0
    ns_per_page: float = rates.NS_PER_PAGE
    probe_s: float = PROBE_FIRST_S
    scarcity: float = 1.0  # the most under which a verdict was found since memory last came
    smart_scan: int | None = None  # as it was before us
    verdict: str = "nothing was scanned yet"


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
        found = share / (1 - share) * sleep_ns / max(1, now.ksm.pages_to_scan or 1)
    if not found:
        return past
    lately = min(1e6, max(100.0, (past.ns_per_page + found) / 2))
    return replace(past, ns_per_page=lately, gauge=here)


def after_passes(here: Mark, past: AdaptivePast, ended: int) -> AdaptivePast:
    before = past.passed
    visits = rates.visited(before, here)
    # The pass ended some time since the last tick: in the middle, for want of better.
    since = (rates.visited(past.last, here) or 0) // 2
    return replace(
        past,
        passes=past.passes + ended,
        visits=past.visits if visits is None else (visits - since) // ended,
        pass_cpu_s=(here.cpu_s - before.cpu_s) / ended,
        pass_s=(here.time_s - before.time_s) / ended,
    )


def left_s(here: Mark, past: AdaptivePast, share: float) -> float:
    """Until the pass under way ends, as far as one can tell."""
    gone = rates.visited(past.passed, here)
    if gone is not None:
        new_pages = max(0, rates.grown_bytes(past.known, here)) // PAGE_BYTES
        whole = past.visits if past.passes else past.visits + new_pages
        return max(0, whole - gone) * past.ns_per_page / 1e9 / max(0.05, share)
    return max(0.0, past.pass_s - (here.time_s - past.passed.time_s))


def progress(here: Mark, past: AdaptivePast) -> float | None:
    gone = rates.visited(past.passed, here)
    if gone is None or not past.visits:
        return None
    in_pass = min(1.0, gone / past.visits)
    return min(1.0, (past.passes + in_pass) / max(past.wanted_passes, past.passes + 1))


def hit_ratio(here: Mark, past: AdaptivePast) -> float:
    """How much of what was met in this burst, or else ever, has merged."""
    met = (here.item_pages - past.begun.item_pages) * PAGE_BYTES
    saved = here.saving_bytes - past.begun.saving_bytes
    if met < NOISE_BYTES or past.passes < 2:  # at a first visit nothing merges yet
        met, saved = here.item_pages * PAGE_BYTES, here.saving_bytes
    return min(1.0, max(0.02, saved / met)) if met > 0 else HOPE_RATIO


def is_rewritten(here: Mark, past: AdaptivePast) -> bool:
    written = here.cow_pages - past.known.cow_pages
    merged = past.known.saving_bytes // PAGE_BYTES
    return written > 1000 and written > merged * _REWRITTEN_RATIO


def is_idle(here: Mark, past: AdaptivePast) -> bool:
    """Nothing is registered: ksmd sleeps though it may run."""
    for_s = here.time_s - past.passed.time_s
    scanned = rates.visited(past.passed, here)
    is_still = rates.cpu_share(past.passed, here) < 0.001 if scanned is None else scanned == 0
    return for_s > 1.0 and is_still and rates.cpu_share(past.passed, here) < 0.02


def is_sparse(here: Mark, past: AdaptivePast) -> bool:
    scanned = rates.visited(past.passed, here)
    cpu_s = here.cpu_s - past.passed.cpu_s
    return scanned is not None and cpu_s > 2.0 and cpu_s * 1e9 > _SPARSE_NS * max(1, scanned)


def why_sparse(here: Mark, past: AdaptivePast) -> str:
    cpu_s = here.cpu_s - past.passed.cpu_s
    scanned = rates.visited(past.passed, here)
    return f"{cpu_s:.1f} CPU s for {scanned} pages: ksmd walks an empty mapping"
