"""The processes that offer memory to KSM, guests or not, and how much memory came to them."""

from __future__ import annotations

from dataclasses import dataclass

from ksmtuned.errors import KsmtunedError
from ksmtuned.host.files import KernelFile
from ksmtuned.host.proc import Proc, anon_bytes

# A process offers its memory a moment after its start: one this young is looked at again.
_YOUNG_S = 10.0
# One that does so later is found within so many looks.
_ROUND = 128


@dataclass(slots=True)
class _Offerer:
    inode: int  # of its folder in proc: with pid, its identity while we watch
    statm: KernelFile
    anon_bytes: int  # as last seen


class Offerers:
    """Follows them at one small read each; works where the kernel says who they are (6.14)."""

    def __init__(self, proc: Proc) -> None:
        self._proc = proc
        self._known: dict[int, _Offerer] = {}
        self._others: dict[int, int] = {}  # pid -> inode of what is settled to offer nothing
        self._turn = 0
        self._arrived_bytes = 0
        self._is_told: bool | None = None  # does this kernel say who offers?

    def look(self, pids: dict[int, int]) -> None:
        """Find those that came or went. pids: every process and its folder's inode."""
        if self._is_told is None:
            self._is_told = self._proc.says_who_offers()
        if not self._is_told:
            return
        self._turn = (self._turn + 1) % _ROUND
        self._known = {p: o for p, o in self._known.items() if pids.get(p) == o.inode}
        others: dict[int, int] = {}
        for pid, inode in pids.items():
            if pid in self._known:
                continue
            if self._others.get(pid) == inode and pid % _ROUND != self._turn:
                others[pid] = inode
            elif self._proc.offers_memory(pid):
                self._known[pid] = _Offerer(inode, self._proc.statm(pid), 0)
            elif not self._is_young(pid):
                others[pid] = inode
        self._others = others

    def arrived_bytes(self) -> int | None:
        """Anonymous memory that came to them since we watch: it only grows, for what left with its
        process, or was merged, is not deducted. None: this kernel does not say who they are."""
        if not self._is_told:
            return None
        for offerer in self._known.values():
            now_bytes = anon_bytes(offerer.statm)
            if now_bytes is None:  # gone: the next look drops it
                continue
            self._arrived_bytes += max(0, now_bytes - offerer.anon_bytes)
            offerer.anon_bytes = now_bytes
        return self._arrived_bytes

    def _is_young(self, pid: int) -> bool:
        try:
            stat = self._proc.parse_stat(pid, self._proc.stat_line(pid))
        except KsmtunedError:
            return False
        return stat is not None and not stat.is_kernel_thread and stat.age_s <= _YOUNG_S
