"""The steps of an unmerge: guest by guest where there is a way, and what a failure leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from errno import EINTR, ENOMEM
from pathlib import Path

import pytest
from fakehost import FakeHost
from workplace import Workplace

from ksmtuned.errors import KernelRefused, NoAnswer
from ksmtuned.host.host import Host
from ksmtuned.host.ksm import WAIT_S, Ksm
from ksmtuned.model import RUN_UNMERGE, Guest, Write
from ksmtuned.need import Order
from ksmtuned.originals import Originals
from ksmtuned.rundir import RunDir
from ksmtuned.units import PAGE_BYTES
from ksmtuned.unmerging import Outcome, Step, unmerging

GUEST_PAGES = 1000


@dataclass
class Monitor:
    """A guest's way to its memory. It is called in children, so it notes in a file."""

    host: FakeHost
    diary: Path
    obeys: bool = True  # false: says yes and does nothing, as QEMU 9.1.0
    error: str = ""

    def off(self, guest: Guest) -> str:
        self._note(f"off {guest.name} run={self.host.knob('run')}")
        if self.error:
            raise NoAnswer(self.error)
        if self.obeys:
            self.host.merge(guest.pid, pages=0)
            left = int(self.host.knob("pages_sharing")) - GUEST_PAGES
            self.host.set_knobs(pages_sharing=left)
        return f"the RAM of {guest.name}"

    def on(self, guest: Guest, what: str) -> None:
        assert what == f"the RAM of {guest.name}"
        self._note(f"on {guest.name}")

    def _note(self, line: str) -> None:
        with self.diary.open("a") as diary:
            diary.write(line + "\n")


class FailingKsm(Ksm):
    """A kernel that gives up half way through an unmerge, as mm/ksm.c does."""

    def __init__(self, host: Host, fake: FakeHost, errno: int) -> None:
        super().__init__(host.tree)
        self._fake, self._errno = fake, errno

    def write(self, write: Write, wait_s: float = WAIT_S) -> None:
        if write.new != RUN_UNMERGE:
            return super().write(write, wait_s)
        self._fake.set_knobs(run=0, pages_sharing=GUEST_PAGES)
        raise KernelRefused(self._fake.ksm / "run", self._errno, write.new)


@dataclass
class Bench:
    """Three guests with 1000 merged pages each, and 1000 pages that are nobody's we know."""

    place: Workplace
    host: Host
    fake: FakeHost
    steps: list[Step] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)  # run, when the hold was left

    @property
    def diary(self) -> list[str]:
        path = self.place.folder / "diary"
        return path.read_text().splitlines() if path.exists() else []

    def monitor(self, **how: object) -> Monitor:
        return replace(Monitor(self.fake, self.place.folder / "diary"), **how)  # type: ignore[arg-type]

    def order(self, ways: dict[str, Monitor], **rest: object) -> Order:
        names = {4000: "vm1", 4001: "vm2", 4002: "vm3"}
        guests = [
            Guest(pid=pid, start_time=1, name=name, vmm="qemu", memory_bytes=0)
            for pid, name in names.items()
        ]
        order = Order(
            guests=guests,
            sharing=lambda guest: ways.get(guest.name),
            begin=lambda: self.begun.append(self.fake.knob("run")),
        )
        return replace(order, **rest)  # type: ignore[arg-type]

    def run(self, order: Order, hook: Callable[[], None] = lambda: None) -> Outcome:
        boot_id = self.host.proc.boot_id()
        work = unmerging(self.host, Originals(RunDir(self.place.run_dir), boot_id), order)
        while True:
            hook()
            before_s = time.monotonic()
            try:
                self.steps.append(next(work))
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome
            assert time.monotonic() - before_s < 0.5, "a step that blocks starves the watchdog"


@pytest.fixture
def bench(place: Workplace, host: FakeHost) -> Bench:
    host.set_knobs(run=1, pages_sharing=4 * GUEST_PAGES)
    for pid in (4000, 4001, 4002):
        host.add_guest(pid)
        host.merge(pid, pages=GUEST_PAGES)
    return Bench(place, Host(host.root), host)


def test_one_guest_alone_and_the_others_stay_merged(bench: Bench) -> None:
    outcome = bench.run(bench.order({"vm2": bench.monitor()}, only="vm2"))
    assert outcome.error is None
    assert bench.diary == ["off vm2 run=0", "on vm2"]
    assert bench.begun == ["0"]
    assert (bench.fake.knob("run"), bench.fake.knob("pages_sharing")) == ("0", "3000")
    assert "3.9 MiB of 15.6 MiB given back" in outcome.text


def test_guest_by_guest_most_room_first_and_run_2_for_the_rest(bench: Bench) -> None:
    need = GUEST_PAGES * PAGE_BYTES
    for pid, spare in ((4000, 10), (4001, 30), (4002, 20)):
        bench.fake.limit(pid, room_bytes=need + spare)
    ways = {name: bench.monitor() for name in ("vm1", "vm2")}
    outcome = bench.run(bench.order(ways))
    assert outcome.error is None
    assert bench.diary == ["off vm2 run=0", "on vm2", "off vm1 run=0", "on vm1"]
    assert [str(write) for write in outcome.writes] == ["run: 1 -> 0", "run: 0 -> 2"]
    assert bench.fake.knob("run") == "0"


def test_where_the_guests_were_all_there_is_no_run_2(bench: Bench) -> None:
    bench.fake.set_knobs(pages_sharing=3 * GUEST_PAGES)
    ways = {name: bench.monitor() for name in ("vm1", "vm2", "vm3")}
    outcome = bench.run(bench.order(ways))
    assert [str(write) for write in outcome.writes] == ["run: 1 -> 0"]
    assert "11.7 MiB of 11.7 MiB given back" in outcome.text
    assert max(step.progress for step in bench.steps) > 0.3


def test_an_interrupt_stops_between_two_guests_and_says_what_is_done(bench: Bench) -> None:
    ways = {name: bench.monitor() for name in ("vm1", "vm2", "vm3")}
    outcome = bench.run(bench.order(ways, is_wanted=lambda: len(bench.diary) < 2))
    assert len(bench.diary) == 2, bench.diary
    assert "stopped, as asked: 1 of 3 guests were done" in outcome.text
    assert outcome.exit_status == 1
    assert bench.fake.knob("run") == "0"


def test_a_guest_that_fails_is_left_to_run_2(bench: Bench) -> None:
    ways = {"vm1": bench.monitor(error="its monitor\nhangs"), "vm2": bench.monitor()}
    outcome = bench.run(bench.order(ways))
    assert "run: 0 -> 2" in map(str, outcome.writes)
    assert "on vm1" not in bench.diary  # whose way it was has seen to that
    assert "vm1: its monitor\\nhangs" in outcome.text


def test_a_guest_whose_sharing_stays_off_is_told_though_all_was_given_back(bench: Bench) -> None:
    class Forgetful(Monitor):
        def on(self, guest: Guest, what: str) -> None:
            raise NoAnswer(f"{what} is not to be found in {guest.pid}")

    bench.fake.set_knobs(pages_sharing=GUEST_PAGES)
    way = Forgetful(bench.fake, bench.place.folder / "diary")
    outcome = bench.run(bench.order({"vm1": way}))
    assert outcome.exit_status == 1
    assert "3.9 MiB of 3.9 MiB given back: sharing was not switched on again" in outcome.text
    assert "vm1: the RAM of vm1 is not to be found" in outcome.text


def test_one_guest_that_says_yes_and_does_nothing_is_told(bench: Bench) -> None:
    ways = {"vm1": bench.monitor(obeys=False)}
    outcome = bench.run(bench.order(ways, only="4000", patience_s=0.3))
    assert "vm1: 3.9 MiB of it are still merged" in outcome.text
    assert outcome.exit_status == 1
    assert bench.diary[-1] == "on vm1"


def test_a_guest_that_vanishes_half_way_is_done(bench: Bench) -> None:
    monitor = bench.monitor(obeys=False)
    work = bench.order({"vm1": monitor}, only="vm1")

    def vanish() -> None:
        if len(bench.diary) == 1:
            bench.fake.remove_process(4000)

    assert bench.run(work, vanish).error is None


def test_somebody_who_starts_ksmd_between_two_guests_ends_it(bench: Bench) -> None:
    ways = {name: bench.monitor() for name in ("vm1", "vm2", "vm3")}

    def start() -> None:
        if len(bench.diary) == 2:
            bench.fake.set_knobs(run=1)

    outcome = bench.run(bench.order(ways), start)
    assert "somebody else set run to 1" in outcome.text
    assert outcome.exit_status == 1


def test_what_no_longer_fits_half_way_is_not_begun(bench: Bench) -> None:
    ways = {name: bench.monitor() for name in ("vm1", "vm2")}

    def fill() -> None:
        if len(bench.diary) == 2:
            bench.fake.set_meminfo(MemAvailable=1000)

    outcome = bench.run(bench.order(ways), fill)
    assert len(bench.diary) == 2
    assert "3.9 MiB of 15.6 MiB given back, 11.7 MiB still merged: not unmerged" in outcome.text


@pytest.mark.parametrize(
    ("errno", "why"),
    [(ENOMEM, "a guest's memory limit is reached"), (EINTR, "a signal ended it")],
)
def test_a_kernel_that_gives_up_half_way_leaves_a_stated_state(
    bench: Bench, errno: int, why: str
) -> None:
    bench.host.ksm = FailingKsm(bench.host, bench.fake, errno)
    outcome = bench.run(bench.order({}))
    assert outcome.exit_status == 1
    assert "11.7 MiB of 15.6 MiB given back, 3.9 MiB still merged" in outcome.text
    assert why in outcome.text
    assert outcome.text.endswith("; ksmd stays stopped")
    assert bench.begun == ["0"]
    assert bench.fake.knob("run") == "0"
    original = json.loads(bench.place.originals.read_text())["controls"]["run"]
    assert original["first"] == 0


def test_without_a_hold_nothing_is_unmerged_and_ksmd_goes_on(bench: Bench) -> None:
    def fail() -> None:
        raise NoAnswer("no room for the hold")

    outcome = bench.run(bench.order({}, begin=fail))
    assert (outcome.is_begun, outcome.text) == (False, "no room for the hold")
    assert bench.fake.knob("run") == "1"
    assert json.loads(bench.place.originals.read_text())["controls"]["run"]["first"] == 1


def test_a_monitor_that_hangs_is_given_up(bench: Bench) -> None:
    class Hanging(Monitor):
        def off(self, guest: Guest) -> str:
            self._note(f"off {guest.name}")
            time.sleep(60)
            return ""

    way = Hanging(bench.fake, bench.place.folder / "diary")
    started_s = time.monotonic()
    outcome = bench.run(bench.order({"vm1": way}, only="vm1", patience_s=0.3))
    assert "vm1: no answer in time" in outcome.text
    assert bench.diary == ["off vm1"]
    assert time.monotonic() - started_s < 10
