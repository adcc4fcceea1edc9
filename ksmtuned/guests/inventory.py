"""The guests of this host, followed from tick to tick at one small read each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil

from ksmtuned.errors import KsmtunedError
from ksmtuned.guests.rules import guest_name, program, recogniser
from ksmtuned.host.host import Host
from ksmtuned.host.proc import ProcessStat
from ksmtuned.model import Guest

# A process forks first and takes its program afterwards: one this young is looked at again.
_YOUNG_S = 10.0
# A process that takes another program later is found within so many ticks.
_ROUND = 64


@dataclass(frozen=True, slots=True)
class _Known:
    """A guest as it was when first seen."""

    inode: int  # of its folder in proc: with pid, its identity while we watch
    comm: str
    start_time: int
    name: str
    vmm: str
    cgroup: str | None  # looked up only if memory is measured by cgroup


class Inventory:
    """Which processes are guests, over time. `patterns`: globs for their comm."""

    def __init__(self, host: Host, patterns: Sequence[str]) -> None:
        self._proc = host.proc
        self._is_guest = recogniser(patterns)
        self._guests: dict[int, _Known] = {}
        self._others: dict[int, int] = {}  # pid -> inode of what is settled to be no guest
        self._turn = 0
        psutil.PROCFS_PATH = str(host.root / "proc")

    def read(self, measure: str) -> tuple[Guest, ...]:
        """Every guest and its memory by `measure`: rss, cgroup, pss or none.

        A guest that vanishes meanwhile is left out; a garbled one, too.
        Errors: KernelRefused (proc cannot be listed).
        """
        pids = self._proc.pids()
        for pid in self._guests.keys() - pids.keys():
            self._proc.forget(pid)
        self._turn = (self._turn + 1) % _ROUND
        guests: dict[int, _Known] = {}
        others: dict[int, int] = {}
        found: list[Guest] = []
        for pid, inode in pids.items():
            if self._others.get(pid) == inode and pid % _ROUND != self._turn:
                others[pid] = inode
                continue
            known, stat = self._identify(pid, inode, measure)
            if known is None:
                if stat is not None and stat.age_s > _YOUNG_S and self._proc.is_live:
                    others[pid] = inode
                continue
            memory_bytes = self._memory_bytes(pid, known, stat, measure, guests)
            if memory_bytes is not None:
                guests[pid] = known
                found.append(_guest(pid, known, memory_bytes))
        self._guests, self._others = guests, others
        return tuple(found)

    def _identify(
        self, pid: int, inode: int, measure: str
    ) -> tuple[_Known | None, ProcessStat | None]:
        """The guest behind a pid (None: no guest), and its stat if it had to be read."""
        known = self._guests.get(pid)
        is_same = known is not None and known.inode == inode and self._proc.is_live
        if is_same and pid % _ROUND != self._turn:
            return known, None
        try:
            stat = self._proc.stat(pid)
        except KsmtunedError:
            return None, None
        if stat is None or stat.is_kernel_thread or not self._is_guest(stat.comm):
            return None, stat
        if known and (known.start_time, known.comm) == (stat.start_time, stat.comm):
            return replace(known, inode=inode), stat
        self._proc.forget(pid)
        return self._meet(pid, inode, stat, measure), stat

    def _meet(self, pid: int, inode: int, stat: ProcessStat, measure: str) -> _Known:
        try:
            cmdline = psutil.Process(pid).cmdline()
        except (psutil.Error, OSError, ValueError, IndexError):  # gone, or a tree made by hand
            cmdline = []
        return _Known(
            inode=inode,
            comm=stat.comm,
            start_time=stat.start_time,
            name=guest_name(cmdline, otherwise=stat.comm),
            vmm=program(stat.comm, cmdline),
            cgroup=self._proc.memory_cgroup(pid) if measure == "cgroup" else None,
        )

    def _memory_bytes(
        self,
        pid: int,
        known: _Known,
        stat: ProcessStat | None,
        measure: str,
        counted: dict[int, _Known],
    ) -> int | None:
        """None: the guest has gone."""
        if measure == "none":
            return 0
        if measure == "cgroup" and known.cgroup:
            if any(other.cgroup == known.cgroup for other in counted.values()):
                return 0  # two guests in one cgroup: its memory counts once
            anon_bytes = self._proc.cgroup_anon_bytes(known.cgroup)
            if anon_bytes is not None:
                return anon_bytes
        if measure == "pss":
            pss_bytes = self._proc.pss_bytes(pid)
            if pss_bytes is not None:
                return pss_bytes
        # A host tree made by hand may carry only one of stat and statm.
        return (stat.rss_bytes if stat else 0) or self._proc.rss_bytes(pid)


def _guest(pid: int, known: _Known, memory_bytes: int) -> Guest:
    return Guest(
        pid=pid,
        start_time=known.start_time,
        name=known.name,
        vmm=known.vmm,
        memory_bytes=memory_bytes,
    )
