"""`ksmtuned resume`: end the hold that an unmerge left."""

from __future__ import annotations

import argparse

from ksmtuned import hold
from ksmtuned.asking import wake
from ksmtuned.errors import ExitStatus
from ksmtuned.host.host import Host
from ksmtuned.host.lease import is_held
from ksmtuned.rundir import HOLD, RunDir

SUMMARY = "end the hold that unmerge leaves: ksmd may scan again"
EPILOG = """\
example:
  ksmtuned resume    the daemon follows its policy again, at once
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace) -> int:
    """Errors: NoKsm, KernelRefused, RunDirError (no right to remove it)."""
    Host(args.root)  # is there a kernel with KSM at all?
    rundir = RunDir(args.run_dir)
    was_held = (rundir.path / HOLD).exists()
    hold.lift(rundir)
    if not was_held:
        print("resumed   nothing: there was no hold")
        return ExitStatus.DONE
    if wake(args.root):
        print("resumed   the daemon follows its policy again")
    elif is_held(args.root):
        print("resumed   the daemon was not to be woken from here: it will see it at its next look")
    else:
        print("resumed   no daemon runs, so ksmd stays as it is")
    return ExitStatus.DONE
