"""`ksmtuned unmerge`: give every merged page, or one guest's, its own memory back, safely."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial

from ksmtuned import hold, report
from ksmtuned.asking import ask
from ksmtuned.config import Locations, load
from ksmtuned.errors import AlreadyRunning, ExitStatus, NotUnmerged
from ksmtuned.guests.inventory import Inventory
from ksmtuned.headroom import Headroom, Limit
from ksmtuned.host.host import Host
from ksmtuned.host.lease import PATIENCE_S as LEASE_PATIENCE_S
from ksmtuned.host.lease import Lease, daemon_pid
from ksmtuned.intents import Answer, Intent
from ksmtuned.model import Guest
from ksmtuned.need import Order, measure
from ksmtuned.originals import Originals
from ksmtuned.progress import Interrupts, end_bar, show_bar
from ksmtuned.rundir import RunDir
from ksmtuned.units import printable
from ksmtuned.unmerging import STEP_S, Outcome, unmerging

SUMMARY = "give merged pages their own memory back, if it fits"
EPILOG = """\
Afterwards ksmd stays stopped, whatever the policy, until `ksmtuned resume`. Ctrl-C stops between
two guests.

example:
  ksmtuned unmerge --dry-run    what it needs, what there is, and what would be done
"""
_VERB = "unmerge"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom, and how sure."""
    parser.add_argument(
        "guest",
        nargs="?",
        metavar="GUEST",
        help="one guest alone: not yet (default: the whole host)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what it needs and what would be done"
    )
    parser.add_argument(
        "--force", action="store_true", help="also if it does not fit: guests may be killed"
    )


def run(args: argparse.Namespace) -> int:
    """Errors: ConfigError, NoKsm, KernelRefused, Garbled, RunDirError, UsageError, NotUnmerged,
    AlreadyRunning, Busy, NoAnswer."""
    host, rundir = Host(args.root), RunDir(args.run_dir)
    patterns = load(Locations.of(args.config, args.config_dir)).settings.guests.comm
    if not args.dry_run:
        host.ksm.check_may_write()
    order = Order(
        guests=_guests(host, patterns),
        only=args.guest,
        force=args.force,
    )
    if args.dry_run:
        return _foretell(host, order)
    patience_s = 0.0 if daemon_pid(args.root) else LEASE_PATIENCE_S
    try:
        with Lease(args.root, patience_s):
            answer = _unmerge_here(host, rundir, order)
    except AlreadyRunning:
        order.guest()  # say what is wrong with it before anybody is asked
        wish = Intent(verb=_VERB, guest=args.guest, force=args.force)
        with Interrupts() as interrupts:
            answer = _ask(args, rundir, wish, interrupts)
    if answer.exit_status != ExitStatus.DONE:
        print(f"ksmtuned: {printable(answer.text)}", file=sys.stderr)
    else:
        print(f"unmerged  {printable(answer.text)} until `ksmtuned resume`")
    return answer.exit_status


def _guests(host: Host, patterns: tuple[str, ...]) -> tuple[Guest, ...]:
    return Inventory(host, patterns, "none").read()


def _unmerge_here(host: Host, rundir: RunDir, order: Order) -> Answer:
    """No daemon runs, and none can start: the lease is ours."""
    boot_id = host.proc.boot_id()
    originals = Originals.load(rundir, boot_id)
    originals.adopt(*host.ksm.read())
    with Interrupts() as interrupts:
        work = unmerging(
            host,
            originals,
            Order(
                guests=order.guests,
                only=order.only,
                force=order.force,
                is_wanted=lambda: not interrupts.came,
                begin=partial(hold.leave, rundir, boot_id, _VERB),
            ),
        )
        while True:
            try:
                step = next(work)
            except StopIteration as end:
                outcome: Outcome = end.value
                end_bar()
                return Answer(text=outcome.text, exit_status=outcome.exit_status)
            show_bar(step.text, step.progress)
            time.sleep(STEP_S)


def _ask(args: argparse.Namespace, rundir: RunDir, wish: Intent, interrupts: Interrupts) -> Answer:
    try:
        return ask(args.root, rundir, wish, show_bar, lambda: interrupts.came)
    except KeyboardInterrupt:
        print("ksmtuned: taken back before it was begun; nothing was done", file=sys.stderr)
        raise
    finally:
        end_bar()


def _foretell(host: Host, order: Order) -> int:
    need, problem = measure(host, order), ""
    try:
        order.check_way()
    except NotUnmerged as error:
        problem = str(error)
    lines = [f"seen      {report.seen(host.snapshot(), with_guests=False)}", f"need      {need}"]
    lines += [f"limit     {limit}" for limit in _worth_telling(need)]
    lines += [f"limit     not all are known: {need.unknown}"] if need.unknown else []
    lines += [f"problem   {problem}" for problem in need.problems]
    lines += [f"problem   {problem}"] if problem else []
    is_done = not problem and (order.force or not need.problems)
    lines.append(f"to do     {_plan(order, need) if is_done else 'nothing: it would be refused'}")
    print("\n".join(map(printable, lines)))
    return ExitStatus.DONE if is_done else ExitStatus.BAD_NEWS


def _worth_telling(need: Headroom) -> list[Limit]:
    """The tightest, if it fits; those that do not are problems."""
    return [limit for limit in need.tightest_first()[:1] if limit.fits]


def _plan(order: Order, need: Headroom) -> str:
    """What would be done, in its order."""
    one_by_one = [printable(g.name) for g in order.guests if order.sharing(g) is not None]
    one_by_one = [printable(order.only)] if order.only else one_by_one
    steps = ["stop ksmd (run=0)"]
    if need.need_bytes:
        steps += [f"unmerge {', '.join(one_by_one)} through QMP"] if one_by_one else []
        rest = "the rest" if one_by_one else "everything"
        steps += [] if order.only else [f"unmerge {rest} at once (run=2, then 0)"]
    by_force = " by force, though it does not fit:" if need.problems else ""
    return f"{by_force} {'; '.join(steps)}; hold that until `ksmtuned resume`".lstrip()
