"""The contest's pure parts: figures from samples, medians, ratios, events, tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.controllers import ALL, Advisor, Fixed, Ours, parse
from benchmarks.figures import (
    GIB,
    Cost,
    Figures,
    Run,
    Sample,
    figures,
    goal,
    medians,
    middle_run,
    ratios,
    saved_gib_s,
    seconds_again,
    seconds_to,
    tail_cpu_pct,
)
from benchmarks.report import Contest
from benchmarks.scenarios import (
    SCENARIOS,
    Guest,
    Scenario,
    events,
    mergeable_pages,
    peak_bytes,
)
from ksmtuned.errors import UsageError
from ksmtuned.units import PAGE_BYTES

MIB = 2**20


def sample(
    at_s: float, saving_gib: float, *, cpu_s: float = 0.0, scanned: int | None = 0
) -> Sample:
    return Sample(
        at_s=at_s,
        saving_bytes=int(saving_gib * GIB),
        ksmd_cpu_s=cpu_s,
        pages_scanned=scanned,
        full_scans=0,
        run=1,
        pages_to_scan=100,
        sleep_millisecs=20,
        available_bytes=0,
    )


def run_of(*savings_gib: float, cost: Cost | None = None) -> Run:
    """One sample a second; ksmd uses half a core."""
    samples = (
        sample(float(n), gib, cpu_s=n / 2, scanned=n * 100) for n, gib in enumerate(savings_gib)
    )
    return Run(samples=tuple(samples), cost=cost)


RISING = run_of(0, 1, 2, 3, 4)
NONE = Figures(
    t50_s=None,
    t90_s=None,
    t99_s=None,
    again_s=None,
    saved_gib_s=None,
    ksmd_cpu_s=None,
    own_cpu_s=None,
    own_rss_mib=None,
    two_passes_ratio=None,
    tail_cpu_pct=None,
    end_mib=None,
)

HEAD = (
    "| controller | t50, s | t90, s | t99, s | again, s | saved, GiB·s | ksmd, CPU s | own, CPU s "
    "| own, MiB | scanned / 2 passes | tail, CPU % | end, MiB |"
)


# -- figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted_gib", "expected_s"), [(0.5, 1), (1, 1), (3.9, 4), (4.1, None)])
def test_seconds_to_a_saving_is_the_first_sample_that_has_it(
    wanted_gib: float, expected_s: float | None
) -> None:
    assert seconds_to(RISING.samples, wanted_gib * GIB) == expected_s


def test_nothing_to_reach_is_never_reached() -> None:
    assert seconds_to(RISING.samples, 0) is None


@pytest.mark.parametrize(
    ("savings_gib", "expected_s"),
    [
        ((4, 4, 1, 2, 4), 2),  # lost at the change, found again two seconds later
        ((4, 4, 4, 1, 4), 2),  # the loss comes late: what was before it does not count
        ((4, 4, 4, 4, 4), 0),  # nothing was lost
        ((4, 4, 1, 4, 1), None),  # found, and lost
    ],
)
def test_again_is_counted_from_the_change_and_for_good(
    savings_gib: tuple[float, ...], expected_s: float | None
) -> None:
    samples = run_of(*savings_gib).samples
    assert seconds_again(samples, 4 * GIB, change_s=2.0) == expected_s


@pytest.mark.parametrize("change_s", [None, 100.0])
def test_without_a_change_there_is_no_again(change_s: float | None) -> None:
    assert seconds_again(RISING.samples, GIB, change_s) is None


def test_saved_is_the_area_below_the_saving_whatever_the_steps() -> None:
    assert saved_gib_s(RISING.samples) == 8
    assert saved_gib_s((sample(0, 0), sample(4, 4))) == 8
    assert saved_gib_s((sample(0, 1), sample(1, 1), sample(10, 1))) == 10


def test_the_tail_is_the_last_fifth() -> None:
    busy_until_8 = [sample(float(n), 0, cpu_s=min(n, 8)) for n in range(11)]
    assert tail_cpu_pct(busy_until_8) == 0
    assert tail_cpu_pct([*busy_until_8[:-1], sample(10, 0, cpu_s=8.5)]) == 25
    assert tail_cpu_pct(busy_until_8[:1]) is None


def test_the_goal_is_the_best_of_all_controllers_before_the_split_and_after_the_change() -> None:
    found = goal([RISING, run_of(3, 1, 5, 1, 1)], split_s=2.0, change_s=3.0, two_passes_pages=1)
    assert (found.best_bytes, found.best_after_bytes) == (3 * GIB, 4 * GIB)


def test_a_row_holds_what_was_measured() -> None:
    aim = goal([RISING], split_s=10, change_s=None, two_passes_pages=200)
    row = figures(replace(RISING, cost=Cost(cpu_s=0.5, rss_bytes=3 * MIB)), aim)
    assert row == Figures(
        t50_s=2,
        t90_s=4,
        t99_s=4,
        again_s=None,
        saved_gib_s=8,
        ksmd_cpu_s=2,
        own_cpu_s=0.5,
        own_rss_mib=3,
        two_passes_ratio=2,
        tail_cpu_pct=None,  # one sample alone is no tail
        end_mib=4096,
    )


def test_a_kernel_without_pages_scanned_and_a_controller_without_process_leave_gaps() -> None:
    run = Run(samples=(sample(0, 0, scanned=None), sample(1, 1, scanned=None)))
    row = figures(run, goal([run], split_s=9, change_s=None, two_passes_pages=200))
    assert (row.two_passes_ratio, row.own_cpu_s, row.own_rss_mib) == (None, None, None)


# -- medians and ratios ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times_s", "expected_s"),
    [
        ((3.0,), 3),
        ((1.0, 9.0, 2.0), 2),
        ((1.0, 2.0), 1.5),
        ((1.0, None, 2.0), 2),  # never reached is worse than any time
        ((1.0, None, None), None),
        ((1.0, None), None),
    ],
)
def test_a_median_takes_never_for_the_worst(
    times_s: tuple[float | None, ...], expected_s: float | None
) -> None:
    assert medians([replace(NONE, t90_s=t) for t in times_s]).t90_s == expected_s


def test_a_ratio_needs_both_and_something_to_divide_by() -> None:
    row = replace(NONE, t90_s=3.0, ksmd_cpu_s=1.0, tail_cpu_pct=0.0, own_cpu_s=1.0)
    other = replace(NONE, t90_s=2.0, ksmd_cpu_s=4.0, tail_cpu_pct=50.0, own_cpu_s=0.0)
    assert ratios(row, other) == replace(NONE, t90_s=1.5, ksmd_cpu_s=0.25, tail_cpu_pct=0.0)


def test_the_middle_run_is_the_one_that_is_drawn() -> None:
    low, middle, high = run_of(0, 1), run_of(0, 2), run_of(0, 3)
    assert middle_run([high, low, middle]) == middle
    assert middle_run([high, low]) == low


# -- scenarios -------------------------------------------------------------------------------------


def test_what_one_guest_is_told_at_the_same_second_stays_in_order() -> None:
    guests = (Guest(start_s=1, mib=4, end_s=9, later=((1, "update 33"),)), Guest(start_s=0, mib=8))
    story = [(e.at_s, e.guest, e.command) for e in events(Scenario(summary="", guests=guests), 99)]
    assert story == [
        (0, 1, ""),
        (0, 1, "grow 8"),
        (1, 0, ""),
        (1, 0, "grow 4"),
        (1, 0, "update 33"),
        (9, 0, "quit"),
    ]


def test_pages_count_for_those_that_came_and_memory_for_those_that_are_there() -> None:
    guests = tuple(Guest(start_s=n * 10.0, end_s=n * 10.0 + 10, mib=MIB // 2**10) for n in range(3))
    relay = Scenario(summary="one after another", guests=guests)
    assert mergeable_pages(relay, 15.0) == 2 * GIB // PAGE_BYTES
    assert mergeable_pages(relay, 99.0) == 3 * GIB // PAGE_BYTES
    assert peak_bytes(relay, 99.0) <= 2 * GIB


def test_storm_is_two_passes_over_eleven_guests() -> None:
    assert mergeable_pages(SCENARIOS["storm"], 150) * PAGE_BYTES == 11 * 512 * MIB


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_is_over_before_its_end_and_speaks_the_guests_language(name: str) -> None:
    scenario = SCENARIOS[name]
    told = {event.command.partition(" ")[0] for event in events(scenario, 1e9)}
    assert told <= {"", "quit", "grow", "update", "reboot", "sparse", "press", "release"}
    assert (scenario.change_s or 0) < scenario.seconds
    assert scenario.split_s <= scenario.seconds
    for guest in scenario.guests:
        assert guest.common_pct + guest.zero_pct + guest.volatile_pct <= 100
        assert all(at_s >= guest.start_s for at_s, _ in guest.later)


# -- controllers -----------------------------------------------------------------------------------


def test_controllers_go_by_their_names() -> None:
    assert [parse(name).name for name in ALL] == list(ALL)
    assert parse("flat-out") == Fixed("flat-out", 20000, 1)
    assert parse("fixed:1250:10") == Fixed("fixed:1250:10", 1250, 10)
    assert parse("advisor") == Advisor("advisor", 200)
    assert parse("advisor:60") == Advisor("advisor:60", 60)
    assert parse("ksmtuned") == Ours("ksmtuned", 'policy = "adaptive"\nprofile = "test"\n')


def test_our_daemon_takes_policy_profile_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('policy = "off"\n')
    assert parse(f"ksmtuned:{file}") == Ours(f"ksmtuned:{file}", 'policy = "off"\n')
    desktop = parse("ksmtuned:adaptive:desktop")
    assert isinstance(desktop, Ours)
    assert desktop.config == 'policy = "adaptive"\nprofile = "desktop"\n'


@pytest.mark.parametrize(
    "name", ["", "fast", "fixed", "fixed:1", "fixed:1:x", "advisor:", "advisor:1:2", "debian:1"]
)
def test_a_controller_that_does_not_exist_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(UsageError, match="no such controller; there are\nksmtuned"):
        parse(name)


# -- tables and files ------------------------------------------------------------------------------


def contest(**runs: list[Run]) -> Contest:
    return Contest(
        scenario="storm",
        summary="some guests",
        seconds=4,
        split_s=4,
        change_s=None,
        two_passes_pages=100,
        kernel="6.18",
        machine="2 CPUs",
        date="2026-01-01",
        runs=runs,
    )


def test_a_table_has_figures_and_multiples_of_the_reference() -> None:
    slow = run_of(0, 0, 1, 2, 2, cost=Cost(cpu_s=0.01, rss_bytes=MIB))
    text = report.table(contest(fast=[RISING], slow=[slow]), "fast", as_markdown=True)
    assert text.splitlines()[2:9] == [
        HEAD,
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
        "| fast | 2.0 | 3.0 | 3.0 | - | 8.0 | 2.00 | - | - | 4.00 | - | 4096 |",
        "| slow | 3.0 | - | - | - | 4.0 | 2.00 | 0.01 | 1.0 | 4.00 | - | 2048 |",
        "",
        "| x fast | t50 | t90 | t99 | again | saved | ksmd | own | own | scanned | tail | end |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    assert "| slow | 1.50 | - | - | - | 0.50 | 1.00 | - | - | 1.00 | - | 0.50 |" in text


def test_without_the_reference_there_are_no_multiples() -> None:
    text = report.table(contest(slow=[RISING]), "fast")
    assert "x fast" not in text


def test_what_was_saved_is_read_back_the_same(tmp_path: Path) -> None:
    before = contest(
        fast=[RISING, run_of(1, 2)], slow=[run_of(0, 1, cost=Cost(cpu_s=1, rss_bytes=2))]
    )
    report.save(before, "fast", tmp_path / "contest.json")
    assert report.load(tmp_path / "contest.json") == before
