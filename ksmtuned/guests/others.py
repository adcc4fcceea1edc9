"""Processes that are no guests, but have mergeable memory: found and followed a few at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ksmtuned.errors import KsmtunedError
from ksmtuned.guests.details import DetailsReader, Rotation
from ksmtuned.guests.launch import Launch
from ksmtuned.guests.rules import scope_name
from ksmtuned.host.host import Host
from ksmtuned.model import Guest


class Others:
    """Whoever offered memory by madvise(2), prctl(2) or systemd's MemoryKSM=."""

    def __init__(self, host: Host, details: DetailsReader) -> None:
        self._proc, self._processes, self._details = host.proc, host.processes, details
        self._found: dict[int, tuple[int, Guest]] = {}  # pid -> inode of its folder, and what it is
        self._search, self._refresh = Rotation(), Rotation()

    def look(self, present: Mapping[int, int]) -> tuple[Guest, ...]:
        """Those found so far. present: every process that is no guest, and its folder's inode."""
        kept = {pid: had for pid, had in self._found.items() if present.get(pid) == had[0]}
        for pid in self._turn(present, kept):
            guest = self._read(pid)
            if guest is None:
                kept.pop(pid, None)
            else:
                kept[pid] = present[pid], guest
        self._found = kept
        return tuple(kept[pid][1] for pid in sorted(kept))

    def _turn(self, present: Iterable[int], kept: Iterable[int]) -> set[int]:
        return {*self._search.next(list(present)), *self._refresh.next(list(kept))}

    def _read(self, pid: int) -> Guest | None:
        """None: it has nothing to merge, or it is gone."""
        ksm = self._details.ksm(pid, self._details.content(self._processes.ksm_stat(pid)))
        if ksm is None or not ksm.takes_part:
            return None
        try:
            stat = self._proc.parse_stat(pid, self._proc.stat_line(pid))
        except KsmtunedError:
            return None
        if stat is None:
            return None
        uid, cgroup = self._details.belongs(pid)
        return Guest(
            pid=pid,
            start_time=stat.start_time,
            name=scope_name(cgroup) or stat.comm,
            vmm=stat.comm,
            memory_bytes=stat.rss_bytes,
            details=self._details.of(ksm, Launch(), uid, cgroup),
        )
