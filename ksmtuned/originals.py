"""The controls' values from before us: saved before the first write, given back at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksmtuned.errors import Garbled
from ksmtuned.model import CONTROLS, RUN_STOP, RUN_UNMERGE, KsmStat, Settings, Write
from ksmtuned.plan import plan
from ksmtuned.rundir import ORIGINAL, RunDir

_SCHEMA = 1
_MOST = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Original:
    """One control's history with us.

    Between saving and writing a crash may come: then the control still holds `before`, our last
    value but one. Both count as ours.
    """

    first: int  # before our first write
    last: int  # what we wrote last, or were about to
    before: int  # what it held then

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

    def first(self, control: str) -> int | None:
        """The control's value from before us; None: we have not written it."""
        entry = self._controls.get(control)
        return entry.first if entry else None

    def adopt(self, now: KsmStat) -> None:
        """Take over after a crash: a control that holds nothing of ours was changed by somebody
        else meanwhile, and what it holds is the new first value."""
        self._controls = {c: o for c, o in self._controls.items() if o.is_ours(now.value(c))}

    def note(self, writes: Sequence[Write]) -> None:
        """Save what is about to be written. Errors: RunDirError; then nothing may be written."""
        noted = dict(self._controls)
        for write in writes:
            old, new = int(write.old), int(write.new)
            known = noted.get(write.control)
            first = known.first if known else _first(write.control, old)
            noted[write.control] = Original(first, new, known.last if known else old)
        self._save(noted)
        self._controls = noted

    def giving_back(self, now: KsmStat) -> tuple[Write, ...]:
        """The writes that restore every control which still holds our last value."""
        firsts = Settings(**{c: entry.first for c, entry in self._controls.items()})  # type: ignore[arg-type]  # by name
        leave = {c for c, entry in self._controls.items() if not entry.is_ours(now.value(c))}
        return plan(now, firsts, leave)

    def blind(self) -> tuple[Write, ...]:
        """What would restore each control, whatever it holds now: to name what was not done."""
        return tuple(Write(control, o.last, o.first) for control, o in self._controls.items())

    def forget(self, control: str) -> None:
        """This one is not to be given back."""
        self._controls.pop(control, None)

    def keep_only(self, controls: Sequence[str]) -> None:
        """Forget all but these (they could not be restored yet); no file if none is left.

        Errors: RunDirError.
        """
        self._controls = {c: o for c, o in self._controls.items() if c in controls}
        if self._controls:
            self._save(self._controls)
        else:
            self._rundir.remove(ORIGINAL)

    def _save(self, controls: dict[str, Original]) -> None:
        entries = {
            control: {"first": entry.first, "last": entry.last, "before": entry.before}
            for control, entry in controls.items()
        }
        content = {"schema": _SCHEMA, "boot_id": self._boot_id, "controls": entries}
        self._rundir.write(ORIGINAL, content)


def _first(control: str, value: int) -> int:
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
    if control in CONTROLS and values and all(type(v) is int and 0 <= v <= _MOST for v in values):
        return True
    raise Garbled(
        path,
        f"{control}: {entry}",
        "a control and its values; remove it, or write the values back by hand",
    )


def _entry(control: str, entry: dict[str, int]) -> Original:
    return Original(_first(control, entry["first"]), entry["last"], entry["before"])
