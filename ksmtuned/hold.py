"""The hold that an unmerge leaves: ksmd stays stopped, whatever the policy, until it is lifted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from ksmtuned.errors import Garbled
from ksmtuned.model import RUN_STOP, Code, Decision, Phase, Settings
from ksmtuned.rundir import HOLD, RunDir

_SCHEMA = 1
_MOST_S = 32_503_680_000  # the year 3000


@dataclass(frozen=True, slots=True)
class Hold:
    """Why ksmd is kept stopped, in words."""

    reason: str

    def decision(self) -> Decision:
        """What stands in for the policy's: run=0, and nothing else."""
        return Decision(
            settings=Settings(run=RUN_STOP), phase=Phase.HOLD, code=Code.HOLD, reason=self.reason
        )


def load(rundir: RunDir, boot_id: str) -> Hold | None:
    """The hold of this boot. One that cannot be understood still holds: merging what somebody
    wanted unmerged is worse than to wait for his word.

    Errors: Garbled (not root's own: no hold), KernelRefused (not permitted).
    """
    try:
        found = rundir.read(HOLD, must_be_own=True)
    except Garbled:
        if not rundir.is_own(HOLD):
            raise
        found = {}
    if found is None or found.get("boot_id", boot_id) != boot_id:
        return None
    since, verb = _seconds(found.get("since")), found.get("verb")
    ends = "`ksmtuned resume` ends it"
    if since is None or not isinstance(verb, str) or not verb.isalnum():
        return Hold(f"held, by a file that is not understood ({rundir.path / HOLD}): {ends}")
    when = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Hold(f"held since {when} by {verb[:20]}: {ends}")


def leave(rundir: RunDir, boot_id: str, verb: str) -> None:
    """Begin a hold. Readable by all: it says nothing about guests. Errors: RunDirError."""
    content = {"schema": _SCHEMA, "boot_id": boot_id, "since": time.time(), "verb": verb}
    rundir.write(HOLD, content, mode=0o644)


def lift(rundir: RunDir) -> None:
    """End it. Errors: RunDirError. No hold is fine."""
    rundir.remove(HOLD)


def _seconds(value: object) -> float | None:
    """A time since the epoch that a calendar knows; None: it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST_S:
        return float(value)
    return None
