"""What is to be unmerged, and what that needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ksmtuned.errors import NotUnmerged, UsageError
from ksmtuned.headroom import Headroom, headroom
from ksmtuned.host.charges import charges, limits, merged_bytes
from ksmtuned.host.host import Host
from ksmtuned.model import Guest
from ksmtuned.sharing import Sharing, sharing_of
from ksmtuned.units import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be unmerged, and how."""

    guests: Sequence[Guest] = ()  # those of this host
    only: str | None = None  # one of them, by name or pid; None: the whole host
    force: bool = False  # also where it does not fit
    patience_s: float = 30.0  # with a guest, beside the time that copying takes
    sharing: Callable[[Guest], Sharing | None] = sharing_of
    is_wanted: Callable[[], bool] = lambda: True  # asked between two guests
    begin: Callable[[], None] = lambda: None  # called once, ksmd stopped and all still merged
    beat: Callable[[], None] = lambda: None  # called while something takes its time

    def guest(self) -> Guest | None:
        """The one guest that is meant. Errors: UsageError (none, or more than one)."""
        if self.only is None:
            return None
        found = [g for g in self.guests if self.only in (g.name, str(g.pid))]
        if len(found) == 1:
            return found[0]
        names = ", ".join(printable(f"{g.name} ({g.pid})") for g in found or self.guests)
        what = "more than one guest has that name" if found else "no such guest"
        raise UsageError(f"{printable(self.only)}: {what}; there are {names or 'none'}")

    def check_way(self) -> None:
        """Errors: NotUnmerged, if one guest alone is meant and cannot be reached; UsageError."""
        guest = self.guest()
        if guest is not None and self.sharing(guest) is None:
            raise NotUnmerged(
                f"{printable(guest.name)} alone cannot be unmerged yet: `ksmtuned share GUEST off` "
                "takes it out of KSM, `ksmtuned unmerge` unmerges the whole host"
            )

    def name_of(self, pid: int) -> str:
        """What people call that process."""
        names = (f"guest {g.name} (pid {pid})" for g in self.guests if g.pid == pid)
        return next(names, f"pid {pid}")


def measure(host: Host, order: Order) -> Headroom:
    """What the order needs, and what there is.

    The copies take (pages_sharing + ksm_zero_pages) pages; before 6.6 placed zero pages cannot be
    counted. One guest's take its own merged pages. Source: mm/ksm.c,
    unmerge_and_remove_all_rmap_items(). Errors: NotUnmerged (the need is not known), UsageError.
    """
    guest = order.guest()
    meminfo, ksm = host.proc.meminfo(), host.ksm.read()[0]
    if guest is None and ksm.pages_sharing is None:
        raise NotUnmerged("pages_sharing cannot be read, so the need is not known")
    if guest is None and not ksm.saving_bytes:
        return headroom(meminfo, 0)
    found, unknown = charges(host, order.beat)
    if guest is not None:
        found = [charge for charge in found if charge.pid == guest.pid]
        merged = merged_bytes(host.tree, guest.pid)
        if merged is None:
            raise NotUnmerged("the kernel does not say how much of that guest is merged")
        return headroom(meminfo, merged, limits(host.tree, found, order.name_of))
    met = limits(host.tree, found, order.name_of)
    return headroom(meminfo, ksm.saving_bytes, met, unknown)
