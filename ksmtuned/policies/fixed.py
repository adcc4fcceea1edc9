"""Constant values, as somebody who knows the host wants them."""

from __future__ import annotations

from dataclasses import dataclass

from ksmtuned.model import Code, Decision, Phase, Settings, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """run=1 at one pace, whatever the host does."""

    pages_to_scan: int = 100  # per batch
    sleep_millisecs: int = 20  # between two batches
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
        settings = Settings(
            run=1, pages_to_scan=self.pages_to_scan, sleep_millisecs=self.sleep_millisecs
        )
        reason = (
            f"the configuration wants {self.pages_to_scan} pages per batch, "
            f"{self.sleep_millisecs} ms between two batches"
        )
        decision = Decision(settings=settings, phase=Phase.SCAN, code=Code.FIXED, reason=reason)
        return decision, None
