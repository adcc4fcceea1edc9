"""Who came and who left since the last look, in words."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ksmtuned.model import Guest
from ksmtuned.units import size

_MOST = 5  # lines of a kind in one look; more are told in one


class Comings:
    """Remembers who was there. `on_trial`: processes that may be no guests; they are not told."""

    def __init__(self) -> None:
        self._there: dict[tuple[int, int], Guest] | None = None

    def lines(self, guests: Sequence[Guest], on_trial: Collection[int] = ()) -> list[str]:
        """A line for each guest that came or left; at the first look, one for all."""
        before = self._there
        now = {(g.pid, g.start_time): g for g in guests}
        self._there = {
            key: g
            for key, g in now.items()
            if g.pid not in on_trial or (before is not None and key in before)
        }
        if before is None:
            return [f"here already: {_few(list(self._there.values()))}"] if self._there else []
        came = [g for key, g in self._there.items() if key not in before]
        left = [g for key, g in before.items() if key not in now]
        return _told(came, "came") + _told(left, "left")


def _told(guests: Sequence[Guest], verb: str) -> list[str]:
    if len(guests) > _MOST:
        return [f"{verb}: {_few(guests)}"]
    return [f"{name(g)} {verb}{_about(g) if verb == 'came' else ''}" for g in guests]


def name(guest: Guest) -> str:
    """One phrase: which guest."""
    return f"guest {guest.name} ({guest.pid})"


def _about(guest: Guest) -> str:
    ram_bytes = guest.details.ram_bytes
    return f": {guest.vmm}{'' if ram_bytes is None else f', {size(ram_bytes)} of RAM'}"


def _few(guests: Sequence[Guest]) -> str:
    shown = ", ".join(f"{g.name} ({g.pid})" for g in guests[:_MOST])
    more = f" and {len(guests) - _MOST} more" if len(guests) > _MOST else ""
    return f"{len(guests)} guest{'' if len(guests) == 1 else 's'}: {shown}{more}"
