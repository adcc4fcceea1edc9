"""What the configuration means for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ksmtuned.engine import Orders
from ksmtuned.settings import RootTable

# What the uses of a host mean to the adaptive law; explicit keys beat them.
_PROFILES: Mapping[str, Mapping[str, Any]] = {
    "production": {"max_cpu": 30.0, "is_frugal": True},
    "test": {"max_cpu": 100.0, "is_frugal": False},
    "desktop": {"max_cpu": 60.0, "is_frugal": False, "is_easy": True},
}


def orders_of(settings: RootTable) -> Orders:
    """The engine's orders in these settings."""
    table = getattr(settings, settings.policy, None)
    values = table.model_dump() if table is not None else {}
    if settings.policy == "adaptive":
        explicit = {name: value for name, value in values.items() if value is not None}
        values = {**_PROFILES[settings.profile], **explicit}
    controls = settings.ksm.model_dump(exclude_none=True)
    return Orders(
        policy=settings.policy,
        policy_table=values,
        controls=controls,
        comm=tuple(settings.guests.comm),
        reassert=settings.on_foreign_write == "reassert",
    )
