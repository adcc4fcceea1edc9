"""Which writes turn what is into what is wanted, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from ksmtuned.model import (
    ADVISOR_OFF,
    ADVISOR_ON,
    CONTROLS,
    PAGES_WITHOUT_ADVISOR,
    RUN_SCAN,
    RUN_STOP,
    KsmStat,
    Settings,
    Write,
)


def plan(now: KsmStat, wanted: Settings, leave: Collection[str] = frozenset()) -> tuple[Write, ...]:
    """The writes that turn `now` into `wanted`; empty if nothing differs. An absent control is
    left out, and so is every one in `leave`.

    Rule: ksmd never runs, not for one batch, at a pace nobody asked for. So a stop is written
    before everything else, a start after it, and in between what slows ksmd down comes first.
    The kernel's advisor is switched off before pages_to_scan is written (which it refuses), and on
    after its bounds (it starts at one of them); what it then does with pages_to_scan is its own.
    """
    is_advised = now.advisor_mode is not None and wanted.advisor_mode == ADVISOR_ON
    is_reset = now.advisor_mode == ADVISOR_ON and wanted.advisor_mode == ADVISOR_OFF
    if is_reset and "advisor_mode" not in leave and now.pages_to_scan == wanted.pages_to_scan:
        now = replace(now, pages_to_scan=PAGES_WITHOUT_ADVISOR)
    writes = []
    for control, new in wanted.wanted().items():
        old = now.value(control)
        if old is None or old == new or control in leave:
            continue
        if control == "pages_to_scan" and is_advised:
            continue
        writes.append(Write(control, old, new))
    return tuple(sorted(writes, key=_turn))


def also_changed(now: KsmStat, writes: Sequence[Write]) -> tuple[Write, ...]:
    """What the kernel changes by itself when it takes these: a new mode of the advisor resets
    pages_to_scan. Source: mm/ksm.c, set_advisor_defaults()."""
    new = {write.control: write.new for write in writes}
    if "advisor_mode" not in new or now.pages_to_scan is None:
        return ()
    start = new.get("advisor_min_pages_to_scan", now.advisor_min_pages_to_scan)
    reset = start if new["advisor_mode"] == ADVISOR_ON else PAGES_WITHOUT_ADVISOR
    return (
        Write("pages_to_scan", now.pages_to_scan, now.pages_to_scan if reset is None else reset),
    )


def _turn(write: Write) -> tuple[int, int]:
    if write.control == "run":
        turn = {RUN_STOP: 0, RUN_SCAN: 5}.get(int(write.new), 5)
    elif write.control == "advisor_mode":
        turn = 1 if write.new == ADVISOR_OFF else 4
    else:
        turn = 2 if _slows_down(write) else 3
    return turn, _ORDER.index(write.control)


def _slows_down(write: Write) -> bool:
    """Is ksmd slower once this is written?"""
    if isinstance(write.old, str) or isinstance(write.new, str):
        return False
    if write.control == "pages_to_scan":
        return write.new < write.old
    return write.control == "sleep_millisecs" and write.new > write.old


# The controls that no policy moves come first: a start finds them as they are wanted.
_PACE = ("pages_to_scan", "sleep_millisecs", "run")
_ORDER = tuple(c for c in CONTROLS if c not in _PACE) + _PACE
