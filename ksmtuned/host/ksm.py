"""The KSM folder: reads every file there is, writes one control at a time."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import MISSING, fields
from typing import NamedTuple

from ksmtuned.errors import (
    Garbled,
    KernelRefused,
    KsmtunedError,
    NoKsm,
    WriteBlocked,
    WriteNotTaken,
)
from ksmtuned.host.child import Child
from ksmtuned.host.files import KernelFile, Tree
from ksmtuned.model import RUN_MASK, KsmStat, Refusal, Write

FOLDER = "sys/kernel/mm/ksm"

# Their store functions take ksm_thread_mutex, which ksmd holds for a whole batch (mm/ksm.c).
WAITING_CONTROLS = frozenset({"run", "merge_across_nodes", "max_page_sharing"})
WAIT_S = 2.0  # a batch of 1250 pages takes 5 ms; 100000 pages, 0.4 s


class _Pending(NamedTuple):
    child: Child
    value: int | str


class Ksm:
    """The kernel's KSM. Errors: NoKsm, if the folder is not there."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._files = {f.name: KernelFile(tree, f"{FOLDER}/{f.name}") for f in fields(KsmStat)}
        self._pending: dict[str, _Pending] = {}  # writes that the kernel has not taken yet
        if not tree.is_folder(FOLDER):
            raise NoKsm(tree.path(FOLDER))

    def read(self) -> tuple[KsmStat, dict[str, KsmtunedError]]:
        """The reading, and what could not be read. One bad file hides no other.

        Errors: NoKsm (the folder went away), Garbled or KernelRefused (of `run`: without it,
        there is nothing to decide on).
        """
        found: dict[str, int | str | None] = {}
        unread: dict[str, KsmtunedError] = {}
        for f in fields(KsmStat):
            try:
                found[f.name] = self._read(f.name)
            except KsmtunedError as error:
                if f.default is MISSING:
                    raise
                unread[f.name] = error
        if found["run"] is None:
            raise NoKsm(self._tree.path(FOLDER))
        return KsmStat(**found), unread  # type: ignore[arg-type]  # by name, as read

    def write(self, write: Write, wait_s: float = WAIT_S) -> None:
        """Write one control and read it back.

        Errors: KernelRefused, WriteBlocked (a child goes on waiting), WriteNotTaken.
        """
        control, value = write.control, write.new
        name = f"{FOLDER}/{control}"
        if control in WAITING_CONTROLS:
            self._write_in_child(control, value, wait_s)
        else:
            self._tree.write(name, value)
        found = self._read(control)
        if control == "run" and isinstance(found, int):
            found &= RUN_MASK
        if found is not None and found != value:
            raise WriteNotTaken(self._tree.path(name), value, found)

    def in_flight(self) -> dict[str, int | str]:
        """Writes that the kernel has not taken yet, by control: they land when ksmd lets them."""
        self._pending = {c: p for c, p in self._pending.items() if not p.child.has_ended()}
        return {control: pending.value for control, pending in self._pending.items()}

    def blocked(self, but: Collection[str] = ()) -> tuple[Refusal, ...]:
        """The same as refusals, to be told."""
        return tuple(
            Refusal(Write(c, "?", value), WriteBlocked(self._tree.path(f"{FOLDER}/{c}"), value))
            for c, value in self.in_flight().items()
            if c not in but
        )

    def _write_in_child(self, control: str, value: int | str, wait_s: float) -> None:
        name = f"{FOLDER}/{control}"
        path = self._tree.path(name)
        deadline_s = time.monotonic() + wait_s
        # At most one writer a control: a second would only queue behind the first.
        earlier = self._pending.get(control)
        if earlier is not None:
            if not earlier.child.has_ended(wait_s):
                raise WriteBlocked(path, value)
            del self._pending[control]
            if earlier.value == value:
                earlier.child.check(path, value)
                return
        try:
            child = Child(lambda: self._tree.write(name, value, may_wait=True))
        except OSError as error:  # no more processes or descriptors
            raise KernelRefused(path, error.errno or 0, value) from error
        if not child.has_ended(max(0.05, deadline_s - time.monotonic())):
            self._pending[control] = _Pending(child, value)
            raise WriteBlocked(path, value)
        child.check(path, value)

    def check_may_write(self) -> None:
        """Errors: KernelRefused, if we lack the right to. A read-only sysfs may become writable:
        that is left to the first write."""
        try:
            self._tree.probe_writable(f"{FOLDER}/run")
        except KernelRefused as error:
            if error.is_missing_right:
                raise

    def _read(self, control: str) -> int | str | None:
        file = self._files[control]
        return self._read_mode(control) if control == "advisor_mode" else file.read_int()

    def _read_mode(self, control: str) -> str | None:
        """The mode in brackets of "[none] scan-time"; a copied tree may have no brackets."""
        content = self._files[control].read()
        if content is None:
            return None
        words = content.decode(errors="replace").split()
        chosen = [word[1:-1] for word in words if word.startswith("[") and word.endswith("]")]
        if len(chosen or words) != 1:
            raise Garbled(
                self._tree.path(f"{FOLDER}/{control}"), " ".join(words), "one mode in brackets"
            )
        return (chosen or words)[0]
