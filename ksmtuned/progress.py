"""Stays for one whole burst, shows how far it is, and ends it."""

from __future__ import annotations

import signal
import sys
import time

from ksmtuned import report
from ksmtuned.engine import Engine
from ksmtuned.model import Phase, Tick
from ksmtuned.units import printable

_WIDTH = 30
_BEFORE_S = 0.25  # between two looks where the policy does not say


def wait_for_burst(engine: Engine) -> Tick:
    """Tick until the policy is content. However it ends (Ctrl-C, TERM), ksmd is stopped.

    Returns the last tick. Errors: as Engine.tick.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while True:
            tick = engine.tick()
            _show(tick)
            if tick.decision.phase not in (Phase.SETTLE, Phase.BURST):
                return tick
            time.sleep(tick.decision.next_tick_s or _BEFORE_S)
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)
        engine.halt()
        signal.signal(signal.SIGTERM, before)


def _show(tick: Tick) -> None:
    """One line that is written over, where somebody looks on."""
    if not sys.stderr.isatty():
        return
    done = round((tick.decision.progress or 0.0) * _WIDTH)
    bar = "#" * done + "." * (_WIDTH - done)
    text = f"[{bar}] {report.saving(tick.now.ksm)} saved; {tick.decision.reason}"
    print(f"\r\x1b[K{printable(text)[:110]}", end="", file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
