"""The end: gives the controls back, stops ksmd, or unmerges, as on_stop says."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from ksmtuned.errors import KsmtunedError, NotUnmerged, WriteBlocked
from ksmtuned.host.host import Host
from ksmtuned.host.ksm import WAIT_S
from ksmtuned.host.unmerge import UNMERGE
from ksmtuned.model import RUN_STOP, Guest, Refusal, Settings, Write
from ksmtuned.need import Order
from ksmtuned.originals import Originals
from ksmtuned.plan import plan
from ksmtuned.unmerging import drive, unmerging

# ksmd's batch may be long; systemd is told to be patient meanwhile.
_PATIENCE_S = 30.0

Beat = Callable[[], None]
Done = tuple[tuple[Write, ...], tuple[Refusal, ...]]


def leave(
    host: Host,
    originals: Originals,
    on_stop: str,
    left_alone: Collection[str],
    beat: Beat,
    guests: Sequence[Guest] = (),
) -> Done:
    """Restore, keep, stop or unmerge. Controls in `left_alone` are somebody else's; `guests` may
    be unmerged one by one.

    `beat` is called again and again while that takes its time. Returns what was written and what
    was refused; the latter is still noted, for `ksmtuned restore`.
    Errors: NoKsm, Garbled, KernelRefused, RunDirError.
    """
    _land(host, beat)
    done: tuple[Write, ...] = ()
    refused: tuple[Refusal, ...] = ()
    if on_stop in ("stop", "unmerge"):
        done, refused = stop_ksmd(host, originals, left_alone, beat)
        if on_stop == "unmerge":
            order = Order(guests=guests, beat=beat)
            act, failed = _unmerge(host, originals, left_alone, bool(refused), order)
            done, refused = done + act, refused + failed
        if not any(refusal.write.control == "run" for refusal in refused):
            originals.forget("run")
    given, failed = give_back(host, originals, left_alone, beat)
    told = {refusal.write.control for refusal in refused}
    return done + given, refused + tuple(f for f in failed if f.write.control not in told)


def stop_ksmd(
    host: Host, originals: Originals, left_alone: Collection[str], beat: Beat | None = None
) -> Done:
    """run=0, unless `run` is somebody else's. Errors: NoKsm, RunDirError."""
    if beat is not None:
        _land(host, beat)
    # A start that is still under way will land: it is to be stopped, too.
    coming = replace(host.ksm.read()[0], **host.ksm.in_flight())  # type: ignore[arg-type]  # by name
    stop = plan(coming, Settings(run=RUN_STOP), left_alone)
    if stop:
        originals.note(stop)
    refused = write_all(host, stop, beat=beat)
    return all_but(stop, refused), refused


def give_back(
    host: Host,
    originals: Originals,
    left_alone: Collection[str] = (),
    beat: Beat | None = None,
) -> Done:
    """Restore every control that still holds our last value; each one is tried.

    Returns what was written and what was not; only the latter is still noted afterwards.
    Errors: NoKsm, Garbled or KernelRefused (of `run`), RunDirError.
    """
    now, unread = host.ksm.read()
    writes = originals.giving_back(now, left_alone)
    refused = write_all(host, writes, beat=beat)
    blind = (write for write in originals.blind() if write.control in unread)
    refused += tuple(Refusal(write, unread[write.control]) for write in blind)
    refused += host.ksm.blocked(but={refusal.write.control for refusal in refused})
    originals.keep_only(sorted({refusal.write.control for refusal in refused}))
    return all_but(writes, refused), refused


def write_all(
    host: Host, writes: Sequence[Write], wait_s: float = WAIT_S, beat: Beat | None = None
) -> tuple[Refusal, ...]:
    """Write, in order; a refusal stops no later write. Returns the refusals.

    wait_s: for all writes together, so that the watchdog does not starve. With a `beat`, a write
    that the kernel does not take yet is waited for much longer.
    """
    deadline_s = time.monotonic() + (wait_s if beat is None else _PATIENCE_S)
    refused = []
    for write in writes:
        try:
            _write(host, write, deadline_s, beat)
        except KsmtunedError as error:
            refused.append(Refusal(write, error))
    return tuple(refused)


def all_but(writes: Sequence[Write], refused: Sequence[Refusal]) -> tuple[Write, ...]:
    """The writes that took."""
    failed = {refusal.write for refusal in refused}
    return tuple(write for write in writes if write not in failed)


def _write(host: Host, write: Write, deadline_s: float, beat: Beat | None) -> None:
    while True:
        left_s = max(0.05, deadline_s - time.monotonic())
        try:
            return host.ksm.write(write, left_s if beat is None else min(left_s, 1.0))
        except WriteBlocked:
            if beat is None or time.monotonic() >= deadline_s:
                raise
            beat()


def _land(host: Host, beat: Beat) -> None:
    """Wait for earlier writes: one that lands after our stop would undo it."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while host.ksm.in_flight() and time.monotonic() < deadline_s:
        beat()
        time.sleep(0.1)


def _unmerge(
    host: Host, originals: Originals, left_alone: Collection[str], is_running: bool, order: Order
) -> Done:
    """Without a hold: whoever starts a daemon again wants its policy."""
    if "run" in left_alone:
        return (), (Refusal(UNMERGE, NotUnmerged("run is somebody else's")),)
    if is_running:
        return (), (Refusal(UNMERGE, NotUnmerged("ksmd could not be stopped")),)
    outcome = drive(unmerging(host, originals, order), order.beat, time.sleep)
    refused = (Refusal(UNMERGE, outcome.error),) if outcome.error else ()
    return outcome.writes, refused
