"""`ksmtuned status`: what KSM saves, what was decided, and why."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from ksmtuned import hold, report
from ksmtuned.errors import ExitStatus, Garbled, KernelRefused, KsmtunedError
from ksmtuned.host.host import Host
from ksmtuned.host.lease import is_held
from ksmtuned.model import Snapshot
from ksmtuned.rundir import ORIGINAL, STATE, RunDir
from ksmtuned.units import duration, printable

SUMMARY = "what KSM saves here, what ksmtuned last decided, and why"
EPILOG = """\
example:
  ksmtuned status --json | jq .saving_bytes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to print it."""
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Errors: NoKsm, Garbled."""
    host = Host(args.root)
    now = host.snapshot()
    rundir = RunDir(args.run_dir)
    state, why_not = _state(rundir)
    running = is_held(args.root)
    if args.json:
        print(json.dumps(_json(now, state, why_not) | {"running": running}))
    else:
        lines = [*_lines(now, state, why_not, running), *_hold(rundir, host.proc.boot_id())]
        print("\n".join(map(printable, lines)))
    return ExitStatus.DONE


def _state(rundir: RunDir) -> tuple[dict[str, Any] | None, str]:
    """What the daemon last published, or why we cannot tell."""
    try:
        noted = "; `ksmtuned restore` undoes a single run" if rundir.read(ORIGINAL) else ""
        return rundir.read(STATE), f"nothing: no daemon has published anything{noted}"
    except KernelRefused as error:
        return None, f"not readable: {error}, or as a member of group ksmtuned"
    except Garbled as error:
        return None, f"not readable: {error}"


def _hold(rundir: RunDir, boot_id: str) -> list[str]:
    try:
        held = hold.load(rundir, boot_id)
    except KsmtunedError as error:
        return [f"trouble   {error}"]
    return [f"hold      {held.reason}"] if held else []


def _json(now: Snapshot, state: dict[str, Any] | None, why_not: str) -> dict[str, Any]:
    """The last decision with what is seen now: readings age, decisions stand until the next."""
    fresh = report.host_json(now) | {"guests": [], "others": []}
    if state is None:
        return fresh | {"errors": [*fresh["errors"], why_not]}
    about_now = ("schema", "snapshot", "saving_bytes", "profit_bytes")
    return fresh | state | {key: fresh[key] for key in about_now}


def _lines(now: Snapshot, state: dict[str, Any] | None, why_not: str, running: bool) -> list[str]:
    lines = [f"memory    {report.memory(now.meminfo)}", f"ksm       {report.pace(now.ksm)}"]
    lines.append(f"saving    {report.saving(now.ksm)}")
    lines.append(f"pages     {_pages(now)}")
    if now.ksmd_cpu_s is not None:
        lines.append(f"cost      {duration(now.ksmd_cpu_s)} of CPU by ksmd since boot")
    lines.append(f"daemon    {'running' if running else 'not running'}")
    if state is None:
        return [*lines, f"decided   {why_not}"]
    ago = duration(max(0.0, now.time - _number(state.get("time"))))
    lines.append(f"decided   {ago} ago: {state.get('policy')}, {state.get('code')}")
    lines.append(f"reason    {state.get('reason')}")
    lines += [f"trouble   {text}" for text in _texts(state.get("errors"))]
    return lines


def _pages(now: Snapshot) -> str:
    ksm = now.ksm
    counts = (
        f"{ksm.pages_shared} shared, {ksm.pages_sharing} sharing, {ksm.pages_unshared} unshared"
    )
    ratio = ""
    if ksm.pages_shared and ksm.pages_sharing:
        ratio = f" ({ksm.pages_sharing / ksm.pages_shared:.1f} sharing for each shared)"
    return f"{counts}, {ksm.pages_volatile} volatile; {ksm.full_scans} full scans{ratio}"


def _number(value: object) -> float:
    if isinstance(value, int | float) and abs(value) < 2**53:
        return float(value)
    return time.time()


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []
