"""What commands ask of the daemon: one thing at a time, one step a turn, and the hold it leaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ksmtuned import hold, intents
from ksmtuned.engine import Engine
from ksmtuned.errors import KsmtunedError
from ksmtuned.intents import Answer, Intent
from ksmtuned.model import Code, Decision, Phase, Settings
from ksmtuned.need import Order
from ksmtuned.rundir import RunDir
from ksmtuned.units import printable
from ksmtuned.unmerging import STEP_S, Outcome, Step, Unmerging

Say = Callable[[str], None]


class Errands:
    """The daemon's side of RUN_DIR's intent and hold. `say` logs a line."""

    def __init__(self, engine: Engine, rundir: RunDir, boot_id: str, say: Say) -> None:
        self._engine, self._rundir, self._boot_id, self._say = engine, rundir, boot_id, say
        self._intent: Intent | None = None  # under way
        self._work: Unmerging | None = None
        self._held: hold.Hold | None = None
        self._step = Step(text="", progress=0.0)
        self.troubles: list[str] = []  # of the last turn
        self.has_ended = False  # in the last turn, what was under way: worth telling at once

    def turn(self) -> Decision | None:
        """One step of what is under way. Returns what stands in for the policy's decision: the
        unmerge that is under way, or the hold; None: neither."""
        self.troubles, self.has_ended = [], False
        self._try(self._take_up)
        self._try(self._go_on)
        if self._work is not None:
            return self._under_way()
        self._try(self._look_for_hold)
        return self._held.decision() if self._held else None

    def finish(self, beat: Callable[[], None], wait: Callable[[float], None]) -> None:
        """The daemon ends: what is under way stops between two guests, or when run=2 is through."""
        self.troubles = []
        if self._work is not None:
            self._try(lambda: self._rundir.remove(intents.ERRAND))
        while self._work is not None:
            self._try(self._go_on)
            beat()
            wait(STEP_S)
        for trouble in self.troubles:
            self._say(trouble)

    def _try(self, part: Callable[[], None]) -> None:
        """What fails is told, and keeps the rest from nothing."""
        try:
            part()
        except KsmtunedError as error:
            self.troubles.append(str(error))

    def _look_for_hold(self) -> None:
        """One that cannot be looked at stands as it was last seen."""
        self._held = hold.load(self._rundir, self._boot_id)

    def _take_up(self) -> None:
        intent = intents.claim(self._rundir) if self._work is None else None
        if intent is None:
            return
        what = f"guest {printable(intent.guest)}" if intent.guest else "the whole host"
        self._say(f"{intent.verb} of {what} is asked for{', by force' if intent.force else ''}")
        self._intent = intent
        self._work = self._engine.unmerge(
            Order(
                only=intent.guest,
                force=intent.force,
                is_wanted=lambda: intents.is_wanted(self._rundir, intent),
                begin=partial(hold.leave, self._rundir, self._boot_id, intent.verb),
            )
        )

    def _go_on(self) -> None:
        """One step; after the last, the answer."""
        if self._work is None or self._intent is None:
            return
        try:
            self._step = next(self._work)
        except StopIteration as end:
            outcome: Outcome = end.value
        except KsmtunedError as error:
            outcome = Outcome(text=str(error), error=error)
        else:
            return
        intent, self._intent, self._work, self.has_ended = self._intent, None, None, True
        self._say(f"{intent.verb}: {outcome.text}")
        answer = Answer(text=outcome.text, exit_status=outcome.exit_status)
        intents.answer(self._rundir, intent, answer)

    def _under_way(self) -> Decision:
        return Decision(
            settings=Settings(),
            phase=Phase.UNMERGE,
            code=Code.UNMERGE,
            reason=self._step.text,
            next_tick_s=STEP_S,
            progress=self._step.progress,
        )
