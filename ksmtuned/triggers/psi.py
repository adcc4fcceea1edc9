"""Pressure that wakes: tasks wait for memory, or for a CPU."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence

from ksmtuned.errors import KernelRefused

# "some STALL WINDOW", in microseconds: some task waited that long within any such window. The
# window is 2 s, because only multiples of that are granted without CAP_SYS_RESOURCE, which a
# daemon that merely listens should not need (kernel/sched/psi.c, psi_trigger_create()).
THRESHOLDS = {
    # 10 %: where the adaptive law begins to count pressure as shortage.
    "memory": "some 200000 2000000",
    # 50 %: more tasks than CPUs for half of the time. Less is an ordinary busy host.
    "cpu": "some 1000000 2000000",
}


class Pressures:
    """One descriptor for each threshold that the kernel grants.

    watch: opens one; Errors: KernelRefused. `refused` says what was not granted.
    """

    def __init__(self, watch: Callable[[str, str], int]) -> None:
        self._fds: dict[int, str] = {}
        self.refused: dict[str, KernelRefused] = {}
        for resource, threshold in THRESHOLDS.items():
            try:
                self._fds[watch(resource, threshold)] = resource
            except KernelRefused as error:
                self.refused[resource] = error

    def filenos(self) -> dict[int, str]:
        """What to poll for POLLPRI, and the resource that each is about."""
        return dict(self._fds)

    def take(self, ready: Sequence[tuple[int, int]]) -> set[str]:
        """The resources that are under pressure, of what poll(2) reported."""
        return {self._fds[fd] for fd, event in ready if fd in self._fds and event & select.POLLPRI}

    def drop_broken(self, ready: Sequence[tuple[int, int]]) -> list[int]:
        """Close those that poll(2) reports as broken; it would do so for ever. Returns them."""
        broken = [fd for fd, event in ready if fd in self._fds and event & ~select.POLLPRI]
        for fd in broken:
            del self._fds[fd]
            os.close(fd)
        return broken
