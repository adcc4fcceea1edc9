"""One tick in the foreground: what was seen, decided, written, and how to undo it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from contextlib import nullcontext

from ksmtuned import hold, report
from ksmtuned.config import Locations, load
from ksmtuned.engine import Engine
from ksmtuned.host.host import Host
from ksmtuned.host.lease import Lease
from ksmtuned.model import Tick, exit_status
from ksmtuned.orders import orders_of
from ksmtuned.originals import Originals
from ksmtuned.progress import wait_for_burst
from ksmtuned.rundir import DEFAULT, RunDir
from ksmtuned.units import printable


def run(args: argparse.Namespace) -> int:
    """Errors: ConfigError, NoKsm, AlreadyRunning, KernelRefused, Garbled, RunDirError."""
    config = load(Locations.of(args.config, args.config_dir))
    host = Host(args.root)
    if not args.dry_run:
        host.ksm.check_may_write()
    rundir = RunDir(args.run_dir)
    boot_id = host.proc.boot_id()
    with nullcontext() if args.dry_run else Lease(args.root):
        # A dry run writes nothing, so it needs no first values: an ordinary user may not read them.
        originals = Originals(rundir, boot_id) if args.dry_run else Originals.load(rundir, boot_id)
        engine = Engine(host, orders_of(config.settings), originals)
        held = hold.load(rundir, boot_id)
        if args.wait and not args.dry_run and held is None:
            tick = wait_for_burst(engine)
        else:
            standing = held.decision() if held else None
            tick = engine.tick(dry_run=args.dry_run, is_alone=True, standing=standing)
    if args.json:
        about = {"dry_run": args.dry_run}
        print(
            json.dumps(report.tick_json(tick, {}, report.troubles(tick)) | about, allow_nan=False)
        )
    else:
        print("\n".join(map(printable, _lines(tick, args))))
    for refusal in tick.refused:
        print(f"ksmtuned: {refusal.error}", file=sys.stderr)
    return exit_status(tick.refused)


def _lines(tick: Tick, args: argparse.Namespace) -> list[str]:
    verb = "to write" if args.dry_run else "written"
    done = report.done(tick)
    if args.dry_run:
        done = report.writes(tick.planned, "nothing, all is as wanted")
    lines = [
        f"seen      {report.seen(tick.now)}",
        f"decided   {tick.policy}, {tick.decision.code}: {tick.decision.reason}",
        f"{verb:9} {done}",
    ]
    lines += [f"trouble   {text}" for text in (*tick.foreign, *tick.now.unread.values())]
    if args.dry_run:
        lines.append("undo      not needed: this was a dry run")
    elif tick.written:
        lines.append(f"undo      {_undo(args)}")
    return lines


def _undo(args: argparse.Namespace) -> str:
    words = [*args.program, "restore"]
    words += ["--root", str(args.root)] if str(args.root) != "/" else []
    words += ["--run-dir", str(args.run_dir)] if args.run_dir != DEFAULT else []
    return shlex.join(words)
