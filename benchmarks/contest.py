"""The contest: the same guests at the same times, on the real kernel, under one KSM controller
after another. Run as root, on a machine whose KSM nobody else needs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

from benchmarks import picture, report
from benchmarks.controllers import ALL, NAMES, Controller, Watched, parse
from benchmarks.crew import Crew, build
from benchmarks.figures import Cost, Run, Sample
from benchmarks.kernel import (
    DEFAULTS,
    ContestError,
    Gauge,
    Ksm,
    check_idle,
    check_room,
    lent,
    meminfo_bytes,
    other_mergeable,
)
from benchmarks.progress import Progress
from benchmarks.report import Contest
from benchmarks.scenarios import SCENARIOS, Scenario, events, mergeable_pages, peak_bytes
from ksmtuned.errors import ExitStatus, KsmtunedError, UsageError
from ksmtuned.units import duration, size

SAMPLE_S = 0.25
WARM_UP_S = 1.0  # a daemon has read its configuration before the first guest comes
AROUND_S = 4.0  # starting and stopping a controller and its guests, about
LOAD_LIMIT = 0.5  # other work on this machine, above which figures are doubtful


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for."""

    name: str
    scenario: Scenario
    seconds: float
    repeat: int
    controllers: tuple[Controller, ...]
    is_disguised: bool

    def length_s(self) -> float:
        """How long it will take."""
        return (self.seconds + WARM_UP_S + AROUND_S) * len(self.controllers) * self.repeat

    def as_contest(self, runs: dict[str, list[Run]]) -> Contest:
        """The results, with what one must know to repeat them."""
        memory = size(meminfo_bytes("MemTotal"))
        return Contest(
            scenario=self.name,
            summary=self.scenario.summary,
            seconds=self.seconds,
            split_s=min(self.scenario.split_s, self.seconds),
            change_s=self.scenario.change_s,
            two_passes_pages=2 * mergeable_pages(self.scenario, self.seconds),
            kernel=os.uname().release,
            machine=f"{os.cpu_count()} CPUs, {memory}",
            date=f"{datetime.now(tz=UTC):%Y-%m-%d}",
            runs=runs,
        )


def race(plan: Plan, runs: dict[str, list[Run]]) -> None:
    """Run them all; each run is put into `runs` when it is over. Errors: KsmtunedError."""
    check_room(peak_bytes(plan.scenario, plan.seconds))
    with lent() as ksm, tempfile.TemporaryDirectory(prefix="ksmtuned-contest-") as folder:
        program = build(Path(folder), is_disguised=plan.is_disguised)
        order = [c for _ in range(plan.repeat) for c in plan.controllers]
        for number, controller in enumerate(order, 1):
            place = Path(folder, str(number))
            place.mkdir()
            with Progress(f"[{number}/{len(order)}] {controller.name}", plan.seconds) as progress:
                run = _run(ksm, controller, place, program, plan, progress)
            runs.setdefault(controller.name, []).append(run)


def _run(
    ksm: Ksm, controller: Controller, place: Path, program: Path, plan: Plan, progress: Progress
) -> Run:
    """One controller, once. The guests go first: a stop is quick where nothing is to be scanned."""
    ksm.clean({name: value for name, value in DEFAULTS.items() if ksm.has(name)})
    try:
        with controller.running(ksm, place) as watched, Crew(program, plan.scenario) as crew:
            time.sleep(WARM_UP_S)
            watched.check()
            before = watched.cost()
            samples = _story(ksm, crew, watched, plan, progress)
            return Run(samples=tuple(samples), cost=_difference(before, watched.cost()))
    finally:
        with suppress(KsmtunedError):  # `lent` tries again, and says what failed
            ksm.write("run", 0)


def _story(ksm: Ksm, crew: Crew, watched: Watched, plan: Plan, progress: Progress) -> list[Sample]:
    due = deque(events(plan.scenario, plan.seconds))
    gauge, samples = Gauge(ksm), list[Sample]()
    start, next_s = time.monotonic(), 0.0
    while (now_s := time.monotonic() - start) < plan.seconds:
        while due and due[0].at_s <= now_s:
            crew.do(due.popleft())
        if now_s >= next_s:
            samples.append(gauge.sample(now_s))
            crew.check()
            watched.check()
            progress.show(samples[-1])
            next_s = now_s + SAMPLE_S
        wake_s = min(next_s, due[0].at_s if due else next_s)
        time.sleep(max(0.0, wake_s - (time.monotonic() - start)))
    samples.append(gauge.sample(time.monotonic() - start))
    return samples


def _difference(before: Cost | None, after: Cost | None) -> Cost | None:
    """What it used since the first guest; its start is not counted, its highest memory is."""
    if before is None or after is None:
        return None
    return Cost(cpu_s=after.cpu_s - before.cpu_s, rss_bytes=after.rss_bytes)


def available(wanted: tuple[str, ...], *, is_strict: bool) -> tuple[Controller, ...]:
    """The controllers that can be had here; the others are named with the reason.

    Errors: UsageError (no such thing); if strict, ContestError (not here).
    """
    found = []
    for controller in map(parse, wanted):
        if (reason := controller.why_not(Ksm())) is None:
            found.append(controller)
        elif is_strict:
            raise ContestError(f"{controller.name}: {reason}")
        else:
            _say(f"without {controller.name}: {reason}")
    return tuple(found)


def announce(plan: Plan) -> None:
    """What will happen, until when, and what may spoil it."""
    length_s = plan.length_s()
    end = datetime.now(tz=UTC).astimezone() + timedelta(seconds=length_s)
    repeats = f" x {plan.repeat}" if plan.repeat > 1 else ""
    _say(
        f"{plan.name}: {plan.scenario.summary}\n"
        f"{len(plan.controllers)} controllers x {plan.seconds:.0f} s{repeats}: "
        f"about {duration(length_s)}, until {end:%H:%M}"
    )
    if others := other_mergeable():
        _say(f"warning: ksmd will also scan {', '.join(others)}")
    if (load := os.getloadavg()[0]) > LOAD_LIMIT:
        _say(f"warning: this machine is busy (load {load:.1f}): the figures will be doubtful")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    stories = "\n".join(f"{name:<10} {s.summary}" for name, s in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contest",
        description=__doc__,
        epilog=f"controllers:\n{_indent(NAMES)}\n\nscenarios:\n{_indent(stories)}\n\nexample:\n"
        "  python -m benchmarks.contest ksmtuned flat-out --scenario late --repeat 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("controllers", nargs="*", metavar="CONTROLLER", help="default: all that follow")
    add("--scenario", choices=SCENARIOS, default="storm", help="default: storm")
    add("--seconds", type=float, help="shorter, or longer, than the scenario says")
    add("--repeat", type=int, default=1, metavar="N", help="medians of N runs (1)")
    add("--against", default="flat-out", metavar="CONTROLLER", help="for ratios (flat-out)")
    add("--disguise", action="store_true", help="guests that do not look like QEMU's")
    add("--markdown", action="store_true", help="tables for docs/performance.md")
    add("--json", type=Path, metavar="FILE", help="write figures and samples there")
    add("--plot", type=Path, metavar="FILE", help="draw FILE.png or FILE.svg (extra: plot)")
    add("--from", type=Path, metavar="FILE", dest="source", help="run nothing: take this JSON")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Before the long run. Errors: UsageError."""
    if args.repeat < 1 or (args.seconds is not None and args.seconds < 2):
        raise UsageError("--repeat is 1 at least, --seconds 2")
    for path in (args.json, args.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no such folder")
    if args.plot is not None:
        picture.check(args.plot)


def run_contest(args: argparse.Namespace) -> tuple[Contest | None, int]:
    """The results, also of a contest that was cut short, and an exit status."""
    check_idle(Ksm())
    scenario = SCENARIOS[args.scenario]
    names = tuple(dict.fromkeys(args.controllers)) or ALL
    plan = Plan(
        name=args.scenario,
        scenario=scenario,
        seconds=args.seconds or scenario.seconds,
        repeat=args.repeat,
        controllers=available(names, is_strict=bool(args.controllers)),
        is_disguised=args.disguise,
    )
    runs: dict[str, list[Run]] = {}
    status: int = ExitStatus.DONE
    announce(plan)
    try:
        race(plan, runs)
    except KeyboardInterrupt:
        _say("stopped; KSM is as it was found")
        status = 128 + signal.SIGINT
    except KsmtunedError as error:
        _say(f"contest: {error}")
        status = error.exit_status
    return (plan.as_contest(runs) if runs else None), status


def publish(contest: Contest, args: argparse.Namespace) -> None:
    """The table, and the files that were asked for."""
    print(report.table(contest, args.against, as_markdown=args.markdown))
    if args.json is not None:
        report.save(contest, args.against, args.json)
    if args.plot is not None:
        picture.draw(contest, args.plot)


def main() -> int:
    """Exit status: as ksmtuned's."""
    args = make_parser().parse_args()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    try:
        check_arguments(args)
        contest, status = run_contest(args) if args.source is None else (_read(args.source), 0)
        if contest is not None:
            publish(contest, args)
    except KsmtunedError as error:
        _say(f"contest: {error}")
        return error.exit_status
    return status


def _read(path: Path) -> Contest:
    try:
        return report.load(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a contest's JSON: {error}") from error


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
