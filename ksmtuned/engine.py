"""One tick: read the host, decide, write what differs, tell what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ksmtuned.claims import Claims
from ksmtuned.guests.inventory import Inventory
from ksmtuned.guests.offerers import Offerers
from ksmtuned.host.host import Host
from ksmtuned.host.ksm import WAIT_S
from ksmtuned.leave import all_but, leave, stop_ksmd, write_all
from ksmtuned.model import (
    RUN_UNMERGE,
    Decision,
    Guest,
    Refusal,
    Settings,
    Snapshot,
    Tick,
    Write,
)
from ksmtuned.need import Order
from ksmtuned.originals import Originals
from ksmtuned.plan import also_changed, plan
from ksmtuned.policies import build
from ksmtuned.unmerging import Unmerging, unmerging

_GUESTS_S = 0.4  # how old the list of guests may be while ticks are shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the configuration asks of the engine."""

    policy: str
    policy_table: Mapping[str, Any]
    controls: Mapping[str, int]  # those that no policy moves: table [ksm]
    comm: Sequence[str]  # globs: which processes are guests
    reassert: bool  # write a control again that somebody else changed


class Engine:
    """Follows one host under one set of orders. `beat` is called while something takes its time.

    Errors at start: Garbled, KernelRefused, NoKsm.
    """

    def __init__(
        self,
        host: Host,
        orders: Orders,
        originals: Originals,
        beat: Callable[[], None] = lambda: None,
        write_wait_s: float = WAIT_S,
    ) -> None:
        self._host, self._originals, self._orders = host, originals, orders
        self._beat, self._write_wait_s = beat, write_wait_s
        now, unread = host.ksm.read()
        lost = originals.adopt(now, unread)
        is_unmerging = "run" in lost and now.value("run") == RUN_UNMERGE
        self._claims = Claims(reassert=orders.reassert, is_unmerging=is_unmerging)
        self._policy = build(orders.policy, orders.policy_table)
        self._past = self._policy.start()
        self._inventory = self._new_inventory()
        self._offerers = Offerers(host.proc)
        self._guests_seen: tuple[Guest, ...] = ()
        self._guests_s = float("-inf")
        self._is_hasty = False  # the policy wants ticks too short to look at every guest in each
        self._stuck: dict[str, Refusal] = {}  # controls of [ksm] that the kernel refused
        # What an earlier policy left, also one that a crash ended; our own may want it again.
        self._give_back: dict[str, int | str] = originals.before_advisor()

    @property
    def policy_interval_s(self) -> float:
        """The policy's own pace, in seconds between two ticks."""
        return self._policy.interval_s

    @property
    def follows_events(self) -> bool:
        """Does our policy want to look at once when there is news?"""
        return self._policy.follows_events

    def expect_news(self) -> None:
        """Look at every guest in the next tick, however short ago that was."""
        self._guests_s = float("-inf")

    def is_probe(self, pid: int) -> bool:
        """Is this process only asking a VMM what it can do?"""
        return self._inventory.is_probe(pid)

    def obey(self, orders: Orders) -> None:
        """Follow other orders from the next tick on; a policy that stays keeps its past."""
        before, self._orders = self._orders, orders
        measure_before = self._policy.guest_memory
        self._stuck.clear()
        self._claims.reassert = orders.reassert
        if (orders.policy, orders.policy_table) != (before.policy, before.policy_table):
            self._policy = build(orders.policy, orders.policy_table)
            if orders.policy != before.policy:
                self._past = self._policy.start()
                self._give_back |= self._originals.before_advisor()
        if (orders.comm, self._policy.guest_memory) != (before.comm, measure_before):
            self._inventory = self._new_inventory()
        for control in before.controls.keys() - orders.controls.keys():
            first = self._originals.first(control)
            if first is not None:
                self._give_back[control] = first

    def take_back(self) -> None:
        """What somebody else changed is ours again; but for an unmerge, which is never broken."""
        self._claims.take_back()

    def unmerge(self, order: Order) -> Unmerging:
        """Give merged pages their own memory back; `run` is moved past the policy meanwhile.

        order: its guests are those of the last look.
        """
        self._guests_seen, self._guests_s = self._inventory.read(), time.monotonic()

        def begin() -> None:
            self._claims.forgo("run")
            order.begin()

        ours = replace(order, guests=self._guests_seen, beat=self._beat, begin=begin)
        is_foreign = "run" in self._claims.left_alone()
        outcome = yield from unmerging(self._host, self._originals, ours)
        if outcome.is_begun or not is_foreign:
            self._claims.forgo("run")
        return outcome

    def tick(
        self, *, dry_run: bool = False, is_alone: bool = False, standing: Decision | None = None
    ) -> Tick:
        """One turn. A refused write is part of the answer, not an error.

        is_alone: no daemon will follow, so nothing is left that needs one.
        standing: what is decided already, and stands in for the policy; then nothing but its
        settings is written, and the policy begins afresh afterwards.
        Errors: NoKsm, Garbled, KernelRefused (the host cannot be read), RunDirError (the first
        values cannot be saved: nothing was written).
        """
        now = self._snapshot()
        if standing is not None:
            self._past = self._policy.start()  # what it knew of the merged pages is past
        decision = standing or self._decide(now, is_alone)
        self._is_hasty = (decision.next_tick_s or _GUESTS_S) < _GUESTS_S
        in_flight = self._host.ksm.in_flight()
        self._claims.notice(now.ksm, in_flight)
        self._stuck = {
            c: r for c, r in self._stuck.items() if now.ksm.value(c) != self._orders.controls.get(c)
        }
        # A write that is under way will land: plan from there, or it would undo what we write now.
        coming = replace(now.ksm, **in_flight)  # type: ignore[arg-type]  # by name
        leave = self._claims.left_alone() | self._stuck.keys()
        writes = plan(coming, decision.settings, leave)
        refused: tuple[Refusal, ...] = ()
        if not dry_run:
            refused = self._apply(now, decision.settings, writes)
        waiting = self._host.ksm.blocked(but={write.control for write in writes})
        return Tick(
            policy=self._orders.policy,
            now=now,
            decision=decision,
            planned=writes,
            written=() if dry_run else all_but(writes, refused),
            refused=(*refused, *waiting, *(r for r in self._stuck.values() if r not in refused)),
            foreign=self._claims.lines,
        )

    def halt(self) -> None:
        """Stop ksmd where our policy would have gone on. Errors: NoKsm, RunDirError."""
        if self._policy.needs_daemon:
            self._stop_ksmd()

    def leave(self, on_stop: str) -> tuple[tuple[Write, ...], tuple[Refusal, ...]]:
        """The end, as `on_stop` says. Returns what was written and what was refused.

        Errors: NoKsm, Garbled, KernelRefused, RunDirError.
        """
        if on_stop == "keep":
            left = self._stop_ksmd() if self._policy.needs_daemon else ((), ())
            self._originals.keep_only(())
            return left
        left_alone = self._claims.left_alone()
        return leave(
            self._host, self._originals, on_stop, left_alone, self._beat, self._guests_seen
        )

    def _decide(self, now: Snapshot, is_alone: bool) -> Decision:
        """The policy's word, and what the configuration adds to it."""
        if is_alone and self._policy.needs_daemon:
            decision = self._policy.unattended(now)
        else:
            decision, self._past = self._policy.decide(now, self._past)
        return replace(decision, settings=self._with_controls(decision.settings))

    def _apply(
        self, now: Snapshot, wanted: Settings, writes: Sequence[Write]
    ) -> tuple[Refusal, ...]:
        if writes:
            self._originals.note((*also_changed(now.ksm, writes), *writes))
        refused = write_all(self._host, writes, self._write_wait_s)
        failed = {refusal.write.control: refusal for refusal in refused}
        self._stuck |= {c: r for c, r in failed.items() if c in self._orders.controls}
        self._claims.remember(now.ksm, wanted, (*refused, *self._stuck.values()))
        self._claims.expect(self._host.ksm.in_flight())
        asked = wanted.wanted()
        self._give_back = {
            c: v for c, v in self._give_back.items() if c in failed or c not in asked
        }
        return refused

    def _stop_ksmd(self) -> tuple[tuple[Write, ...], tuple[Refusal, ...]]:
        return stop_ksmd(self._host, self._originals, self._claims.left_alone(), self._beat)

    def _snapshot(self) -> Snapshot:
        """The host now; its guests as they were a moment ago where ticks are hasty."""
        now_s, is_watched = time.monotonic(), self._policy.needs_daemon
        if not self._is_hasty or now_s - self._guests_s >= _GUESTS_S:
            pids = self._host.proc.pids()
            self._guests_seen, self._guests_s = self._inventory.read(pids), now_s
            if is_watched:
                self._offerers.look(pids)
        now = self._host.snapshot(
            self._guests_seen,
            self._inventory.others,
            arrived_bytes=self._offerers.arrived_bytes() if is_watched else None,
            is_watched=is_watched,
        )
        if self._inventory.unread:
            now = replace(now, unread={**now.unread, **self._inventory.unread})
        return now

    def _new_inventory(self) -> Inventory:
        return Inventory(self._host, self._orders.comm, self._policy.guest_memory, self._beat)

    def _with_controls(self, settings: Settings) -> Settings:
        # What the configuration names is the administrator's, also where a policy would move it.
        wanted = {**self._give_back, **settings.wanted(), **self._orders.controls}
        return Settings(**wanted)  # type: ignore[arg-type]  # by name
