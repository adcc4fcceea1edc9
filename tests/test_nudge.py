"""A daemon is woken; nobody else ever gets the signal."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon_under_test import Daemon
from fakehost import FakeHost
from workplace import Workplace

from ksmtuned.host.files import Tree
from ksmtuned.host.oneprocess import lock_holder
from ksmtuned.nudge import wake_daemon
from ksmtuned.rundir import RunDir

USR1_BIT = 1 << (signal.SIGUSR1 - 1)


def show(host: FakeHost, pid: int, *, is_holder: bool = True, catches: bool = True) -> None:
    """proc as the kernel would show the process: its lock on KSM's folder, its handlers."""
    found = host.ksm.stat()
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    line = f"1: FLOCK  ADVISORY  {'WRITE' if is_holder else 'READ'} {pid} {device} 0 EOF\n"
    host.write("proc/locks", f"1: POSIX  ADVISORY  WRITE {pid} {device} 0 EOF\n{line}")
    host.write(f"proc/{pid}/status", f"SigCgt:\t{USR1_BIT if catches else 0:016x}\n")


def note(place: Workplace, pid: object) -> None:
    (place.run_dir / "state.json").write_text(json.dumps({"pid": pid}))


def wake(place: Workplace) -> bool:
    return wake_daemon(Tree(place.host.root), RunDir(place.run_dir))


@contextmanager
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that the signal would end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        assert process.poll() is None
        process.kill()


def test_a_daemon_is_woken(place: Workplace, daemon: Daemon) -> None:
    show(place.host, daemon.process.pid)
    daemon.expect_silence()
    assert wake(place)
    daemon.wait_for("STATUS")


def test_who_does_not_hold_the_lock_is_left_alone(place: Workplace) -> None:
    with bystander() as process:
        note(place, process.pid)
        assert not wake(place)
        show(place.host, process.pid, is_holder=False)
        assert not wake(place)


def test_who_would_die_of_the_signal_is_left_alone(place: Workplace) -> None:
    with bystander() as process:
        note(place, process.pid)
        show(place.host, process.pid, catches=False)
        assert not wake(place)


def test_the_holder_must_be_the_one_that_the_state_names(place: Workplace) -> None:
    with bystander() as one, bystander() as other:
        note(place, one.pid)
        show(place.host, other.pid)
        assert not wake(place)


def test_strange_pids_and_no_state_at_all_are_survived(place: Workplace) -> None:
    assert not wake(place)
    for pid in (None, "1", -1, 0, 1, 2**40, True, [os.getpid()], 2**22 - 1):
        note(place, pid)
        assert not wake(place)
    (place.run_dir / "state.json").write_text("{")
    assert not wake(place)


def test_on_the_real_proc_the_holder_is_seen(folder: Path) -> None:
    root_fd = os.open(folder, os.O_RDONLY)
    try:
        tree = Tree(Path("/"))
        name = str(folder.relative_to("/"))
        assert lock_holder(tree, name) is None
        fcntl.flock(root_fd, fcntl.LOCK_EX)
        assert lock_holder(tree, name) == os.getpid()
    finally:
        os.close(root_fd)
