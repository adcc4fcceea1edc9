"""The picture: saving and ksmd's CPU time over time, a line for each controller."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figures import GIB, Run, middle_run
from benchmarks.report import Contest
from ksmtuned.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
# Okabe and Ito's colours, which colour-blind people tell apart; the dashes are for print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
GRID = "#dddddd"


def check(path: Path) -> None:
    """Before the long run: can it be drawn at all? Errors: UsageError."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: a picture ends in {' or '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: .venv/bin/python -m pip install -e '.[plot]'")


def draw(contest: Contest, path: Path) -> None:
    """Write the picture; of several runs of a controller, the middle one."""
    from matplotlib.figure import Figure  # an extra, and slow to load

    figure = Figure(figsize=(9, 7), layout="constrained", dpi=120)
    above, below = figure.subplots(2, 1, sharex=True)
    for number, (name, runs) in enumerate(contest.runs.items()):
        _draw_run(above, below, name, middle_run(runs), number)
    _dress(above, "Saved memory", "GiB")
    _dress(below, "CPU time of ksmd", "s")
    below.set_xlabel("seconds since the first guest")
    below.set_xlim(0, contest.seconds)
    for axes in (above, below):
        _mark_change(axes, contest)
    where = f"Linux {contest.kernel}, {contest.machine}"
    figure.suptitle(f"{contest.scenario}: {contest.summary}\n{where}", fontsize=10)
    handles, names = above.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path)


def _draw_run(above: Axes, below: Axes, name: str, run: Run, number: int) -> None:
    times = [sample.at_s for sample in run.samples]
    saving = [sample.saving_bytes / GIB for sample in run.samples]
    cpu = [sample.ksmd_cpu_s for sample in run.samples]
    for axes, values in ((above, saving), (below, cpu)):
        axes.plot(
            times,
            values,
            label=name,
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            linewidth=2,
            clip_on=False,  # or half of a line at zero would be gone
            zorder=3,
        )


def _dress(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_change(axes: Axes, contest: Contest) -> None:
    if contest.change_s is not None and contest.change_s < contest.seconds:
        axes.axvline(
            contest.change_s, color="#888888", linewidth=1, linestyle=(0, (2, 2)), zorder=0
        )
