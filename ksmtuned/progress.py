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
        end_bar()
        engine.halt()
        signal.signal(signal.SIGTERM, before)


def _show(tick: Tick) -> None:
    text = f"{report.saving(tick.now.ksm)} saved; {tick.decision.reason}"
    show_bar(text, tick.decision.progress or 0.0)


def show_bar(text: str, progress: float) -> None:
    """One line that is written over, where somebody looks on. progress: 0 to 1."""
    if not sys.stderr.isatty():
        return
    done = round(progress * _WIDTH)
    bar = "#" * done + "." * (_WIDTH - done)
    print(f"\r\x1b[K{printable(f'[{bar}] {text}')[:110]}", end="", file=sys.stderr, flush=True)


def end_bar() -> None:
    """What is printed next gets a line of its own."""
    if sys.stderr.isatty():
        print(file=sys.stderr)


class Interrupts:
    """Whether Ctrl-C, TERM or HUP came, for what must not be broken off just anywhere."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> Interrupts:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.came = True


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
