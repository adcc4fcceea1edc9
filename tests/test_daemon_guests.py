"""Guests that come, go and take each other's pid while the daemon runs."""

from __future__ import annotations

from daemon_under_test import Launch
from fakehost import FakeHost
from workplace import CLASSIC, Workplace


def test_a_guest_that_ends_between_listing_and_reading_is_no_error(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    for pid in (4000, 4001):
        host.add_guest(pid)
    daemon = launch()
    daemon.start()
    host.half_vanish(4000)
    daemon.tick()
    assert [g["pid"] for g in place.state()["guests"]] == [4001]


def test_a_process_that_ends_before_it_was_ever_read_is_no_error(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    daemon = launch()
    daemon.start()
    host.add_guest(4000)
    host.half_vanish(4000)
    daemon.tick()
    assert place.state()["guests"] == []


def test_a_pid_that_passes_from_one_guest_to_another_is_another_guest(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    host.add_guest(4000, name="old")
    daemon = launch()
    daemon.start()
    host.add_guest(4000, comm="firecracker", name="new")
    daemon.tick()
    assert [(g["pid"], g["vmm"]) for g in place.state()["guests"]] == [(4000, "firecracker")]


def test_a_pid_that_passes_from_a_guest_to_a_shell_is_no_guest(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    host.add_guest(4000)
    daemon = launch()
    daemon.start()
    host.add_process(4000, comm="bash")
    daemon.tick()
    assert place.state()["guests"] == []


def test_a_pid_that_passes_from_a_shell_to_a_guest_is_a_guest(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    host.add_process(4000, comm="bash")
    daemon = launch()
    daemon.start()
    host.add_guest(4000)
    daemon.tick()
    assert [g["pid"] for g in place.state()["guests"]] == [4000]


def test_a_process_that_becomes_a_guest_by_exec_is_a_guest(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    # libvirtd forks, prepares the child for a while, and only then executes QEMU.
    place.configure(CLASSIC)
    host.add_process(4000, comm="rpc-virtqemud")
    daemon = launch()
    daemon.start()
    host.rename(4000, comm="qemu-system-x86")
    daemon.tick()
    assert [g["pid"] for g in place.state()["guests"]] == [4000]
