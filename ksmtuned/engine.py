"""One tick: read the host, decide, write what differs, tell what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ksmtuned.errors import KsmtunedError
from ksmtuned.guests.inventory import Inventory
from ksmtuned.host.host import Host
from ksmtuned.host.ksm import WAIT_S
from ksmtuned.host.unmerge import check_headroom, unmerge
from ksmtuned.model import (
    RUN_STOP,
    RUN_UNMERGE,
    Guest,
    KsmStat,
    Refusal,
    Settings,
    Snapshot,
    Tick,
    Write,
)
from ksmtuned.originals import Originals
from ksmtuned.plan import plan
from ksmtuned.policies import build

_GUESTS_S = 1.0  # how old the list of guests may be while ticks are shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the configuration asks of the engine."""

    policy: str
    policy_table: Mapping[str, Any]
    controls: Mapping[str, int]  # those that no policy moves: table [ksm]
    comm: Sequence[str]  # globs: which processes are guests
    reassert: bool  # write a control again that somebody else changed


class Engine:
    """Follows one host under one set of orders. Errors at start: Garbled, KernelRefused, NoKsm."""

    def __init__(self, host: Host, orders: Orders, originals: Originals) -> None:
        self._host, self._originals, self._orders = host, originals, orders
        self._originals.adopt(host.ksm.read()[0])
        self._policy = build(orders.policy, orders.policy_table)
        self._past = self._policy.start()
        self._inventory = Inventory(host, orders.comm, self._policy.guest_memory)
        self._guests_seen: tuple[Guest, ...] = ()
        self._guests_s = float("-inf")
        self._is_hasty = False  # the policy wants ticks too short to look at every guest in each
        self._ours: dict[str, int | str] = {}  # what a control held when it last was as we want it
        self._foreign: dict[str, str] = {}  # what somebody else changed since, and how
        self._is_unmerging = False  # somebody else set run=2
        self._stuck: dict[str, Refusal] = {}  # controls of [ksm] that the kernel refused
        self._give_back: dict[str, int] = {}
        self.write_wait_s = WAIT_S

    @property
    def policy_interval_s(self) -> float:
        """The policy's own pace, in seconds between two ticks."""
        return self._policy.interval_s

    def obey(self, orders: Orders) -> None:
        """Follow other orders from the next tick on; a policy that stays keeps its past."""
        before, self._orders = self._orders, orders
        measure_before = self._policy.guest_memory
        self._stuck.clear()
        if (orders.policy, orders.policy_table) != (before.policy, before.policy_table):
            self._policy = build(orders.policy, orders.policy_table)
            if orders.policy != before.policy:
                self._past = self._policy.start()
        measure = self._policy.guest_memory
        if (orders.comm, measure) != (before.comm, measure_before):
            self._inventory = Inventory(self._host, orders.comm, measure)
        firsts = {c: self._originals.first(c) for c in before.controls if c not in orders.controls}
        self._give_back = {c: first for c, first in firsts.items() if first is not None}

    def halt(self) -> None:
        """Stop ksmd where our policy would have gone on. Errors: NoKsm, RunDirError."""
        if self._policy.needs_daemon:
            self._stop_ksmd()

    def take_back(self) -> None:
        """What somebody else changed is ours again; but for an unmerge, which is never broken."""
        self._ours.clear()
        self._foreign.clear()

    def tick(self, *, dry_run: bool = False, is_alone: bool = False) -> Tick:
        """One turn. A refused write is part of the answer, not an error.

        is_alone: no daemon will follow, so nothing is left that needs one.

        Errors: NoKsm, Garbled, KernelRefused (the host cannot be read), RunDirError (the first
        values cannot be saved: nothing was written).
        """
        now = self._host.snapshot(self._guests())
        if is_alone and self._policy.needs_daemon:
            decision = self._policy.unattended(now)
        else:
            decision, self._past = self._policy.decide(now, self._past)
        self._is_hasty = (decision.next_tick_s or _GUESTS_S) < _GUESTS_S
        decision = replace(decision, settings=self._with_controls(decision.settings))
        self._notice_foreign(now)
        leave = self._left_alone()
        writes = plan(now.ksm, decision.settings, leave | self._stuck.keys())
        refused: tuple[Refusal, ...] = ()
        if not dry_run:
            if writes:
                self._originals.note(writes)
            refused = write_all(self._host, writes, self.write_wait_s)
            self._remember(now.ksm, decision.settings, leave, refused)
        return Tick(
            policy=self._orders.policy,
            now=now,
            decision=decision,
            planned=writes,
            written=() if dry_run else all_but(writes, refused),
            refused=refused + tuple(r for r in self._stuck.values() if r not in refused),
            foreign=tuple(self._foreign.values()),
        )

    def leave(
        self, on_stop: str, beat: Callable[[], None]
    ) -> tuple[tuple[Write, ...], tuple[Refusal, ...]]:
        """The end: give the controls back, as `on_stop` says (restore, keep, stop, unmerge).

        `beat` is called again and again while that takes its time. Returns what was written and
        what was refused. Errors: NoKsm, Garbled, KernelRefused, RunDirError.
        """
        if on_stop == "keep":
            left = self._stop_ksmd() if self._policy.needs_daemon else ((), ())
            self._originals.keep_only(())
            return left
        done: tuple[Write, ...] = ()
        refused: tuple[Refusal, ...] = ()
        failed: tuple[Refusal, ...] = ()
        if on_stop in ("stop", "unmerge"):
            done, refused = self._stop_ksmd()
            if on_stop == "unmerge" and not refused and "run" not in self._left_alone():
                act, failed = self._unmerge(beat)
                done, refused = done + act, refused + failed
            self._originals.forget("run")
        given, failed = give_back(self._host, self._originals, self.write_wait_s)
        return done + given, refused + failed

    def _stop_ksmd(self) -> tuple[tuple[Write, ...], tuple[Refusal, ...]]:
        """run=0, unless `run` is somebody else's."""
        stop = plan(self._host.ksm.read()[0], Settings(run=RUN_STOP), self._left_alone())
        if stop:
            self._originals.note(stop)
        refused = write_all(self._host, stop, self.write_wait_s)
        return all_but(stop, refused), refused

    def _unmerge(self, beat: Callable[[], None]) -> tuple[tuple[Write, ...], tuple[Refusal, ...]]:
        act = Write("run", RUN_STOP, RUN_UNMERGE)
        now = self._host.snapshot()
        try:
            if now.ksm.saving_bytes == 0:
                return (), ()
            check_headroom(now)
            self._originals.note([act])
            unmerge(self._host, beat, self.write_wait_s)
        except KsmtunedError as error:
            return (), (Refusal(act, error),)
        return (act,), ()

    def _guests(self) -> tuple[Guest, ...]:
        """The guests now; where ticks are hasty, as they were a moment ago."""
        now_s = time.monotonic()
        if not self._is_hasty or now_s - self._guests_s >= _GUESTS_S:
            self._guests_seen, self._guests_s = self._inventory.read(), now_s
        return self._guests_seen

    def _with_controls(self, settings: Settings) -> Settings:
        # What the configuration names is the administrator's, also where a policy would move it.
        wanted = {**self._give_back, **settings.wanted(), **self._orders.controls}
        return Settings(**wanted)  # type: ignore[arg-type]  # by name

    def _notice_foreign(self, now: Snapshot) -> None:
        """Find what somebody else changed since it was as we wanted it."""
        self._is_unmerging &= now.ksm.value("run") == RUN_UNMERGE
        for control, ours in self._ours.items():
            value = now.ksm.value(control)
            if value in (ours, None):
                continue
            self._is_unmerging |= (control, value) == ("run", RUN_UNMERGE)
            if control in self._foreign:
                continue
            if control == "pages_to_scan" and now.ksm.advisor_mode not in (None, "none"):
                continue  # the kernel's advisor moves it: nobody's doing
            then = "written again" if self._orders.reassert else "left alone until a reload"
            if (control, value) == ("run", RUN_UNMERGE):
                then = "an unmerge is left alone"
            self._foreign[control] = f"{control}: somebody else changed {ours} to {value}; {then}"

    def _left_alone(self) -> set[str]:
        """Controls that are somebody else's."""
        leave = set() if self._orders.reassert else set(self._foreign)
        return leave | {"run"} if self._is_unmerging else leave

    def _remember(
        self, now: KsmStat, wanted: Settings, leave: set[str], refused: Sequence[Refusal]
    ) -> None:
        failed = {refusal.write.control: refusal for refusal in refused}
        self._stuck |= {c: r for c, r in failed.items() if c in self._orders.controls}
        not_ours = leave | failed.keys() | self._stuck.keys()
        for control, value in wanted.wanted().items():
            if now.value(control) is not None and control not in not_ours:
                self._ours[control] = value
        self._give_back = {}


def write_all(host: Host, writes: Sequence[Write], wait_s: float = WAIT_S) -> tuple[Refusal, ...]:
    """Write, in order; a refusal stops no later write. Returns the refusals.

    wait_s: for all writes together, so that the watchdog does not starve.
    """
    deadline_s = time.monotonic() + wait_s
    refused = []
    for write in writes:
        try:
            host.ksm.write(write, max(0.05, deadline_s - time.monotonic()))
        except KsmtunedError as error:
            refused.append(Refusal(write, error))
    return tuple(refused)


def give_back(
    host: Host, originals: Originals, wait_s: float = WAIT_S
) -> tuple[tuple[Write, ...], tuple[Refusal, ...]]:
    """Restore every control that still holds our last value; each one is tried.

    Returns what was written and what was not; only the latter is still noted afterwards.
    Errors: NoKsm, Garbled or KernelRefused (of `run`), RunDirError.
    """
    now, unread = host.ksm.read()
    writes = originals.giving_back(now)
    refused = write_all(host, writes, wait_s)
    refused += tuple(
        Refusal(w, unread[w.control]) for w in originals.blind() if w.control in unread
    )
    originals.keep_only([refusal.write.control for refusal in refused])
    return all_but(writes, refused), refused


def all_but(writes: Sequence[Write], refused: Sequence[Refusal]) -> tuple[Write, ...]:
    """The writes that took."""
    failed = {refusal.write for refusal in refused}
    return tuple(write for write in writes if write not in failed)
