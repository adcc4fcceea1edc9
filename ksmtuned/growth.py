"""What the adaptive law remembers, and how memory grew since all of it was last scanned."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ksmtuned import rates
from ksmtuned.model import Phase, Snapshot
from ksmtuned.rates import Mark
from ksmtuned.units import PAGE_BYTES

NOISE_BYTES = 16 * 2**20  # anonymous memory of any host moves by so much
PROBE_FIRST_S = 120.0  # until the first look after a burst whether anything changed unseen
_CALM_RATIO, _CALM_BYTES_S = 0.15, 8 * 2**20  # growth this slow, against its peak, is calm
_REWRITTEN_RATIO = 0.03  # of the merged pages written to since: guests were changed in place


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


def ring_pages(here: Mark, past: AdaptivePast) -> int:
    """In a lap that would begin now."""
    return max(1, here.item_pages + unmet_pages(here, past))


def is_rewritten(here: Mark, past: AdaptivePast) -> bool:
    """Were many merged pages written to since all was last scanned? Before 5.18 nobody counts
    them: then it is growth that ksmd has nothing new of."""
    if here.cow_pages is None:
        return unmet_pages(here, past) * PAGE_BYTES >= NOISE_BYTES
    written = here.cow_pages - (past.known.cow_pages or 0)
    merged = past.known.saving_bytes // PAGE_BYTES
    return written > 1000 and written > merged * _REWRITTEN_RATIO
