"""Merge as fast as the budget allows when it pays, then stop and watch for the next change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ksmtuned import growth, laps, rates
from ksmtuned.growth import NOISE_BYTES, PROBE_FIRST_S, AdaptivePast
from ksmtuned.laps import HOPE_RATIO
from ksmtuned.model import RUN_SCAN, Code, Decision, Phase, Settings, Snapshot
from ksmtuned.pace import pace, steady
from ksmtuned.rates import Mark, mark
from ksmtuned.units import PAGE_BYTES, duration, size
from ksmtuned.worth import is_short, scarcity, why_plenty, why_short

GIB = 2**30
SETTLE_TICK_S, BURST_TICK_S, NEAR_TICK_S = 0.2, 0.25, 0.05
CALM_S = 0.6  # without growth: memory has settled
GROWTH_MOST_S = 30.0  # what grows for longer is not waited for
# What is sure to be visited again by later laps is worth a lap now only if that is short against
# the time that memory has been growing (and so may go on to).
PATIENCE = 0.8
# After the first ones, so much of such a lap is to be pages visited never or once.
FREE_LAPS, NEW_RATIO = 3, 0.5
PROBE_MOST_S, PROBE_CPU_PCT = 3600.0, 20.0
POOR_RATIO = 0.25  # of new memory that merged: less than one may hope for
MET_LEAST_BYTES = 2**20  # of pages met for the first time, to be worth a look
UNATTENDED_CPU_PCT, UNATTENDED_NS = 5.0, 10_000.0  # nobody will correct it: a page at its dearest


Outcome = tuple[Decision, AdaptivePast]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """Settle, burst, stop when all was visited twice, watch, probe.

    worth     = cpu_seconds_per_gib * scarcity(available memory, pressure)   CPU s per GiB
    whether   : a burst starts if  growth * hope * worth >= the cost of a lap,
                and is prolonged by growth, or by pages met, if  gain * worth >= the CPU since the
                last one that counted
    how fast  : max_cpu % of a core, held by the measured cost of a page
    A page merges at its second visit, so a burst takes two laps from the last growth.
    Source: docs/architecture.md, "The adaptive law".
    """

    max_cpu: float = 30.0  # percent of one core
    cpu_seconds_per_gib: float = 50.0
    is_frugal: bool = True  # scan only while memory is short (profile production)
    is_easy: bool = False  # stop earlier while memory is plentiful (profile desktop)
    interval_s: float = 1.0  # between two looks in a watch
    guest_memory: str = "rss"
    needs_daemon: bool = True
    follows_events: bool = True

    def start(self) -> AdaptivePast:
        """Nothing known: the first look settles what is to be done."""
        return AdaptivePast()

    def decide(self, now: Snapshot, past: AdaptivePast) -> Outcome:
        """One look at the host."""
        here = mark(now)
        if past.last.time_s == 0.0:
            past = growth.first(now, here, past)
        if rates.began_anew(past.last, here):
            past = growth.anew(here, past)
        past = laps.measured(now, here, past)
        step: dict[Phase, Callable[[Snapshot, Mark, AdaptivePast], Outcome]] = {
            Phase.WATCH: self._watch,
            Phase.SETTLE: self._settle,
            Phase.BURST: self._burst,
        }
        decision, after = step[past.phase](now, here, past)
        return decision, replace(after, last=here)

    def unattended(self, now: Snapshot) -> Decision:
        """A pace that may stay without anybody to end it."""
        if not self._may_scan(now, was_scanning=False):
            return self._decision(now, AdaptivePast(), Code.PLENTY, why_plenty(now))
        reason = f"at most {UNATTENDED_CPU_PCT:.0f} % of a core, since no daemon will end it"
        if self.is_frugal:
            reason = f"{why_short(now)}: {reason}"
        dear = AdaptivePast(ns_per_page=UNATTENDED_NS, smart_scan=now.ksm.smart_scan)
        settings = self._pace(now, mark(now), dear, UNATTENDED_CPU_PCT / 100)
        return Decision(settings=settings, phase=Phase.BURST, code=Code.BURST, reason=reason)

    # -- the phases ------------------------------------------------------------------------------

    def _watch(self, now: Snapshot, here: Mark, past: AdaptivePast) -> Outcome:
        """run=0: merged pages stay merged and ksmd costs nothing."""
        if here.anon_bytes < past.known.anon_bytes:  # somebody left: growth counts from there
            past = replace(past, known=replace(past.known, anon_bytes=here.anon_bytes))
        if not self._may_scan(now, was_scanning=False):
            return self._decision(now, past, Code.PLENTY, why_plenty(now)), past
        if past.is_paused:
            away_s = here.time_s - past.paused_s
            past = replace(past, phase=Phase.BURST, is_paused=False)
            return self._scan(now, here, past, f"memory is short again after {duration(away_s)}")
        grown = self._grown_bytes(now, here, past)
        hope = max(grown / past.doubt, growth.newcomers_bytes(now, past)) * HOPE_RATIO
        if self._pays(now, hope, laps.lap_cost_s(here, past)):
            past = replace(growth.begun(now, here, past), phase=Phase.SETTLE)
            why = f"{size(grown)} of new memory: let it settle"
            return self._decision(now, past, Code.SETTLE, why), past
        pause_s = past.begun.time_s + past.probe_s - here.time_s
        if pause_s <= 0 or self._scarcity(now) >= 2 * past.scarcity:
            why = f"{duration(past.probe_s)} are up" if past.probe_s else "KSM was in use before us"
            why = "memory has become scarce" if pause_s > 0 else why
            past = replace(growth.begun(now, here, past), phase=Phase.BURST, is_probe=True)
            return self._scan(now, here, past, f"{why}: one cheap pass")
        reason = f"watching: {past.verdict}; next look inside in {duration(max(1, pause_s))}"
        return self._decision(now, past, Code.WATCH, reason), past

    def _settle(self, now: Snapshot, here: Mark, past: AdaptivePast) -> Outcome:
        """run=0 while new memory still fills."""
        past = self._prolonged(now, here, growth.followed(here, past))
        if not self._is_growing(here, past):
            return self._lap(now, here, past, "new memory has settled")
        if self._is_lap_short(now, here, past):
            return self._lap(now, here, past, "new memory keeps coming")
        grown = size(self._grown_bytes(now, here, past))
        return self._decision(now, past, Code.SETTLE, f"{grown} of new memory, still growing"), past

    def _burst(self, now: Snapshot, here: Mark, past: AdaptivePast) -> Outcome:
        """run=1 until everything was visited twice."""
        if not self._may_scan(now, was_scanning=True):
            past = replace(past, phase=Phase.WATCH, is_paused=True, paused_s=here.time_s)
            why = f"{why_plenty(now)}: stop and watch"
            return self._decision(now, past, Code.WATCH, why), past
        past = self._prolonged(now, here, growth.followed(here, past))
        if laps.is_done(here, past):
            why, more = self._verdict(now, here, past)
            if more is None:
                return self._stop(now, here, past, why)
            return self._scan(now, here, more, why)
        if laps.is_idle(here, past):
            for_s = duration(here.time_s - past.lap.time_s)
            why = f"nothing to scan in {for_s}: no process offers memory"
            return self._stop(now, here, past, why)
        if laps.is_sparse(here, past):
            return self._stop(now, here, past, laps.why_sparse(here, past))
        if not laps.is_lap_over(here, past):
            return self._scan(now, here, past, "")
        past = laps.after_lap(here, past)
        if self._is_growing(here, past) and not self._is_lap_short(now, here, past):
            past = replace(past, phase=Phase.SETTLE)
            why = f"{size(self._grown_bytes(now, here, past))} of new memory, still growing"
            return self._decision(now, past, Code.SETTLE, why), past
        return self._scan(now, here, past, f"pass {past.laps} is done")

    # -- whether ---------------------------------------------------------------------------------

    def _prolonged(self, now: Snapshot, here: Mark, past: AdaptivePast) -> AdaptivePast:
        """Growth, and pages met, count from here on, if that is worth the CPU it adds."""
        hope = HOPE_RATIO if past.hit is None else (HOPE_RATIO + past.hit) / 2
        grown = rates.grown_bytes(past.grew, here) / past.doubt
        is_worth_it = self._pays(now, grown * hope, here.cpu_s - past.grew.cpu_s)
        if is_worth_it or growth.has_newcomer(now, past):
            past = replace(growth.grown(now, here, past), is_probe=False)
        met = past.fresh_pages * PAGE_BYTES * hope
        if self._pays(now, met, here.cpu_s - past.met.cpu_s, least_bytes=MET_LEAST_BYTES):
            past = replace(past, met=here, fresh_pages=0)
        return past

    @staticmethod
    def _is_growing(here: Mark, past: AdaptivePast) -> bool:
        is_new = here.time_s - past.begun.time_s < GROWTH_MOST_S
        return is_new and here.time_s - past.grew_s < CALM_S

    def _is_lap_short(self, now: Snapshot, here: Mark, past: AdaptivePast) -> bool:
        """Is a lap worth its CPU, though memory still grows and will want another?"""
        cost_s = laps.lap_cost_s(here, past)
        growing_s = past.grew_s - past.begun.time_s
        gain_pages = growth.unmet_pages(here, past) + past.met_pages - past.ripe_pages
        gain_bytes = gain_pages * PAGE_BYTES * (past.hit or HOPE_RATIO)
        # What was visited more than three times is left out by smart_scan later, twins or not.
        is_new = past.laps < FREE_LAPS or gain_pages >= NEW_RATIO * growth.ring_pages(here, past)
        is_short = cost_s / self._share(past) <= PATIENCE * growing_s
        return is_new and is_short and self._pays(now, gain_bytes, cost_s)

    def _verdict(
        self, now: Snapshot, here: Mark, past: AdaptivePast
    ) -> tuple[str, AdaptivePast | None]:
        """All was visited twice: is one more lap worth its CPU?"""
        saved = past.saved_bytes
        cost_s = here.cpu_s - past.begun.cpu_s
        what = "look inside" if past.is_probe else "burst"
        found = f"the last {what} saved {size(saved)} for {cost_s:.1f} CPU s"
        is_nothing_new = past.met_pages * PAGE_BYTES < NOISE_BYTES
        is_once = is_nothing_new and not laps.is_lapped(past.grew, here, past, laps=2)
        if is_once and not past.is_again:
            # One lap was enough, as nothing new was met. What had changed by then may be calm
            # now. A skipped page counts as volatile, too (mm/ksm.c takes it out of its tree).
            skipped = rates.skipped(past.begun, here)
            changed = here.volatile_pages - past.known.volatile_pages - skipped
            gain = max(0, changed) * PAGE_BYTES * laps.hit_ratio(here, past)
            if self._pays(now, gain, cost_s) or (past.is_probe and self._pays(now, saved, cost_s)):
                more = growth.grown(now, here, laps.after_lap(here, past))
                return f"{found}: worth another one", replace(more, is_again=True)
        hit = laps.hit_ratio(here, past)
        if past.is_thorough or past.is_probe or hit >= POOR_RATIO:
            return found, None
        # New memory merged poorly: one whole pass that leaves out none, if that is worth it.
        if not self._pays(now, *laps.left_behind(here, past)):
            return found, None
        more = replace(growth.grown(now, here, laps.after_lap(here, past)), is_thorough=True)
        return f"{found}; once more, and leave no page out", more

    def _pays(
        self,
        now: Snapshot,
        gain_bytes: float,
        cost_s: float,
        least_bytes: float = NOISE_BYTES * HOPE_RATIO,
    ) -> bool:
        if gain_bytes < least_bytes:
            return False
        return gain_bytes / GIB * self.cpu_seconds_per_gib * self._scarcity(now) >= cost_s

    def _scarcity(self, now: Snapshot) -> float:
        return scarcity(now, is_easy=self.is_easy)

    def _may_scan(self, now: Snapshot, *, was_scanning: bool) -> bool:
        return not self.is_frugal or is_short(now, was_short=was_scanning)

    def _grown_bytes(self, now: Snapshot, here: Mark, past: AdaptivePast) -> int:
        """Memory that came since all was last scanned. A guest that went hides one that came in
        the sum over the host, so new guests are counted by themselves, too."""
        new = growth.newcomers_bytes(now, past)
        return max(0, new, rates.grown_bytes(past.known, here))

    # -- how fast --------------------------------------------------------------------------------

    def _lap(self, now: Snapshot, here: Mark, past: AdaptivePast, why: str) -> Outcome:
        past = replace(laps.lap_begun(here, past), phase=Phase.BURST)
        return self._scan(now, here, past, why)

    def _share(self, past: AdaptivePast) -> float:
        return min(self.max_cpu, PROBE_CPU_PCT if past.is_probe else 100.0) / 100

    def _scan(self, now: Snapshot, here: Mark, past: AdaptivePast, why: str) -> Outcome:
        share = self._share(past)
        left_s = laps.left_s(here, past, share)
        decision = Decision(
            settings=self._pace(now, here, past, share),
            phase=Phase.BURST,
            code=Code.PROBE if past.is_probe else Code.BURST,
            reason=f"{why or 'scanning'}: at most {share * 100:.0f} % of a core",
            next_tick_s=min(BURST_TICK_S, max(NEAR_TICK_S, left_s)),
            progress=laps.progress(here, past),
            is_routine=not why,
        )
        return decision, past

    def _pace(self, now: Snapshot, here: Mark, past: AdaptivePast, share: float) -> Settings:
        """Everything that is to be set while ksmd scans."""
        wanted = pace(share, past.ns_per_page)
        if now.ksm.value("run") == RUN_SCAN:
            wanted = steady(wanted, now.ksm.pages_to_scan)
        return Settings(
            run=1,
            pages_to_scan=wanted.pages_to_scan,
            sleep_millisecs=wanted.sleep_millisecs,
            smart_scan=self._smart_scan(here, past),
            use_zero_pages=None if now.ksm.ksm_zero_pages is None else 1,
        )

    def _smart_scan(self, here: Mark, past: AdaptivePast) -> int | None:
        """Off where it would find a twin up to 8 passes late: of an older guest's lone page, and
        after guests were changed in place."""
        if past.smart_scan is None:
            return None
        is_off = past.is_thorough or growth.is_rewritten(here, past)
        return 0 if is_off else past.smart_scan

    def _stop(self, now: Snapshot, here: Mark, past: AdaptivePast, why: str) -> Outcome:
        """Back to watching. What came too late stays to be scanned."""
        late_bytes = max(0, rates.grown_bytes(past.grew, here))
        past = past if past.is_probe else laps.doubted(here, past)
        scarce = max(self._scarcity(now), past.scarcity if past.is_probe else 0.0)
        next_s = max(PROBE_FIRST_S, 2 * past.probe_s if past.is_probe else 0.0)
        after = replace(
            past,
            phase=Phase.WATCH,
            begun=here,
            known=rates.less(here, late_bytes),
            scarcity=scarce,
            probe_s=min(next_s, PROBE_MOST_S),
            verdict=why,
        )
        return self._decision(now, after, Code.WATCH, f"{why}: stop and watch"), after

    def _decision(self, now: Snapshot, past: AdaptivePast, code: Code, reason: str) -> Decision:
        """A stop, with its reason."""
        return Decision(
            settings=Settings(run=0),
            phase=past.phase,
            code=code,
            reason=reason,
            next_tick_s=SETTLE_TICK_S if past.phase is Phase.SETTLE else None,
        )
