"""Merge as fast as the budget allows when it pays, then stop and watch for the next change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ksmtuned import burst, rates
from ksmtuned.burst import HOPE_RATIO, NOISE_BYTES, PROBE_FIRST_S, AdaptivePast
from ksmtuned.model import RUN_SCAN, Code, Decision, Phase, Settings, Snapshot
from ksmtuned.pace import pace, steady
from ksmtuned.rates import Mark, mark
from ksmtuned.units import PAGE_BYTES, duration, size
from ksmtuned.worth import SHORT_RATIO, available_ratio, is_short, scarcity

GIB = 2**30
# Settling: guests still fill, and a page that changes between two visits is visited in vain.
SETTLE_TICK_S, CALM_S, SETTLE_MOST_S = 0.2, 1.2, 7.0
BURST_TICK_S = 0.25
# Landing: sleeps longer than our tick, so that a pass's end is seen, and run=0 written, before
# the next batch. Then the cursor stands at the start of the list, and what comes meanwhile is put
# at its end: two passes will do for it, not three (mm/ksm.c, __ksm_enter).
LAND_TICK_S, LAND_SURE_S, LAND_MOST_S = 0.015, 0.028, 5.0
LAND_BEFORE_S, NEAR_S, NEAR_TICK_S = 0.4, 1.2, 0.1
PROBE_MOST_S, PROBE_CPU_PCT = 3600.0, 20.0
CALM_RATIO, CALM_BYTES_S = 0.15, 8 * 2**20  # growth this slow, against its peak, is calm
POOR_RATIO = 0.25  # of new memory that merged: less than one may hope for
UNATTENDED_CPU_PCT, UNATTENDED_NS = 5.0, 10_000.0  # nobody will correct it: a page at its dearest


Outcome = tuple[Decision, AdaptivePast]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """Settle, burst, stop on yield, watch, probe.

    worth     = cpu_seconds_per_gib * scarcity(available memory, pressure)   CPU s per GiB
    whether   : a burst starts if  growth * hope * worth >= the cost of a pass,
                and goes on if     pages met but once * hit rate * worth >= the cost of a pass
    how fast  : max_cpu % of a core, held by the measured cost of a page
    A page merges at its second visit, so a burst takes two passes; three if ksmd's cursor stood
    inside a pass when the memory came. Source: docs/architecture.md, "The adaptive law".
    """

    max_cpu: float = 30.0  # percent of one core
    cpu_seconds_per_gib: float = 50.0
    is_frugal: bool = True  # scan only while memory is short (profile production)
    is_easy: bool = False  # stop earlier while memory is plentiful (profile desktop)
    interval_s: float = 1.0  # between two looks in a watch
    guest_memory: str = "rss"
    needs_daemon: bool = True

    def start(self) -> AdaptivePast:
        """Nothing known: the first look settles what is to be done."""
        return AdaptivePast()

    def decide(self, now: Snapshot, past: AdaptivePast) -> Outcome:
        """One look at the host."""
        here = mark(now)
        if past.last.time_s == 0.0:
            past = replace(past, known=here, last=here, begun=here, smart_scan=now.ksm.smart_scan)
        if rates.began_anew(past.last, here):
            past = replace(past, known=here, begun=here, passed=here, gauge=here, last=here)
        past = burst.measured(now, here, past)
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
            return self._decision(now, AdaptivePast(), Code.PLENTY, self._why_plenty(now))
        reason = f"at most {UNATTENDED_CPU_PCT:.0f} % of a core, since no daemon will end it"
        dear = AdaptivePast(ns_per_page=UNATTENDED_NS, smart_scan=now.ksm.smart_scan)
        settings = self._pace(now, mark(now), dear, UNATTENDED_CPU_PCT / 100)
        return Decision(settings=settings, phase=Phase.BURST, code=Code.BURST, reason=reason)

    # -- the phases ------------------------------------------------------------------------------

    def _watch(self, now: Snapshot, here: Mark, past: AdaptivePast) -> Outcome:
        """run=0: merged pages stay merged and ksmd costs nothing."""
        past = self._watched(here, past)
        if not self._may_scan(now, was_scanning=False):
            return self._decision(now, past, Code.PLENTY, self._why_plenty(now)), past
        grown = self._grown_bytes(now, here, past)
        if past.is_paused:
            return self._resume(now, here, past)
        if past.is_unknown or self._pays(now, grown * HOPE_RATIO, past.pass_cpu_s):
            begun = replace(
                past, phase=Phase.SETTLE, begun=here, grew_s=here.time_s, peak_bytes_s=0.0
            )
            why = f"{size(grown)} of new memory"
            if past.is_unknown:
                why = f"{size(here.anon_bytes)} of memory was never scanned"
            return self._decision(now, begun, Code.SETTLE, f"{why}: let it settle"), begun
        pause_s = past.begun.time_s + past.probe_s - here.time_s
        if pause_s <= 0 or self._scarcity(now) >= 2 * past.scarcity:
            why = "memory has become scarce" if pause_s > 0 else f"{duration(past.probe_s)} are up"
            return self._begin(now, here, replace(past, is_probe=True), f"{why}: one cheap pass")
        reason = f"watching: {past.verdict}; next look inside in {duration(max(1, pause_s))}"
        return self._decision(now, past, Code.WATCH, reason), past

    def _resume(self, now: Snapshot, here: Mark, past: AdaptivePast) -> Outcome:
        """Shortage is back: go on in the pass that was broken off."""
        passes, grown = past.wanted_passes, rates.grown_bytes(past.begun, here)
        if self._pays(now, grown * HOPE_RATIO, past.pass_cpu_s):
            passes = max(passes, past.passes + 3)  # what came meanwhile stands behind the cursor
        away_s = here.time_s - past.begun.time_s
        passed = replace(past.passed, time_s=past.passed.time_s + away_s)
        past = replace(
            past, phase=Phase.BURST, is_paused=False, passed=passed, wanted_passes=passes
        )
        return self._scan(now, here, past, f"memory is short again after {duration(away_s)}")

    def _settle(self, now: Snapshot, here: Mark, past: AdaptivePast) -> Outcome:
        """run=0 while new memory still fills."""
        grew_bytes_s = rates.grown_bytes(past.last, here) / max(
            1e-3, here.time_s - past.last.time_s
        )
        past = replace(past, peak_bytes_s=max(past.peak_bytes_s, grew_bytes_s))
        if grew_bytes_s > max(CALM_BYTES_S, CALM_RATIO * past.peak_bytes_s):
            past = replace(past, grew_s=here.time_s)
        is_calm = here.time_s - past.grew_s >= CALM_S
        if is_calm or here.time_s - past.begun.time_s >= SETTLE_MOST_S:
            why = "new memory has settled" if is_calm else "new memory does not settle"
            return self._begin(now, here, replace(past, is_probe=False), why)
        grown = size(max(0, self._grown_bytes(now, here, past)))
        return self._decision(now, past, Code.SETTLE, f"{grown} of new memory, still growing"), past

    def _begin(self, now: Snapshot, here: Mark, past: AdaptivePast, why: str) -> Outcome:
        passes = 1 if past.is_probe else 2 if past.is_at_boundary else 3
        past = replace(
            past,
            phase=Phase.BURST,
            begun=here,
            passed=here,
            passes=0,
            is_thorough=False,
            zeroed_pages=0,
            wanted_passes=passes,
            is_landing=False,
            is_at_boundary=False,
        )
        return self._scan(now, here, past, why)

    def _burst(self, now: Snapshot, here: Mark, past: AdaptivePast) -> Outcome:
        """run=1 until the last pass is done, or no longer worth it."""
        if not self._may_scan(now, was_scanning=True):
            return self._stop(now, here, past, self._why_plenty(now), is_done=False)
        ended = here.full_scans - past.passed.full_scans
        if ended > 0:
            past = burst.after_passes(here, past, ended)
            goes_on, why = self._verdict(now, here, past)
            if not goes_on and self._is_worth_all(now, here, past):
                goes_on, why = True, f"{why}; once more, and leave no page out"
                # Seen late, the end is past, and with it the first pages of the next pass.
                passes = past.passes + (1 if self._is_exact(here, past) else 2)
                past = replace(past, is_thorough=True, wanted_passes=passes)
            if not goes_on:
                return self._stop(now, here, past, why)
            zeroed = max(0, here.zero_pages - past.passed.zero_pages)
            past = replace(past, passed=here, zeroed_pages=zeroed)
            return self._scan(now, here, past, why)
        if burst.is_idle(here, past):
            for_s = duration(here.time_s - past.passed.time_s)
            why = f"nothing to scan in {for_s}: no process offers memory"
            return self._stop(now, here, past, why)
        if burst.is_sparse(here, past):
            return self._stop(now, here, past, burst.why_sparse(here, past))
        return self._scan(now, here, past, "")

    # -- whether ---------------------------------------------------------------------------------

    def _verdict(self, now: Snapshot, here: Mark, past: AdaptivePast) -> tuple[bool, str]:
        """After the end of a pass: is another one worth its CPU?"""
        saved = here.saving_bytes - past.passed.saving_bytes
        cost_s = past.pass_cpu_s
        found = f"the last pass saved {size(saved)} for {cost_s:.1f} CPU s"
        # A page that became the zero page loses its item in the pass after.
        fresh_pages = max(0, here.item_pages - past.passed.item_pages + past.zeroed_pages)
        if past.passes < past.wanted_passes and not self._is_barren(here, past, fresh_pages):
            return True, f"pass {past.passes} of {past.wanted_passes} is done"
        late_bytes = max(0, rates.grown_bytes(past.passed, here))
        once_bytes = fresh_pages * PAGE_BYTES
        if past.is_probe and past.passes == 1:
            # What changed in minutes may be calm by now; in seconds, hardly. A skipped page counts
            # as volatile, too (mm/ksm.c takes it out of its tree).
            skipped = rates.skipped(past.passed, here)
            changed_pages = here.volatile_pages - past.known.volatile_pages - skipped
            once_bytes += max(0, changed_pages) * PAGE_BYTES
        hit = burst.hit_ratio(here, past)
        if self._pays(now, once_bytes * hit, cost_s):
            return True, f"{found}, and {size(once_bytes)} was met for the first time"
        if self._pays(now, (once_bytes + late_bytes) * hit, 2 * cost_s):
            return True, f"{found}, and {size(late_bytes)} came meanwhile"
        if past.is_probe and self._pays(now, saved, cost_s):
            return True, f"{found}: worth another one"
        return False, found

    def _is_worth_all(self, now: Snapshot, here: Mark, past: AdaptivePast) -> bool:
        """New memory merged poorly, and smart_scan left many an older page out: its twins may be
        among those, so one pass that leaves out none."""
        left_out = rates.skipped(past.passed, here) * PAGE_BYTES
        hit = burst.hit_ratio(here, past)
        if past.is_thorough or past.is_probe or hit >= POOR_RATIO:
            return False
        met = (here.item_pages - past.begun.item_pages) * PAGE_BYTES
        cost_s = past.pass_cpu_s + left_out / PAGE_BYTES * past.ns_per_page / 1e9
        return self._pays(now, min(met * (1 - hit), left_out) * HOPE_RATIO, cost_s)

    def _is_barren(self, here: Mark, past: AdaptivePast, fresh_pages: int) -> bool:
        """The first pass met nothing new, and nothing was rewritten: growth was not for us."""
        is_first = past.passes == 1 and past.wanted_passes == 2
        return (
            is_first
            and not past.is_unknown
            and fresh_pages * PAGE_BYTES < NOISE_BYTES // 4
            and (not burst.is_rewritten(here, past))
        )

    def _pays(self, now: Snapshot, gain_bytes: float, cost_s: float) -> bool:
        if gain_bytes < NOISE_BYTES * HOPE_RATIO:
            return False
        return gain_bytes / GIB * self.cpu_seconds_per_gib * self._scarcity(now) >= cost_s

    def _scarcity(self, now: Snapshot) -> float:
        return scarcity(now, is_easy=self.is_easy)

    def _may_scan(self, now: Snapshot, *, was_scanning: bool) -> bool:
        return not self.is_frugal or is_short(now, was_short=was_scanning)

    def _why_plenty(self, now: Snapshot) -> str:
        available = size(available_ratio(now) * now.meminfo.total_bytes)
        limit = size(SHORT_RATIO * now.meminfo.total_bytes)
        return f"{available} available is above {limit} (20 % of RAM): profile production waits"

    # -- how fast --------------------------------------------------------------------------------

    def _scan(self, now: Snapshot, here: Mark, past: AdaptivePast, why: str) -> Outcome:
        share = min(self.max_cpu, PROBE_CPU_PCT if past.is_probe else 100.0) / 100
        left_s = burst.left_s(here, past, share)
        is_last = past.passes + 1 >= past.wanted_passes
        is_near = left_s < NEAR_S
        is_landing = is_last and left_s < LAND_BEFORE_S
        since_s = past.landing_s if past.is_landing else here.time_s
        if is_landing and here.time_s - since_s > LAND_MOST_S:
            is_landing = False  # the end does not come: never mind where the cursor stands
        past = replace(past, is_landing=is_landing, landing_s=since_s)
        code = Code.PROBE if past.is_probe else Code.BURST
        progress = f"pass {past.passes + 1} of {max(past.wanted_passes, past.passes + 1)}"
        decision = Decision(
            settings=self._pace(now, here, past, share),
            phase=Phase.BURST,
            code=code,
            reason=f"{why or 'scanning'}: {progress}, at most {share * 100:.0f} % of a core",
            next_tick_s=LAND_TICK_S if is_landing else NEAR_TICK_S if is_near else BURST_TICK_S,
            progress=burst.progress(here, past),
            is_routine=not why,
        )
        return decision, past

    def _pace(self, now: Snapshot, here: Mark, past: AdaptivePast, share: float) -> Settings:
        """Everything that is to be set while ksmd scans."""
        wanted = pace(share, past.ns_per_page, is_landing=past.is_landing)
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
        is_off = past.is_thorough or burst.is_rewritten(here, past)
        return 0 if is_off else past.smart_scan

    # -- bookkeeping -----------------------------------------------------------------------------

    def _grown_bytes(self, now: Snapshot, here: Mark, past: AdaptivePast) -> int:
        """Memory that came since all was last scanned. A guest that went hides one that came in
        the sum over the host, so new guests are counted by themselves, too."""
        new = sum(g.memory_bytes for g in now.guests if g.start_time > past.newest_start)
        return max(rates.grown_bytes(past.known, here), new if not past.is_unknown else 0)

    def _watched(self, here: Mark, past: AdaptivePast) -> AdaptivePast:
        if past.is_at_boundary and rates.visited(past.last, here):
            past = replace(past, is_at_boundary=False)  # ksmd went on after our stop, after all
        if here.anon_bytes < past.known.anon_bytes:  # somebody left: growth counts from there
            past = replace(past, known=replace(past.known, anon_bytes=here.anon_bytes))
        return past

    @staticmethod
    def _is_exact(here: Mark, past: AdaptivePast) -> bool:
        """Did ksmd sleep all the time since the end of the pass?"""
        is_quick = here.time_s - past.last.time_s < LAND_SURE_S
        return here.visited_pages is not None and past.is_landing and is_quick

    def _stop(
        self, now: Snapshot, here: Mark, past: AdaptivePast, why: str, *, is_done: bool = True
    ) -> Outcome:
        """Back to watching. Not done: what grew stays to be scanned."""
        late_bytes = max(0, rates.grown_bytes(past.passed, here))
        is_exact = self._is_exact(here, past)
        is_untouched = here.item_pages == 0 and here.full_scans == past.begun.full_scans
        pause_s = PROBE_FIRST_S
        if past.is_probe:
            pause_s = min(2 * past.probe_s, PROBE_MOST_S)
        newest = max((guest.start_time for guest in now.guests), default=0)
        done = replace(
            past,
            known=replace(here, anon_bytes=here.anon_bytes - late_bytes),
            is_unknown=False,
            newest_start=max(newest, past.newest_start),
            scarcity=max(self._scarcity(now), past.scarcity if past.is_probe else 0.0),
        )
        after = replace(
            done if is_done else past,
            phase=Phase.WATCH,
            begun=here,
            is_paused=not is_done,
            is_landing=False,
            is_at_boundary=is_exact or is_untouched,
            probe_s=pause_s,
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
