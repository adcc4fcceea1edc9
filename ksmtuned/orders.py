"""What the configuration means for the engine."""

from __future__ import annotations

from ksmtuned.engine import Orders
from ksmtuned.settings import RootTable


def orders_of(settings: RootTable) -> Orders:
    """The engine's orders in these settings."""
    table = getattr(settings, settings.policy, None)
    controls = settings.ksm.model_dump(exclude_none=True)
    return Orders(
        policy=settings.policy,
        policy_table=table.model_dump() if table is not None else {},
        controls=controls,
        comm=tuple(settings.guests.comm),
        reassert=settings.on_foreign_write == "reassert",
    )
