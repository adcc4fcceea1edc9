"""The adaptive law on what a real kernel showed it: recorded by record.py on 6.18."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ksmtuned.model import Decision, Guest, KsmStat, Meminfo, Phase, Snapshot
from ksmtuned.policies.adaptive import Adaptive

TRACES = sorted(Path(__file__).with_name("traces").glob("*.jsonl.gz"))
LAW = Adaptive(max_cpu=100.0, is_frugal=False)
each_trace = pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.name.split(".")[0])


def revived(now: dict[str, Any]) -> Snapshot:
    """The snapshot that was written."""
    parts = {
        "ksm": KsmStat(**now["ksm"]),
        "meminfo": Meminfo(**now["meminfo"]),
        "guests": tuple(Guest(**guest) for guest in now["guests"]),
    }
    return Snapshot(**{**now, **parts})


def lines_of(trace: Path) -> list[dict[str, Any]]:
    """All ticks."""
    with gzip.open(trace, "rt") as file:
        return [json.loads(line) for line in file]


def replayed(law: Adaptive, lines: list[dict[str, Any]]) -> list[Decision]:
    """What that law decides on these readings."""
    past, decisions = law.start(), []
    for line in lines:
        decision, past = law.decide(revived(line["now"]), past)
        decisions.append(decision)
    return decisions


def test_there_are_traces() -> None:
    assert {path.name.split(".")[0] for path in TRACES} >= {"storm", "churn", "barren", "update"}


@each_trace
def test_a_real_kernels_readings_give_the_recorded_decisions(trace: Path) -> None:
    lines = lines_of(trace)
    for line, decision in zip(lines, replayed(LAW, lines), strict=True):
        found = {
            "settings": decision.settings.wanted(),
            "phase": decision.phase,
            "code": decision.code,
            "reason": decision.reason,
        }
        assert found == line["decision"]


@each_trace
def test_a_trace_ends_in_watch_with_ksmd_stopped(trace: Path) -> None:
    last = lines_of(trace)[-1]
    assert last["decision"]["phase"] == Phase.WATCH
    assert last["now"]["ksm"]["run"] == 0


@each_trace
def test_without_the_newer_counters_nothing_is_asked_that_is_not_there(trace: Path) -> None:
    """As Debian 12's 6.1 would have shown them."""
    lines = lines_of(trace)
    for line in lines:
        line["now"].pop("arrived_bytes", None)
        for name in ("pages_scanned", "pages_skipped", "smart_scan", "ksm_zero_pages"):
            line["now"]["ksm"].pop(name, None)
        line["now"]["ksm"].pop("general_profit", None)
    decisions = replayed(LAW, lines)
    assert {decision.phase for decision in decisions} >= {Phase.SETTLE, Phase.BURST, Phase.WATCH}
    assert all(decision.settings.smart_scan is None for decision in decisions)
    assert all(decision.settings.use_zero_pages is None for decision in decisions)
