"""Which news of virtual machines is worth a look, and when: a probe of KVM is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ksmtuned.triggers.uevent import News, Uevent

# A guest's event comes before its memory. And most starts are none: libvirt, and QEMU's own tools,
# create machines that live for 50 to 300 ms, to find out what KVM can do. So a machine is looked at
# when it is this old.
TRIAL_S = 0.4
# Between two looks: a storm of a thousand guests is no reason for a thousand of them. Together
# with the trial it stays below the second within which a guest is to be acted on.
PAUSE_S = 0.4


class _Candidate(NamedTuple):
    process: int
    due_s: float


class Trial:
    """Follows virtual machines from their creation until they have proved to be guests.

    process_of: the process of a thread, None if it is gone. is_probe: does that process only ask
    what KVM can do? Times are of the monotonic clock.
    """

    def __init__(
        self, process_of: Callable[[int], int | None], is_probe: Callable[[int], bool]
    ) -> None:
        self._process_of, self._is_probe = process_of, is_probe
        self._candidates: dict[int, _Candidate] = {}  # by the thread that created the machine
        self._probes: set[int] = set()  # threads of probes that outlived the trial
        self._due_s: float | None = None
        self._last_s = float("-inf")

    def note(self, event: Uevent, now_s: float) -> None:
        """Take note of one piece of news."""
        thread = event.thread_id
        if event.news is News.CREATED and thread is not None:
            process = self._process_of(thread)
            if process is not None:
                self._candidates[thread] = _Candidate(process, now_s + TRIAL_S)
        elif event.news is News.DESTROYED and thread in self._candidates:
            del self._candidates[thread]  # it never was a guest
        elif event.news is News.DESTROYED and thread in self._probes:
            self._probes.discard(thread)
        else:
            self.ask(now_s, TRIAL_S)  # several go together, as do many blocks of memory
        if event.news is News.LOST:
            self._probes.clear()

    def ask(self, now_s: float, delay_s: float = 0.0) -> None:
        """A look is wanted, `delay_s` from now or as soon as one may be."""
        due_s = max(now_s + delay_s, self._last_s + PAUSE_S)
        self._due_s = due_s if self._due_s is None else min(self._due_s, due_s)

    def on_trial(self) -> set[int]:
        """Processes that may still turn out to be probes."""
        return {candidate.process for candidate in self._candidates.values()}

    def due_s(self) -> float | None:
        """When to ask `take` again; None: not before more news comes."""
        times = [candidate.due_s for candidate in self._candidates.values()]
        return min((*times, *([] if self._due_s is None else [self._due_s])), default=None)

    def take(self, now_s: float) -> bool:
        """Is a look due?"""
        for thread, candidate in list(self._candidates.items()):
            if now_s < candidate.due_s:
                continue
            del self._candidates[thread]
            if self._process_of(thread) != candidate.process:
                continue  # gone already
            if self._is_probe(candidate.process):
                self._probes.add(thread)
            else:
                self.ask(now_s)
        if self._due_s is None or now_s < self._due_s:
            return False
        self._due_s, self._last_s = None, now_s
        return True
