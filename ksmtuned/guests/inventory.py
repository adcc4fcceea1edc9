"""The guests of this host, followed from tick to tick at one small read each; details in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import psutil

from ksmtuned.errors import KsmtunedError
from ksmtuned.guests.details import DetailsReader, Rotation
from ksmtuned.guests.launch import Launch, launch_of
from ksmtuned.guests.others import Others
from ksmtuned.guests.rules import guest_name, program, recogniser, scope_name
from ksmtuned.host.files import KernelFile
from ksmtuned.host.host import Host
from ksmtuned.host.proc import ProcessStat, rss_bytes
from ksmtuned.model import Guest

# A process forks first and takes its program afterwards: one this young is looked at again.
_YOUNG_S = 10.0
# A process that takes another program later is found within so many ticks.
_ROUND = 64


@dataclass(slots=True)
class _Known:
    """A guest, and what identifies it."""

    inode: int  # of its folder in proc: with pid, its identity while we watch
    line: bytes  # its stat as last read, and what that says
    stat: ProcessStat
    guest: Guest  # as it was last seen
    launch: Launch
    is_young: bool  # its user and its control group may still change
    ksm_stat: KernelFile
    ksm_content: bytes | None  # as last read
    statm: KernelFile
    cgroup: str | None  # looked up when memory is first measured by cgroup


class Inventory:
    """Which processes are guests, over time.

    patterns: globs for their comm. measure: what counts as their memory; rss, cgroup, pss or none.
    beat: called after each guest whose measuring takes its time.
    """

    def __init__(
        self,
        host: Host,
        patterns: Sequence[str],
        measure: str,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._beat = beat
        self._proc, self._processes, self._measure = host.proc, host.processes, measure
        self._is_guest = recogniser(patterns)
        self._guests: dict[int, _Known] = {}
        self._others: dict[int, int] = {}  # pid -> inode of what is settled to be no guest
        self._turn = 0
        self._details = DetailsReader(host.processes)
        self._rotation = Rotation()
        self._mergeable = Others(host, self._details)
        self.others: tuple[Guest, ...] = ()  # no guests, but with mergeable memory
        self.unread: dict[str, KsmtunedError] = {}  # what the last reading could not read
        psutil.PROCFS_PATH = str(host.root / "proc")

    @property
    def is_blind(self) -> bool:
        """Did some process not let us look at what KSM does with it?"""
        return self._details.is_blind

    def is_probe(self, pid: int) -> bool:
        """Was this process started only to ask a VMM what it can do?"""
        cmdline = _cmdline(pid)
        return launch_of(PurePath(cmdline[0]).name if cmdline else "", cmdline).is_probe

    def read(self, pids: Mapping[int, int] | None = None) -> tuple[Guest, ...]:
        """Every guest and its memory. One that vanishes meanwhile is left out; a garbled one, too.

        pids: every process and its folder's inode, if just listed.
        Errors: KernelRefused (proc cannot be listed).
        """
        guests: dict[int, _Known] = {}
        others: dict[int, int] = {}
        cgroups: set[str] = set()
        self._turn = (self._turn + 1) % _ROUND
        self.unread = {}
        present = self._proc.pids() if pids is None else pids
        for pid, inode in present.items():
            is_due = pid % _ROUND == self._turn or not self._proc.is_live
            if self._others.get(pid) == inode and not is_due:
                others[pid] = inode
                continue
            known, stat = self._guests.get(pid), None
            if known is None or known.inode != inode or is_due:
                known, stat = self._identify(pid, inode)
            if known is None:
                if stat is not None and stat.age_s > _YOUNG_S:
                    others[pid] = inode
                continue
            memory_bytes = self._memory_bytes(known, stat, cgroups)
            if memory_bytes is None:
                continue
            if memory_bytes != known.guest.memory_bytes:
                known.guest = replace(known.guest, memory_bytes=memory_bytes)
            guests[pid] = known
        self._guests, self._others = guests, others
        for pid in self._rotation.next(list(guests)):
            self._refresh(guests[pid])
        self.others = self._mergeable.look({p: present[p] for p in present.keys() - guests.keys()})
        return tuple(guests[pid].guest for pid in sorted(guests))

    def _refresh(self, known: _Known) -> None:
        """Look at its details again: one more small read, or a few while it is young."""
        content = self._details.content(known.ksm_stat)
        if content is not None and content == known.ksm_content and not known.is_young:
            return
        pid, before = known.guest.pid, known.guest.details
        belongs = self._details.belongs(pid) if known.is_young else (before.uid, before.cgroup)
        details = self._details.of(self._details.ksm(pid, content), known.launch, *belongs)
        known.ksm_content = content
        known.is_young = known.is_young and known.stat.age_s < _YOUNG_S
        if details != before:
            known.guest = replace(known.guest, details=details)

    def _identify(self, pid: int, inode: int) -> tuple[_Known | None, ProcessStat | None]:
        """The guest behind a pid (None: no guest), and what its stat says (None: it is gone)."""
        known = self._guests.get(pid)
        try:
            line = self._proc.stat_line(pid)
            if known is not None and known.line == line:  # most often: nothing to parse
                known.inode = inode
                return known, known.stat
            stat = self._proc.parse_stat(pid, line)
        except KsmtunedError:
            return None, None
        if stat is None or stat.is_kernel_thread or not self._is_guest(stat.comm):
            return None, stat
        if known and (known.stat.start_time, known.stat.comm) == (stat.start_time, stat.comm):
            known.inode, known.line, known.stat = inode, line, stat
            return known, stat
        return self._meet(pid, inode, line, stat), stat

    def _meet(self, pid: int, inode: int, line: bytes, stat: ProcessStat) -> _Known | None:
        """None: it only probes what its program can do."""
        cmdline = _cmdline(pid)
        vmm = program(stat.comm, cmdline)
        launch = launch_of(vmm, cmdline)
        if launch.is_probe:
            return None
        ksm_stat = self._processes.ksm_stat(pid)
        content = self._details.content(ksm_stat)
        uid, cgroup = self._details.belongs(pid)
        return _Known(
            inode=inode,
            line=line,
            stat=stat,
            guest=Guest(
                pid=pid,
                start_time=stat.start_time,
                name=guest_name(cmdline, otherwise=scope_name(cgroup) or stat.comm),
                vmm=vmm,
                memory_bytes=0,
                details=self._details.of(self._details.ksm(pid, content), launch, uid, cgroup),
            ),
            launch=launch,
            is_young=stat.age_s < _YOUNG_S,
            ksm_stat=ksm_stat,
            ksm_content=content,
            statm=self._proc.statm(pid),
            cgroup=None,
        )

    def _memory_bytes(
        self, known: _Known, stat: ProcessStat | None, cgroups: set[str]
    ) -> int | None:
        """None: the guest has gone. `cgroups`: those that are counted already.

        What cannot be measured as wanted (no right to read it) is measured by rss, and told.
        """
        try:
            measured = self._measured(known, cgroups)
        except KsmtunedError as error:
            self.unread["guests"] = error
            measured = None
        if measured is not None:
            return measured
        # A host tree made by hand may carry only one of stat and statm.
        return (stat.rss_bytes if stat else 0) or rss_bytes(known.statm)

    def _measured(self, known: _Known, cgroups: set[str]) -> int | None:
        """Memory by a measure other than rss; None: that measure has nothing to say."""
        if self._measure == "none":
            return 0
        if self._measure == "cgroup" and known.cgroup is None:
            known.cgroup = self._proc.memory_cgroup(known.guest.pid)
        if self._measure == "cgroup" and known.cgroup:
            if known.cgroup in cgroups:
                return 0  # two guests in one cgroup: its memory counts once
            anon_bytes = self._proc.cgroup_anon_bytes(known.cgroup)
            if anon_bytes is not None:
                cgroups.add(known.cgroup)
                return anon_bytes
        if self._measure == "pss":
            self._beat()  # seconds for a large guest
            return self._proc.pss_bytes(known.guest.pid)
        return None


def _cmdline(pid: int) -> list[str]:
    """Empty: it is gone, or not to be read."""
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.Error, OSError, ValueError, IndexError):  # gone, or a tree made by hand
        return []
