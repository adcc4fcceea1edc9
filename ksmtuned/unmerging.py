"""Gives merged pages their own memory back, step by step: the one path of the command, of the
daemon on its behalf, and of on_stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from ksmtuned.errors import ExitStatus, KsmtunedError, NotUnmerged, SharingLeftOff, Withdrawn
from ksmtuned.host.charges import Charge, charges, limits, merged_bytes
from ksmtuned.host.child import TellingChild
from ksmtuned.host.host import Host
from ksmtuned.host.unmerge import AFTERWARDS, UNMERGE, unmerge_all, until_taken
from ksmtuned.model import RUN_STOP, RUN_UNMERGE, Guest, KsmStat, Write
from ksmtuned.need import Order, measure
from ksmtuned.originals import Originals
from ksmtuned.sharing import Sharing
from ksmtuned.units import printable, size

STEP_S = 0.2  # between two steps, where nothing else says
_POLL_S = 0.05
_SILENT = "no answer in time"
_BYTES_PER_S = 50 * 2**20  # a guest has ten times as long as copying takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far it is."""

    text: str
    progress: float  # 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it went."""

    text: str
    is_begun: bool = False  # ksmd was stopped for it, and the hold left
    writes: tuple[Write, ...] = ()
    error: KsmtunedError | None = None

    @property
    def exit_status(self) -> ExitStatus:
        """What the shell is told."""
        return self.error.exit_status if self.error else ExitStatus.DONE


Unmerging = Generator[Step, None, Outcome]


def drive(work: Unmerging, beat: Callable[[], None], wait: Callable[[float], None]) -> Outcome:
    """To the end, for those who have nothing else to do."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
        beat()
        wait(STEP_S)


def unmerging(host: Host, originals: Originals, order: Order) -> Unmerging:
    """run=0; each guest that can be reached by itself; run=2 for the rest; run=0 again.

    Where it does not fit nothing is changed. Once begun, run=0 is what is given back later, so
    that neither a crash nor a stop starts ksmd again behind the back of whoever asked. Never
    blocks for long. Every failure is in the outcome.
    """
    work = _Work(host, originals, order)
    try:
        yield from work.run()
    except KsmtunedError as error:
        yield from work.stop_again()
        return work.outcome(error)
    return work.outcome(None)


@dataclass(slots=True)
class _Work:
    host: Host
    originals: Originals
    order: Order
    before: KsmStat | None = None
    is_begun: bool = False
    is_tried: bool = False  # run=2
    writes: list[Write] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # guests, and why
    left_off: list[str] = field(default_factory=list)  # guests whose sharing is, or may be, off

    def run(self) -> Iterator[Step]:
        only = self.order.guest()
        self.order.check_way()
        self.before = self.host.ksm.read()[0]
        self._check()
        stop = yield from self._stop_ksmd()
        try:
            self._check()  # ksmd may have merged more meanwhile
            self.order.begin()
        except KsmtunedError:
            yield from self._undo(stop)
            raise
        self.originals.rebase("run", RUN_STOP)
        self.is_begun = True
        yield from self._guest_by_guest(only)
        if only is None and (self._saving() or self.before.pages_sharing is None):
            yield from self._all_at_once()

    def outcome(self, error: KsmtunedError | None) -> Outcome:
        """In figures. Errors: none; what cannot be read is left out."""
        if not self.is_begun:
            return Outcome(text=str(error), error=error)
        total, left = self._total(), self._saving()
        text = f"{size(max(0, total - left))} of {size(total)} given back"
        text = "nothing was merged" if not total else text
        if self.before is None or self.before.pages_sharing is None:
            text = "how much was merged cannot be read"
        if left:
            text += f", {size(left)} still merged"
        if error is None and self.failed and (left or self.order.only):
            error = NotUnmerged("; ".join(self.failed))
        if error is None and self.left_off:
            error = SharingLeftOff("; ".join(self.left_off))
        if error is not None:
            text += f": {error}"
        text += "; ksmd stays stopped"
        writes = tuple(self.writes)
        return Outcome(text=text, is_begun=True, writes=writes, error=error)

    def stop_again(self) -> Iterator[Step]:
        """After a failure: the kernel has stopped ksmd already, or it is to be stopped."""
        if not self.is_tried:
            return
        with suppress(KsmtunedError):
            if self.host.ksm.read()[0].value("run") == RUN_UNMERGE:
                yield from self._steps(until_taken(self.host, AFTERWARDS), "stopping")

    # -- the parts -------------------------------------------------------------------------------

    def _check(self) -> None:
        if not self.order.force:
            measure(self.host, self.order).check()

    def _stop_ksmd(self) -> Generator[Step, None, Write | None]:
        in_flight = self.host.ksm.in_flight().get("run")
        now = self.host.ksm.read()[0]
        run = int(now.value("run") or 0)
        if run == RUN_UNMERGE and in_flight is None:
            if now.saving_bytes:
                raise NotUnmerged("somebody else unmerges (run=2)")
            return None
        if RUN_STOP == run == (in_flight or RUN_STOP):
            return None
        stop = Write("run", run, RUN_STOP)
        self.originals.note([stop])
        yield from self._steps(until_taken(self.host, stop), "ksmd finishes its batch")
        self.writes.append(stop)
        return stop

    def _undo(self, stop: Write | None) -> Iterator[Step]:
        """Nothing is to be changed after all: ksmd goes on as before."""
        if stop is not None:
            back = Write("run", RUN_STOP, stop.old)
            self.originals.note([back])
            yield from self._steps(until_taken(self.host, back), "ksmd goes on")

    def _guest_by_guest(self, only: Guest | None) -> Iterator[Step]:
        """Those that can be reached, most room to spare first."""
        ways = {g.pid: self.order.sharing(g) for g in ([only] if only else self.order.guests)}
        reachable = {pid: way for pid, way in ways.items() if way is not None}
        if not reachable:
            return
        merged = {c.pid: c for c in charges(self.host, self.order.beat)[0] if c.pid in reachable}
        guests = {g.pid: g for g in self.order.guests}
        order = sorted(merged.values(), key=self._spare_bytes, reverse=True)
        for done, charge in enumerate(order):
            guest, way = guests[charge.pid], reachable[charge.pid]
            self._go_on(f"{done} of {len(merged)} guests were done")
            count = f"guest {printable(guest.name)}, {done + 1} of {len(merged)}"
            yield from self._one_guest(guest, way, charge.bytes, count)
            yield self._step(count)

    def _spare_bytes(self, charge: Charge) -> int:
        met = limits(self.host.tree, [charge], self.order.name_of)
        return min((limit.spare_bytes for limit in met), default=2**62)

    def _go_on(self, done: str) -> None:
        """Between two guests: may the next begin? Errors: Withdrawn, NotUnmerged, as check()."""
        if not self.order.is_wanted():
            raise Withdrawn(f"stopped, as asked: {done}")
        if (run := self.host.ksm.read()[0].value("run")) != RUN_STOP:
            raise NotUnmerged(f"somebody else set run to {run}: {done}")
        self._check()

    def _one_guest(self, guest: Guest, way: Sharing, need: int, count: str) -> Iterator[Step]:
        """Sharing off, wait until nothing of it is merged, on again: ksmd is stopped, so nothing
        is merged anew. A guest that fails is noted."""
        deadline_s = time.monotonic() + self.order.patience_s + need / _BYTES_PER_S
        what, why = yield from self._call(lambda: way.off(guest), deadline_s, count)
        if why is not None:
            self.failed.append(f"{printable(guest.name)}: {why}")
            self.left_off += [self.failed[-1]] if why == _SILENT else []
            return
        # Only now: while the guest's madvise lasts, this file may keep its reader waiting.
        while left := merged_bytes(self.host.tree, guest.pid):
            if time.monotonic() > deadline_s:
                self.failed.append(f"{printable(guest.name)}: {size(left)} of it are still merged")
                break
            yield self._step(count)
        deadline_s = time.monotonic() + self.order.patience_s
        _, why = yield from self._call(partial(_switch_on, way, guest, what), deadline_s, count)
        if why is not None and merged_bytes(self.host.tree, guest.pid) is not None:
            self.left_off.append(f"{printable(guest.name)}: {why}")

    def _call(
        self, work: Callable[[], str], deadline_s: float, count: str
    ) -> Generator[Step, None, tuple[str, str | None]]:
        """One call in a child. Returns what it returned, and what went wrong."""
        try:
            child = TellingChild(work)
        except OSError as error:  # no more processes or descriptors
            return "", str(error)
        while not child.has_ended(_POLL_S):
            if time.monotonic() > deadline_s:
                child.kill()
                return "", _SILENT
            yield self._step(count)
        return child.result()

    def _all_at_once(self) -> Iterator[Step]:
        self._go_on("the rest was not begun")
        self.originals.note([UNMERGE])
        self.is_tried = True
        yield from self._steps(unmerge_all(self.host), "all at once")
        self.writes.append(UNMERGE)

    def _steps(self, looks: Iterator[None], what: str) -> Iterator[Step]:
        for _ in looks:
            yield self._step(what)

    def _step(self, what: str) -> Step:
        total, left = self._total(), self._saving()
        given = max(0, total - left)
        text = f"unmerging: {size(given)} of {size(total)} given back ({what})"
        return Step(text=text, progress=given / total if total else 0.0)

    def _total(self) -> int:
        return self.before.saving_bytes if self.before else 0

    def _saving(self) -> int:
        try:
            return self.host.ksm.read()[0].saving_bytes
        except KsmtunedError:
            return 0


def _switch_on(way: Sharing, guest: Guest, what: str) -> str:
    way.on(guest, what)
    return ""
