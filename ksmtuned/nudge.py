"""Asks a running daemon to look at the host at once."""

from __future__ import annotations

import os
import signal

from ksmtuned.errors import KsmtunedError
from ksmtuned.host.files import Tree
from ksmtuned.host.ksm import FOLDER
from ksmtuned.host.oneprocess import Process, is_our_namespace, lock_holder
from ksmtuned.rundir import STATE, RunDir


def wake_daemon(tree: Tree, rundir: RunDir) -> bool:
    """Send SIGUSR1 to the daemon of this RUN_DIR; False: there is none, or it may not be.

    A pid in a file may be anybody's by now. So the process must hold the lock on KSM's folder and
    have a handler for the signal, which would end any other; and it is held by a descriptor
    before it is looked at, so that it stays the one that was looked at.
    """
    try:
        pid = (rundir.read(STATE) or {}).get("pid")
        if not isinstance(pid, int) or not 1 < pid < 2**22 or not is_our_namespace(tree):
            return False
        fd = os.pidfd_open(pid)  # Linux 5.3
    except (KsmtunedError, OSError):
        return False
    try:
        is_daemon = lock_holder(tree, FOLDER) == pid
        if not is_daemon or not Process(tree, pid, 0).catches(signal.SIGUSR1):
            return False
        signal.pidfd_send_signal(fd, signal.SIGUSR1)
    except (KsmtunedError, OSError):
        return False
    finally:
        os.close(fd)
    return True
