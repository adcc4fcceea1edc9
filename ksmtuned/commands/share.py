"""`ksmtuned share`: a running guest's memory in or out of KSM."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksmtuned.config import Locations, load
from ksmtuned.errors import ExitStatus
from ksmtuned.host.files import Tree
from ksmtuned.host.host import Host
from ksmtuned.report import SCHEMA
from ksmtuned.rundir import RunDir
from ksmtuned.units import printable

if TYPE_CHECKING:  # asyncio comes with it, and every verb imports this file
    from ksmtuned.share import Outcome

SUMMARY = "take a running guest's memory into KSM, or out of it"
EPILOG = """\
Tells QEMU, over its QMP monitor, to offer all of the guest's memory to KSM or to take it back,
and looks in /proc whether the kernel did so. It lasts until the guest ends: its next start goes by
its own configuration (-machine mem-merge=off; libvirt: <memoryBacking><nosharepages/>).
`off` gives every merged page its own memory back at once; the guest stands still meanwhile, about
a second for each GiB that was merged.

examples:
  ksmtuned share vm1 off                          after a guest was found to be none to trust
  ksmtuned share 4711 on --qmp /run/vm1.qmp       by pid, with the socket of its monitor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which guest, which way."""
    parser.add_argument("guest", metavar="GUEST", help="its name, pid, UUID or Proxmox number")
    parser.add_argument("state", choices=("on", "off"), help="in KSM, or out of it")
    parser.add_argument(
        "--qmp",
        type=Path,
        metavar="PATH",
        help="the socket of its QMP monitor (default: as its command line says)",
    )
    parser.add_argument(
        "--force", action="store_true", help="off, even if memory may not suffice for it"
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Errors: NoSuchGuest, CannotShare, NoRoom, WrongPeer, GuestGone, MonitorBroken,
    MonitorRefused, NotAllSet, KernelRefused, ConfigError, NoKsm."""
    from ksmtuned.guests.find import find
    from ksmtuned.nudge import wake_daemon
    from ksmtuned.share import monitor_of, share

    patterns = load(Locations.of(args.config, args.config_dir)).settings.guests.comm
    host, tree = Host(args.root), Tree(args.root)
    guest = find(tree, patterns, args.guest)
    wanted = args.state == "on"
    with monitor_of(tree, guest, args.qmp) as monitor:
        outcome = share(monitor, guest, host.proc.meminfo(), wanted, is_forced=args.force)
    is_told = wake_daemon(tree, RunDir(args.run_dir))
    if args.json:
        print(json.dumps(_json(outcome, is_told)))
    else:
        print("\n".join(map(printable, _lines(outcome, is_told, args))))
    return ExitStatus.DONE if outcome.verdict == "verified" else ExitStatus.BAD_NEWS


def _json(outcome: Outcome, is_told: bool) -> dict[str, Any]:
    before, after = outcome.use_before, outcome.use_after
    return {
        "schema": SCHEMA,
        "guest": {
            "pid": outcome.guest.process.pid,
            "name": outcome.guest.name,
            "vmm": outcome.guest.vmm,
            "uuid": outcome.guest.uuid,
        },
        "share": outcome.wanted,
        "qemu": ".".join(map(str, outcome.qemu)),
        "backends": [
            {"path": a.path, "bytes": a.size_bytes, "before": b.merge, "after": a.merge}
            for b, a in zip(outcome.before, outcome.after, strict=True)
        ],
        "merging_pages_before": before and before.merging_pages,
        "merging_pages_after": after and after.merging_pages,
        "zero_pages_before": before and before.zero_pages,
        "zero_pages_after": after and after.zero_pages,
        "verified": {"verified": True, "failed": False}.get(outcome.verdict),
        "proof": outcome.proof,
        "daemon_told": is_told,
    }


def _lines(outcome: Outcome, is_told: bool, args: argparse.Namespace) -> list[str]:
    pairs = zip(outcome.before, outcome.after, strict=True)
    changed = [after.name for before, after in pairs if before.merge != after.merge]
    word = "on" if outcome.wanted else "off"
    done = f"merge = {word} on {', '.join(changed)}, until the guest ends"
    lines = [
        f"guest     {outcome.guest.label}, QEMU {'.'.join(map(str, outcome.qemu))}",
        f"set       {done if changed else f'merge was {word} already'}",
        f"{outcome.verdict:9} {outcome.proof}",
    ]
    if is_told:
        lines.append("daemon    told to look at once")
    if changed:
        lines.append(f"undo      {_undo(outcome, args)}")
    return lines


def _undo(outcome: Outcome, args: argparse.Namespace) -> str:
    words = [*args.program, "share", args.guest, "off" if outcome.wanted else "on"]
    words += ["--root", str(args.root)] if str(args.root) != "/" else []
    words += ["--qmp", str(args.qmp)] if args.qmp else []
    return shlex.join(words)
