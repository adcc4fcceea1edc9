"""The guests as the JSON contract has them; for the daemon, as text that is made once a change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ksmtuned.model import Details, Guest, Snapshot
from ksmtuned.shares import fair_shares

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def guests_json(now: Snapshot) -> dict[str, list[dict[str, Any]]]:
    """guests, and others that have mergeable memory. Their saving_bytes add up to the host's."""
    shares = fair_shares(now.ksm, (*now.guests, *now.others))
    split = len(now.guests)
    return {
        "guests": _rows(now.guests, shares[:split]),
        "others": _rows(now.others, shares[split:]),
    }


def _rows(processes: Sequence[Guest], shares: Sequence[int]) -> list[dict[str, Any]]:
    pairs = zip(processes, shares, strict=True)
    return [
        {"saving_bytes": share, "memory_bytes": process.memory_bytes} | _lasting(process)
        for process, share in pairs
    ]


def _lasting(process: Guest) -> dict[str, Any]:
    """What stays the same until its details are read again."""
    details = process.details
    return {
        "pid": process.pid,
        "start_time": process.start_time,
        "name": process.name,
        "vmm": process.vmm,
        "uuid": details.uuid,
        "ram_bytes": details.ram_bytes,
        "uid": details.uid,
        "cgroup": details.cgroup,
        "merging_pages": details.merging_pages,
        "zero_pages": details.zero_pages,
        "rmap_items": details.rmap_items,
        "profit_bytes": details.profit_bytes,
        "mergeable": details.mergeable,
        "why_not": details.why_not,
        "share": details.share,
        "trust_group": None,
    }


@dataclass(slots=True)
class _Text:
    details: Details  # those that it was made from
    lasting: str


class GuestTexts:
    """guests_json as JSON text, at a small price: a thousand guests are published each second."""

    def __init__(self) -> None:
        self._texts: dict[tuple[int, int], _Text] = {}

    def of(self, now: Snapshot) -> dict[str, str]:
        """The text of each key."""
        processes = (*now.guests, *now.others)
        before, self._texts = self._texts, {}
        rows = []
        for process, share in zip(processes, fair_shares(now.ksm, processes), strict=True):
            key = process.pid, process.start_time
            text = before.get(key)
            if text is None or text.details is not process.details:
                text = _Text(process.details, _encode(_lasting(process))[1:])
            self._texts[key] = text
            rows.append(
                f'{{"saving_bytes":{share},"memory_bytes":{process.memory_bytes},{text.lasting}'
            )
        split = len(now.guests)
        return {
            "guests": f"[{','.join(rows[:split])}]",
            "others": f"[{','.join(rows[split:])}]",
        }
