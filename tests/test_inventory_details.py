"""What KSM does with each guest, and with processes that are none: read in rotation."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from fakehost import FakeHost
from workplace import wait_until

from ksmtuned.guests.details import LEAST, Rotation
from ksmtuned.guests.inventory import Inventory
from ksmtuned.host.host import Host
from ksmtuned.host.process import ProcessKsm
from ksmtuned.model import Details, Guest
from ksmtuned.settings import GuestsTable

PATTERNS = GuestsTable().comm


@pytest.fixture
def fake(folder: Path) -> FakeHost:
    return FakeHost(folder / "host")


def inventory(fake: FakeHost) -> Inventory:
    return Inventory(Host(fake.root), PATTERNS, "rss")


def only(guests: tuple[Guest, ...]) -> Details:
    (guest,) = guests
    return guest.details


def test_a_guest_carries_what_its_command_line_and_the_kernel_say(fake: FakeHost) -> None:
    options = ("-uuid", "0a9f", "-m", "512")
    fake.add_guest(4000, name="web", options=options)
    figures = {"merging_pages": 30, "zero_pages": 4, "rmap_items": 50, "process_profit": -7}
    fake.set_ksm_stat(4000, mergeable="yes", **figures)
    assert only(inventory(fake).read()) == Details(
        uuid="0a9f",
        ram_bytes=512 * 2**20,
        uid=0,
        cgroup="/machine.slice/machine-4000.scope",
        merging_pages=30,
        zero_pages=4,
        rmap_items=50,
        profit_bytes=-7,
        mergeable=True,
        why_not=None,
        share="on",
    )


def test_its_figures_are_followed(fake: FakeHost) -> None:
    fake.add_guest(4000)
    guests = inventory(fake)
    assert only(guests.read()).merging_pages == 0
    fake.set_ksm_stat(4000, mergeable="yes", merging_pages=9)
    assert only(guests.read()).merging_pages == 9
    fake.set_ksm_stat(4000, mergeable="no", merging_pages=0)
    details = only(guests.read())
    assert (details.mergeable, details.share) == (False, "off")


def test_a_kernel_with_ksm_merging_pages_alone_gives_that(fake: FakeHost) -> None:
    fake.add_guest(4000)
    (fake.root / "proc/4000/ksm_stat").unlink()
    fake.write("proc/4000/ksm_merging_pages", "12\n")
    details = only(inventory(fake).read())
    assert (details.merging_pages, details.zero_pages, details.mergeable) == (12, None, True)


def test_the_first_form_of_ksm_stat_is_completed(fake: FakeHost) -> None:
    """Linux 6.1: one line, and the rest in the older file."""
    fake.add_guest(4000)
    fake.write("proc/4000/ksm_stat", "ksm_rmap_items 8\n")
    fake.write("proc/4000/ksm_merging_pages", "3\n")
    details = only(inventory(fake).read())
    assert (details.rmap_items, details.merging_pages, details.profit_bytes) == (8, 3, None)


def test_a_kernel_without_both_says_nothing_and_that_is_told(folder: Path) -> None:
    fake = FakeHost(folder / "host", image="kernel-5.10")
    fake.add_guest(4000)
    details = only(inventory(fake).read())
    assert (details.merging_pages, details.mergeable, details.share) == (None, None, None)
    assert details.why_not == "this kernel does not say (before 6.14)"


@pytest.mark.parametrize(
    "content", ["", "\n", "ksm_merging_pages many\n", "ksm_merging_pages 99999999999999999999999\n"]
)
def test_garbage_in_ksm_stat_is_nothing(fake: FakeHost, content: str) -> None:
    fake.add_guest(4000)
    (fake.root / "proc/4000/ksm_merging_pages").unlink()
    fake.write("proc/4000/ksm_stat", content)
    assert only(inventory(fake).read()).merging_pages is None


def test_a_probe_is_no_guest(fake: FakeHost) -> None:
    fake.add_guest(4000, options=("-machine", "none,accel=kvm:tcg"))
    guests = inventory(fake)
    assert guests.read() == ()
    assert guests.is_probe(4000)


def test_a_guest_without_a_name_has_that_of_its_scope(fake: FakeHost) -> None:
    fake.add_process(4000, comm="firecracker", arguments=["firecracker", "--no-api"])
    fake.write("proc/4000/cgroup", "0::/vms.slice/blue.scope\n")
    (guest,) = inventory(fake).read()
    assert guest.name == "blue"


# -- processes that are no guests ------------------------------------------------------------------


def others(inventory: Inventory) -> dict[int, str]:
    inventory.read()
    return {process.pid: process.name for process in inventory.others}


@pytest.mark.parametrize("figures", [{"mergeable": "yes"}, {"merging_pages": 5}, {"zero_pages": 5}])
def test_a_process_with_mergeable_memory_is_listed(fake: FakeHost, figures: dict[str, int]) -> None:
    fake.add_process(5000, comm="jvm")
    fake.write("proc/5000/cgroup", "0::/\n")
    fake.set_ksm_stat(5000, **figures)  # type: ignore[arg-type]  # by name
    assert others(inventory(fake)) == {5000: "jvm"}


def test_one_that_asked_by_prctl_is_listed(fake: FakeHost) -> None:
    fake.add_process(5000, comm="jvm")
    fake.write("proc/5000/ksm_stat", "ksm_merge_any: yes\nksm_mergeable: no\n")
    found = inventory(fake)
    assert list(others(found)) == [5000]
    assert found.others[0].details.share == "on"


def test_others_come_and_go_and_a_guest_is_none_of_them(fake: FakeHost) -> None:
    fake.add_guest(4000)
    found = inventory(fake)
    assert others(found) == {}
    fake.add_process(5000, comm="jvm")
    fake.set_ksm_stat(5000, mergeable="yes")
    assert list(others(found)) == [5000]
    fake.set_ksm_stat(5000)
    assert others(found) == {}
    fake.set_ksm_stat(5000, mergeable="yes")
    assert list(others(found)) == [5000]
    fake.remove_process(5000)
    assert others(found) == {}


def test_one_whose_stat_is_garbled_is_left_out(fake: FakeHost) -> None:
    fake.add_process(5000, comm="jvm")
    fake.set_ksm_stat(5000, mergeable="yes")
    fake.write("proc/5000/stat", "nonsense")
    assert others(inventory(fake)) == {}


def test_a_process_takes_part_by_any_sign_of_it() -> None:
    assert not ProcessKsm(merging_pages=0, mergeable=False, merge_any=False).takes_part
    assert not ProcessKsm().takes_part
    assert ProcessKsm(merging_pages=1).takes_part


# -- the rotation ----------------------------------------------------------------------------------


def test_at_first_everybody_has_a_turn_and_then_a_few_in_each_tick() -> None:
    rotation, pids = Rotation(), list(range(1000, 1100))
    assert list(rotation.next(pids)) == pids
    turns = [list(rotation.next(pids)) for _ in range(3)]
    assert all(LEAST <= len(turn) <= LEAST + 3 for turn in turns)  # as fast as this machine is


def test_everybody_s_turn_comes_whoever_comes_and_goes() -> None:
    rotation, pids = Rotation(), list(range(0, 200, 2))
    rotation.next(pids)
    seen: set[int] = set()
    for step in range(200):
        # One that left may be where the last turn ended.
        present = [pid for pid in pids if pid % 40 or step % 2]
        seen |= set(rotation.next(present))
    assert seen == set(pids)


def test_a_thousand_guests_cost_one_read_each_and_a_few_more(fake: FakeHost) -> None:
    """A tick of no time reads at most LEAST of their ksm_stat."""
    for pid in range(10_000, 10_100):
        fake.add_guest(pid, rss_pages=10)
    guests = inventory(fake)
    guests.read()
    for pid in range(10_000, 10_100):
        fake.set_ksm_stat(pid, mergeable="yes", merging_pages=1)
    found = [guest.details.merging_pages for guest in guests.read()]
    assert 0 < sum(map(bool, found)) < 100
    for _ in range(100):
        found = [guest.details.merging_pages for guest in guests.read()]
    assert all(found)


# -- on this machine -------------------------------------------------------------------------------


def test_a_thread_is_mapped_to_its_process() -> None:
    """KVM's events name the thread that created the machine, which need not be the first."""
    processes, found = Host(Path("/")).processes, []

    def look() -> None:
        found.append((threading.get_native_id(), processes.process_of(threading.get_native_id())))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    ((thread_id, process),) = found
    assert thread_id != os.getpid()
    assert process == os.getpid()
    wait_until(lambda: processes.process_of(thread_id) is None, "the thread's end")
    assert processes.uid(os.getpid()) == os.getuid()
