"""A guest's memory, as QEMU sees it: its backends, and whether each is offered to KSM.

Source: QEMU, backends/hostmem.c; property `merge` calls madvise(2) on the whole backend at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ksmtuned.errors import KsmtunedError, MonitorBroken, MonitorRefused
from ksmtuned.units import printable

_OBJECTS = "/objects"
_KIND = "child<memory-backend-"
_MOST = 4096  # DIMMs and NUMA nodes of the largest machines are some hundreds
DEAF = (9, 1, 0)  # takes `merge` and calls no madvise: fixed in 9.1.1 and 9.2


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


class NotAllSet(KsmtunedError):
    """Some backend could not be set; the text says what was put back and what was not."""


def version(monitor: Monitor) -> tuple[int, int, int]:
    """QEMU's version. Errors: MonitorRefused, MonitorBroken."""
    found = _table(monitor.execute("query-version", {}), "query-version").get("qemu")
    numbers = [_table(found, "query-version").get(key) for key in ("major", "minor", "micro")]
    return _whole(numbers[0]), _whole(numbers[1]), _whole(numbers[2])


def backends(monitor: Monitor) -> tuple[Backend, ...]:
    """Every memory backend, found by its type. Errors: MonitorRefused, MonitorBroken."""
    listed = monitor.execute("qom-list", {"path": _OBJECTS})
    if not isinstance(listed, list) or len(listed) > _MOST:
        raise MonitorBroken("the monitor's answer to qom-list is no list of objects")
    entries = [_table(entry, "qom-list") for entry in listed]
    names = [str(e.get("name")) for e in entries if str(e.get("type")).startswith(_KIND)]
    return tuple(_backend(monitor, f"{_OBJECTS}/{name}") for name in names)


def set_merge(
    monitor: Monitor, these: Sequence[Backend], merge: bool, limit_s: float
) -> tuple[Backend, ...]:
    """Set every backend; those that hold the value already are left alone. Returns them as read
    back.

    limit_s: for each one, since taking a large one out copies all its merged pages. If one is
    refused, those that were set are put back. Errors: NotAllSet.
    """
    done: list[Backend] = []
    for backend in these:
        if backend.merge == merge:
            continue
        try:
            _write(monitor, backend.path, merge, limit_s)
            done.append(backend)
            if _flag(monitor, backend.path, "merge") != merge:
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
    for backend in reversed(done):
        try:
            _write(monitor, backend.path, backend.merge, limit_s)
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
