"""From samples to figures, medians and ratios: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import inf
from statistics import median

GIB = 2**30
TAIL_PART = 0.2  # of the run: what a controller costs when all is done
AGAIN_PART = 0.95  # a reboot of one guest in eight costs 12 % of the saving: this sees it


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the kernel says at one moment of a run."""

    at_s: float
    saving_bytes: int
    ksmd_cpu_s: float  # since the start of the run
    pages_scanned: int | None  # since the start of the run; None: before Linux 6.6
    full_scans: int
    run: int
    pages_to_scan: int
    sleep_millisecs: int
    available_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a controller itself used in one run."""

    cpu_s: float
    rss_bytes: int  # highest


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One controller, one scenario, once."""

    samples: tuple[Sample, ...]
    cost: Cost | None = None  # None: no process, the kernel works alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the runs of one scenario are measured against."""

    best_bytes: float  # the best saving of any controller before the split
    best_after_bytes: float  # and after the change
    change_s: float | None
    two_passes_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One row of the table. None: never reached, or there is no such thing."""

    t50_s: float | None
    t90_s: float | None
    t99_s: float | None
    again_s: float | None  # from the change until 95 % of the best saving after it, for good
    saved_gib_s: float | None
    ksmd_cpu_s: float | None
    own_cpu_s: float | None
    own_rss_mib: float | None
    two_passes_ratio: float | None  # pages scanned, against two passes over all guests
    tail_cpu_pct: float | None  # of one core, in the last fifth
    end_mib: float | None  # saving


def goal(
    runs: Iterable[Run], *, split_s: float, change_s: float | None, two_passes_pages: int
) -> Goal:
    """What the best of these runs reached."""
    samples = [sample for run in runs for sample in run.samples]
    after_s = inf if change_s is None else change_s
    return Goal(
        best_bytes=max((s.saving_bytes for s in samples if s.at_s < split_s), default=0),
        best_after_bytes=max((s.saving_bytes for s in samples if s.at_s >= after_s), default=0),
        change_s=change_s,
        two_passes_pages=two_passes_pages,
    )


def figures(run: Run, goal: Goal) -> Figures:
    """The row of one run; it needs two samples at least."""
    last = run.samples[-1]
    return Figures(
        t50_s=seconds_to(run.samples, 0.5 * goal.best_bytes),
        t90_s=seconds_to(run.samples, 0.9 * goal.best_bytes),
        t99_s=seconds_to(run.samples, 0.99 * goal.best_bytes),
        again_s=seconds_again(run.samples, AGAIN_PART * goal.best_after_bytes, goal.change_s),
        saved_gib_s=saved_gib_s(run.samples),
        ksmd_cpu_s=last.ksmd_cpu_s,
        own_cpu_s=run.cost.cpu_s if run.cost else None,
        own_rss_mib=run.cost.rss_bytes / 2**20 if run.cost else None,
        two_passes_ratio=_ratio(last.pages_scanned, goal.two_passes_pages),
        tail_cpu_pct=tail_cpu_pct(run.samples),
        end_mib=last.saving_bytes / 2**20,
    )


def seconds_to(samples: Sequence[Sample], wanted_bytes: float) -> float | None:
    """When the saving is first that much; None: never, or nothing was wanted."""
    if wanted_bytes <= 0:
        return None
    return next((s.at_s for s in samples if s.saving_bytes >= wanted_bytes), None)


def seconds_again(
    samples: Sequence[Sample], wanted_bytes: float, change_s: float | None
) -> float | None:
    """From the change until the saving is that much and stays so; None: not by the end."""
    if change_s is None or wanted_bytes <= 0 or samples[-1].at_s < change_s:
        return None
    after = [s for s in samples if s.at_s >= change_s]
    below = [n for n, s in enumerate(after) if s.saving_bytes < wanted_bytes]
    first = below[-1] + 1 if below else 0
    return after[first].at_s - change_s if first < len(after) else None


def saved_gib_s(samples: Sequence[Sample]) -> float:
    """The area below the saving, by trapezoids."""
    area = sum(
        (b.at_s - a.at_s) * (a.saving_bytes + b.saving_bytes) / 2 for a, b in pairwise(samples)
    )
    return area / GIB


def tail_cpu_pct(samples: Sequence[Sample]) -> float | None:
    """ksmd's share of a core in the last fifth; None: too short to say."""
    last = samples[-1]
    tail = [s for s in samples if s.at_s >= last.at_s * (1 - TAIL_PART)]
    seconds = last.at_s - tail[0].at_s
    return 100 * (last.ksmd_cpu_s - tail[0].ksmd_cpu_s) / seconds if seconds > 0 else None


def medians(rows: Sequence[Figures]) -> Figures:
    """Of each figure its median; one that was never reached counts as the worst."""
    return Figures(
        **{f.name: _median([getattr(row, f.name) for row in rows]) for f in fields(Figures)}
    )


def ratios(row: Figures, against: Figures) -> Figures:
    """Each figure as a multiple of the other's; None where either is None or the other is 0."""
    return _combine(row, against, _ratio)


def middle_run(runs: Sequence[Run]) -> Run:
    """The run whose saving over time is the median (of an even number, the lower): to draw it."""
    return sorted(runs, key=lambda run: saved_gib_s(run.samples))[(len(runs) - 1) // 2]


def _combine(
    a: Figures, b: Figures, how: Callable[[float | None, float | None], float | None]
) -> Figures:
    return Figures(**{f.name: how(getattr(a, f.name), getattr(b, f.name)) for f in fields(Figures)})


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _median(values: Sequence[float | None]) -> float | None:
    found = median(inf if value is None else value for value in values)
    return None if found == inf else found
