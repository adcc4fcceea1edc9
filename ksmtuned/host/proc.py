"""What procfs and the cgroup tree say: memory, ksmd's CPU time, processes."""

from __future__ import annotations

import os
import re
import time
from typing import NamedTuple

from ksmtuned.errors import Garbled, KernelRefused, KsmtunedError
from ksmtuned.host.files import KernelFile, Tree
from ksmtuned.model import Meminfo
from ksmtuned.units import PAGE_BYTES

_MEMINFO_LINE = re.compile(
    rb"^(MemTotal|MemFree|MemAvailable|Buffers|Cached|SwapFree|AnonPages):"
    rb"[ \t]+([0-9]{1,18})[ \t]+kB$",
    re.M,
)
_ANON_LINE = re.compile(rb"^(?:anon|total_rss) ([0-9]{1,20})$", re.M)  # cgroup v2, v1
_PSS_LINE = re.compile(rb"^Pss:[ \t]+([0-9]{1,18}) kB$", re.M)
_ARC_LINE = re.compile(rb"^(size|c_min) +4 +([0-9]{1,18})$", re.M)  # 4: KSTAT_DATA_UINT64
_COW_LINE = re.compile(rb"^cow_ksm ([0-9]{1,18})$", re.M)
_PSI_SOME = re.compile(rb"^some avg10=([0-9]{1,3}\.[0-9]{2}) ", re.M)
_PF_KTHREAD = 0x00200000  # linux/sched.h
_TICKS_PER_S: int = os.sysconf("SC_CLK_TCK")


class ProcessStat(NamedTuple):
    """What proc/PID/stat says. Source: fs/proc/array.c, do_task_stat()."""

    comm: str  # at most 15 bytes; anybody can choose his own
    parent_pid: int
    flags: int
    cpu_s: float  # user and system
    start_time: int  # clock ticks since boot
    rss_bytes: int  # merged pages count in full

    @property
    def age_s(self) -> float:
        """How long ago it was started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_time / _TICKS_PER_S

    @property
    def is_kernel_thread(self) -> bool:
        """A thread of the kernel, not a program that took the name of one."""
        return bool(self.flags & _PF_KTHREAD) or self.parent_pid == 2  # 2: kthreadd


class Proc:
    """The host's processes and memory, below the tree's root."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._meminfo = KernelFile(tree, "proc/meminfo")
        self._arcstats = KernelFile(tree, "proc/spl/kstat/zfs/arcstats")
        self._vmstat = KernelFile(tree, "proc/vmstat")
        self._pressure = KernelFile(tree, "proc/pressure/memory")
        self._ksmd: tuple[int | None, KernelFile] | None = None  # not looked for yet

    @property
    def is_live(self) -> bool:
        """Is it a kernel's procfs (true), or files that somebody wrote (false)?"""
        return self._tree.is_procfs

    def meminfo(self) -> Meminfo:
        """Errors: Garbled, KernelRefused."""
        content = self._meminfo.read() or b""
        found = {name: int(kilobytes) * 1024 for name, kilobytes in _MEMINFO_LINE.findall(content)}
        if not found.get(b"MemTotal") or b"MemFree" not in found:
            path = self._tree.path("proc/meminfo")
            raise Garbled(path, content.decode(errors="replace"), "MemTotal and MemFree in kB")
        return Meminfo(
            total_bytes=found[b"MemTotal"],
            free_bytes=found[b"MemFree"],
            buffers_bytes=found.get(b"Buffers", 0),
            cached_bytes=found.get(b"Cached", 0),
            available_bytes=found.get(b"MemAvailable"),
            anon_bytes=found.get(b"AnonPages", 0),
            arc_bytes=self._arc_bytes(),
            swap_free_bytes=found.get(b"SwapFree"),
        )

    def _arc_bytes(self) -> int:
        """What ZFS's cache holds above its own minimum; 0 without ZFS."""
        found = dict(_ARC_LINE.findall(self._optional(self._arcstats)))
        return max(0, int(found.get(b"size", 0)) - int(found.get(b"c_min", 0)))

    def cow_ksm(self) -> int | None:
        """Merged pages that were written to since boot; None before 5.18. Source: vmstat."""
        match = _COW_LINE.search(self._optional(self._vmstat))
        return int(match[1]) if match else None

    def pressure_pct(self) -> float | None:
        """Share of time in which some task waited for memory, 10 s average; None: no PSI here
        (an old kernel, or switched off: then open or read gives EOPNOTSUPP)."""
        match = _PSI_SOME.search(self._optional(self._pressure))
        return float(match[1]) if match else None

    @staticmethod
    def _optional(file: KernelFile) -> bytes:
        """The content of a file that decisions can do without, absent or refused."""
        try:
            return file.read() or b""
        except KernelRefused:
            return b""

    def boot_id(self) -> str:
        """The kernel's name for this boot; empty where there is none."""
        content = self._tree.read("proc/sys/kernel/random/boot_id") or b""
        return content.decode(errors="replace").strip()

    def pids(self) -> dict[int, int]:
        """Every process: pid and the inode number of its folder, which a later process with
        the same pid does not share. Errors: KernelRefused."""
        return self._tree.numbered("proc")

    def stat_line(self, pid: int) -> bytes:
        """proc/PID/stat as it is; empty: no such process. Errors: KernelRefused."""
        return self._tree.read(f"proc/{pid}/stat") or b""

    def parse_stat(self, pid: int, line: bytes) -> ProcessStat | None:
        """What a stat_line says. None: no such process. Errors: Garbled."""
        if not line:
            return None
        # comm may hold anything, brackets and line ends included: the last ")" ends it.
        head, _, tail = line.rpartition(b")")
        try:
            f = [word[:19] for word in tail.split(None, 23)[:22]]  # more digits are no number
            return ProcessStat(
                comm=head[head.index(b"(") + 1 :].decode(errors="replace"),
                parent_pid=int(f[1]),
                flags=int(f[6]),
                cpu_s=(int(f[11]) + int(f[12])) / _TICKS_PER_S,
                start_time=int(f[19]),
                rss_bytes=int(f[21]) * PAGE_BYTES,
            )
        except (ValueError, IndexError) as error:
            path = self._tree.path(f"proc/{pid}/stat")
            text = line.decode(errors="replace")
            raise Garbled(path, text, "a process's stat line") from error

    def statm(self, pid: int) -> KernelFile:
        """For rss_bytes, as long as the process lives."""
        return KernelFile(self._tree, f"proc/{pid}/statm")

    def says_who_offers(self) -> bool:
        """Does this kernel tell which processes offer memory to KSM (6.14)? Our own entry says."""
        return b"\nksm_mergeable: " in self._ksm_stat("self")

    def offers_memory(self, pid: int) -> bool:
        """Has it mergeable memory? False also where we may not know."""
        return b"\nksm_mergeable: yes\n" in self._ksm_stat(pid)

    def _ksm_stat(self, pid: int | str) -> bytes:
        try:
            return self._tree.read(f"proc/{pid}/ksm_stat") or b""
        except KernelRefused:
            return b""

    def pss_bytes(self, pid: int) -> int | None:
        """Proportional share by smaps_rollup. Walks all page tables: seconds for a large guest."""
        match = _PSS_LINE.search(self._tree.read(f"proc/{pid}/smaps_rollup") or b"")
        return int(match[1]) * 1024 if match else None

    def memory_cgroup(self, pid: int) -> str | None:
        """The nearest cgroup with memory accounting that holds the process, as a path below the
        root: libvirt's threads sit in children (libvirt/emulator) that have none. None: not found.
        """
        content = self._tree.read(f"proc/{pid}/cgroup") or b""
        for line in content.decode(errors="surrogateescape").split("\n"):
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            if controllers not in ("", "memory") or ".." in path.split("/") or "\0" in path:
                continue
            mount = "sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup"
            parts = [part for part in path.split("/") if part]
            for length in range(len(parts), 0, -1):
                folder = "/".join((mount, *parts[:length]))
                if self._tree.read(f"{folder}/memory.stat") is not None:
                    return folder
        return None

    def cgroup_anon_bytes(self, folder: str) -> int | None:
        """Anonymous memory charged to a cgroup. A merged page is charged to one cgroup only, so
        the sum over cgroups is right even where a single figure is not. None: not there."""
        match = _ANON_LINE.search(self._tree.read(f"{folder}/memory.stat") or b"")
        return int(match[1]) if match else None

    def ksmd_cpu_s(self) -> float | None:
        """CPU time that ksmd has used; None: no ksmd to be seen here."""
        if self._ksmd is None:  # looked for once: a kernel thread lives as long as the kernel
            pid = self._find_ksmd()
            self._ksmd = pid, KernelFile(self._tree, f"proc/{pid}/schedstat")
        pid, ran = self._ksmd
        try:
            if pid is None:
                return None
            # Nanoseconds of the scheduler's own clock; CONFIG_SCHEDSTATS may be off.
            if content := ran.read():
                return int(content[:20].split(None, 1)[0]) / 1e9
            stat = self.parse_stat(pid, self.stat_line(pid))
            return stat.cpu_s if stat else None
        except (KsmtunedError, ValueError, IndexError):
            return None

    def _find_ksmd(self) -> int | None:
        for pid in sorted(self.pids()):
            try:
                if self._tree.read(f"proc/{pid}/comm") in (b"ksmd\n", b"ksmd"):
                    stat = self.parse_stat(pid, self.stat_line(pid))
                    if stat and stat.is_kernel_thread:
                        return pid
            except KsmtunedError:
                continue  # hidden from us, or garbled: ksmd is neither
        return None


def anon_bytes(statm: KernelFile) -> int | None:
    """Anonymous memory by proc/PID/statm: resident without what is shared or of a file; merged
    pages count in full, the zero page does not. None: the process is gone."""
    try:
        content = statm.read()
        if content is None:
            return None
        _, resident, shared = content.split(None, 3)[:3]
        return max(0, int(resident) - int(shared)) * PAGE_BYTES
    except (KsmtunedError, ValueError):
        return None


def rss_bytes(statm: KernelFile) -> int | None:
    """Resident memory by proc/PID/statm; merged pages count in full. None: the process is gone."""
    try:
        content = statm.read()
        return None if content is None else int(content.split(None, 2)[1]) * PAGE_BYTES
    except (KsmtunedError, ValueError, IndexError):
        return None
