"""KSM switched off; what is merged stays merged."""

from __future__ import annotations

from dataclasses import dataclass

from ksmtuned.model import Code, Decision, Phase, Settings, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Off:
    """run=0, whatever the host does."""

    interval_s: float = 60.0
    guest_memory: str = "rss"
    needs_daemon: bool = False
    follows_events: bool = False

    def unattended(self, now: Snapshot) -> Decision:
        """The same as with a daemon."""
        return self.decide(now, None)[0]

    def start(self) -> None:
        """A constant needs no past."""

    def decide(self, now: Snapshot, past: None) -> tuple[Decision, None]:
        """The same, always."""
        reason = "switched off by the configuration; merged pages stay merged"
        decision = Decision(
            settings=Settings(run=0), phase=Phase.STOP, code=Code.OFF, reason=reason
        )
        return decision, None
