"""A law at work on a model of the host: time goes from tick to batch to event, and on."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ksmd_model import BLOCK, MIB, NEW_KERNEL, PAGE, Block, Costs, Kernel, Kind, Ksmd, Mm

from ksmtuned.growth import AdaptivePast
from ksmtuned.model import Decision, Guest, Meminfo, Phase, Snapshot, Write
from ksmtuned.plan import plan
from ksmtuned.policies.adaptive import Adaptive

GIB = 2**30
BLOCK_BYTES = BLOCK * PAGE
_GUESTS_S = 1.0  # the engine's list of guests may be so old while ticks are shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """What a guest's memory is made of, in percent; the rest is unique."""

    common: int = 40
    zero: int = 10
    volatile: int = 5

    def kinds(self, blocks: int) -> list[Kind]:
        """One for each block, spread as a guest does it."""
        shares = (
            (Kind.COMMON, self.common),
            (Kind.ZERO, self.zero),
            (Kind.VOLATILE, self.volatile),
        )
        made = [kind for kind, percent in shares for _ in range(blocks * percent // 100)]
        made += [Kind.UNIQUE] * (blocks - len(made))
        random.Random(42).shuffle(made)
        return made


USUAL = Filling()
BARREN = Filling(common=0, zero=0, volatile=10)


@dataclass(slots=True, eq=False)
class Vm:
    """One guest."""

    pid: int
    start_time: int
    image: int = 0
    mm: Mm = field(default_factory=Mm)
    is_offered: bool = True  # does it let KSM merge?
    to_fill: list[tuple[float, Block]] = field(default_factory=list)  # when, what; first is last

    @property
    def memory_bytes(self) -> int:
        """Its RSS: merged pages count, the zero page does not."""
        return sum(not block.is_zeroed for block in self.mm.blocks) * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Tick:
    """One look of the law, and what came of it."""

    now: Snapshot
    decision: Decision
    past: AdaptivePast
    writes: tuple[Write, ...]

    @property
    def time_s(self) -> float:
        """When."""
        return self.now.monotonic_s

    @property
    def saving_bytes(self) -> int:
        """What merging gave back by then."""
        return self.now.ksm.saving_bytes


def _as_seen(now: Snapshot) -> Snapshot:
    return now


class Host:
    """A host, its guests, ksmd and the law that steers it."""

    def __init__(
        self,
        law: Adaptive,
        *,
        kernel: Kernel = NEW_KERNEL,
        costs: Costs | None = None,
        total_bytes: int = 64 * GIB,
        seed: int = 1,
        wobble_bytes: int = 0,
    ) -> None:
        self.law, self.time_s, self.past = law, 1000.0, law.start()
        self.zero_s = self.time_s
        self.total_bytes, self.used_bytes = total_bytes, 2 * GIB
        self.pressure_pct: float | None = 0.0
        self.ksmd = Ksmd(kernel, costs or Costs(), seed)
        self.vms: list[Vm] = []
        self.ticks: list[Tick] = []
        self.see: Callable[[Snapshot], Snapshot] = _as_seen  # what becomes of a reading
        self.delay_s = 0.0  # the next tick comes so much later than it should
        self._wobble_bytes, self._random = wobble_bytes, random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._guests: tuple[Guest, ...] = ()
        self._guests_s = float("-inf")
        self._filling: list[Vm] = []
        self._tick_s = self.time_s

    # -- what happens to the host ----------------------------------------------------------------

    def at(self, seconds: float, act: Callable[[], Any]) -> None:
        """Do that so long after the start."""
        heapq.heappush(self._events, (self.zero_s + seconds, next(self._count), act))

    def boot(
        self,
        mib: int = 512,
        filling: Filling = USUAL,
        *,
        fill_s: float = 1.5,
        image: int = 0,
        is_offered: bool = True,
        hole_cpu_s: float = 0.0,
    ) -> Vm:
        """A guest comes, now; its memory fills. Common pages are so among guests of one image."""
        number = next(self._count)
        start_time = int(self.time_s * 100) + 1
        vm = Vm(1000 + number, start_time, image=image, is_offered=is_offered)
        vm.mm.hole_cpu_s = hole_cpu_s
        self.vms.append(vm)
        if is_offered:
            self.ksmd.enter(vm.mm)
        self.grow(vm, mib, filling, fill_s=fill_s)
        return vm

    def grow(self, vm: Vm, mib: int, filling: Filling = USUAL, *, fill_s: float = 1.5) -> None:
        """A guest takes more memory, from now on; common in all that grow so far."""
        count = mib * MIB // BLOCK_BYTES
        first = len(vm.mm.blocks) + len(vm.to_fill)
        new = [
            (self.time_s + fill_s * (n + 1) / count, self._block(vm, kind, first + n))
            for n, kind in enumerate(filling.kinds(count))
        ]
        vm.to_fill = sorted([*vm.to_fill, *new], key=lambda pair: -pair[0])
        self._filling.append(vm)
        self._fill()

    def quit(self, vm: Vm) -> None:
        """A guest goes, now."""
        self.vms.remove(vm)
        vm.to_fill.clear()
        if vm.is_offered:
            self.ksmd.leave(vm.mm)
        else:
            self.ksmd.anon_blocks -= len(vm.mm.blocks)

    def rewrite(self, vm: Vm, part: float, generation: int = 1) -> None:
        """A guest writes that part of its common memory anew, with what others will have, too."""
        common = [(n, b) for n, b in enumerate(vm.mm.blocks) if b.kind is Kind.COMMON]
        for n, block in common[: int(len(common) * part)]:
            self.ksmd.write(block, ("common", vm.image, n, generation))

    def reboot(self, vm: Vm) -> None:
        """A guest writes all its memory anew, in place: what was here is there now."""
        blocks = vm.mm.blocks
        before = [(block.kind, block.content) for block in blocks]
        for block, (kind, content) in zip(blocks, before[7:] + before[:7], strict=True):
            self.ksmd.write(block, content)
            block.kind = kind

    @staticmethod
    def _block(vm: Vm, kind: Kind, n: int) -> Block:
        common = ("common", vm.image, n, 0)
        return Block(kind, {Kind.COMMON: common, Kind.ZERO: "zero"}.get(kind, (vm.pid, n)))

    def _fill(self) -> None:
        for vm in self._filling:
            while vm.to_fill and vm.to_fill[-1][0] <= self.time_s + 1e-9:
                self.ksmd.fill(vm.mm, vm.to_fill.pop()[1])
                self.ksmd.arrived_blocks += vm.is_offered
        self._filling = [vm for vm in self._filling if vm.to_fill]

    # -- time ------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Until so long after the start."""
        end_s = self.zero_s + seconds
        while True:
            event_s = self._events[0][0] if self._events else float("inf")
            self.time_s = max(self.time_s, min(event_s, self._tick_s, self.ksmd.due_s(), end_s))
            self._fill()
            if event_s <= self.time_s:
                heapq.heappop(self._events)[2]()
            elif self.ksmd.due_s() <= self.time_s:
                self.ksmd.advance(self.time_s)
            elif self._tick_s <= self.time_s:
                self._tick()
            else:
                return

    def _tick(self) -> None:
        now = self.see(self.snapshot())
        decision, self.past = self.law.decide(now, self.past)
        writes = plan(now.ksm, decision.settings)
        for write in writes:
            self._write(write)
        self.ticks.append(Tick(now, decision, self.past, writes))
        pause_s = decision.next_tick_s or self.law.interval_s
        self._tick_s = self.time_s + pause_s + self._random.uniform(0, 0.002) + self.delay_s
        self.delay_s = 0.0

    def _write(self, write: Write) -> None:
        if write.control == "run":
            self.ksmd.set_run(int(write.new), self.time_s)
        elif write.control == "sleep_millisecs":
            self.ksmd.set_sleep(int(write.new), self.time_s)
        else:
            setattr(self.ksmd, write.control, int(write.new))

    def snapshot(self) -> Snapshot:
        """The host as it reads now."""
        ksmd, kernel = self.ksmd, self.ksmd.kernel
        anon = ksmd.anon_blocks * BLOCK_BYTES + self._random.randint(0, self._wobble_bytes)
        available = max(0, self.total_bytes - self.used_bytes - anon)
        if self.ticks and (self.ticks[-1].decision.next_tick_s or 2.0) < _GUESTS_S:
            is_old = self.time_s - self._guests_s >= _GUESTS_S
        else:
            is_old = True
        if is_old:
            self._guests_s = self.time_s
            self._guests = tuple(
                Guest(
                    pid=vm.pid,
                    start_time=vm.start_time,
                    name=f"vm{vm.pid}",
                    vmm="qemu-kvm",
                    memory_bytes=vm.memory_bytes,
                )
                for vm in self.vms
            )
        return Snapshot(
            time=self.time_s + 1.7e9,
            monotonic_s=self.time_s,
            ksm=ksmd.stat(self.time_s),
            meminfo=Meminfo(
                total_bytes=self.total_bytes,
                free_bytes=available,
                available_bytes=available,
                anon_bytes=anon,
            ),
            ksmd_cpu_s=ksmd.cpu_s(self.time_s) if kernel.is_ksmd_visible else None,
            cow_ksm=ksmd.cow_blocks * BLOCK if kernel.cow_ksm else None,
            pressure_pct=self.pressure_pct,
            arrived_bytes=ksmd.arrived_blocks * BLOCK_BYTES if kernel.says_who_offers else None,
            guests=self._guests,
        )

    # -- what came of it -------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Of the last tick."""
        return self.ticks[-1].decision.phase

    @property
    def saving_bytes(self) -> int:
        """What merging really gives back now: items of memory that is gone do not count."""
        mapped = sum(len(vm.mm.blocks) for vm in self.vms)
        return (mapped - self.ksmd.anon_blocks) * BLOCK_BYTES

    def mergeable_bytes(self, *, zero: bool = True) -> int:
        """What could be given back at most, as memory is now."""
        blocks = [b for vm in self.vms if vm.is_offered for b in vm.mm.blocks]
        contents = [b.content for b in blocks if b.kind is Kind.COMMON]
        zeros = sum(b.kind is Kind.ZERO for b in blocks) if zero else 0
        return (len(contents) - len(set(contents)) + zeros) * BLOCK_BYTES

    @property
    def merged_ratio(self) -> float:
        """How much of what could be merged is."""
        return self.saving_bytes / max(1, self.mergeable_bytes())

    @property
    def offered_pages(self) -> int:
        """All that guests let ksmd scan."""
        return sum(len(vm.mm.blocks) for vm in self.vms if vm.is_offered) * BLOCK

    def cpu_between(self, begin_s: float, end_s: float) -> float:
        """ksmd's CPU seconds between these seconds after the start."""
        begin_s, end_s = begin_s + self.zero_s, end_s + self.zero_s
        return sum(max(0.0, min(e, end_s) - max(b, begin_s)) for b, e in self.ksmd.ran)

    def ticks_between(self, begin_s: float, end_s: float) -> list[Tick]:
        """The ticks between these seconds after the start."""
        begin_s, end_s = begin_s + self.zero_s, end_s + self.zero_s
        return [tick for tick in self.ticks if begin_s <= tick.time_s < end_s]

    def seconds_to(self, ratio: float, begin_s: float = 0.0) -> float:
        """From that second on until the saving first is that part of its last value."""
        for tick in self.ticks_between(begin_s, float("inf")):
            if tick.saving_bytes >= ratio * self.ticks[-1].saving_bytes:
                return tick.time_s - self.zero_s - begin_s
        return float("inf")

    def busiest_share(self, window_s: float) -> float:
        """The most of a core that ksmd took over any such time."""
        ran, most, first, inside = self.ksmd.ran, 0.0, 0, 0.0
        for begin, end in ran:
            inside += end - begin
            while ran[first][1] <= end - window_s:
                inside -= ran[first][1] - ran[first][0]
                first += 1
            early = max(0.0, end - window_s - ran[first][0])
            most = max(most, inside - early)
        return most / window_s

    def bursts(self) -> list[tuple[Tick, Tick]]:
        """First and last tick of each stretch of scanning."""
        found: list[tuple[Tick, Tick]] = []
        is_on = False
        for tick in self.ticks:
            if tick.decision.phase is Phase.BURST and not is_on:
                found.append((tick, tick))
            if is_on:
                found[-1] = (found[-1][0], tick)
            is_on = tick.decision.phase is Phase.BURST
        return found


def kept(now: Snapshot, **changes: Any) -> Snapshot:
    """The same reading, with other values in KSM's folder."""
    return replace(now, ksm=replace(now.ksm, **changes))
