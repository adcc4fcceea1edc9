"""A guest's memory, as QEMU sees it: its backends, and whether each is offered to KSM.

Source: QEMU, backends/hostmem.c; property `merge` calls madvise(2) on the whole backend at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ksmtuned.errors import KsmtunedError, MonitorBroken, MonitorRefused
from ksmtuned.units import printable

_OBJECTS = "/objects"
_KIND = "child<memory-backend-"
_MOST_OBJECTS = 4096
_MOST_BACKENDS = 512  # QEMU takes 256 DIMMs and 128 NUMA nodes
_LONGEST_NAME = 255
_LISTING_S = 30.0  # for all questions together: a guest may answer each one at the last moment
DEAF = (9, 1, 0)  # takes `merge` and calls no madvise (its commit 5becdc0a); fixed in 9.2


class Monitor(Protocol):
    """A way to ask one QEMU."""

    def execute(
        self, command: str, arguments: Mapping[str, object], limit_s: float | None = None
    ) -> object:
        """Errors: MonitorRefused, MonitorBroken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One piece of guest memory."""

    path: str  # in QEMU's object tree: /objects/pc.ram
    size_bytes: int
    merge: bool  # is it offered to KSM, as QEMU believes?
    is_shared: bool  # shared memory is never merged, whatever `merge` says

    @property
    def name(self) -> str:
        """Its last part, to be printed."""
        return printable(self.path.rpartition("/")[2])


class _Hurried:
    """The same monitor, but all its answers together have to come within a time."""

    def __init__(self, monitor: Monitor, limit_s: float) -> None:
        self._monitor, self._deadline_s = monitor, time.monotonic() + limit_s

    def execute(
        self, command: str, arguments: Mapping[str, object], limit_s: float | None = None
    ) -> object:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise MonitorBroken("the monitor's answers take too long; try again later")
        return self._monitor.execute(command, arguments, min(left_s, limit_s or left_s))


class NotAllSet(KsmtunedError):
    """Some backend could not be set; the text says what was put back and what was not."""


def version(monitor: Monitor) -> tuple[int, int, int]:
    """QEMU's version. Errors: MonitorRefused, MonitorBroken."""
    found = _table(monitor.execute("query-version", {}), "query-version").get("qemu")
    numbers = [_table(found, "query-version").get(key) for key in ("major", "minor", "micro")]
    return _whole(numbers[0]), _whole(numbers[1]), _whole(numbers[2])


def backends(monitor: Monitor) -> tuple[Backend, ...]:
    """Every memory backend, found by its type. Errors: MonitorRefused, MonitorBroken."""
    monitor = _Hurried(monitor, _LISTING_S)
    listed = monitor.execute("qom-list", {"path": _OBJECTS})
    if not isinstance(listed, list) or len(listed) > _MOST_OBJECTS:
        raise MonitorBroken("the monitor's answer to qom-list is no list of objects")
    entries = [_table(entry, "qom-list") for entry in listed]
    names = [str(e.get("name")) for e in entries if str(e.get("type")).startswith(_KIND)]
    if len(names) > _MOST_BACKENDS or any(len(name) > _LONGEST_NAME for name in names):
        raise MonitorBroken("the monitor lists more memory backends than there can be")
    return tuple(_backend(monitor, f"{_OBJECTS}/{name}") for name in names)


def set_merge(
    monitor: Monitor, these: Sequence[Backend], merge: bool, limit_s: float
) -> tuple[Backend, ...]:
    """Set every backend. Returns them as read back.

    One that is off by its flag is offered all the same, if only its own merge=off says so: QEMU
    offers each piece of RAM at first unless -machine mem-merge=off, and then calls madvise at a
    change of the flag alone. So to be out for sure it goes on and off again.
    limit_s: for all together, since taking a large guest out copies all its merged pages. If one
    is refused, those that were set are put back. Errors: NotAllSet.
    """
    hurried = _Hurried(monitor, limit_s)
    done: list[Backend] = []
    for backend in these:
        if backend.merge and merge:
            continue
        try:
            if backend.merge == merge:
                _write(hurried, backend.path, not merge, limit_s)
                done.append(backend)
            _write(hurried, backend.path, merge, limit_s)
            done += [backend] if backend not in done else []
            if _flag(hurried, backend.path, "merge") != merge:
                raise MonitorRefused(f"{backend.name} reads back otherwise")
        except MonitorRefused as error:
            raise NotAllSet(f"{error}; {_put_back(monitor, done, limit_s)}") from error
        except MonitorBroken as error:
            raise NotAllSet(f"{error}; {_left(done, backend, merge)}") from error
    changed = {backend.path for backend in done}
    return tuple(replace(b, merge=merge) if b.path in changed else b for b in these)


def _put_back(monitor: Monitor, done: Sequence[Backend], limit_s: float) -> str:
    """One phrase: what became of the backends that had been set."""
    failed: list[str] = []
    hurried = _Hurried(monitor, limit_s)
    for backend in reversed(done):
        try:
            _write(hurried, backend.path, backend.merge, limit_s)
        except KsmtunedError:
            failed.append(backend.name)
    if failed:
        return f"{', '.join(failed)} could not be put back: try again"
    if not done:
        return "nothing was changed"
    return f"put back: {', '.join(backend.name for backend in done)}"


def _left(done: Sequence[Backend], current: Backend, merge: bool) -> str:
    """One phrase: where it stands, when nobody can be asked any more."""
    word = "on" if merge else "off"
    sure = [backend.name for backend in done if backend is not current]
    known = f"merge is {word} on {', '.join(sure)}" if sure else "nothing else was changed"
    return f"{known}; of {current.name} it is not known; try again"


def _backend(monitor: Monitor, path: str) -> Backend:
    return Backend(
        path=path,
        size_bytes=_whole(_read(monitor, path, "size")),
        merge=_flag(monitor, path, "merge"),
        is_shared=_flag(monitor, path, "share"),
    )


def _read(monitor: Monitor, path: str, name: str) -> object:
    return monitor.execute("qom-get", {"path": path, "property": name})


def _write(monitor: Monitor, path: str, merge: bool, limit_s: float) -> None:
    arguments = {"path": path, "property": "merge", "value": merge}
    monitor.execute("qom-set", arguments, limit_s)


def _flag(monitor: Monitor, path: str, name: str) -> bool:
    found = _read(monitor, path, name)
    if not isinstance(found, bool):
        raise MonitorBroken(
            printable(f"the monitor's answer for {path} {name} is neither yes nor no")
        )
    return found


def _table(found: object, command: str) -> dict[str, object]:
    if not isinstance(found, dict):
        raise MonitorBroken(f"the monitor's answer to {command} is not of its form")
    return found


def _whole(found: object) -> int:
    if type(found) is not int or not 0 <= found < 2**63:
        raise MonitorBroken("the monitor's answer holds something else than a number")
    return found
