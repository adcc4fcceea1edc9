"""The controls' values from before us: saved before the first write, given back at the end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ksmtuned.errors import Garbled
from ksmtuned.model import (
    ADVISOR_CONTROLS,
    ADVISOR_MODES,
    ADVISOR_ON,
    CONTROLS,
    PAGES_WITHOUT_ADVISOR,
    RUN_STOP,
    RUN_UNMERGE,
    KsmStat,
    Settings,
    Write,
)
from ksmtuned.plan import plan
from ksmtuned.rundir import ORIGINAL, RunDir

_SCHEMA = 1
_MOST = 2**32 - 1
_ADVISOR_MOST = 2**64 - 1  # these are unsigned long (mm/ksm.c)


@dataclass(frozen=True, slots=True)
class Original:
    """One control's history with us.

    Between saving and writing a crash may come, or the kernel refuses: then the control still
    holds `before`. Both count as ours.
    """

    first: int | str  # before our first write
    last: int | str  # what we wrote last, or were about to
    before: int | str  # what it held then

    def is_ours(self, value: int | str | None) -> bool:
        """Is it a value that we left there?"""
        return value in (self.last, self.before)


class Originals:
    """Every control that we wrote in this boot."""

    def __init__(
        self, rundir: RunDir, boot_id: str, controls: Mapping[str, Original] | None = None
    ) -> None:
        self._rundir, self._boot_id = rundir, boot_id
        self._controls = dict(controls or {})

    @classmethod
    def load(cls, rundir: RunDir, boot_id: str) -> Originals:
        """What an earlier run left. Errors: Garbled, KernelRefused."""
        return cls(rundir, boot_id, _load(rundir, boot_id))

    def __len__(self) -> int:
        return len(self._controls)

    def first(self, control: str) -> int | str | None:
        """The control's value from before us; None: we have not written it."""
        entry = self._controls.get(control)
        return entry.first if entry else None

    def before_advisor(self) -> dict[str, int | str]:
        """First values of what using the kernel's advisor has changed, pages_to_scan included."""
        changed = [*ADVISOR_CONTROLS]
        changed += ["pages_to_scan"] if "advisor_mode" in self._controls else []
        return {c: self._controls[c].first for c in changed if c in self._controls}

    def adopt(self, now: KsmStat, unread: Collection[str]) -> set[str]:
        """Take over after a crash: a control that holds nothing of ours was changed by somebody
        else meanwhile, and what it holds is the new first value. Returns these controls.

        unread: could not be read, so nothing is known of them.
        """
        known = {c for c in self._controls if c not in unread and now.value(c) is not None}
        lost = {c for c in known if not self._is_ours(c, now)}
        self._controls = {c: o for c, o in self._controls.items() if c not in lost}
        return lost

    def note(self, writes: Sequence[Write]) -> None:
        """Save what is about to be written. Errors: RunDirError; then nothing may be written."""
        noted = dict(self._controls)
        for write in writes:
            known = noted.get(write.control)
            first = known.first if known else _first(write.control, write.old)
            noted[write.control] = Original(first, write.new, write.old)
        self._save(noted)
        self._controls = noted

    def giving_back(self, now: KsmStat, left_alone: Collection[str] = ()) -> tuple[Write, ...]:
        """The writes that restore every control which still holds our last value.

        left_alone: known to be somebody else's, whatever they hold.
        """
        firsts = Settings(**{c: entry.first for c, entry in self._controls.items()})  # type: ignore[arg-type]  # by name
        leave = {c for c in self._controls if not self._is_ours(c, now)}
        return plan(now, firsts, leave | set(left_alone))

    def blind(self) -> tuple[Write, ...]:
        """What would restore each control, whatever it holds now: to name what was not done."""
        return tuple(Write(control, o.last, o.first) for control, o in self._controls.items())

    def forget(self, control: str) -> None:
        """This one is not to be given back."""
        self._controls.pop(control, None)

    def rebase(self, control: str, first: int | str) -> None:
        """Give this back from now on, not what the control held before us. Errors: RunDirError."""
        entry = self._controls.get(control)
        if entry is not None and entry.first != first:
            rebased = {**self._controls, control: replace(entry, first=first)}
            self._save(rebased)
            self._controls = rebased

    def keep_only(self, controls: Sequence[str]) -> None:
        """Forget all but these (they could not be restored yet); no file if none is left.

        Errors: RunDirError.
        """
        self._controls = {c: o for c, o in self._controls.items() if c in controls}
        if self._controls:
            self._save(self._controls)
        else:
            self._rundir.remove(ORIGINAL)

    def _is_ours(self, control: str, now: KsmStat) -> bool:
        """Does it hold what we left there, or what the kernel made of it because of us?"""
        if self._controls[control].is_ours(now.value(control)):
            return True
        is_kernels = now.advisor_mode == ADVISOR_ON or now.pages_to_scan == PAGES_WITHOUT_ADVISOR
        return control == "pages_to_scan" and "advisor_mode" in self._controls and is_kernels

    def _save(self, controls: dict[str, Original]) -> None:
        entries = {
            control: {"first": entry.first, "last": entry.last, "before": entry.before}
            for control, entry in controls.items()
        }
        content = {"schema": _SCHEMA, "boot_id": self._boot_id, "controls": entries}
        self._rundir.write(ORIGINAL, content)


def _first(control: str, value: int | str) -> int | str:
    """What to give back: an unmerge (run=2) is an act, not a state to return to."""
    return RUN_STOP if (control, value) == ("run", RUN_UNMERGE) else value


def _load(rundir: RunDir, boot_id: str) -> dict[str, Original]:
    """Root trusts nothing that it reads: every value is checked before it may reach the kernel."""
    found = rundir.read(ORIGINAL)
    if found is None or found.get("boot_id") != boot_id:
        return {}
    controls = found.get("controls")
    path = rundir.path / ORIGINAL
    if not isinstance(controls, dict):
        raise Garbled(
            path, str(controls), "a table of controls; remove it, or write the values back by hand"
        )
    return {str(c): _entry(c, e) for c, e in controls.items() if _is_valid(path, c, e)}


def _is_valid(path: Path, control: Any, entry: Any) -> bool:
    values = [entry.get(k) for k in ("first", "last", "before")] if isinstance(entry, dict) else []
    if control in CONTROLS and values and all(_may_hold(control, value) for value in values):
        return True
    raise Garbled(
        path,
        f"{control}: {entry}",
        "a control and its values; remove it, or write the values back by hand",
    )


def _may_hold(control: str, value: Any) -> bool:
    if control == "advisor_mode":
        return value in ADVISOR_MODES
    most = _ADVISOR_MOST if control in ADVISOR_CONTROLS else _MOST
    return type(value) is int and 0 <= value <= most


def _entry(control: str, entry: dict[str, int | str]) -> Original:
    return Original(_first(control, entry["first"]), entry["last"], entry["before"])
