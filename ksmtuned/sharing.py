"""One running guest's memory in or out of KSM."""

from __future__ import annotations

from typing import Protocol

from ksmtuned.model import Guest


class Sharing(Protocol):
    """The way to a guest's memory. Either call may take as long as the kernel does, and is made in
    a child of its own: what it remembers is lost. Errors: KsmtunedError."""

    def off(self, guest: Guest) -> str:
        """Its merged pages get their own memory back, and are not merged again.

        Returns what was switched off (at most 4000 bytes), for on(): what had been off before
        stays off. After an error, nothing is off that was on.
        """

    def on(self, guest: Guest, what: str) -> None:
        """That may be merged again."""


def sharing_of(_guest: Guest) -> Sharing | None:
    """The way to this guest's memory; None: there is none, as for every VMM without QMP."""
    return None
