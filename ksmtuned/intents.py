"""What a command asks of the daemon, and the answer: files in RUN_DIR.

    intent.json   the command writes it, locks it, and sends USR1
    errand.json   the same file, once the daemon has taken it up: a rename, so that either the
                  command takes its wish back in time, or the daemon has it
    outcome.json  the daemon's answer

A lock that is gone means that the command is: its wish is then nobody's any more. Removing
errand.json asks the daemon to stop at the next good moment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ksmtuned.errors import Busy, ExitStatus, Garbled, KsmtunedError, RunDirError
from ksmtuned.rundir import RunDir

INTENT, ERRAND, OUTCOME = "intent.json", "errand.json", "outcome.json"
VERBS = ("unmerge",)
_SCHEMA = 1
_TEXT_MOST = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One wish."""

    verb: str
    guest: str | None = None  # its name or pid; None: the whole host
    force: bool = False
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How it went."""

    text: str
    exit_status: ExitStatus


class Asked:
    """A wish that waits for the daemon, from the side of the command.

    Errors: Busy (another command's waits already), RunDirError.
    """

    def __init__(self, rundir: RunDir, wish: Intent) -> None:
        self._rundir, self._id = rundir, os.urandom(8).hex()
        for name in (INTENT, ERRAND):
            if rundir.is_locked(name):
                raise Busy("another ksmtuned command waits for the daemon; try again afterwards")
        rundir.remove(INTENT)  # of a command that was killed
        rundir.remove(OUTCOME)
        content = {
            "schema": _SCHEMA,
            "id": self._id,
            "verb": wish.verb,
            "guest": wish.guest,
            "force": wish.force,
        }
        lock = rundir.write_locked(INTENT, content)
        if lock is None:
            raise Busy("another ksmtuned command was faster; try again afterwards")
        self._lock = lock

    def take_back(self) -> bool:
        """Was the daemon not at it yet? Then it never will be. Else it stops when it can."""
        try:
            (self._rundir.path / INTENT).unlink()
        except FileNotFoundError:
            self._rundir.remove(ERRAND)
            return False
        except OSError as error:
            raise RunDirError(self._rundir.path / INTENT, error, "not taken back") from error
        return True

    def is_begun(self) -> bool:
        """Has the daemon taken it up?"""
        return not (self._rundir.path / INTENT).exists()

    def answer(self) -> Answer | None:
        """The daemon's answer; None: not yet. Errors: Garbled, KernelRefused."""
        found = self._rundir.read(OUTCOME, must_be_own=True)
        if found is None or found.get("id") != self._id:
            return None
        text, status = found.get("text"), found.get("exit_status")
        if not isinstance(text, str) or status not in list(ExitStatus):
            path = self._rundir.path / OUTCOME
            raise Garbled(path, str(found), "an answer; see `ksmtuned status`")
        return Answer(text=text[:_TEXT_MOST], exit_status=ExitStatus(status))

    def close(self) -> None:
        """We wait no longer."""
        os.close(self._lock)


def claim(rundir: RunDir) -> Intent | None:
    """Take up what a command asks for; None: nothing, or it is gone meanwhile.

    Root trusts nothing that it reads. Errors: Garbled, KernelRefused (it is removed), RunDirError.
    """
    try:
        (rundir.path / INTENT).rename(rundir.path / ERRAND)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunDirError(rundir.path / INTENT, error, "not taken up") from error
    try:
        found = rundir.read(ERRAND, must_be_own=True) or {}
        intent = _intent(rundir, found)
    except KsmtunedError:
        rundir.remove(ERRAND)
        raise
    if not rundir.is_locked(ERRAND):
        rundir.remove(ERRAND)
        return None
    return intent


def is_wanted(rundir: RunDir, intent: Intent) -> bool:
    """Has nobody taken it back since it was claimed?"""
    try:
        found = rundir.read(ERRAND, must_be_own=True)
    except KsmtunedError:
        return False
    return found is not None and found.get("id") == intent.id


def answer(rundir: RunDir, intent: Intent, answer: Answer) -> None:
    """Tell the command how it went. Errors: RunDirError."""
    content = {
        "schema": _SCHEMA,
        "id": intent.id,
        "exit_status": int(answer.exit_status),
        "text": answer.text[:_TEXT_MOST],
    }
    rundir.write(OUTCOME, content, mode=0o600)
    rundir.remove(ERRAND)


def _intent(rundir: RunDir, found: dict[str, object]) -> Intent:
    verb, guest, force, id_ = (found.get(k) for k in ("verb", "guest", "force", "id"))
    is_text = guest is None or (isinstance(guest, str) and 0 < len(guest) < 256)
    is_id = isinstance(id_, str) and 0 < len(id_) < 64
    if verb not in VERBS or not is_text or not is_id or not isinstance(force, bool):
        raise Garbled(rundir.path / INTENT, str(found), "an order that this daemon knows")
    return Intent(verb=str(verb), guest=guest and str(guest), force=force, id=str(id_))  # type: ignore[arg-type]
