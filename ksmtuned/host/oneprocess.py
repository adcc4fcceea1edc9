"""One process of the host, closely: who it is, what KSM holds of it, how much it may still take."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ksmtuned.errors import Garbled, KernelRefused, KsmtunedError
from ksmtuned.host.files import Tree, pass_if_absent
from ksmtuned.host.proc import Proc
from ksmtuned.units import PAGE_BYTES

_KSM_LINE = re.compile(rb"^(ksm_[a-z_]+):?[ \t]+(-?[0-9]{1,19}|yes|no)$", re.M)
_HUGETLB_LINE = re.compile(rb"^HugetlbPages:[ \t]+([0-9]{1,18}) kB$", re.M)
_CAUGHT_LINE = re.compile(rb"^SigCgt:[ \t]+([0-9a-f]{1,16})$", re.M)
_CACHE_LINE = re.compile(rb"^(?:total_)?(?:in)?active_file ([0-9]{1,19})$", re.M)
_SIZE_LINE = re.compile(rb"Size: +([0-9]{1,15}) kB\n")
_SMAPS_MOST_BYTES = 256 * 2**20  # 65530 mappings, the kernel's most, take 64 MiB
_UNLIMITED_BYTES = 2**60  # cgroup v1 writes "no limit" as a number just below 2^63


class KsmUse(NamedTuple):
    """What KSM holds of one process. Source: fs/proc/base.c, proc_pid_ksm_stat()."""

    merging_pages: int  # mapped to a merged page
    zero_pages: int  # mapped to the zero page by KSM (since 6.6; else 0)
    is_mergeable: bool | None  # has it any mergeable memory? None before 6.14

    @property
    def need_bytes(self) -> int:
        """What it takes to give each of these pages its own memory back."""
        return (self.merging_pages + self.zero_pages) * PAGE_BYTES


class Room(NamedTuple):
    """How much more a cgroup may take."""

    cgroup: str  # as a path below the cgroup mount
    room_bytes: int  # to its limit; its page cache counts as room
    limit_bytes: int


class Process:
    """A process, by pid and start time. A question about one that is gone gives None."""

    def __init__(self, tree: Tree, pid: int, start_time: int) -> None:
        self.pid, self.start_time = pid, start_time
        self._tree, self._proc = tree, Proc(tree)

    @property
    def is_alive(self) -> bool:
        """Is it still the same process, and no zombie?"""
        try:
            line = self._proc.stat_line(self.pid)
            stat = self._proc.parse_stat(self.pid, line)
        except KsmtunedError:
            return False
        is_dead = line.rpartition(b") ")[2][:1] in (b"Z", b"X")
        return stat is not None and stat.start_time == self.start_time and not is_dead

    def ksm_use(self) -> KsmUse | None:
        """None: this kernel does not tell (before 5.19), or the process is gone.

        Errors: KernelRefused (mode 0400: only its owner and root may read).
        """
        found = dict(_KSM_LINE.findall(self._read("ksm_stat")))
        merging = found.get(b"ksm_merging_pages")
        if merging is None:  # ksm_stat of 6.1 to 6.3 has no such line
            merging = self._read("ksm_merging_pages").strip()
        if not merging.isdigit():
            return None
        zero, mergeable = found.get(b"ksm_zero_pages", b"0"), found.get(b"ksm_mergeable")
        return KsmUse(
            merging_pages=int(merging[:19]),
            zero_pages=int(zero) if zero.isdigit() else 0,
            is_mergeable=None if mergeable is None else mergeable == b"yes",
        )

    def mergeable_bytes(self) -> int | None:
        """The size of its mappings that are offered to KSM (flag mg); None: we may not see them.

        Walks all its page tables: seconds for a large guest, so never again and again.
        """
        total = size = seen = 0
        try:
            fd = self._tree.open(f"proc/{self.pid}/smaps")
            if fd is None:
                return None
            with os.fdopen(fd, "rb") as lines:
                for line in lines:
                    seen += len(line)
                    if seen > _SMAPS_MOST_BYTES:
                        return None
                    if match := _SIZE_LINE.fullmatch(line):
                        size = int(match[1]) * 1024
                    elif line.startswith(b"VmFlags:") and b"mg" in line.split():
                        total += size
        except OSError:
            return None
        return total if seen else None

    def hugetlb_bytes(self) -> int:
        """Its memory on hugetlbfs, which KSM never takes."""
        match = _HUGETLB_LINE.search(self._read("status"))
        return int(match[1]) * 1024 if match else 0

    def rss_bytes(self) -> int:
        """Its resident memory; 0: it is gone."""
        try:
            stat = self._proc.parse_stat(self.pid, self._proc.stat_line(self.pid))
        except Garbled:
            return 0
        return stat.rss_bytes if stat else 0

    def rooms(self) -> tuple[Room, ...]:
        """What each cgroup above it with a memory limit still lets in, the nearest first."""
        folder = self._proc.memory_cgroup(self.pid)
        if folder is None:
            return ()
        parts = folder.split("/")
        first = 5 if parts[3:4] == ["memory"] else 4  # sys/fs/cgroup(/memory)/FIRST
        above = ["/".join(parts[:length]) for length in range(len(parts), first - 1, -1)]
        return tuple(filter(None, map(self._room, above)))

    def catches(self, signal_number: int) -> bool:
        """Has it a handler of its own for this signal?"""
        match = _CAUGHT_LINE.search(self._read("status"))
        return match is not None and bool(int(match[1], 16) >> (signal_number - 1) & 1)

    def _room(self, folder: str) -> Room | None:
        names = (
            ("memory.max", "memory.current"),
            (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            ),
        )
        for limit_name, used_name in names:
            limit = (self._tree.read(f"{folder}/{limit_name}") or b"").strip()
            used = (self._tree.read(f"{folder}/{used_name}") or b"").strip()
            if limit.isdigit() and used.isdigit() and int(limit[:20]) < _UNLIMITED_BYTES:
                stat = self._tree.read(f"{folder}/memory.stat") or b""
                cache = sum(map(int, _CACHE_LINE.findall(stat)))
                left = int(limit[:20]) - int(used[:20]) + cache
                return Room("/" + "/".join(folder.split("/")[3:]), left, int(limit[:20]))
        return None

    def _read(self, name: str) -> bytes:
        return self._tree.read(f"proc/{self.pid}/{name}") or b""


def command_line(tree: Tree, pid: int) -> list[str]:
    """The words that a process was started with; none: it is gone. Anybody can choose his own."""
    content = tree.read(f"proc/{pid}/cmdline") or b""
    return content.decode(errors="surrogateescape").split("\0")[:-1]


def is_our_namespace(tree: Tree) -> bool:
    """Do the pids below this root mean the processes that system calls of ours mean?"""
    if not tree.is_procfs:
        return True  # files that somebody wrote: their author knows
    try:
        return str(tree.path("proc/self").readlink()) == str(os.getpid())
    except OSError as error:
        pass_if_absent(tree.path("proc/self"), error)
        return False


def lock_holder(tree: Tree, name: str) -> int | None:
    """The pid of who holds flock(2) for writing on a folder, by proc/locks; None: not to be seen.

    Source: fs/locks.c, lock_get_status().
    """
    try:
        found = tree.path(name).stat()
    except OSError as error:
        raise KernelRefused(tree.path(name), error.errno or 0) from error
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in (tree.read("proc/locks") or b"").decode(errors="replace").splitlines():
        words = line.split()
        if words[1:4:2] == ["FLOCK", "WRITE"] and words[5:6] == [device] and words[4].isdigit():
            return int(words[4])
    return None
