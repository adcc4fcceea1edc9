"""The writes, as a list: what is written, in which order, and what is not."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshots import QUIET

from ksmtuned.model import RUN_SCAN, KsmStat, Settings, Write
from ksmtuned.plan import also_changed, plan

RUNNING = replace(QUIET.ksm, run=1, pages_to_scan=364, sleep_millisecs=10)
VALUES = st.none() | st.integers(0, 2000)
SETTINGS = st.builds(
    Settings,
    run=st.sampled_from([None, 0, 1]),
    pages_to_scan=VALUES,
    sleep_millisecs=VALUES,
    smart_scan=st.sampled_from([None, 0, 1]),
    max_page_sharing=VALUES,
)
READINGS = st.builds(
    KsmStat,
    run=st.integers(0, 6),
    pages_to_scan=VALUES,
    sleep_millisecs=VALUES,
    smart_scan=VALUES,
    max_page_sharing=VALUES,
)


def lines(now: KsmStat, wanted: Settings) -> list[str]:
    return [str(write) for write in plan(now, wanted)]


def test_a_start_is_written_last() -> None:
    start = Settings(run=1, pages_to_scan=364, sleep_millisecs=10)
    assert lines(QUIET.ksm, start) == [
        "pages_to_scan: 100 -> 364",
        "sleep_millisecs: 20 -> 10",
        "run: 0 -> 1",
    ]


def test_a_stop_is_written_first() -> None:
    stop = Settings(run=0, pages_to_scan=100, sleep_millisecs=20)
    assert lines(RUNNING, stop) == [
        "run: 1 -> 0",
        "pages_to_scan: 364 -> 100",
        "sleep_millisecs: 10 -> 20",
    ]


def test_what_slows_a_running_ksmd_down_is_written_before_what_speeds_it_up() -> None:
    larger_batches_longer_sleeps = Settings(run=1, pages_to_scan=1000, sleep_millisecs=50)
    assert lines(RUNNING, larger_batches_longer_sleeps) == [
        "sleep_millisecs: 10 -> 50",
        "pages_to_scan: 364 -> 1000",
    ]


def test_controls_that_no_policy_moves_are_set_before_ksmd_starts() -> None:
    wanted = Settings(run=1, smart_scan=0, max_page_sharing=512)
    assert lines(QUIET.ksm, wanted) == [
        "max_page_sharing: 256 -> 512",
        "smart_scan: 1 -> 0",
        "run: 0 -> 1",
    ]


def test_nothing_is_written_where_nothing_differs() -> None:
    assert lines(RUNNING, Settings(run=1, pages_to_scan=364, sleep_millisecs=10)) == []


def test_the_hot_remove_flag_in_run_is_no_difference() -> None:
    assert lines(replace(RUNNING, run=5), Settings(run=1)) == []
    assert lines(replace(RUNNING, run=5), Settings(run=0)) == ["run: 1 -> 0"]


def test_a_control_that_this_kernel_lacks_is_left_out() -> None:
    assert lines(replace(QUIET.ksm, smart_scan=None), Settings(smart_scan=0)) == []


def test_a_control_that_is_somebody_elses_is_left_out() -> None:
    wanted = Settings(run=0, pages_to_scan=1)
    assert [str(w) for w in plan(RUNNING, wanted, leave={"run"})] == ["pages_to_scan: 364 -> 1"]


# -- the kernel's advisor ------------------------------------------------------------------------

ADVISED = replace(
    RUNNING,
    pages_to_scan=4321,
    advisor_mode="scan-time",
    advisor_max_cpu=70,
    advisor_min_pages_to_scan=500,
    advisor_max_pages_to_scan=30000,
    advisor_target_scan_time=200,
)
UNADVISED = replace(ADVISED, advisor_mode="none", run=0)


def test_the_advisor_starts_after_its_bounds_and_before_ksmd() -> None:
    wanted = Settings(
        run=1, advisor_mode="scan-time", advisor_min_pages_to_scan=2851, advisor_max_cpu=50
    )
    assert lines(UNADVISED, wanted) == [
        "advisor_max_cpu: 70 -> 50",
        "advisor_min_pages_to_scan: 500 -> 2851",
        "advisor_mode: none -> scan-time",
        "run: 0 -> 1",
    ]


def test_the_advisor_ends_before_pages_to_scan_is_written() -> None:
    wanted = Settings(
        run=1,
        pages_to_scan=64,
        sleep_millisecs=20,
        advisor_mode="none",
        advisor_min_pages_to_scan=100,
    )
    assert lines(ADVISED, wanted) == [
        "advisor_mode: scan-time -> none",
        "pages_to_scan: 4321 -> 64",
        "sleep_millisecs: 10 -> 20",
        "advisor_min_pages_to_scan: 500 -> 100",
    ]


def test_a_stop_comes_before_the_advisors_end() -> None:
    assert lines(ADVISED, Settings(run=0, advisor_mode="none")) == [
        "run: 1 -> 0",
        "advisor_mode: scan-time -> none",
    ]


def test_a_pace_that_the_advisor_happens_to_have_is_written_since_its_end_resets_it() -> None:
    assert lines(ADVISED, Settings(pages_to_scan=4321, advisor_mode="none")) == [
        "advisor_mode: scan-time -> none",
        "pages_to_scan: 100 -> 4321",
    ]


@pytest.mark.parametrize("now", [ADVISED, UNADVISED])
def test_pages_to_scan_is_never_written_where_the_advisor_is_wanted(now: KsmStat) -> None:
    wanted = Settings(pages_to_scan=1250, advisor_mode="scan-time")
    assert "pages_to_scan" not in {write.control for write in plan(now, wanted)}


def test_where_there_is_no_advisor_pages_to_scan_is_written() -> None:
    wanted = Settings(pages_to_scan=1250, advisor_mode="scan-time")
    assert lines(RUNNING, wanted) == ["pages_to_scan: 364 -> 1250"]


def test_a_change_of_mode_also_changes_pages_to_scan() -> None:
    on = plan(UNADVISED, Settings(advisor_mode="scan-time", advisor_min_pages_to_scan=2851))
    assert also_changed(UNADVISED, on) == (Write("pages_to_scan", 4321, 2851),)
    off = plan(ADVISED, Settings(advisor_mode="none"))
    assert also_changed(ADVISED, off) == (Write("pages_to_scan", 4321, 100),)
    assert also_changed(ADVISED, plan(ADVISED, Settings(run=0))) == ()


def after(now: KsmStat, write: Write) -> KsmStat:
    """What the kernel shows once it took the write."""
    return KsmStat(**{**asdict(now), write.control: write.new})


def pace(ksm: KsmStat) -> tuple[int, int]:
    """Pages per batch, and how much shorter than for ever the sleep is: more is faster."""
    return ksm.pages_to_scan or 0, -(ksm.sleep_millisecs or 0)


@given(READINGS, SETTINGS)
def test_after_the_writes_all_that_exists_is_as_wanted(before: KsmStat, wanted: Settings) -> None:
    now = before
    for write in plan(before, wanted):
        assert now.value(write.control) == write.old
        now = after(now, write)
    for control, value in wanted.wanted().items():
        assert before.value(control) is None or now.value(control) == value
    assert plan(now, wanted) == ()


@given(READINGS, SETTINGS)
def test_a_running_ksmd_is_never_faster_than_it_was_or_is_meant_to_be(
    before: KsmStat, wanted: Settings
) -> None:
    steps = list(accumulate(plan(before, wanted), after, initial=before))
    meant = [pace(step) for step in (steps[0], steps[-1]) if step.value("run") == RUN_SCAN]
    for step in steps:
        if step.value("run") == RUN_SCAN:
            assert pace(step)[0] <= max(pages for pages, _ in meant)
            assert pace(step)[1] <= max(sleep for _, sleep in meant)
