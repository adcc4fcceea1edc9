"""One burst of scanning, as it is remembered: how far it is, what it found, what it costs.

A *lap* is one time around ksmd's list, from wherever its cursor stands: everything that was there
at the start is visited once. The kernel puts a new process just behind the cursor, so that it is
met at the end of a lap and merged at the end of the next, wherever a pass begins (mm/ksm.c,
__ksm_enter).
"""

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
_LAP_NS = 2000.0  # a page in a lap, until one was measured
_CALM_RATIO, _CALM_BYTES_S = 0.15, 8 * 2**20  # growth this slow, against its peak, is calm
_FOREIGN_RATIO, _DOUBT_STEP, _DOUBT_MOST = 0.1, 8, 64
_EVIDENCE_PAGES = 16384  # visited twice: before that, how many merge is chance
_GUEST_BYTES = 512 * 2**20  # a small guest
_REWRITTEN_RATIO = 0.03  # of the merged pages written to since: guests were changed in place
_SPARSE_NS = 100_000.0  # a page cannot cost so much: ksmd walks an empty mapping (before 6.18)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptivePast:
    """What the law remembers. Small, and plain values only."""

    phase: Phase = Phase.WATCH
    last: Mark = field(default_factory=Mark)  # the tick before
    known: Mark = field(default_factory=Mark)  # up to here all memory has been scanned
    begun: Mark = field(default_factory=Mark)  # when this burst, or this watch, began
    lap: Mark = field(default_factory=Mark)  # where the lap under way began
    grew: Mark = field(default_factory=Mark)  # when memory last grew by what is worth a lap
    met: Mark = field(default_factory=Mark)  # when ksmd last met what is worth a second visit
    newest_start: int = 0  # start time of the newest guest that is accounted for
    grew_s: float = 0.0  # when memory last grew fast
    peak_bytes_s: float = 0.0  # the fastest that it grew in this burst
    met_pages: int = 0  # visited for the first time in this burst
    ripe_pages: int = 0  # of them those that the lap under way visits again
    fresh_pages: int = 0  # of them those since `met`
    due_pages: int = 0  # that had come, and were not visited yet, when the lap under way began
    saved_bytes: int = 0  # in this burst; what left with its guest is not deducted
    hit: float | None = None  # how much of what was visited twice has merged
    laps: int = 0  # that ended in this burst
    lap_pages: int = 0  # in the last lap, and its cost
    lap_cpu_s: float = 0.0
    gauge: Mark = field(default_factory=Mark)  # since when a page's cost is measured
    ns_per_page: float = rates.NS_PER_PAGE
    doubt: int = 1  # how many times over growth must pay, as earlier growth was not for ksmd
    is_probe: bool = False
    is_paused: bool = False  # a burst was broken off, since memory was short no longer
    is_again: bool = False  # a lap more than planned, for pages that changed in place
    is_thorough: bool = False  # this lap leaves no page out
    paused_s: float = 0.0  # since when
    probe_s: float = PROBE_FIRST_S
    scarcity: float = 1.0  # the most under which a verdict was found since memory last came
    smart_scan: int | None = None  # as it was before us
    verdict: str = "nothing was scanned yet"


def first(now: Snapshot, here: Mark, past: AdaptivePast) -> AdaptivePast:
    """Nothing is known: what ksmd has no item for was never scanned. What it has items for may have
    changed since, so that a look inside is due at once."""
    there = here.anon_bytes if here.arrived_bytes is None else here.arrived_bytes
    known = rates.less(here, max(0, there - here.item_pages * PAGE_BYTES))
    probe_s = 0.0 if here.item_pages else PROBE_FIRST_S
    past = replace(anew(here, past), known=known, probe_s=probe_s)
    return replace(past, newest_start=_newest(now), smart_scan=now.ksm.smart_scan)


def anew(here: Mark, past: AdaptivePast) -> AdaptivePast:
    """Counters fell or went away: nothing counted before means anything."""
    return replace(
        past, known=here, begun=here, lap=here, grew=here, met=here, gauge=here, last=here
    )


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


# -- growth --------------------------------------------------------------------------------------


def begun(now: Snapshot, here: Mark, past: AdaptivePast) -> AdaptivePast:
    """A burst, or a probe, begins."""
    return replace(
        past,
        begun=here,
        lap=here,
        grew=here,
        met=here,
        newest_start=max(_newest(now), past.newest_start),
        grew_s=here.time_s,
        peak_bytes_s=0.0,
        met_pages=0,
        ripe_pages=0,
        fresh_pages=0,
        due_pages=unmet_pages(here, replace(past, met_pages=0)),
        saved_bytes=0,
        laps=0,
        hit=None,
        is_probe=False,
        is_again=False,
        is_thorough=False,
    )


def followed(here: Mark, past: AdaptivePast) -> AdaptivePast:
    """How fast memory grows, and what ksmd met, since the tick before."""
    seconds = max(1e-3, here.time_s - past.last.time_s)
    bytes_s = rates.grown_bytes(past.last, here) / seconds
    peak_bytes_s = max(past.peak_bytes_s, bytes_s)
    is_fast = bytes_s > max(_CALM_BYTES_S, _CALM_RATIO * peak_bytes_s)
    met_pages = max(0, here.item_pages - past.last.item_pages)
    saved_bytes = max(0, here.saving_bytes - past.last.saving_bytes)
    if rates.grown_bytes(past.grew, here) < 0:  # somebody left: growth counts from there
        fallen = replace(past.grew, anon_bytes=here.anon_bytes, saving_bytes=here.saving_bytes)
        past = replace(past, grew=fallen)
    return replace(
        past,
        peak_bytes_s=peak_bytes_s,
        grew_s=here.time_s if is_fast else past.grew_s,
        met_pages=past.met_pages + met_pages,
        fresh_pages=past.fresh_pages + met_pages,
        saved_bytes=past.saved_bytes + saved_bytes,
    )


def grown(now: Snapshot, here: Mark, past: AdaptivePast) -> AdaptivePast:
    """Memory grew: all of it is to be visited from here on."""
    return replace(past, grew=here, newest_start=max(_newest(now), past.newest_start))


def newcomers_bytes(now: Snapshot, past: AdaptivePast) -> int:
    """Memory of the guests that came since the last growth that counted, where one that left may
    hide it in the sum over the host."""
    if now.arrived_bytes is not None:
        return 0
    return sum(g.memory_bytes for g in now.guests if g.start_time > past.newest_start)


def has_newcomer(now: Snapshot, past: AdaptivePast) -> bool:
    """Is there such a guest?"""
    return newcomers_bytes(now, past) >= NOISE_BYTES


def _newest(now: Snapshot) -> int:
    return max((guest.start_time for guest in now.guests), default=0)


def unmet_pages(here: Mark, past: AdaptivePast) -> int:
    """That came since all was last scanned, and were not visited yet."""
    return max(0, rates.grown_bytes(past.known, here) // PAGE_BYTES - past.met_pages)


# -- laps ----------------------------------------------------------------------------------------


def ring_pages(here: Mark, past: AdaptivePast) -> int:
    """In a lap that would begin now."""
    return max(1, here.item_pages + unmet_pages(here, past))


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


# -- what it found -------------------------------------------------------------------------------


def hit_ratio(here: Mark, past: AdaptivePast) -> float:
    """How much of what was met in this burst, or else ever, has merged."""
    met, saved = past.met_pages * PAGE_BYTES, past.saved_bytes
    if met < NOISE_BYTES:
        met, saved = here.item_pages * PAGE_BYTES, here.saving_bytes
    return min(1.0, max(0.02, saved / met)) if met > 0 else HOPE_RATIO


def hope_left(past: AdaptivePast) -> float:
    """Part of the memory met in this burst, and not merged, whose twins may still be found: one
    guest that merges poorly may want its second, six have none."""
    return HOPE_RATIO * 0.5 ** (max(0.0, past.met_pages * PAGE_BYTES / _GUEST_BYTES - 1.0) / 1.2)


def is_rewritten(here: Mark, past: AdaptivePast) -> bool:
    """Were many merged pages written to since all was last scanned? Before 5.18 nobody counts
    them: then it is growth that ksmd has nothing new of."""
    if here.cow_pages is None:
        return unmet_pages(here, past) * PAGE_BYTES >= NOISE_BYTES
    written = here.cow_pages - (past.known.cow_pages or 0)
    merged = past.known.saving_bytes // PAGE_BYTES
    return written > 1000 and written > merged * _REWRITTEN_RATIO


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
