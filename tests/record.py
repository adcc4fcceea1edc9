"""Records what the law saw and decided on the real kernel, for test_adaptive_traces.py.

usage (as root, on a machine whose KSM nobody else needs):
  python tests/record.py SCENARIO SECONDS FILE.jsonl.gz

One line for each tick: {"now": the snapshot, "decision": what came of it}; what is None is left
out. Profile test; the guests are those of the contest (benchmarks/scenarios.py).
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.crew import Crew, build  # noqa: E402
from benchmarks.kernel import DEFAULTS, lent  # noqa: E402
from benchmarks.scenarios import SCENARIOS, events  # noqa: E402
from ksmtuned.engine import Engine  # noqa: E402
from ksmtuned.host.host import Host  # noqa: E402
from ksmtuned.model import Tick  # noqa: E402
from ksmtuned.orders import orders_of  # noqa: E402
from ksmtuned.originals import Originals  # noqa: E402
from ksmtuned.rundir import RunDir  # noqa: E402
from ksmtuned.settings import RootTable  # noqa: E402


def line_of(tick: Tick) -> dict[str, Any]:
    """One tick, to be written; process ids stay, for they say nothing."""
    now = asdict(tick.now) | {"ksm": _given(tick.now.ksm), "meminfo": _given(tick.now.meminfo)}
    del now["unread"], now["others"]  # no law reads them, nor a guest's details
    for guest in now["guests"]:
        del guest["details"]
    decision = tick.decision
    return {
        "now": {key: value for key, value in now.items() if value is not None},
        "decision": {
            "settings": decision.settings.wanted(),
            "phase": decision.phase,
            "code": decision.code,
            "reason": decision.reason,
        },
    }


def _given(values: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(values).items() if value is not None}


def record(name: str, seconds: float, file: Path) -> None:
    """Errors: KsmtunedError, OSError."""
    scenario = SCENARIOS[name]
    with lent() as ksm, tempfile.TemporaryDirectory() as folder:
        ksm.clean({control: value for control, value in DEFAULTS.items() if ksm.has(control)})
        program = build(Path(folder), is_disguised=False)
        host = Host(Path("/"))
        rundir = RunDir(Path(folder, "run"))
        originals = Originals.load(rundir, host.proc.boot_id())
        settings = RootTable(policy="adaptive", profile="test")
        engine = Engine(host, orders_of(settings), originals)
        with Crew(program, scenario) as crew, gzip.open(file, "wt") as trace:
            start_s = time.monotonic()
            due = events(scenario, seconds)
            story = threading.Thread(target=_tell, args=(crew, due, start_s), daemon=True)
            story.start()
            while time.monotonic() - start_s < seconds:
                tick = engine.tick()
                trace.write(json.dumps(line_of(tick), separators=(",", ":")) + "\n")
                time.sleep(tick.decision.next_tick_s or engine.policy_interval_s)
            story.join()


def _tell(crew: Crew, due: list[Any], start_s: float) -> None:
    for event in due:
        time.sleep(max(0.0, start_s + event.at_s - time.monotonic()))
        crew.do(event)


if __name__ == "__main__":
    record(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
