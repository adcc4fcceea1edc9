"""The classic law against the script that it was taken from, decision for decision."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from daemon_under_test import Daemon
from debian import TWO_TIB_KB, DebianScript, Law, Pace, read_pace
from fakehost import FakeHost
from fakeproc import PAGE_KB
from workplace import Workplace

HOSTS, STEPS_PER_HOST = 14, 40  # 560 steps

GUESTS = (
    "qemu-system-x86",
    "qemu-system-aar",
    "qemu-system-ppc",
    "qemu-kvm",
    "qemu:web1",
    "qemu:x",
    "kvm",
    "cloud-hyperviso",
    "firecracker",
    "crosvm",
)
DECOYS = (
    "qemu-img",
    "bash",
    "sshd",
    "kvm-pit/1234",
    "kvm-nx-lpage-re",
    "(sd-pam)",
    "a b) S 1 (",
)
SEED = os.environ.get("KSMTUNED_SEED")


@pytest.mark.parametrize("number", range(HOSTS))
def test_the_daemon_decides_like_debians_script_at_every_step(
    folder: Path, debian: DebianScript, number: int
) -> None:
    seed = SEED or f"{random.SystemRandom().getrandbits(64)}-{number}"
    print(f"KSMTUNED_SEED={seed}")  # shown on failure
    dice = random.Random(seed)
    law = Law() if number % 2 else _random_law(dice)
    place = _new_place(folder, dice, law)
    debian.start(law, _meminfo(place.host), read_pace(place.host.ksm))
    crowd = _Crowd(dice, place.host)
    _move(dice, place.host, crowd, law)  # the daemon's first tick is at its start
    with Daemon(place) as daemon:
        daemon.start()
        for step in range(STEPS_PER_HOST):
            told = debian.step(_meminfo(place.host), crowd.committed_kb)
            assert read_pace(place.host.ksm) == told, _story(seed, step, place, law, crowd)
            _move(dice, place.host, crowd, law)
            daemon.tick()


def _new_place(folder: Path, dice: random.Random, law: Law) -> Workplace:
    place = Workplace(
        FakeHost(folder / "host", dice.choice(("kernel-6.18", "kernel-5.10"))), folder
    )
    place.configure(law.as_toml())
    place.dropins.mkdir()
    pace = Pace(dice.choice((0, 1)), dice.choice((0, 64, 100, 1250, 9999)), dice.choice((0, 20)))
    place.host.set_knobs(
        run=pace.run,
        pages_to_scan=pace.pages_to_scan,
        sleep_millisecs=pace.sleep_millisecs,
    )
    place.host.set_meminfo(MemTotal=_random_total_kb(dice), MemFree=0, Buffers=0, Cached=0)
    place.host.add_kernel_thread(60, comm="kworker/0:1-mm_")
    return place


def _random_total_kb(dice: random.Random) -> int:
    if dice.random() < 0.1:
        return dice.randrange(6_000, 12_000)  # so small that the constant counts
    total = int(2 ** dice.uniform(19, 30.999))
    # On every other host each threshold is whole pages, so that guests can hit it exactly.
    return min(total // 400 * 400, TWO_TIB_KB - 400) if dice.random() < 0.5 else total


def _random_law(dice: random.Random) -> Law:
    npages_min = dice.choice((0, 1, 64, 100, dice.randrange(2000)))
    return Law(
        boost=dice.choice((0, 1, 300, dice.randrange(5000))),
        decay=-dice.choice((0, 1, 50, dice.randrange(3000))),
        npages_min=npages_min,
        npages_max=npages_min + dice.choice((0, 1, 1186, dice.randrange(20_000))),
        sleep_msec=dice.choice((1, 10, 100, dice.randrange(1, 3000))),
        thres_coef=dice.choice((0, 1, 20, 33, 50, 100, dice.randrange(101))),
        thres_const_kb=dice.choice((0, 2048, 2 * 1024 * 1024, dice.randrange(10_000_000))),
    )


class _Crowd:
    """The processes of a host, and what its guests use."""

    def __init__(self, dice: random.Random, host: FakeHost) -> None:
        self._dice, self._host = dice, host
        self._pids = iter(range(1000, 10_000_000))
        self.guests: dict[int, int] = {}  # pid -> rss in pages
        self.decoys: dict[int, int] = {}

    @property
    def committed_kb(self) -> int:
        return sum(self.guests.values()) * PAGE_KB

    def move(self, wanted_kb: int) -> None:
        """Some come, some go, some are replaced; then together they use about what is wanted."""
        deeds = (
            self._come,
            self._come,
            self._come_decoy,
            self._go,
            self._replace,
            self._rename,
        )
        for deed in self._dice.choices(deeds, k=self._dice.randrange(4)):
            deed()
        self._fit(wanted_kb // PAGE_KB)

    def _come(self) -> None:
        if len(self.guests) < 12:
            self._be_guest(next(self._pids))

    def _be_guest(self, pid: int) -> None:
        pages = self._dice.randrange(1, 50_000)
        self._host.add_guest(pid, comm=self._dice.choice(GUESTS), rss_pages=pages)
        self.guests[pid] = pages

    def _come_decoy(self) -> None:
        self._be_decoy(next(self._pids))

    def _be_decoy(self, pid: int) -> None:
        pages = self._dice.randrange(10**7)
        self._host.add_process(pid, comm=self._dice.choice(DECOYS), rss_pages=pages)
        self.decoys[pid] = pages

    def _go(self) -> None:
        for crowd in (self.guests, self.decoys):
            if crowd and self._dice.random() < 0.7:
                pid = self._dice.choice(list(crowd))
                self._host.remove_process(pid)
                del crowd[pid]

    def _replace(self) -> None:
        """A guest ends, and its pid goes to a new process at once."""
        if not self.guests:
            return
        pid = self._dice.choice(list(self.guests))
        del self.guests[pid]
        (self._be_guest if self._dice.random() < 0.5 else self._be_decoy)(pid)

    def _rename(self) -> None:
        """QEMU takes its guest's name after it has started (-name process=...)."""
        if self.guests:
            self._host.rename(self._dice.choice(list(self.guests)), comm="qemu:renamed")

    def _fit(self, pages: int) -> None:
        if not self.guests and pages > 0:
            self._come()
        for pid in self.guests:
            share = pages // len(self.guests)
            self.guests[pid] = max(0, self._dice.randrange(share + 1))
        if self.guests:
            last = next(iter(self.guests))
            self.guests[last] += max(0, pages - sum(self.guests.values()))
        for pid, rss_pages in self.guests.items():
            self._host.resize(pid, rss_pages=rss_pages)


def _move(dice: random.Random, host: FakeHost, crowd: _Crowd, law: Law) -> None:
    """The next moment of a host: mostly close to where a decision changes, often exactly there."""
    total, threshold = host.total_kb, law.threshold_kb(host.total_kb)
    free = min(total, _near(dice, threshold, total))
    parts = sorted(dice.randrange(free + 1) for _ in range(2))
    host.set_meminfo(
        MemFree=parts[0],
        Buffers=parts[1] - parts[0],
        Cached=free - parts[1],
        SwapCached=dice.randrange(total),
        Slab=dice.randrange(total),
    )
    crowd.move(_near(dice, max(0, total - threshold), total))


def _near(dice: random.Random, edge: int, largest: int) -> int:
    kind = dice.random()
    if kind < 0.35:
        return edge
    if kind < 0.7:
        return max(0, edge + dice.choice((-1, 1, -PAGE_KB, PAGE_KB)))
    if kind < 0.85:
        return max(0, edge + dice.randint(-edge // 10, edge // 10))
    return dice.randrange(largest + 1)


def _meminfo(host: FakeHost) -> str:
    return (host.root / "proc/meminfo").read_text()


def _story(seed: str, step: int, place: Workplace, law: Law, crowd: _Crowd) -> str:
    head = "; ".join(_meminfo(place.host).splitlines()[:5])
    return (
        f"KSMTUNED_SEED={seed} step {step}: {law}, threshold "
        f"{law.threshold_kb(place.host.total_kb)} kB, guests {crowd.committed_kb} kB, {head}"
    )
