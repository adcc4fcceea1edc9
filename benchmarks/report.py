"""The results for people and machines: tables, JSON, a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Cost, Figures, Run, Sample, figures, goal, medians, ratios

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Everything that was measured, and where."""

    scenario: str
    summary: str
    seconds: float
    split_s: float
    change_s: float | None
    two_passes_pages: int
    kernel: str
    machine: str
    date: str
    runs: dict[str, list[Run]]  # by controller

    def rows(self) -> dict[str, Figures]:
        """Each controller's figures, medians of its runs."""
        aim = goal(
            (run for runs in self.runs.values() for run in runs),
            split_s=self.split_s,
            change_s=self.change_s,
            two_passes_pages=self.two_passes_pages,
        )
        return {
            name: medians([figures(run, aim) for run in runs]) for name, runs in self.runs.items()
        }

    def heading(self) -> str:
        """What, where and how often, in a line."""
        repeats = max(map(len, self.runs.values()))
        often = f", medians of {repeats}" if repeats > 1 else ""
        return (
            f"{self.scenario} ({self.summary}), {self.seconds:.0f} s{often}; "
            f"Linux {self.kernel}, {self.machine}, {self.date}"
        )


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of the table."""

    field: str
    title: str
    decimals: int
    unit: str = ""


COLUMNS = (
    Column("t50_s", "t50", 1, "s"),
    Column("t90_s", "t90", 1, "s"),
    Column("t99_s", "t99", 1, "s"),
    Column("again_s", "again", 1, "s"),
    Column("saved_gib_s", "saved", 1, "GiB*s"),
    Column("ksmd_cpu_s", "ksmd", 2, "CPU s"),
    Column("own_cpu_s", "own", 2, "CPU s"),
    Column("own_rss_mib", "own", 1, "MiB"),
    Column("two_passes_ratio", "scanned", 2, "/ 2 passes"),
    Column("tail_cpu_pct", "tail", 2, "CPU %"),
    Column("end_mib", "end", 0, "MiB"),
)
LEGEND = """\
t50, t90, t99: until that part of the best saving (of any controller here{split}); -: not reached
{again}saved: the saving over time; own: the controller itself; scanned: pages, against two
passes over all guests; tail: ksmd in the last fifth; end: the saving then.
Figures compare within one run only."""


def table(contest: Contest, against: str | None, *, as_markdown: bool = False) -> str:
    """The heading and what was measured; then, if `against` took part, as multiples of its."""
    rows = contest.rows()
    lay_out = _markdown if as_markdown else _aligned
    parts = [contest.heading(), lay_out("controller", rows, _absolute)]
    if against in rows:
        multiples = {name: ratios(row, rows[against]) for name, row in rows.items()}
        parts.append(lay_out(f"x {against}", multiples, _multiple))
    parts.append(_legend(contest))
    return "\n\n".join(parts)


def _legend(contest: Contest) -> str:
    split = f" before {contest.split_s:.0f} s" if contest.split_s < contest.seconds else ""
    change_s = contest.change_s
    is_short = change_s is None or change_s >= contest.seconds
    again = (
        ""
        if is_short
        else f"again: from {change_s:.0f} s until 95 % of the best saving after it, for good\n"
    )
    return LEGEND.format(split=split, again=again)


def _absolute(value: float | None, column: Column) -> str:
    return "-" if value is None else f"{value:.{column.decimals}f}"


def _multiple(value: float | None, _column: Column) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


Spell = Callable[[float | None, Column], str]


def _cells(corner: str, rows: dict[str, Figures], spell: Spell) -> list[list[str]]:
    body = [
        [name, *(spell(getattr(row, column.field), column) for column in COLUMNS)]
        for name, row in rows.items()
    ]
    return [[corner, *(column.title for column in COLUMNS)], *body]


def _aligned(corner: str, rows: dict[str, Figures], spell: Spell) -> str:
    cells = _cells(corner, rows, spell)
    if spell is _absolute:
        cells.insert(1, ["", *(column.unit for column in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(_line(row, widths) for row in cells)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)])


def _markdown(corner: str, rows: dict[str, Figures], spell: Spell) -> str:
    head, *body = _cells(corner, rows, spell)
    if spell is _absolute:
        units = ["", *(column.unit for column in COLUMNS)]
        head = [
            f"{title}, {unit}" if unit else title for title, unit in zip(head, units, strict=True)
        ]
    head = [title.replace("*", "·").replace(", /", " /") for title in head]
    rule = ["---", *("--:" for _ in COLUMNS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def save(contest: Contest, against: str | None, path: Path) -> None:
    """Everything as one JSON object; samples are rows below the names in `sample_fields`."""
    rows = contest.rows()
    reference = rows.get(against or "")
    controllers = [
        {
            "name": name,
            "figures": asdict(row),
            "ratios": asdict(ratios(row, reference)) if reference else None,
            "runs": [_run_as_json(run) for run in contest.runs[name]],
        }
        for name, row in rows.items()
    ]
    content = {
        "schema": SCHEMA,
        **{key: value for key, value in vars_of(contest).items() if key != "runs"},
        "against": against if reference else None,
        "sample_fields": list(Sample.__dataclass_fields__),
        "controllers": controllers,
    }
    path.write_text(json.dumps(content) + "\n")


def vars_of(contest: Contest) -> dict[str, Any]:
    """The fields of a contest, not copied deeply."""
    return {name: getattr(contest, name) for name in Contest.__dataclass_fields__}


def load(path: Path) -> Contest:
    """What `save` wrote. Errors: OSError, ValueError, KeyError, TypeError: it did not."""
    content = json.loads(path.read_text())
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']} is not {SCHEMA}")
    names = content["sample_fields"]
    runs = {
        entry["name"]: [_run_from_json(run, names) for run in entry["runs"]]
        for entry in content["controllers"]
    }
    plain = {name: content[name] for name in Contest.__dataclass_fields__ if name != "runs"}
    return Contest(**plain, runs=runs)


def _run_as_json(run: Run) -> dict[str, Any]:
    names = Sample.__dataclass_fields__
    return {
        "cost": asdict(run.cost) if run.cost else None,
        "samples": [[getattr(sample, name) for name in names] for sample in run.samples],
    }


def _run_from_json(run: dict[str, Any], names: Iterable[str]) -> Run:
    cost = run["cost"]
    rows = (dict(zip(names, row, strict=True)) for row in run["samples"])
    return Run(samples=tuple(Sample(**row) for row in rows), cost=Cost(**cost) if cost else None)
