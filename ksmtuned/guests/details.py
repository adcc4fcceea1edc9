"""What KSM does with a process, and what is known about it: read now, or in rotation."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence

from ksmtuned.errors import KernelRefused
from ksmtuned.guests.launch import Launch
from ksmtuned.guests.rules import NOT_PERMITTED, judge
from ksmtuned.host.files import KernelFile
from ksmtuned.host.process import Processes, ProcessKsm
from ksmtuned.model import Details

# Looks into ksm_stat. Under a tick a second: 32 cost 0.2 ms, and a thousand guests take 31 s.
PER_S = 32
LEAST = 8  # in each tick, however soon after the last one


class Rotation:
    """Takes its turn through processes: a few in each tick, all of them again and again."""

    def __init__(self) -> None:
        self._last_s = float("-inf")
        self._cursor = 0

    def next(self, pids: Sequence[int]) -> Sequence[int]:
        """Whose turn it is, of these. The first time: everybody's."""
        now_s = time.monotonic()
        count = max(LEAST, int(min(PER_S * (now_s - self._last_s), len(pids))))
        self._last_s = now_s
        if count >= len(pids):
            return pids
        pids = sorted(pids)
        start = bisect_right(pids, self._cursor)
        turn = (pids[start:] + pids[:start])[:count]
        self._cursor = turn[-1]
        return turn


class DetailsReader:
    """Reads Details; remembers whether it had to pass over any process."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.is_blind = False  # some process would not let us look

    def content(self, file: KernelFile) -> bytes | None:
        """Of a ksm_stat; None: it is gone, or we may not look."""
        try:
            return file.read()
        except KernelRefused:
            self.is_blind = True
            return None

    def ksm(self, pid: int, content: bytes | None) -> ProcessKsm | None:
        """The same, understood."""
        try:
            return self._processes.ksm(pid, content)
        except KernelRefused:
            self.is_blind = True
            return None

    def belongs(self, pid: int) -> tuple[int | None, str | None]:
        """Whose it is, and its control group."""
        return self._processes.uid(pid), self._processes.cgroup(pid)

    def of(
        self, ksm: ProcessKsm | None, launch: Launch, uid: int | None, cgroup: str | None
    ) -> Details:
        """All that is known. ksm None: it is gone, or we may not look."""
        found = ksm or ProcessKsm()
        is_offered = found.mergeable if not found.merge_any else True
        merged_pages = (found.merging_pages or 0) + (found.zero_pages or 0)
        visited_pages = (found.rmap_items or 0) + (found.zero_pages or 0)
        verdict = judge(is_offered, visited_pages, merged_pages, launch.obstacle, launch.ram_bytes)
        why_not = verdict.why_not
        if ksm is None and verdict.mergeable is None:
            why_not = NOT_PERMITTED
        return Details(
            uuid=launch.uuid,
            ram_bytes=launch.ram_bytes,
            uid=uid,
            cgroup=cgroup,
            merging_pages=found.merging_pages,
            zero_pages=found.zero_pages,
            rmap_items=found.rmap_items,
            profit_bytes=found.process_profit,
            mergeable=verdict.mergeable,
            why_not=why_not,
            share=verdict.share,
        )
