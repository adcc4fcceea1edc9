"""One running guest's memory in or out of KSM."""

from __future__ import annotations

from typing import Protocol

from ksmtuned.model import Guest


class Sharing(Protocol):
    """The way to a guest's memory. Either call may take as long as the kernel does; it is made in
    a child. Errors: KsmtunedError."""

    def off(self, guest: Guest) -> None:
        """Its merged pages get their own memory back, and are not merged again."""

    def on(self, guest: Guest) -> None:
        """They may be merged again."""


def sharing_of(_guest: Guest) -> Sharing | None:
    """The way to this guest's memory; None: there is none, as for every VMM without QMP."""
    return None
