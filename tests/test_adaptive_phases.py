"""The adaptive law's phases: when one ends and the next begins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from closed_loop import GIB, Host
from ksmd_model import MIB
from snapshots import QUIET

from ksmtuned.growth import AdaptivePast
from ksmtuned.model import Code, Decision, Phase, Settings, Snapshot
from ksmtuned.policies.adaptive import Adaptive

LAW = Adaptive(max_cpu=100.0, is_frugal=False)
FRUGAL = Adaptive()


def at(time_s: float, *, anon_mib: float = 4096, available_gib: float = 60.0) -> Snapshot:
    """A quiet host at that moment."""
    meminfo = replace(
        QUIET.meminfo, anon_bytes=int(anon_mib * MIB), available_bytes=int(available_gib * GIB)
    )
    ksm = replace(QUIET.ksm, full_scans=0, pages_scanned=0, pages_skipped=0, ksm_zero_pages=0)
    return replace(QUIET, monotonic_s=100 + time_s, meminfo=meminfo, ksm=ksm, ksmd_cpu_s=0.0)


def follow(law: Adaptive, snapshots: list[Snapshot]) -> tuple[list[Decision], AdaptivePast]:
    """All decisions, and the past after them."""
    past, decisions = law.start(), []
    for now in snapshots:
        decision, past = law.decide(now, past)
        decisions.append(decision)
    return decisions, past


def test_the_first_look_stops_ksmd_and_settles() -> None:
    decisions, _ = follow(LAW, [at(0)])
    assert decisions[0].settings == Settings(run=0)
    assert (decisions[0].phase, decisions[0].code) == (Phase.SETTLE, Code.SETTLE)


def test_calm_memory_is_scanned_after_a_moment() -> None:
    decisions, _ = follow(LAW, [at(n / 4) for n in range(8)])
    phases = [decision.phase for decision in decisions]
    assert phases[-1] is Phase.BURST
    assert phases == sorted(phases, key=[Phase.SETTLE, Phase.BURST].index)
    assert decisions[-1].settings.run == 1


@pytest.mark.parametrize(
    ("anon_mib", "least_s", "most_s"), [(256, 0.2, 1), (4096, 1.5, 4), (16384, 9, 14)]
)
def test_growth_is_waited_for_as_long_as_a_lap_is_long(
    anon_mib: int, least_s: float, most_s: float
) -> None:
    decisions, _ = follow(LAW, [at(n / 4, anon_mib=anon_mib + 50 * n) for n in range(60)])
    phases = [decision.phase for decision in decisions]
    begun_s = phases.index(Phase.BURST) / 4
    assert least_s <= begun_s <= most_s


def test_plentiful_memory_is_not_scanned_in_production() -> None:
    decisions, _ = follow(FRUGAL, [at(n * 2.0) for n in range(100)])
    assert {decision.settings for decision in decisions} == {Settings(run=0)}
    assert {decision.code for decision in decisions} == {Code.PLENTY}


def test_unattended_production_stops_while_memory_is_plentiful() -> None:
    decision = FRUGAL.unattended(at(0))
    assert decision.settings == Settings(run=0)
    assert decision.code is Code.PLENTY


@pytest.mark.parametrize("law", [LAW, FRUGAL])
def test_unattended_ksmd_takes_little_of_a_core(law: Adaptive) -> None:
    settings = law.unattended(at(0, available_gib=5.0)).settings
    assert settings.run == 1
    host = Host(law)
    for name, value in settings.wanted().items():
        if name != "run":
            setattr(host.ksmd, name, value)
    for _ in range(4):
        host.boot()
    host.ksmd.set_run(1, host.time_s)
    host.law = Adaptive()  # which lets be: memory is plentiful
    host.run(0)
    host.ksmd.set_run(1, host.time_s)
    host._tick_s = float("inf")  # nobody looks again
    host.run(600)
    assert host.cpu_between(0, 600) <= 0.06 * 600
    assert host.merged_ratio >= 0.95


def test_a_small_change_does_not_end_a_watch() -> None:
    host = Host(LAW)
    vms = [host.boot() for _ in range(6)]
    host.run(30)
    host.at(40, lambda: host.grow(vms[0], 8, fill_s=0.1))
    host.run(100)
    assert len(host.bursts()) == 1


def test_many_small_changes_do_in_the_end() -> None:
    host = Host(LAW)
    vms = [host.boot() for _ in range(6)]
    host.run(30)
    for n in range(80):
        host.at(31 + n, lambda n=n: host.grow(vms[n % 6], 8, fill_s=0.1))  # type: ignore[misc]
    host.run(120)
    assert len(host.bursts()) >= 2
