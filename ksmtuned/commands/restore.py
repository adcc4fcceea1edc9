"""`ksmtuned restore`: undo what ksmtuned did."""

from __future__ import annotations

import argparse
import sys

from ksmtuned import report
from ksmtuned.errors import ExitStatus
from ksmtuned.host.host import Host
from ksmtuned.host.lease import Lease
from ksmtuned.leave import give_back
from ksmtuned.model import exit_status
from ksmtuned.originals import Originals
from ksmtuned.rundir import STATE, RunDir
from ksmtuned.units import printable

SUMMARY = "give the kernel back its values from before ksmtuned"
_PATIENCE_S = 15.0
EPILOG = """\
example:
  ksmtuned restore    undo `ksmtuned --once`, or what a crashed daemon left
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace) -> int:
    """Errors: NoKsm, AlreadyRunning (a daemon restores by itself), Garbled, KernelRefused."""
    host, rundir = Host(args.root), RunDir(args.run_dir)
    # The child of a killed daemon may hold the lease until its write has landed.
    with Lease(args.root, patience_s=_PATIENCE_S):
        originals = Originals.load(rundir, host.proc.boot_id())
        if not originals:
            print("restored  nothing: no value from before ksmtuned is noted")
            return ExitStatus.DONE
        written, refused = give_back(host, originals)
        rundir.remove(STATE)
    print(
        printable(
            f"restored  {report.writes(written, 'nothing: no control still holds our value')}"
        )
    )
    for refusal in refused:
        print(f"ksmtuned: {refusal.error}", file=sys.stderr)
    return exit_status(refused)
