"""The laws, by the name that the configuration gives them. A new one is a new line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ksmtuned.model import Policy
from ksmtuned.policies.adaptive import Adaptive
from ksmtuned.policies.advisor import Advisor
from ksmtuned.policies.classic import Classic
from ksmtuned.policies.fixed import Fixed
from ksmtuned.policies.off import Off

POLICIES: Mapping[str, type[Policy]] = {
    "adaptive": Adaptive,
    "advisor": Advisor,
    "classic": Classic,
    "fixed": Fixed,
    "off": Off,
}


def build(name: str, table: Mapping[str, Any]) -> Policy:
    """The policy `name` with the values of its table. Errors: KeyError (no such policy)."""
    return POLICIES[name](**table)
