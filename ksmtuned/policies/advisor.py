"""Hand the pace to the kernel's scan-time advisor, and look after its weak start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf

from ksmtuned.model import ADVISOR_OFF, ADVISOR_ON, Code, Decision, Phase, Settings, Snapshot
from ksmtuned.rates import NS_PER_PAGE, Mark, mark, ns_per_page
from ksmtuned.units import PAGE_BYTES, duration, size

START_TICK_S = 2.0  # between two looks while the advisor starts
MODE_TICK_S = 0.2  # between the two writes of a restart
RESTART_S = 30.0  # between two restarts, at least
START_PASSES = 3  # the one under way when memory came, and two that visit all of it
SLOW_RATIO = 2.0  # a pass that takes so much longer than it could is a stall
FEW_RATIO = 0.25  # of min_pages_to_scan: the advisor never chose so little by a true measure
GROWN_RATIO = 1.5  # so much more memory than at the start makes it a new start
HELD_RATIO = 1.25  # a constant pace moves only by more than this
ROUNDING_S = 0.004  # a sleep ends at a timer tick, often 4 ms long
USUAL_SLEEP_MS = 20  # the kernel's default; without a sleep, ksmd takes a whole core
MEASURE_WEIGHT = 0.3  # of the newest measure of a page's cost
NS_LEAST, NS_MOST = 200.0, 50_000.0  # a measure outside is no cost of a page


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The advisor's last start: between which bounds, and since when over how much memory."""

    full_scans: int
    first_scans: int  # at the first start with this memory
    population_pages: int  # then
    min_pages: int  # the batch that it starts with
    max_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvisorPast:
    """What the law remembers. Small, and plain values only."""

    last: Mark | None = None  # the tick before
    passed: Mark | None = None  # the last end of a pass that we saw
    passed_before: Mark | None = None  # and the one before
    start: Start | None = None
    is_asked: bool = False  # the last decision asked for scan-time
    restart_s: float | None = None  # monotonic
    ns_per_page: float = NS_PER_PAGE
    held_pages: int | None = None  # the constant pace, where there is no advisor


Outcome = tuple[Decision, AdvisorPast]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a pass has to do, and what that takes at a pace."""

    population_pages: int  # that a pass visits, at most
    page_s: float  # CPU time for one of them
    sleep_s: float  # between two batches; never 0
    wanted_sleep_ms: int | None  # to write, where there is none: no batch would keep to a limit

    def pass_s(self, pages: int) -> float:
        """What a pass takes at so many pages per batch."""
        if not pages:
            return inf if self.population_pages else 0.0
        return self.population_pages * ((self.sleep_s + ROUNDING_S) / pages + self.page_s)

    def cpu_pct(self, pages: int) -> float:
        """Percent of a core that ksmd takes at so many pages per batch."""
        busy_s = pages * self.page_s
        return 100 * busy_s / (busy_s + self.sleep_s)

    def pages_for_pass(self, seconds: float) -> float:
        """The batch with which a pass takes so long; infinite if no batch is enough."""
        if not self.population_pages:
            return 0.0
        spare_s = seconds / self.population_pages - self.page_s
        return ceil((self.sleep_s + ROUNDING_S) / spare_s) if spare_s > 0 else inf

    def pages_for_cpu(self, cpu_pct: float) -> float:
        """The batch with which ksmd takes so much of a core; infinite if every one takes less."""
        share = cpu_pct / 100
        return self.sleep_s * share / (1 - share) / self.page_s if share < 1 else inf

    def words(self, pages: int) -> str:
        """A pace for people: "500 pages per 20 ms, 42 s for a pass over 4.0 GiB"."""
        takes_s = self.pass_s(pages)
        takes = duration(round(takes_s, 1 if takes_s < 10 else None)) if takes_s < inf else "never"
        memory = size(self.population_pages * PAGE_BYTES)
        return f"{pages} pages per {self.sleep_s * 1000:.0f} ms, {takes} for a pass over {memory}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisor:
    """run=1, advisor_mode=scan-time, and a start that does not take hours.

    population = pages met in the last pass + anonymous memory that came since the one before;
                 until two passes were seen: all anonymous memory
    seed       = the batch with which a pass takes target_scan_time, or max_cpu % of a core if
                 that is less, within min_pages_to_scan..max_pages_to_scan
    stalled    = a pass takes over twice as long as the target and as the seed would, or the batch
                 is a small part of min_pages_to_scan
    The advisor starts at advisor_min_pages_to_scan and moves only when a pass ends. Its first
    measure counts all that ksmd ever used: after a tiny first pass, 500 pages become 20. Started
    inside a pass, it takes that pass to have begun at boot, and overshoots: until it has ended,
    advisor_max_pages_to_scan keeps max_cpu. Source: mm/ksm.c, scan_time_advisor().
    """

    target_scan_time: int = 200  # seconds a pass
    max_cpu: int = 70  # percent of one core
    min_pages_to_scan: int = 500
    max_pages_to_scan: int = 30000
    interval_s: float = 10.0
    guest_memory: str = "rss"
    needs_daemon: bool = False  # the kernel's advisor keeps to its limits by itself
    follows_events: bool = True

    def start(self) -> AdvisorPast:
        """Nothing known."""
        return AdvisorPast()

    def unattended(self, now: Snapshot) -> Decision:
        """The same as with a daemon: the kernel goes on alone."""
        return self.decide(now, self.start())[0]

    def decide(self, now: Snapshot, past: AdvisorPast) -> Outcome:
        """One look at the host."""
        here = mark(now)
        if now.ksm.full_scans is None and past.last:
            here = replace(here, full_scans=past.last.full_scans)  # unread for a moment
        past = _followed(past, here)
        load = _load(now, here, past)
        step = {None: self._without_advisor, ADVISOR_ON: self._follow}
        decide = step.get(now.ksm.advisor_mode, self._enter)
        decision, past = decide(now, here, load, past)
        return decision, replace(past, last=here)

    # -- the kernel has an advisor ---------------------------------------------------------------

    def _enter(self, now: Snapshot, here: Mark, load: Load, past: AdvisorPast) -> Outcome:
        """From none to scan-time, with a seed."""
        if past.is_asked and past.start:
            start = replace(past.start, full_scans=here.full_scans)
            reason = "advisor_mode is none though scan-time was asked for: nothing adapts the pace"
            decision = self._decision(load, start, Code.ADVISOR_START, reason)
            return decision, replace(past, start=start)
        start = self._start(here, load, past.start)
        pace = load.words(start.min_pages)
        reason = f"the kernel's advisor starts at {pace}, {self._limit(load)}"
        decision = self._decision(load, start, Code.ADVISOR_START, reason, START_TICK_S)
        return decision, replace(past, start=start, is_asked=True)

    def _follow(self, now: Snapshot, here: Mark, load: Load, past: AdvisorPast) -> Outcome:
        """scan-time: watch over the first passes, then leave it alone."""
        pace = load.words(now.ksm.pages_to_scan or 0) + f"; the target is {self.target_scan_time} s"
        start = past.start or self._start(here, load, None)
        is_weak = here.full_scans - start.first_scans < START_PASSES
        # Where there is no start yet, somebody else had it started before us.
        is_due = is_weak or _is_grown(load, start)  # later, the advisor's swings are its own
        is_rested = past.restart_s is None or here.time_s - past.restart_s >= RESTART_S
        if past.start and is_due and is_rested and self._is_stalled(now, load):
            return self._restart(here, past, pace)
        reason = f"the kernel's advisor scans {pace}"
        tick_s = START_TICK_S if is_weak else None
        bounds = start if here.full_scans == start.full_scans else None
        decision = self._decision(load, bounds, Code.ADVISOR, reason, tick_s)
        return decision, replace(past, start=start, is_asked=True)

    def _restart(self, here: Mark, past: AdvisorPast, pace: str) -> Outcome:
        """First to none; the next look finds that, and enters again with a new seed."""
        reason = f"the kernel's advisor has stalled at {pace}: start it again"
        settings = Settings(run=1, advisor_mode=ADVISOR_OFF)
        decision = _scan(settings, Code.ADVISOR_RESTART, reason, MODE_TICK_S)
        return decision, replace(past, is_asked=False, restart_s=here.time_s)

    def _is_stalled(self, now: Snapshot, load: Load) -> bool:
        """Will the pass under way take much longer than it has to?"""
        pages = now.ksm.pages_to_scan
        if now.ksm.value("run") != 1 or pages is None:
            return False
        takes_s, could_s = load.pass_s(pages), load.pass_s(self._seed_pages(load))
        if pages < self.min_pages_to_scan * FEW_RATIO:
            return takes_s > max(RESTART_S, could_s)
        return takes_s > SLOW_RATIO * max(could_s, self.target_scan_time)

    def _start(self, here: Mark, load: Load, before: Start | None) -> Start:
        seed = self._seed_pages(load)
        most = max(seed, int(min(self.max_pages_to_scan, load.pages_for_cpu(self.max_cpu))))
        start = Start(
            full_scans=here.full_scans,
            first_scans=here.full_scans,
            population_pages=load.population_pages,
            min_pages=seed,
            max_pages=most,
        )
        if before is None or _is_grown(load, before):
            return start
        first, population = before.first_scans, before.population_pages
        return replace(start, first_scans=first, population_pages=population)

    def _decision(
        self,
        load: Load,
        start: Start | None,
        code: Code,
        reason: str,
        next_tick_s: float | None = None,
    ) -> Decision:
        """scan-time with the configured bounds; until the first pass ends, with the start's."""
        settings = Settings(
            run=1,
            sleep_millisecs=load.wanted_sleep_ms,
            advisor_mode=ADVISOR_ON,
            advisor_max_cpu=self.max_cpu,
            advisor_target_scan_time=self.target_scan_time,
            advisor_min_pages_to_scan=start.min_pages if start else self.min_pages_to_scan,
            advisor_max_pages_to_scan=start.max_pages if start else self.max_pages_to_scan,
        )
        return _scan(settings, code, reason, next_tick_s)

    # -- it has none -----------------------------------------------------------------------------

    def _without_advisor(self, now: Snapshot, here: Mark, load: Load, past: AdvisorPast) -> Outcome:
        """A constant pace, moved only where the memory or the cost of a page did."""
        if "advisor_mode" in now.unread:
            reason = "advisor_mode cannot be read: the pace stays as it is"
            return _scan(Settings(run=1), Code.NO_ADVISOR, reason), past
        pages = int(min(self._seed_pages(load), load.pages_for_cpu(self.max_cpu)))
        held = past.held_pages
        if held and held / HELD_RATIO <= pages <= held * HELD_RATIO:
            pages = held
        reason = (
            f"this kernel has no advisor: {load.words(pages)} (target {self.target_scan_time} s), "
            f"about {load.cpu_pct(pages):.0f} % of a core (at most {self.max_cpu} %)"
        )
        settings = Settings(run=1, pages_to_scan=pages, sleep_millisecs=load.wanted_sleep_ms)
        held_past = replace(past, held_pages=pages, start=None, is_asked=False)
        return _scan(settings, Code.NO_ADVISOR, reason), held_past

    # -- the seed --------------------------------------------------------------------------------

    def _seed_pages(self, load: Load) -> int:
        """The batch to start with: for the target, within the budget, between the bounds."""
        most = min(self._wanted_pages(load), self.max_pages_to_scan)
        return max(self.min_pages_to_scan, int(most))

    def _wanted_pages(self, load: Load) -> float:
        return min(load.pages_for_pass(self.target_scan_time), load.pages_for_cpu(self.max_cpu))

    def _limit(self, load: Load) -> str:
        """What decided the seed."""
        wanted = self._wanted_pages(load)
        if wanted <= self.min_pages_to_scan:
            return "the least that min_pages_to_scan allows"
        if wanted >= self.max_pages_to_scan:
            return "the most that max_pages_to_scan allows"
        if wanted < load.pages_for_pass(self.target_scan_time):
            return f"the most that max_cpu ({self.max_cpu} %) allows"
        return "as target_scan_time asks"


def _scan(
    settings: Settings, code: Code, reason: str, next_tick_s: float | None = None
) -> Decision:
    return Decision(
        settings=settings, phase=Phase.SCAN, code=code, reason=reason, next_tick_s=next_tick_s
    )


def _followed(past: AdvisorPast, here: Mark) -> AdvisorPast:
    """The past, with what ksmd did since the last tick."""
    last = past.last
    if last is None:
        return past
    cost_ns = ns_per_page(last, here)
    if cost_ns is not None and NS_LEAST <= cost_ns <= NS_MOST:
        mean_ns = (1 - MEASURE_WEIGHT) * past.ns_per_page + MEASURE_WEIGHT * cost_ns
        past = replace(past, ns_per_page=mean_ns)
    start = past.start
    if start and here.full_scans < start.full_scans:  # an unmerge resets the counter
        scans = here.full_scans
        past = replace(past, start=replace(start, full_scans=scans, first_scans=scans))
    if here.full_scans > last.full_scans:
        past = replace(past, passed=here, passed_before=past.passed)
    return past


def _load(now: Snapshot, here: Mark, past: AdvisorPast) -> Load:
    return Load(
        population_pages=_population_pages(here, past),
        page_s=past.ns_per_page / 1e9,
        sleep_s=(now.ksm.sleep_millisecs or USUAL_SLEEP_MS) / 1000,
        wanted_sleep_ms=USUAL_SLEEP_MS if now.ksm.sleep_millisecs == 0 else None,
    )


def _population_pages(here: Mark, past: AdvisorPast) -> int:
    """What a pass visits, at most. What comes during one pass may be met in the next only."""
    everything = _anon_pages(here)
    if past.passed is None or past.passed_before is None:
        return max(everything, here.item_pages)
    grown = max(0, everything - _anon_pages(past.passed_before))
    return max(here.item_pages, min(everything, past.passed.item_pages + grown))


def _anon_pages(here: Mark) -> int:
    """All anonymous memory, merged pages in full; 0 where meminfo does not say."""
    return (here.anon_bytes + here.saving_bytes) // PAGE_BYTES if here.anon_bytes else 0


def _is_grown(load: Load, start: Start) -> bool:
    return load.population_pages > start.population_pages * GROWN_RATIO
