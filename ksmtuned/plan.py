"""Which writes turn what is into what is wanted, and in which order."""

from __future__ import annotations

from collections.abc import Collection

from ksmtuned.model import CONTROLS, RUN_SCAN, RUN_STOP, KsmStat, Settings, Write


def plan(now: KsmStat, wanted: Settings, leave: Collection[str] = frozenset()) -> tuple[Write, ...]:
    """The writes that turn `now` into `wanted`; empty if nothing differs. An absent control is
    left out, and so is every one in `leave`.

    Rule: ksmd never runs, not for one batch, at a pace nobody asked for. So a stop is written
    before everything else, a start after it, and in between what slows ksmd down comes first.
    """
    writes = []
    for control, new in wanted.wanted().items():
        old = now.value(control)
        if old is None or old == new or control in leave:
            continue
        writes.append(Write(control, old, new))
    return tuple(sorted(writes, key=_turn))


def _turn(write: Write) -> tuple[int, int]:
    if write.control == "run":
        turn = {RUN_STOP: 0, RUN_SCAN: 3}.get(int(write.new), 3)
    else:
        turn = 1 if _slows_down(write) else 2
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
