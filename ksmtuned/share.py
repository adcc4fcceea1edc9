"""Takes a running guest's memory into KSM or out of it, and looks whether that happened."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ksmtuned.errors import CannotShare, GuestGone, KernelRefused, MonitorBroken, NoRoom
from ksmtuned.guests.backends import (
    DEAF,
    Backend,
    Monitor,
    NotAllSet,
    backends,
    set_merge,
    version,
)
from ksmtuned.guests.find import Found
from ksmtuned.guests.passthrough import LibvirtMonitor
from ksmtuned.guests.qmp import ANSWER_S, QmpMonitor
from ksmtuned.guests.verdict import Look, Verdict, is_counted_out, is_out, judge
from ksmtuned.host.files import Tree
from ksmtuned.host.oneprocess import KsmUse
from ksmtuned.host.peer import connect_here, connect_inside
from ksmtuned.model import Meminfo

_RESERVE_RATIO = 0.02  # of RAM: allocators stall, and guests swap, before the last page
_COPIED_BYTES_PER_S = 100 * 2**20  # a tenth of what was measured: 384 MiB in 0.28 s
_SETTLE_S = 1.0  # the kernel has done it when QEMU answers; only its counts follow
_DEATH_S = 1.0  # a process closes its sockets first and is gone a little later


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done to one guest."""

    guest: Found
    wanted: bool
    qemu: tuple[int, int, int]
    before: tuple[Backend, ...]
    after: tuple[Backend, ...]
    use_before: KsmUse | None
    use_after: KsmUse | None
    verdict: Verdict
    proof: str  # one phrase: why this verdict


@contextmanager
def monitor_of(tree: Tree, guest: Found, qmp: Path | None) -> Iterator[QmpMonitor | LibvirtMonitor]:
    """A conversation with the guest's QEMU. qmp: its socket, if somebody named one.

    Errors: CannotShare, KernelRefused, WrongPeer, GuestGone, MonitorBroken.
    """
    monitor = _open(tree, guest, qmp)
    try:
        yield monitor
    finally:
        monitor.close()


def share(
    monitor: Monitor, guest: Found, meminfo: Meminfo, wanted: bool, *, is_forced: bool
) -> Outcome:
    """Set it and verify it. Errors: CannotShare, NoRoom, NotAllSet, GuestGone, MonitorBroken,
    MonitorRefused, KernelRefused."""
    use, look = guest.process.ksm_use(), _look(guest)
    try:
        qemu, found = version(monitor), backends(monitor)
        usable = [backend for backend in found if not backend.is_shared]
        _check_can(guest, found, usable, wanted)
        is_free = wanted or is_out(look, [b.size_bytes for b in usable])
        need_bytes = 0 if is_free else _need_bytes(guest, use)
        if not is_forced:
            _check_room(guest, need_bytes, meminfo)
        limit_s = ANSWER_S + 0.1 * len(usable) + need_bytes / _COPIED_BYTES_PER_S
        after = set_merge(monitor, usable, wanted, limit_s)
    except (MonitorBroken, NotAllSet) as error:
        if _has_died(guest):
            raise GuestGone(guest.label, "while its monitor was spoken to") from error
        raise
    verdict, proof = _verify(guest, look, wanted, [b.size_bytes for b in usable])
    if verdict is not Verdict.VERIFIED and qemu == DEAF:
        proof += "; QEMU 9.1.0 takes the change and does nothing: update it, then " + _next(wanted)
    return Outcome(
        guest=guest,
        wanted=wanted,
        qemu=qemu,
        before=tuple(usable),
        after=after,
        use_before=use,
        use_after=guest.process.ksm_use(),
        verdict=verdict,
        proof=proof,
    )


def _open(tree: Tree, guest: Found, qmp: Path | None) -> QmpMonitor | LibvirtMonitor:
    process, label = guest.process, guest.label
    if qmp is not None:
        return QmpMonitor(label, connect_here(tree, process, qmp, ANSWER_S))
    if not guest.is_qemu:
        raise CannotShare(
            label,
            f"only QEMU can change this while a guest runs, and this is {guest.vmm}; cloud-"
            "hypervisor has mergeable=on or off for its next start, others always keep out",
        )
    first: KernelRefused | MonitorBroken | None = None
    for path in guest.monitors.paths:
        try:
            return QmpMonitor(label, connect_inside(tree, process, path, ANSWER_S))
        except (KernelRefused, MonitorBroken) as error:
            first = first or error
    if guest.monitors.is_libvirts:
        return LibvirtMonitor(tree, label, process.pid, guest.uuid, ANSWER_S)
    if first is not None:
        raise first
    raise CannotShare(
        label,
        "its command line names no QMP socket (-qmp unix:PATH,server=on,wait=off); --qmp PATH "
        f"names one; {_next(None)}",
    )


def _next(wanted: bool | None) -> str:
    """What would work when the guest starts the next time."""
    if wanted:
        return "start it without mem-merge=off (libvirt: without <nosharepages/>)"
    return (
        "start it with -machine mem-merge=off (libvirt: <memoryBacking><nosharepages/>"
        "</memoryBacking>) to keep it out"
    )


def _check_can(
    guest: Found, found: Sequence[Backend], usable: Sequence[Backend], wanted: bool
) -> None:
    """Errors: CannotShare, if its memory cannot be merged, or not be told apart."""
    if not found:
        raise CannotShare(
            guest.label,
            f"this QEMU has no memory backend to change (before 5.0); {_next(wanted)}",
        )
    if not usable:
        raise CannotShare(
            guest.label,
            "its memory is shared (memfd, vhost-user, virtiofs): KSM never takes such memory, so "
            "it is out; to get it in, start it with private memory (share=off)",
        )
    if wanted and guest.process.hugetlb_bytes() >= sum(b.size_bytes for b in usable) / 2:
        raise CannotShare(
            guest.label,
            "its memory is on hugetlbfs, which KSM never takes; to get it in, start it without",
        )


def _need_bytes(guest: Found, use: KsmUse | None) -> int:
    """What taking it out may cost; where the kernel does not tell, all that it has resident."""
    return guest.process.rss_bytes() if use is None else use.need_bytes


def _check_room(guest: Found, need_bytes: int, meminfo: Meminfo) -> None:
    """Errors: NoRoom, by the host's memory or the limit of a cgroup above the guest."""
    if not need_bytes:
        return
    available = meminfo.available_bytes
    if available is None:
        available = meminfo.free_bytes
    room = max(0, available - int(meminfo.total_bytes * _RESERVE_RATIO))
    if need_bytes > room:
        raise NoRoom(guest.label, need_bytes, "the host, with 2 % kept free,", room)
    for cgroup in guest.process.rooms():
        if need_bytes > cgroup.room_bytes:
            place = f"its cgroup {cgroup.cgroup}"
            raise NoRoom(guest.label, need_bytes, place, max(0, cgroup.room_bytes))


def _look(guest: Found) -> Look:
    use = guest.process.ksm_use()
    return Look(
        merged_pages=None if use is None else use.merging_pages + use.zero_pages,
        is_mergeable=None if use is None else use.is_mergeable,
        offered_bytes=guest.process.mergeable_bytes(),
    )


def _verify(guest: Found, before: Look, wanted: bool, sizes: Sequence[int]) -> tuple[Verdict, str]:
    """Errors: GuestGone."""
    deadline_s = time.monotonic() + _SETTLE_S
    while True:
        after = _look(guest)
        if not guest.process.is_alive:
            raise GuestGone(guest.label, "before the change could be verified")
        verdict, proof = judge(before, after, wanted, sizes)
        is_final = verdict is Verdict.VERIFIED and (wanted or is_counted_out(before, after))
        if is_final or time.monotonic() > deadline_s:
            return verdict, proof
        time.sleep(0.1)


def _has_died(guest: Found) -> bool:
    deadline_s = time.monotonic() + _DEATH_S
    while guest.process.is_alive:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True
