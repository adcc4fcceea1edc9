"""Leaving the kernel's advisor brings everything back, pages_to_scan too, however it ends."""

from __future__ import annotations

import json

import pytest
from daemon_under_test import Daemon, Launch
from fakehost import FakeHost
from workplace import CLASSIC, FIXED, Workplace

ADVISOR = """\
policy = "advisor"
interval = "1 h"
[advisor]
target_scan_time = 300
max_cpu = 50
min_pages_to_scan = 700
max_pages_to_scan = 20000
"""
# What an administrator had before us; files of sysfs read back with brackets, plain ones without.
BEFORE: dict[str, int | str] = {
    "pages_to_scan": 777,
    "advisor_mode": "none",
    "advisor_max_cpu": 40,
    "advisor_min_pages_to_scan": 300,
    "advisor_max_pages_to_scan": 2**33,
    "advisor_target_scan_time": 123,
}


@pytest.fixture
def before(place: Workplace, host: FakeHost) -> dict[str, str]:
    """The controls before the daemon, which is told to use the advisor."""
    host.set_knobs(**BEFORE)
    place.configure(ADVISOR)
    return host.controls()


@pytest.fixture
def advised(before: dict[str, str], launch: Launch, host: FakeHost) -> Daemon:
    """A daemon whose advisor has changed pages_to_scan since."""
    daemon = launch()
    daemon.start()
    assert host.controls() != before
    host.set_knobs(pages_to_scan=4321)
    return daemon


@pytest.mark.usefixtures("advised")
def test_it_hands_the_pace_to_the_kernel_with_the_configured_limits(host: FakeHost) -> None:
    controls = host.controls()
    assert controls["advisor_mode"] == "scan-time"
    assert controls["advisor_target_scan_time"] == "300"
    assert controls["advisor_max_cpu"] == "50"
    assert int(controls["advisor_min_pages_to_scan"]) >= 700
    assert int(controls["advisor_max_pages_to_scan"]) <= 20000
    assert controls["run"] == "1"


def test_a_stop_restores_every_file(
    advised: Daemon, before: dict[str, str], host: FakeHost
) -> None:
    assert advised.stop() == 0
    assert host.controls() == before


def test_a_stop_after_ticks_and_a_new_start_of_the_advisor_too(
    advised: Daemon, before: dict[str, str], host: FakeHost
) -> None:
    host.set_knobs(pages_to_scan=20)
    host.set_meminfo(AnonPages=64 * 2**20)
    assert "has stalled" in advised.tick()
    assert host.knob("advisor_mode") == "none"
    host.set_knobs(pages_to_scan=100)  # as the kernel does
    advised.tick()
    assert host.knob("advisor_mode") == "scan-time"
    assert advised.stop() == 0
    assert host.controls() == before


def test_the_advisors_own_changes_are_nobodys(advised: Daemon, place: Workplace) -> None:
    advised.tick()
    assert place.state()["foreign"] == []


def test_after_kill_9_a_new_start_and_a_stop_restore_every_file(
    advised: Daemon, before: dict[str, str], launch: Launch, host: FakeHost
) -> None:
    advised.kill()
    second = launch()
    second.start()
    host.set_knobs(pages_to_scan=5555)
    second.tick()
    assert second.stop() == 0
    assert host.controls() == before


def test_after_kill_9_restore_restores_every_file(
    advised: Daemon, before: dict[str, str], place: Workplace, host: FakeHost
) -> None:
    advised.kill()
    assert place.call("restore").returncode == 0
    assert host.controls() == before


def test_after_kill_9_in_the_middle_of_a_restore_the_rest_is_restored(
    advised: Daemon, before: dict[str, str], place: Workplace, host: FakeHost
) -> None:
    advised.kill()
    host.set_knobs(run=0, advisor_mode="none", pages_to_scan=100)
    assert place.call("restore").returncode == 0
    assert host.controls() == before


def test_a_pace_that_somebody_set_after_switching_the_advisor_off_is_his(
    advised: Daemon, place: Workplace, host: FakeHost
) -> None:
    advised.kill()
    host.set_knobs(advisor_mode="none", pages_to_scan=999)
    place.call("restore")
    assert host.knob("pages_to_scan") == "999"


@pytest.mark.parametrize("other", [FIXED, CLASSIC])
def test_another_policy_finds_the_advisor_as_it_was_before(
    advised: Daemon, before: dict[str, str], place: Workplace, host: FakeHost, other: str
) -> None:
    place.configure(other)
    advised.tick()
    advisors = {name: value for name, value in host.controls().items() if "advisor" in name}
    assert advisors == {name: before[name] for name in advisors}
    if other == FIXED:
        assert host.pace() == ("1", "500", "15")
    assert place.state()["refused"] == {}
    assert advised.stop() == 0
    assert host.controls() == before


def test_off_gives_pages_to_scan_back_though_it_wants_none(
    advised: Daemon, before: dict[str, str], place: Workplace, host: FakeHost
) -> None:
    place.configure('policy = "off"\n')
    advised.tick()
    assert host.controls() == before


def test_another_policy_after_a_crash_finds_the_advisor_as_it_was_before(
    advised: Daemon, place: Workplace, launch: Launch, host: FakeHost
) -> None:
    advised.kill()
    place.configure(FIXED)
    launch().start()
    assert host.knob("advisor_mode") == "none"
    assert host.pace() == ("1", "500", "15")


def test_the_advisor_takes_over_from_another_policy(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    place.configure(ADVISOR)
    daemon.tick()
    host.set_knobs(pages_to_scan=20)
    host.set_meminfo(AnonPages=64 * 2**20)
    assert "has stalled" in daemon.tick()
    host.set_knobs(pages_to_scan=100)  # as the kernel does
    daemon.tick()
    assert host.knob("advisor_mode") == "scan-time"
    assert place.state()["foreign"] == []
    assert daemon.stop() == 0
    assert host.pace() == ("0", "100", "20")


def test_an_administrators_own_advisor_comes_back(
    before: dict[str, str], launch: Launch, place: Workplace, host: FakeHost
) -> None:
    host.set_knobs(advisor_mode="scan-time", pages_to_scan=20)
    host.set_meminfo(AnonPages=64 * 2**20)
    daemon = launch()
    daemon.start()
    daemon.tick()
    assert host.knob("advisor_mode") == "none"
    daemon.kill()
    assert place.call("restore").returncode == 0
    kernels = {"advisor_mode": "scan-time", "pages_to_scan": "20"}  # its pace is not ours to write
    assert host.controls() == before | kernels


@pytest.mark.parametrize("mode", ["latency", 0, None, ["none"], "none\n", ""])
def test_a_mode_that_the_kernel_does_not_know_is_never_written(
    advised: Daemon, place: Workplace, host: FakeHost, mode: object
) -> None:
    advised.kill()
    found = json.loads(place.originals.read_text())
    found["controls"]["advisor_mode"]["first"] = mode
    place.originals.write_text(json.dumps(found))
    assert place.call("restore").returncode == 1
    assert host.knob("advisor_mode") == "scan-time"


def test_a_number_is_not_a_mode_and_a_mode_is_not_a_number(
    advised: Daemon, place: Workplace, host: FakeHost
) -> None:
    advised.kill()
    found = json.loads(place.originals.read_text())
    found["controls"]["pages_to_scan"]["first"] = "none"
    place.originals.write_text(json.dumps(found))
    assert place.call("restore").returncode == 1
    assert host.knob("pages_to_scan") == "4321"


def test_once_and_restore(before: dict[str, str], place: Workplace, host: FakeHost) -> None:
    assert place.call("--once").returncode == 0
    assert host.knob("advisor_mode") == "scan-time"
    host.set_knobs(pages_to_scan=20)
    assert place.call("--once").returncode == 0
    assert host.knob("advisor_mode") == "scan-time"
    assert place.call("restore").returncode == 0
    assert host.controls() == before


def test_an_old_kernel_gets_a_constant_pace_and_a_word(place: Workplace, launch: Launch) -> None:
    for file in place.host.ksm.glob("advisor_*"):
        file.unlink()
    before = place.host.controls()
    place.configure(ADVISOR)
    daemon = launch()
    daemon.start()
    state = place.state()
    assert state["code"] == "no-advisor"
    assert "this kernel has no advisor" in state["reason"]
    assert set(state["settings"]) == {"run", "pages_to_scan"}
    assert daemon.stop() == 0
    assert place.host.controls() == before
