"""The life around the tick: wait, follow the configuration, publish, answer signals, give back."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from ksmtuned import __version__, report
from ksmtuned.comings import Comings
from ksmtuned.config import Config, Locations, parse, read_sources
from ksmtuned.engine import Engine
from ksmtuned.errands import Errands
from ksmtuned.errors import ConfigError, ExitStatus, Garbled, KsmtunedError
from ksmtuned.events import Events
from ksmtuned.guestlist import GuestTexts
from ksmtuned.host.host import Host
from ksmtuned.host.ksm import WAIT_S
from ksmtuned.log import Log, Priority
from ksmtuned.model import RUN_SCAN, Code, Phase, Tick, exit_status
from ksmtuned.notify import Notifier, watchdog_s
from ksmtuned.orders import orders_of
from ksmtuned.originals import Originals
from ksmtuned.rundir import ORIGINAL, STATE, RunDir
from ksmtuned.triggers.signals import Signals
from ksmtuned.triggers.timer import Timer

_STATE_EVERY_S = 0.95  # once a second at most; a timer of 1 s comes early at times
_STOP = {signal.SIGTERM, signal.SIGINT}


class Daemon:
    """One host, watched until a signal ends it. The caller holds the lease."""

    def __init__(self, host: Host, where: Locations, config: Config, rundir: RunDir) -> None:
        self._host, self._where, self._config, self._rundir = host, where, config, rundir
        self._sources = config.sources
        self._log, self._notifier, self._signals = Log(), Notifier(), Signals()
        watchdog = watchdog_s()
        self._pulse = Timer(watchdog / 2 if watchdog else None)
        self._engine = Engine(
            host,
            orders_of(config.settings),
            self._originals(),
            beat=self._beat,
            write_wait_s=min(WAIT_S, watchdog / 4) if watchdog else WAIT_S,
        )
        self._errands = Errands(self._engine, rundir, host.proc.boot_id(), self._log.say)
        self._last: Tick | None = None
        self._timer = Timer(self._interval_s())
        self._events: Events | None = None
        self._comings, self._guest_texts = Comings(), GuestTexts()
        self._config_trouble: str | None = None
        self._said: tuple[Phase, Code] | None = None  # what was last logged
        self._status = ""
        self._told_s = float("-inf")
        self._is_stopping = False
        self._published_s = float("-inf")
        self._totals: dict[str, int | float] = {
            "started": time.time(),
            "ticks": 0,
            "writes": 0,
            "refusals": 0,
            "reloads": 0,
        }

    def run(self) -> ExitStatus:
        """Until TERM or INT. Returns whether all could be given back."""
        settle_memory()
        self._turn(self._notifier.ready, must_publish=True)
        while not (came := self._wait()) & _STOP:
            if signal.SIGHUP in came:
                self._reload()
            if signal.SIGUSR1 in came:
                self._timer.restart()
                self._turn(self._notifier.status, must_publish=True)
            elif self._timer.take():
                self._turn()
        return self._stop()

    def _wait(self) -> set[signal.Signals]:
        """Sleep until something is to be done; keep the watchdog quiet meanwhile."""
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        events = self._listen() if self._engine.follows_events else None
        if events:
            events.register(poll, is_scanning=self._is_scanning())
        while True:
            self._beat()
            news_s = events.remaining_s() if events else None
            waits = (self._timer.remaining_s(), self._pulse.remaining_s(), news_s)
            due = [wait_s for wait_s in waits if wait_s is not None]
            ready = poll.poll(min(due) * 1000 + 1)  # + 1: a poll that rounds down would spin
            if events and events.take(ready):
                self._engine.expect_news()
                self._timer.hasten(0.0)
            came = self._signals.take()
            if came or self._timer.remaining_s() == 0:
                return came

    def _listen(self) -> Events:
        """The kernel's news; opened once a policy wants it."""
        if self._events is None:
            self._events = Events(self._host, self._engine.is_probe, self._log.say)
        return self._events

    def _is_scanning(self) -> bool:
        return self._last is not None and self._last.decision.settings.run == RUN_SCAN

    def _beat(self) -> None:
        """A sign of life, if one is due; while stopping, also that it takes its time."""
        if self._is_stopping:
            self._notifier.busy()
        elif self._pulse.take():
            self._notifier.alive()

    def _turn(
        self, tell: Callable[[str], None] | None = None, *, must_publish: bool = False
    ) -> None:
        """One tick with all that surrounds it; `tell` sends its STATUS=, changed or not."""
        self._follow_configuration()
        troubles = [self._config_trouble] if self._config_trouble else []
        is_current = False
        try:
            standing = self._errands.turn()
            troubles += self._errands.troubles
            if self._errands.has_ended:
                must_publish, self._told_s = True, float("-inf")
            self._last = tick = self._engine.tick(standing=standing)
        except KsmtunedError as error:
            troubles.append(str(error))
        else:
            is_current = True
            self._pace_timer()
            self._count(tick)
            must_publish |= self._tell_guests(tick)
            self._log_change(tick)
            troubles += report.troubles(tick)
        troubles += self._publish(troubles, must_publish)
        self._log.report(troubles)
        status = report.status_text(self._last, troubles, is_current=is_current)
        if tell is None:
            self._tell_change(status)
        else:
            tell(status)
            self._status = status

    def _tell_change(self, status: str) -> None:
        """In a burst, at most as often as the state file is written."""
        now_s = time.monotonic()
        if status != self._status and now_s - self._told_s >= _STATE_EVERY_S:
            self._notifier.status(status)
            self._status, self._told_s = status, now_s

    def _pace_timer(self) -> None:
        if self._timer.interval_s != self._interval_s():
            self._timer.interval_s = self._interval_s()
            self._timer.restart()

    def _publish(self, troubles: list[str], must: bool) -> list[str]:
        """Replace the state file. Returns what went wrong."""
        now_s = time.monotonic()
        if self._last is None or not (must or now_s - self._published_s >= _STATE_EVERY_S):
            return []
        about = {
            "pid": os.getpid(),
            "version": __version__,
            "interval_seconds": self._timer.interval_s,
        }
        try:
            state = report.decision_json(self._last, self._totals, troubles) | about
            self._rundir.write(STATE, state, self._guest_texts.of(self._last.now))
        except KsmtunedError as error:
            return [str(error)]
        self._published_s = now_s
        return []

    def _follow_configuration(self, *, again: bool = False) -> None:
        """Take up an edit; an invalid one changes nothing and is told until it is mended."""
        sources = read_sources(self._where)
        if sources == self._sources and not again:
            return
        self._sources = sources
        try:
            self._config = parse(sources)
        except ConfigError as error:
            self._config_trouble = f"{error}; the old settings stay"
            return
        self._config_trouble = None
        self._totals["reloads"] += 1
        self._engine.obey(orders_of(self._config.settings))
        self._log.say("configuration read again", Priority.NOTICE)

    def _reload(self) -> None:
        self._notifier.reloading()
        self._follow_configuration(again=True)
        self._engine.take_back()
        self._timer.restart()
        self._turn(self._notifier.ready, must_publish=True)

    def _stop(self) -> ExitStatus:
        on_stop = self._config.settings.on_stop
        self._is_stopping = True
        self._notifier.stopping()
        try:
            self._errands.finish(self._beat, time.sleep)
            written, refused = self._engine.leave(on_stop)
            self._rundir.remove(STATE)
        except KsmtunedError as error:
            self._log.say(str(error), Priority.ERR)
            return error.exit_status
        for refusal in refused:
            self._log.say(str(refusal.error), Priority.ERR)
        done = report.writes(written, "nothing was written")
        self._log.say(f"stopped (on_stop = {on_stop}): {done}")
        return exit_status(refused)

    def _originals(self) -> Originals:
        boot_id = self._host.proc.boot_id()
        try:
            return Originals.load(self._rundir, boot_id)
        except Garbled as error:
            aside = self._rundir.set_aside(ORIGINAL)
            self._log.say(f"{error}; kept as {aside}", Priority.WARNING)
            return Originals(self._rundir, boot_id)

    def _interval_s(self) -> float:
        """Until the next look, as the policy wants it now; else as configured; else its own."""
        wanted_s = self._last.decision.next_tick_s if self._last else None
        return wanted_s or self._config.settings.interval or self._engine.policy_interval_s

    def _count(self, tick: Tick) -> None:
        self._totals["ticks"] += 1
        self._totals["writes"] += len(tick.written)
        self._totals["refusals"] += len(set(tick.planned) & {r.write for r in tick.refused})

    def _tell_guests(self, tick: Tick) -> bool:
        """Log who came and who left; was there anybody?"""
        on_trial = self._events.on_trial() if self._events else ()
        lines = self._comings.lines(tick.now.guests, on_trial)
        for line in lines:
            self._log.say(line)
        return bool(lines)

    def _log_change(self, tick: Tick) -> None:
        decision = tick.decision
        is_new = (decision.phase, decision.code) != self._said
        if not is_new and (decision.is_routine or not tick.written):
            return
        self._said = decision.phase, decision.code
        self._log.say(
            f"{report.status_line(tick)}; {report.done(tick)}",
            Priority.INFO,
            policy=tick.policy,
            phase=tick.decision.phase,
            code=tick.decision.code,
            saving_bytes=tick.now.ksm.saving_bytes,
            **{write.control: write.new for write in tick.written},
        )


def settle_memory() -> None:
    """Give back what starting up took (about 1 MiB), and let no later collection walk the rest."""
    gc.collect()
    gc.freeze()
    with suppress(AttributeError):  # a libc other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def raise_descriptor_limit() -> None:
    """One descriptor a guest stays open: allow as many as the service manager grants."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
