"""Edits of the configuration while the daemon runs."""

from __future__ import annotations

import time

from daemon_under_test import Daemon, Launch
from fakehost import FakeHost
from workplace import CLASSIC, FIXED, Workplace


def test_hup_reloads_between_reloading_and_ready(daemon: Daemon, host: FakeHost) -> None:
    daemon.place.configure(FIXED.replace("500", "600"))
    said = daemon.reload()
    assert said[0].fields["RELOADING"] == "1"
    assert said[-1].fields["READY"] == "1"
    assert host.knob("pages_to_scan") == "600"


def test_reloading_carries_the_monotonic_time(daemon: Daemon) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    said = daemon.reload()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert before <= int(said[0].fields["MONOTONIC_USEC"]) <= after


def test_a_refused_reload_ends_with_ready_and_names_the_file(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    place.configure('policy = "fixd"\n')
    said = daemon.reload()
    assert any(str(place.config) in (n.status or "") for n in said)
    assert host.pace() == ("1", "500", "15")


def test_a_refused_edit_stays_in_status_until_it_is_mended(
    daemon: Daemon, place: Workplace
) -> None:
    place.configure('policy = "fixd"\n')
    daemon.reload()
    assert str(place.config) in daemon.tick()
    assert str(place.config) in daemon.tick()
    place.configure(FIXED)
    assert str(place.config) not in daemon.tick()


def test_a_refused_edit_is_logged_once(daemon: Daemon, place: Workplace) -> None:
    place.configure('policy = "fixd"\n')
    for _ in range(5):
        daemon.tick()
    assert len([line for line in daemon.log if str(place.config) in line]) == 1


def test_an_edit_is_picked_up_at_the_next_tick(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    place.configure(FIXED.replace("500", "600"))
    daemon.tick()
    assert host.knob("pages_to_scan") == "600"


def test_an_edit_in_place_is_picked_up_too(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    place.config.write_text(FIXED.replace("500", "600"))
    daemon.tick()
    assert host.knob("pages_to_scan") == "600"


def test_drop_ins_are_picked_up_when_they_come_and_when_they_go(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    dropin = place.dropins / "50-more.toml"
    dropin.write_text("[fixed]\npages_to_scan = 700\n")
    daemon.tick()
    assert host.pace() == ("1", "700", "15")
    dropin.unlink()
    daemon.tick()
    assert host.pace() == ("1", "500", "15")


def test_another_policy_takes_over_at_the_next_tick(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    place.configure('policy = "off"\n')
    daemon.tick()
    assert host.knob("run") == "0"
    assert place.state()["policy"] == "off"


def test_classic_keeps_its_npages_over_a_reload_of_the_same_settings(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    host.make_memory_short()
    host.add_guest(4000, rss_pages=host.total_kb // 4)
    daemon = launch()
    daemon.start()
    daemon.tick()
    assert host.knob("pages_to_scan") == "600"
    daemon.reload()
    assert host.knob("pages_to_scan") == "900"
