"""The policy advisor: tables, what holds for every host, the loop with the kernel's law."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from advisorlaw import Kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import GIB, QUIET

from ksmtuned.errors import KsmtunedError
from ksmtuned.model import Code, Decision, Phase, Settings, Snapshot
from ksmtuned.plan import plan
from ksmtuned.policies.advisor import Advisor, AdvisorPast

BOUNDS = Settings(
    run=1,
    advisor_mode="scan-time",
    advisor_max_cpu=70,
    advisor_target_scan_time=200,
    advisor_min_pages_to_scan=500,
    advisor_max_pages_to_scan=30000,
)


def seen(*, mode: str | None, anon_gib: float = 4, time_s: float = 1000, **ksm: int) -> Snapshot:
    """A host with an advisor in this mode, and so much anonymous memory."""
    reading = replace(QUIET.ksm, run=1, advisor_mode=mode, full_scans=0)
    return replace(
        QUIET,
        monotonic_s=float(time_s),
        ksm=replace(reading, **ksm),  # type: ignore[arg-type]  # by name
        meminfo=replace(QUIET.meminfo, anon_bytes=int(anon_gib * GIB)),
        ksmd_cpu_s=5.0,
    )


def after(*hosts: Snapshot, law: Advisor | None = None) -> AdvisorPast:
    """The past that these looks leave."""
    law = law or Advisor()
    past = law.start()
    for now in hosts:
        past = law.decide(now, past)[1]
    return past


# -- the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anon_gib", "seed", "why"),
    [
        (4, 500, "the least that min_pages_to_scan allows"),
        # 64 GiB in 200 s: 24 ms / (200 s / 16.8 million - 3.5 us)
        (64, 2851, "as target_scan_time asks"),
        # 70 % of a core: 20 ms * 0.7 / 0.3 / 3.5 us
        (1024, 13333, "the most that max_cpu (70 %) allows"),
        (0, 500, "the least that min_pages_to_scan allows"),
    ],
)
def test_the_first_batch_is_chosen_for_the_memory_there_is(
    anon_gib: int, seed: int, why: str
) -> None:
    now = seen(mode="none", anon_gib=anon_gib)
    decision, _ = Advisor().decide(now, AdvisorPast())
    assert decision.settings == replace(
        BOUNDS, advisor_min_pages_to_scan=seed, advisor_max_pages_to_scan=13333
    )
    assert (decision.phase, decision.code) == (Phase.SCAN, Code.ADVISOR_START)
    assert decision.reason.endswith(why)


def test_a_start_says_what_a_pass_will_take() -> None:
    decision, _ = Advisor().decide(seen(mode="none", anon_gib=64), AdvisorPast())
    assert decision.reason == (
        "the kernel's advisor starts at 2851 pages per 20 ms, 3.33 min for a pass over 64.0 GiB, "
        "as target_scan_time asks"
    )


def test_the_configured_bounds_hold_for_the_first_batch() -> None:
    now = seen(mode="none", anon_gib=1024)
    most = Advisor(max_pages_to_scan=1000).decide(now, AdvisorPast())[0].settings
    assert (most.advisor_min_pages_to_scan, most.advisor_max_pages_to_scan) == (1000, 1000)
    least = Advisor(min_pages_to_scan=20000).decide(now, AdvisorPast())[0].settings
    assert (least.advisor_min_pages_to_scan, least.advisor_max_pages_to_scan) == (20000, 20000)


def test_it_looks_often_while_the_advisor_starts_and_seldom_later() -> None:
    start, past = Advisor().decide(seen(mode="none"), AdvisorPast())
    assert start.next_tick_s is not None
    assert start.next_tick_s <= 2
    later = seen(mode="scan-time", full_scans=3, pages_to_scan=500, time_s=1100)
    assert Advisor().decide(later, past)[0].next_tick_s is None
    assert Advisor().interval_s == 10


def test_after_the_first_pass_the_configured_bounds_are_back() -> None:
    past = after(seen(mode="none", anon_gib=64))
    during = seen(mode="scan-time", anon_gib=64, pages_to_scan=2851, time_s=1002)
    decision, past = Advisor().decide(during, past)
    assert decision.settings.advisor_min_pages_to_scan == 2851
    passed = seen(mode="scan-time", anon_gib=64, pages_to_scan=2851, time_s=1200, full_scans=1)
    assert Advisor().decide(passed, past)[0].settings == BOUNDS


def test_a_scan_without_sleep_gets_one_because_no_batch_would_keep_max_cpu() -> None:
    decision, _ = Advisor().decide(seen(mode="none", sleep_millisecs=0), AdvisorPast())
    assert decision.settings.sleep_millisecs == 20
    decision, _ = Advisor().decide(seen(mode="none", sleep_millisecs=7), AdvisorPast())
    assert decision.settings.sleep_millisecs is None


# -- the stall -----------------------------------------------------------------------------------


def test_twenty_pages_per_batch_are_a_stall_and_a_new_start_in_two_looks() -> None:
    past = after(seen(mode="none", anon_gib=0.25))
    stalled = seen(mode="scan-time", pages_to_scan=20, time_s=1004, full_scans=1)
    decision, past = Advisor().decide(stalled, past)
    assert decision.settings == Settings(run=1, advisor_mode="none")
    assert decision.code == Code.ADVISOR_RESTART
    assert decision.reason == (
        "the kernel's advisor has stalled at 20 pages per 20 ms, 21 min for a pass over 4.0 GiB; "
        "the target is 200 s: start it again"
    )
    assert decision.next_tick_s is not None
    assert decision.next_tick_s < 1
    between = seen(mode="none", pages_to_scan=100, time_s=1004.2, full_scans=1)
    decision, past = Advisor().decide(between, past)
    assert decision.code == Code.ADVISOR_START
    assert decision.settings == replace(BOUNDS, advisor_max_pages_to_scan=13333)


@pytest.mark.parametrize(
    ("pages", "anon_gib", "code"),
    [
        (20, 0.5, Code.ADVISOR_RESTART),  # 158 s
        (124, 4, Code.ADVISOR_RESTART),  # 207 s
        (125, 4, Code.ADVISOR),  # 205 s, a quarter of min_pages_to_scan
        (20, 0.05, Code.ADVISOR),  # 16 s: over before a new start would tell
    ],
)
def test_far_less_than_min_pages_to_scan_is_a_stall_also_within_the_target(
    pages: int, anon_gib: float, code: Code
) -> None:
    past = after(seen(mode="none", anon_gib=anon_gib))
    now = seen(mode="scan-time", anon_gib=anon_gib, pages_to_scan=pages, time_s=1004)
    assert Advisor().decide(now, past)[0].code == code


def test_a_pass_of_more_than_twice_the_target_is_a_stall() -> None:
    past = after(seen(mode="none", anon_gib=64))
    slow = seen(mode="scan-time", anon_gib=64, pages_to_scan=1000, time_s=1010)  # 461 s
    assert Advisor().decide(slow, past)[0].code == Code.ADVISOR_RESTART
    slower_than_asked = replace(slow, ksm=replace(slow.ksm, pages_to_scan=1500))  # 327 s
    assert Advisor().decide(slower_than_asked, past)[0].code == Code.ADVISOR


def test_a_pass_that_cannot_be_faster_is_no_stall() -> None:
    past = after(seen(mode="none", anon_gib=4096))
    as_fast_as_may_be = seen(mode="scan-time", anon_gib=4096, pages_to_scan=13333, time_s=1010)
    assert Advisor().decide(as_fast_as_may_be, past)[0].code == Code.ADVISOR


@pytest.mark.parametrize(("wait_s", "code"), [(29, Code.ADVISOR), (31, Code.ADVISOR_RESTART)])
def test_it_is_not_started_again_more_often_than_every_30_s(wait_s: int, code: Code) -> None:
    stalled = seen(mode="scan-time", pages_to_scan=20, time_s=1004)
    past = after(seen(mode="none"), stalled, seen(mode="none", time_s=1004.2))
    again = seen(mode="scan-time", pages_to_scan=20, time_s=1004 + wait_s)
    assert Advisor().decide(again, past)[0].code == code


def test_the_first_look_never_switches_off_what_runs() -> None:
    """Else `--once` would leave ksmd without an advisor."""
    stalled = seen(mode="scan-time", pages_to_scan=20)
    assert Advisor().decide(stalled, AdvisorPast())[0].settings.advisor_mode == "scan-time"


def test_a_stopped_ksmd_has_not_stalled() -> None:
    past = after(seen(mode="none"))
    stopped = seen(mode="scan-time", pages_to_scan=20, time_s=1010, run=0)
    assert Advisor().decide(stopped, past)[0].code == Code.ADVISOR


def test_after_three_passes_the_advisors_swings_are_its_own_until_memory_grows() -> None:
    past = after(seen(mode="none", anon_gib=64))
    slow = seen(mode="scan-time", anon_gib=64, pages_to_scan=600, full_scans=3, time_s=1300)
    decision, past = Advisor().decide(slow, past)
    assert decision.code == Code.ADVISOR
    grown = seen(mode="scan-time", anon_gib=100, pages_to_scan=600, full_scans=3, time_s=1310)
    assert Advisor().decide(grown, past)[0].code == Code.ADVISOR_RESTART


def test_an_unmerge_that_resets_the_count_of_passes_confuses_nothing() -> None:
    past = after(seen(mode="none", full_scans=70))
    reset = seen(mode="scan-time", pages_to_scan=500, full_scans=0, time_s=1010)
    decision, past = Advisor().decide(reset, past)
    assert (decision.code, past.start and past.start.full_scans) == (Code.ADVISOR, 0)


def test_a_mode_that_somebody_holds_at_none_is_told_and_not_fought() -> None:
    asked, past = Advisor().decide(seen(mode="none", anon_gib=4), AdvisorPast())
    decision, past = Advisor().decide(seen(mode="none", anon_gib=90, time_s=1002), past)
    assert decision.reason.startswith("advisor_mode is none though scan-time was asked for")
    assert decision.settings == asked.settings
    assert decision.next_tick_s is None


# -- no advisor ----------------------------------------------------------------------------------


def test_without_an_advisor_a_constant_pace_meets_the_target() -> None:
    decision, _ = Advisor().decide(seen(mode=None, anon_gib=64), AdvisorPast())
    assert decision.settings == Settings(run=1, pages_to_scan=2851)
    assert decision.code == Code.NO_ADVISOR
    assert decision.reason == (
        "this kernel has no advisor: 2851 pages per 20 ms, 3.33 min for a pass over 64.0 GiB "
        "(target 200 s), about 33 % of a core (at most 70 %)"
    )


def test_the_constant_pace_moves_with_the_memory_but_not_with_every_page() -> None:
    past = after(seen(mode=None, anon_gib=64))
    a_little_more = seen(mode=None, anon_gib=70, time_s=1010)
    assert Advisor().decide(a_little_more, past)[0].settings.pages_to_scan == 2851
    twice = seen(mode=None, anon_gib=128, time_s=1010)
    assert (Advisor().decide(twice, past)[0].settings.pages_to_scan or 0) > 5000


def test_a_mode_that_cannot_be_read_leaves_the_pace_as_it_is() -> None:
    now = replace(seen(mode=None), unread={"advisor_mode": KsmtunedError("no")})
    past = after(seen(mode="none"))
    decision, same = Advisor().decide(now, past)
    assert decision.settings == Settings(run=1)
    assert decision.reason.startswith("advisor_mode cannot be read")
    assert same.start == past.start


def test_a_file_that_cannot_be_read_for_a_moment_is_no_stall() -> None:
    past = after(seen(mode="none", full_scans=70))
    now = seen(mode="scan-time", time_s=1010)
    now = replace(now, ksm=replace(now.ksm, pages_to_scan=None, full_scans=None))
    decision, same = Advisor().decide(now, past)
    assert decision.code == Code.ADVISOR
    assert same.start == past.start


# -- every host ----------------------------------------------------------------------------------

LAWS = st.builds(
    lambda target, cpu, least, more: Advisor(
        target_scan_time=target,
        max_cpu=cpu,
        min_pages_to_scan=least,
        max_pages_to_scan=least + more,
    ),
    st.integers(1, 10_000),
    st.integers(1, 150),
    st.integers(0, 5000),
    st.integers(0, 100_000),
)
HOSTS = st.builds(
    lambda mode, gib, pages, sleep, scans, time_s: seen(
        mode=mode,
        anon_gib=gib,
        time_s=time_s,
        pages_to_scan=pages,
        sleep_millisecs=sleep,
        full_scans=scans,
        pages_unshared=pages * 3,
        pages_scanned=pages * 1000,
    ),
    st.sampled_from([None, "none", "scan-time"]),
    st.floats(0, 20_000),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 5),
    st.floats(0, 1e6),
)


@given(LAWS, st.lists(HOSTS, max_size=8))
def test_whatever_it_sees_it_stays_within_its_bounds(law: Advisor, hosts: list[Snapshot]) -> None:
    past = law.start()
    for now in hosts:
        decision, following = law.decide(now, past)
        assert law.decide(now, past) == (decision, following)
        assert decision.reason
        assert len(json.dumps(asdict(following), allow_nan=False)) < 2000
        past, wanted = following, decision.settings
        assert wanted.run == 1
        if wanted.pages_to_scan is not None:
            assert now.ksm.advisor_mode is None
            assert wanted.pages_to_scan <= law.max_pages_to_scan
        if wanted.advisor_min_pages_to_scan is not None:
            assert wanted.advisor_max_pages_to_scan is not None
            assert law.min_pages_to_scan <= wanted.advisor_min_pages_to_scan
            assert wanted.advisor_min_pages_to_scan <= wanted.advisor_max_pages_to_scan
            assert wanted.advisor_max_pages_to_scan <= law.max_pages_to_scan


@given(LAWS, st.floats(0, 20_000), st.integers(1, 10_000))
def test_a_constant_pace_keeps_max_cpu(law: Advisor, gib: float, sleep_ms: int) -> None:
    now = seen(mode=None, anon_gib=gib, sleep_millisecs=sleep_ms)
    pages = law.decide(now, law.start())[0].settings.pages_to_scan
    assert pages is not None
    busy_ms = pages * 3.5e-3
    assert 100 * busy_ms <= law.max_cpu * (busy_ms + sleep_ms) * 1.0001 or law.max_cpu >= 100


# -- the loop ------------------------------------------------------------------------------------


def look(kernel: Kernel, law: Advisor, past: AdvisorPast) -> tuple[Decision, AdvisorPast]:
    """One tick: read, decide, write."""
    now = kernel.snapshot()
    decision, past = law.decide(now, past)
    for write in plan(now.ksm, decision.settings):
        kernel.write(write)
    return decision, past


def follow(
    kernel: Kernel, law: Advisor, seconds: float, arrivals: dict[float, int]
) -> float | None:
    """Run the policy on this kernel; guests' pages grow as `arrivals` (second: pages) says.

    Returns the seconds from the last arrival to the end of two whole passes over all guests.
    """
    past, begun_s, next_s = law.start(), kernel.time_s, kernel.time_s
    last_s, scans = begun_s + max(arrivals), None
    while kernel.time_s < begun_s + seconds:
        due = [at for at in arrivals if begun_s + at <= kernel.time_s]
        kernel.guest_pages = sum(arrivals[at] for at in due)
        if len(due) == len(arrivals) and scans is None and kernel.pass_pages == kernel.guest_pages:
            scans = kernel.full_scans
        if scans is not None and kernel.full_scans >= scans + 2:
            return kernel.time_s - last_s
        if kernel.time_s >= next_s:
            decision, past = look(kernel, law, past)
            next_s = kernel.time_s + (decision.next_tick_s or law.interval_s)
        kernel.live(0.02 if kernel.time_s < begun_s + 3 else 0.2)
    return None


GUEST = 131_072  # pages: 512 MiB
# ksmd meets the first guest when it has but 10 pages: one tiny pass.
STORM = {1.0: 10, 1.03: GUEST, **{2.0 + n: GUEST for n in range(7)}}


class HandsOff(Advisor):
    """The kernel's own start: switch it on and never look again."""

    def decide(self, now: Snapshot, past: AdvisorPast) -> tuple[Decision, AdvisorPast]:
        decision, past = Advisor.decide(self, now, AdvisorPast())
        return replace(decision, settings=BOUNDS), past


def test_left_alone_the_advisor_stalls_as_it_was_seen_to() -> None:
    kernel = Kernel()
    assert follow(kernel, HandsOff(), 150, STORM) is None
    assert kernel.pages <= 20


def test_looked_after_a_storm_of_guests_is_scanned_twice_within_the_target() -> None:
    kernel = Kernel()
    took_s = follow(kernel, Advisor(), 300, STORM)
    assert took_s is not None
    assert took_s < 100


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200),
    st.sampled_from([20, 100, 200, 600]),
    st.floats(200, 1e6),
    st.floats(0, 0.9),
    st.floats(1e-6, 5e-6),
)
def test_two_passes_take_no_more_than_four_times_what_they_must(
    guests: int, target_s: int, uptime_s: float, busy: float, page_s: float
) -> None:
    kernel = Kernel(time_s=uptime_s, cpu_s=uptime_s * busy, page_s=page_s)
    pages = guests * GUEST
    possible_s = pages * page_s / 0.7 * 1.2
    arrivals = {1.0: 10, 1.03: pages // 8, **{2.0 + n: pages // 8 for n in range(7)}}
    budget_s = 4 * max(target_s, possible_s) + 60
    assert follow(kernel, Advisor(target_scan_time=target_s), budget_s, arrivals) is not None


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.floats(200, 1e6), st.floats(0, 0.9))
def test_the_budget_is_kept_also_while_it_starts(guests: int, uptime_s: float, busy: float) -> None:
    kernel = Kernel(time_s=uptime_s, cpu_s=uptime_s * busy, page_s=3.5e-6)
    before_s, before_cpu_s = kernel.time_s, kernel.cpu_s
    follow(kernel, Advisor(), 400, {1.0: 10, 1.03: guests * GUEST})
    share = (kernel.cpu_s - before_cpu_s) / (kernel.time_s - before_s)
    assert share <= 0.71


def test_a_settled_host_is_left_to_the_kernel() -> None:
    kernel, law = Kernel(), Advisor()
    follow(kernel, law, 2000, STORM)
    past, restarts = after(kernel.snapshot()), 0
    for _ in range(1000):
        decision, past = look(kernel, law, past)
        restarts += decision.code == Code.ADVISOR_RESTART
        kernel.live(decision.next_tick_s or law.interval_s)
    assert restarts <= 1
