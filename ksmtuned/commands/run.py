"""`ksmtuned run`, and `ksmtuned` alone: tune this host, as a daemon or once."""

from __future__ import annotations

import argparse

from ksmtuned.commands import once
from ksmtuned.config import Locations, load
from ksmtuned.errors import UsageError
from ksmtuned.host.host import Host
from ksmtuned.host.lease import Lease
from ksmtuned.rundir import RunDir

SUMMARY = "tune this host: the daemon, or --once"
EPILOG = """\
signals: HUP reads the configuration again, USR1 looks at the host at once, TERM and INT stop

example:
  ksmtuned --once --dry-run    what would be done on this host now, and why
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The daemon has no options of its own; --once and what goes with it make it a single tick."""
    parser.add_argument("--once", action="store_true", help="read once, decide once, write once")
    parser.add_argument(
        "--dry-run", action="store_true", help="with --once: only say what would be written"
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="with --once: stay until what there is to merge is merged (policy adaptive)",
    )
    parser.add_argument("--json", action="store_true", help="with --once: the result as JSON")


def run(args: argparse.Namespace) -> int:
    """The daemon, in the foreground, until TERM or INT.

    Errors: ConfigError, NoKsm, KernelRefused (no right to write), AlreadyRunning.
    """
    if args.once:
        return once.run(args)
    for option in ("dry_run", "wait", "json"):
        if getattr(args, option):
            raise UsageError(f"--{option.replace('_', '-')} goes with --once")
    from ksmtuned.daemon import Daemon, raise_descriptor_limit  # pyudev, systemd: for it alone

    where = Locations.of(args.config, args.config_dir)
    config = load(where)
    raise_descriptor_limit()
    host = Host(args.root)
    host.ksm.check_may_write()
    with Lease(args.root):
        return Daemon(host, where, config, RunDir(args.run_dir)).run()
