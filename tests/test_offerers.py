"""Which processes offer memory to KSM, and how much came to them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakehost import FakeHost
from workplace import NOBODY

from ksmtuned.guests.offerers import Offerers
from ksmtuned.host.host import Host
from ksmtuned.units import PAGE_BYTES

STAT = "ksm_rmap_items 0\nksm_zero_pages 0\nksm_merging_pages 0\nksm_process_profit 0\n"
SHARED = 50  # pages of a process that are a file's


@pytest.fixture
def fake(folder: Path) -> FakeHost:
    host = FakeHost(folder / "host")
    offer(host, 1, is_offered=False)
    return host


def offer(fake: FakeHost, pid: int, *, is_offered: bool = True) -> None:
    """What 6.14 and later say of a process."""
    said = "yes" if is_offered else "no"
    fake.write(f"proc/{pid}/ksm_stat", f"{STAT}ksm_merge_any: no\nksm_mergeable: {said}\n")


def use(fake: FakeHost, pid: int, anon_pages: int) -> None:
    """Its memory."""
    resident = anon_pages + SHARED
    fake.write(f"proc/{pid}/statm", f"{resident + 5000} {resident} {SHARED} 900 0 {resident} 0\n")


def come(fake: FakeHost, pid: int, anon_pages: int, *, is_offered: bool = True) -> None:
    fake.add_process(pid, comm="vmm")
    offer(fake, pid, is_offered=is_offered)
    use(fake, pid, anon_pages)


class Watch:
    """Looks again and again."""

    def __init__(self, fake: FakeHost) -> None:
        self.proc = Host(fake.root).proc
        self.offerers = Offerers(self.proc)

    def pages(self) -> int | None:
        """That came so far."""
        self.offerers.look(self.proc.pids())
        found = self.offerers.arrived_bytes()
        return None if found is None else found // PAGE_BYTES


def test_anonymous_memory_of_those_who_offer_is_counted_as_it_comes(fake: FakeHost) -> None:
    watch = Watch(fake)
    assert watch.pages() == 0
    come(fake, 1000, 300)
    come(fake, 1001, 9000, is_offered=False)
    assert watch.pages() == 300
    use(fake, 1000, 500)
    assert watch.pages() == 500


def test_what_leaves_is_not_deducted_and_what_comes_again_counts_again(fake: FakeHost) -> None:
    watch = Watch(fake)
    come(fake, 1000, 300)
    come(fake, 1001, 100)
    assert watch.pages() == 400
    fake.remove_process(1001)
    come(fake, 1002, 100)
    assert watch.pages() == 500
    use(fake, 1000, 200)
    assert watch.pages() == 500
    use(fake, 1000, 300)
    assert watch.pages() == 600


def test_another_process_with_the_same_pid_is_another_one(fake: FakeHost) -> None:
    watch = Watch(fake)
    come(fake, 1000, 300)
    assert watch.pages() == 300
    come(fake, 1000, 200)
    assert watch.pages() == 500
    come(fake, 1000, 700, is_offered=False)
    assert watch.pages() == 500


def test_a_process_that_offers_its_memory_later_is_found(fake: FakeHost) -> None:
    watch = Watch(fake)
    come(fake, 1000, 300, is_offered=False)
    assert watch.pages() == 0
    offer(fake, 1000)
    assert [watch.pages() for _ in range(128)][-1] == 300


def test_one_that_vanishes_between_two_reads_is_no_harm(fake: FakeHost) -> None:
    watch = Watch(fake)
    come(fake, 1000, 300)
    assert watch.pages() == 300
    fake.half_vanish(1000)
    assert watch.pages() == 300


@pytest.mark.parametrize("statm", ["", "x y z\n", "5\n", "-5 -5 -5 0 0 0 0\n"])
def test_a_garbled_process_hides_no_other(fake: FakeHost, statm: str) -> None:
    watch = Watch(fake)
    come(fake, 1000, 300)
    come(fake, 1001, 100)
    fake.write("proc/1000/statm", statm)
    assert watch.pages() == 100


def test_a_kernel_that_does_not_say_who_offers_is_not_asked_again(fake: FakeHost) -> None:
    fake.write("proc/1/ksm_stat", STAT)
    watch = Watch(fake)
    come(fake, 1000, 300)
    assert watch.pages() is None
    offer(fake, 1, is_offered=False)
    assert watch.pages() is None


def test_the_real_kernel_is_understood() -> None:
    if "ksm_mergeable" not in _read("/proc/self/ksm_stat"):
        pytest.skip("this kernel does not say who offers memory (before 6.14)")
    proc = Host(Path("/")).proc
    assert proc.says_who_offers()
    assert not proc.offers_memory(NOBODY * 1000)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
