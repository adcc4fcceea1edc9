"""The adaptive law and its readings: counters that jump or vanish, late ticks, what it remembers
and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from closed_loop import BARREN, GIB, Filling, Host, kept
from ksmd_model import KERNEL_5_10, KERNEL_6_1, NEW_KERNEL, Kernel

from ksmtuned.growth import AdaptivePast
from ksmtuned.model import Code, Phase, Snapshot
from ksmtuned.policies.adaptive import Adaptive
from ksmtuned.rates import Mark

TEST = Adaptive(max_cpu=100.0, is_frugal=False)
EAGER = Adaptive(max_cpu=30.0, is_frugal=False)
PRODUCTION = Adaptive()
# In the first settling, in the first and the second pass, in the watch, in the second wave.
MOMENTS = [1, 3.1, 5, 7, 30, 75.5, 78.5, 80]


def waves(law: Adaptive = TEST, kernel: Kernel = NEW_KERNEL, seed: int = 1) -> Host:
    """6 guests, 3 more at 75 s; ksmd has run before."""
    host = Host(law, kernel=kernel, seed=seed)
    host.ksmd.full_scans, host.ksmd.scanned = 500, 10**9
    for _ in range(6):
        host.boot()
    for _ in range(3):
        host.at(75, host.boot)
    return host


def assert_it_ends_well(host: Host) -> None:
    """All is merged before the first probe is due, and ksmd is at rest."""
    host.run(260)
    assert host.phase is Phase.WATCH or host.ticks[-1].decision.code is Code.PROBE
    assert host.merged_ratio >= 0.95
    assert host.cpu_between(0, 260) <= 30  # 8.9 where nothing is wrong
    host.run(600)
    assert host.phase is Phase.WATCH or host.ticks[-1].decision.code is Code.PROBE
    assert host.cpu_between(260, 600) <= 15


# -- readings that jump --------------------------------------------------------------------------


@pytest.mark.parametrize("at_s", MOMENTS)
@pytest.mark.parametrize("counters", [("full_scans",), ("scanned", "skipped"), ("_cpu_s",)])
def test_counters_that_begin_anew_do_not_keep_it_in_a_burst(
    at_s: float, counters: tuple[str, ...]
) -> None:
    host = waves()
    for counter in counters:
        host.at(at_s, lambda counter=counter: setattr(host.ksmd, counter, 0))  # type: ignore[misc]
    assert_it_ends_well(host)


VANISHED: dict[str, dict[str, Any]] = {
    "full_scans": {"full_scans": None},
    "pages_scanned": {"pages_scanned": None},
    "pages_skipped": {"pages_skipped": None},
    "savings": {"pages_sharing": None, "ksm_zero_pages": None},
    "all": dict.fromkeys(
        (
            "full_scans",
            "pages_scanned",
            "pages_skipped",
            "pages_shared",
            "pages_sharing",
            "pages_unshared",
            "pages_volatile",
            "ksm_zero_pages",
            "general_profit",
        )
    ),
}


def vanishing(at_s: float, changes: dict[str, Any], *, ticks: int = 1) -> Callable[..., Snapshot]:
    """Readings from which files are missing for so many ticks."""
    left = [ticks]

    def see(now: Snapshot) -> Snapshot:
        if now.monotonic_s < 1000 + at_s or not left[0]:
            return now
        left[0] -= 1
        return kept(now, **changes)

    return see


@pytest.mark.parametrize("at_s", MOMENTS)
@pytest.mark.parametrize("changes", VANISHED.values(), ids=VANISHED.keys())
def test_counters_that_vanish_for_a_tick_do_no_harm(at_s: float, changes: dict[str, Any]) -> None:
    host = waves()
    host.see = vanishing(at_s, changes)
    assert_it_ends_well(host)


@pytest.mark.parametrize("at_s", MOMENTS)
def test_a_ksmd_that_is_not_seen_for_a_tick_does_no_harm(at_s: float) -> None:
    host = waves()
    left = [1]

    def see(now: Snapshot) -> Snapshot:
        if now.monotonic_s < 1000 + at_s or not left[0]:
            return now
        left[0] -= 1
        return replace(now, ksmd_cpu_s=None, cow_ksm=None, pressure_pct=None, guests=())

    host.see = see
    assert_it_ends_well(host)


@pytest.mark.parametrize("late_s", [3.0, 600.0])
@pytest.mark.parametrize("at_s", MOMENTS[::2])
def test_a_tick_that_comes_late_is_got_over(at_s: float, late_s: float) -> None:
    """A suspend, a debugger, a host without a free core."""
    host = waves()
    host.at(at_s, lambda: setattr(host, "delay_s", late_s))
    host.run(max(200, at_s + late_s + 100))
    assert host.merged_ratio >= 0.95
    assert host.phase is Phase.WATCH or host.ticks[-1].decision.code is Code.PROBE
    after_s = at_s + 5 + late_s
    assert host.cpu_between(after_s, after_s + 300) <= 20


def test_the_same_moment_twice_does_no_harm() -> None:
    """SIGUSR1 right after a tick: no time has passed."""
    host = waves(EAGER)
    host.run(90)
    for tick in host.ticks:
        again, past = host.law.decide(tick.now, tick.past)
        assert again.phase in Phase
        host.law.decide(tick.now, past)


# -- what it remembers ---------------------------------------------------------------------------


def revived(text: str) -> AdaptivePast:
    """The past in this JSON."""
    values = json.loads(text)
    for field in fields(AdaptivePast):
        if field.type == "Mark":
            values[field.name] = Mark(**values[field.name])
    values["phase"] = Phase(values["phase"])
    return AdaptivePast(**values)


def scenes() -> list[Host]:
    """Hosts of all kinds, each with a story behind it."""
    hosts = [waves(TEST), waves(EAGER, KERNEL_6_1), waves(EAGER, KERNEL_5_10)]
    barren = Host(TEST, total_bytes=8 * GIB)
    barren.boot(filling=BARREN)
    sparse = Host(TEST)
    sparse.boot(16, hole_cpu_s=50.0)
    idle = Host(TEST)
    idle.boot(is_offered=False)
    short = Host(PRODUCTION, total_bytes=16 * GIB)
    short.used_bytes = 10 * GIB
    for _ in range(8):
        short.boot(filling=Filling(volatile=20))
    short.at(12, lambda: setattr(short, "used_bytes", 2 * GIB))
    short.at(60, lambda: setattr(short, "pressure_pct", 30.0))
    hosts += [barren, sparse, idle, short, Host(PRODUCTION)]
    for host in hosts:
        host.run(400)
    return hosts


@pytest.fixture(scope="module")
def lived() -> list[Host]:
    """The same hosts for all tests here."""
    return scenes()


def test_the_same_readings_give_the_same_decisions(lived: list[Host]) -> None:
    for host in lived:
        past = host.law.start()
        for tick in host.ticks:
            decision, past = host.law.decide(tick.now, past)
            assert (decision, past) == (tick.decision, tick.past)


def test_the_past_is_small_and_survives_json(lived: list[Host]) -> None:
    for host in lived:
        for tick in host.ticks[::7]:
            text = json.dumps(asdict(tick.past))
            assert len(text) < 4096
            assert revived(text) == tick.past


def test_every_decision_has_a_reason_of_one_line_with_figures(lived: list[Host]) -> None:
    for host in lived:
        for tick in host.ticks:
            reason = tick.decision.reason
            assert reason.isprintable()
            assert len(reason) <= 200
            assert any(character.isdigit() for character in reason), reason


def test_every_decision_can_be_obeyed(lived: list[Host]) -> None:
    for host in lived:
        for tick in host.ticks:
            decision = tick.decision
            wanted = decision.settings
            assert wanted.run in (0, 1)
            assert wanted.run == (decision.phase is Phase.BURST)
            assert wanted.pages_to_scan is None or 1 <= wanted.pages_to_scan < 2**31
            assert wanted.sleep_millisecs is None or 1 <= wanted.sleep_millisecs <= 10_000
            assert decision.next_tick_s is None or decision.next_tick_s >= 0.01
            assert decision.progress is None or 0 <= decision.progress <= 1


def test_nothing_is_written_that_this_kernel_has_not() -> None:
    host = waves(EAGER, KERNEL_5_10)
    host.run(100)
    for tick in host.ticks:
        assert tick.decision.settings.smart_scan is None
        assert tick.decision.settings.use_zero_pages is None


def test_a_smart_scan_that_was_switched_off_stays_off() -> None:
    host = waves(EAGER)
    host.ksmd.smart_scan = 0
    host.run(100)
    assert {t.decision.settings.smart_scan for t in host.ticks} <= {0, None}


def test_progress_grows_in_a_burst() -> None:
    host = waves(EAGER)
    host.run(100)
    begun = False
    before = 0.0
    for tick in host.ticks_between(77, 100):
        if tick.decision.phase is not Phase.BURST:
            begun, before = False, 0.0
        elif tick.decision.progress is not None:
            assert not begun or tick.decision.progress >= before - 0.4
            begun, before = True, tick.decision.progress
