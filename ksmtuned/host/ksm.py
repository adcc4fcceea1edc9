"""The KSM folder: reads every file there is, writes one control at a time."""

from __future__ import annotations

from dataclasses import MISSING, fields

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
from ksmtuned.model import RUN_MASK, KsmStat, Write

FOLDER = "sys/kernel/mm/ksm"

# Their store functions take ksm_thread_mutex, which ksmd holds for a whole batch (mm/ksm.c).
WAITING_CONTROLS = frozenset({"run", "merge_across_nodes", "max_page_sharing"})
WAIT_S = 2.0  # a batch of 1250 pages takes 5 ms; 100000 pages, 0.4 s


class Ksm:
    """The kernel's KSM. Errors: NoKsm, if the folder is not there."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._files = {f.name: KernelFile(tree, f"{FOLDER}/{f.name}") for f in fields(KsmStat)}
        self._child: dict[
            str, tuple[Child, int | str]
        ] = {}  # a write that the kernel has not taken yet
        if not tree.is_folder(FOLDER):
            raise NoKsm(tree.path(FOLDER))

    def read(self) -> tuple[KsmStat, dict[str, KsmtunedError]]:
        """The reading, and what could not be read. One bad file hides no other.

        Errors: NoKsm (the folder went away), Garbled or KernelRefused (of `run`: without it,
        there is nothing to decide on).
        """
        self._child = {c: pair for c, pair in self._child.items() if not pair[0].has_ended()}
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

    def _write_in_child(self, control: str, value: int | str, wait_s: float) -> None:
        name = f"{FOLDER}/{control}"
        path = self._tree.path(name)
        # At most one writer a control: a second would only queue behind the first.
        child, earlier_value = self._child.pop(control, (None, value))
        if child is None or (earlier_value != value and child.has_ended()):
            child, earlier_value = (
                Child(lambda: self._tree.write(name, value, may_wait=True)),
                value,
            )
        if not child.has_ended(wait_s):
            self._child[control] = child, earlier_value
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
