"""What a tick looks like from outside: the JSON contract, and the same in a few plain lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksmtuned.guestlist import guests_json
from ksmtuned.model import KsmStat, Meminfo, Snapshot, Tick, Write
from ksmtuned.units import printable, size

SCHEMA = 1  # keys may be added; a renamed or dropped one is a new number


def snapshot_json(now: Snapshot) -> dict[str, Any]:
    """What was seen. meminfo in bytes, ksm by the kernel's file names (null: no such file)."""
    return {
        "ksm": _fields(now.ksm),
        "meminfo": _fields(now.meminfo),
        "ksmd_cpu_seconds": now.ksmd_cpu_s,
    }


def _fields(value: KsmStat | Meminfo) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def host_json(now: Snapshot) -> dict[str, Any]:
    """What anybody can see, without a decision: the same keys as decision_json."""
    return {
        "schema": SCHEMA,
        "time": now.time,
        "policy": None,
        "phase": None,
        "code": None,
        "reason": None,
        "progress": None,
        "snapshot": snapshot_json(now),
        "settings": {},
        "planned": {},
        "written": {},
        "refused": {},
        "foreign": [],
        "errors": list(map(str, now.unread.values())),
        "saving_bytes": now.ksm.saving_bytes,
        "profit_bytes": now.ksm.general_profit,
        "totals": {},
    }


def tick_json(tick: Tick, totals: Mapping[str, Any], errors: Sequence[str] = ()) -> dict[str, Any]:
    """One tick, as state.json, --once and status show it."""
    return decision_json(tick, totals, errors) | guests_json(tick.now)


def decision_json(
    tick: Tick, totals: Mapping[str, Any], errors: Sequence[str] = ()
) -> dict[str, Any]:
    """The same without its guests."""
    return host_json(tick.now) | {
        "policy": tick.policy,
        "phase": tick.decision.phase,
        "code": tick.decision.code,
        "reason": tick.decision.reason,
        "progress": tick.decision.progress,
        "settings": tick.decision.settings.wanted(),
        "planned": {write.control: write.new for write in tick.planned},
        "written": {write.control: write.new for write in tick.written},
        "refused": {
            refusal.write.control: {
                "tried": refusal.write.new,
                "error": str(refusal.error),
                "errno": refusal.error.errno_name,
            }
            for refusal in tick.refused
        },
        "foreign": list(tick.foreign),
        "errors": list(errors),
        "totals": {
            "guests": len(tick.now.guests),
            "guest_memory_bytes": tick.now.guest_memory_bytes,
            **totals,
        },
    }


def troubles(tick: Tick) -> list[str]:
    """One line for each thing that is not as wanted."""
    refused = [str(refusal.error) for refusal in tick.refused]
    return [*refused, *tick.foreign, *map(str, tick.now.unread.values())]


def seen(now: Snapshot, with_guests: bool = True) -> str:
    """One line: memory, guests, KSM."""
    parts = [memory(now.meminfo)]
    if with_guests:
        count = len(now.guests)
        used = f" using {size(now.guest_memory_bytes)}" if count else ""
        parts.append(f"{count or 'no'} guest{'' if count == 1 else 's'}{used}")
    return "; ".join([*parts, pace(now.ksm), f"saving {saving(now.ksm)}"])


def memory(meminfo: Meminfo) -> str:
    """One phrase: how much memory is there, and how much of it can be had."""
    total = size(meminfo.total_bytes)
    if meminfo.available_bytes is None:
        return f"{size(meminfo.free_bytes)} free of {total}"
    return f"{size(meminfo.available_bytes)} available of {total}"


def pace(ksm: KsmStat) -> str:
    """One phrase: what ksmd is set to."""
    run = {0: "ksmd stopped", 1: "ksmd running", 2: "unmerged (run=2)"}.get(
        int(ksm.value("run") or 0), f"run={ksm.run}"
    )
    advisor = f", advisor {ksm.advisor_mode}" if ksm.advisor_mode not in (None, "none") else ""
    return f"{run} at {ksm.pages_to_scan} pages per {ksm.sleep_millisecs} ms{advisor}"


def saving(ksm: KsmStat) -> str:
    """One phrase: what merging gave, gross, and net of its metadata where the kernel says so."""
    if not (ksm.saving_bytes or ksm.general_profit):
        return "nothing"
    net = "" if ksm.general_profit is None else f" ({size(ksm.general_profit)} net of metadata)"
    return f"{size(ksm.saving_bytes)}{net}"


def writes(these: Sequence[Write], otherwise: str) -> str:
    """One phrase: the writes in their order."""
    return "; ".join(map(str, these)) or otherwise


def done(tick: Tick) -> str:
    """One phrase: what a tick wrote."""
    return writes(tick.written, "nothing" if tick.planned else "nothing, all is as wanted")


def status_text(tick: Tick | None, troubles: Sequence[str], *, is_current: bool) -> str:
    """STATUS=: troubles first, then the last decision. Short: systemd drops what is too long."""
    shown = [text if len(text) <= 300 else f"{text[:297]}..." for text in troubles[:3]]
    if len(troubles) > len(shown):
        shown.append(f"{len(troubles) - len(shown)} more troubles: see the journal")
    if tick is not None:
        shown.append(status_line(tick) if is_current else f"before that, {status_line(tick)}")
    return printable(" | ".join(shown))


def status_line(tick: Tick) -> str:
    """One line for STATUS= and the log: policy, why, result."""
    return printable(f"{tick.policy}: {tick.decision.reason}; saving {saving(tick.now.ksm)}")
