"""What wakes the daemon between two looks: news of KVM, of memory, of pressure; all in one poll."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence

from ksmtuned.host.host import Host
from ksmtuned.triggers.psi import Pressures
from ksmtuned.triggers.trial import Trial
from ksmtuned.triggers.uevent import Uevents

_BLIND = "a guest's start is seen at the next look"


class Events:
    """Everything that there is on this host; what there is not is told once, by `say`.

    is_probe: does this process only ask what KVM can do? Where DIR/proc is no procfs of a kernel
    (a copied tree), there are none at all.
    """

    def __init__(
        self, host: Host, is_probe: Callable[[int], bool], say: Callable[[str], None]
    ) -> None:
        self._trial = Trial(host.processes.process_of, is_probe)
        self._uevents: Uevents | None = None
        self._pressures: Pressures | None = None
        self._poll: select.poll | None = None
        if not host.proc.is_live:
            return
        try:
            self._uevents = Uevents()
        except (OSError, ImportError) as error:
            say(f"no kernel events ({error}): {_BLIND}")
        else:
            if not host.has_kvm:
                say(f"no KVM on this host: {_BLIND}")
        self._pressures = Pressures(host.pressure.watch)
        for resource, refused in self._pressures.refused.items():
            say(f"no events of {resource} pressure ({refused}): it is seen at the next look")

    def register(self, poll: select.poll, *, is_scanning: bool) -> None:
        """Poll for all of it. CPU pressure is of interest while ksmd takes part in it."""
        self._poll = poll
        if self._uevents:
            poll.register(self._uevents, select.POLLIN)
        if self._pressures:
            for fd, resource in self._pressures.filenos().items():
                if resource != "cpu" or is_scanning:
                    poll.register(fd, select.POLLPRI)

    def remaining_s(self) -> float | None:
        """Until `take` may say yes without any more news; None: never."""
        due_s = self._trial.due_s()
        return None if due_s is None else max(0.0, due_s - time.monotonic())

    def take(self, ready: Sequence[tuple[int, int]]) -> bool:
        """Is a look due? ready: what poll(2) reported."""
        now_s = time.monotonic()
        for event in self._uevents.take() if self._uevents else ():
            self._trial.note(event, now_s)
        if self._pressures and ready:
            if self._pressures.take(ready):
                self._trial.ask(now_s)
            for fd in self._pressures.drop_broken(ready):
                if self._poll:
                    self._poll.unregister(fd)
        return self._trial.take(now_s)

    def on_trial(self) -> set[int]:
        """Processes that have a virtual machine and may still turn out to be probes."""
        return self._trial.on_trial()
