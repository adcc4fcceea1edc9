"""Asks a running daemon, from the side of a command: finds it, wakes it, waits for its answer."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ksmtuned.errors import AlreadyRunning, Busy, KsmtunedError, NoAnswer
from ksmtuned.host.ksm import FOLDER
from ksmtuned.host.lease import daemon_pid
from ksmtuned.intents import Answer, Asked, Intent
from ksmtuned.model import Phase
from ksmtuned.rundir import STATE, RunDir

_BEGIN_S = 30.0  # a tick may wait for the kernel, and measure a thousand guests
_SILENCE_S = 60.0  # the daemon publishes once a second while it unmerges
_LOOK_S = 0.1

Show = Callable[[str, float], None]


def wake(root: Path) -> bool:
    """Send the daemon USR1: one look at once. False: no daemon runs, or it cannot be seen."""
    with _daemon(root) as fd:
        if fd is None:
            return False
        signal.pidfd_send_signal(fd, signal.SIGUSR1)
        return True


def ask(
    root: Path, rundir: RunDir, wish: Intent, show: Show, is_interrupted: Callable[[], bool]
) -> Answer:
    """The daemon's answer. Whoever interrupts takes the wish back, if it is not begun; else the
    daemon stops when it can.

    Errors: AlreadyRunning (whoever holds the lease is no daemon), Busy, NoAnswer, RunDirError,
    KeyboardInterrupt (taken back).
    """
    with _daemon(root) as fd:
        if fd is None:
            raise AlreadyRunning(root / FOLDER)
        _check_listens_here(root, rundir)
        asked = Asked(rundir, wish)
        try:
            signal.pidfd_send_signal(fd, signal.SIGUSR1)
            return _wait(fd, asked, rundir, show, is_interrupted)
        finally:
            asked.close()


@contextmanager
def _daemon(root: Path) -> Iterator[int | None]:
    """A descriptor of the daemon's process: a signal through it reaches nobody else."""
    pid = daemon_pid(root)
    try:
        fd = os.pidfd_open(pid) if pid else None
    except OSError:
        fd = None
    try:
        # Looked at again: the pid may have been another's when the descriptor was opened.
        yield fd if fd is not None and daemon_pid(root) == pid else None
    finally:
        if fd is not None:
            os.close(fd)


def _check_listens_here(root: Path, rundir: RunDir) -> None:
    state, pid = _state(rundir), daemon_pid(root)
    if state.get("pid") != pid:
        raise Busy(f"the daemon (pid {pid}) does not publish in {rundir.path}: say its --run-dir")


def _wait(
    fd: int, asked: Asked, rundir: RunDir, show: Show, is_interrupted: Callable[[], bool]
) -> Answer:
    since_s, seen, is_given_up = time.monotonic(), None, False
    while True:
        has_ended = _is_over(fd)
        if (answer := asked.answer()) is not None:
            return answer
        if has_ended:
            asked.take_back()
            raise NoAnswer(
                "the daemon ended before it was done; see `ksmtuned status`: "
                "once begun, ksmd stays stopped until `ksmtuned resume`"
            )
        if is_interrupted() and not is_given_up:
            is_given_up = True
            if asked.take_back():
                raise KeyboardInterrupt
        state = _state(rundir)
        is_at_it = asked.is_begun() and state.get("phase") == Phase.UNMERGE
        if is_at_it and state.get("time") != seen:
            since_s, seen = time.monotonic(), state.get("time")
            _show(state, show, is_given_up)
        _check_patience(asked, time.monotonic() - since_s)


def _check_patience(asked: Asked, waited_s: float) -> None:
    if not asked.is_begun():
        if waited_s > _BEGIN_S and asked.take_back():
            raise NoAnswer(f"the daemon did not begin within {_BEGIN_S:.0f} s; nothing was done")
    elif waited_s > _SILENCE_S:
        raise NoAnswer(
            f"the daemon has been at it, and silent for {_SILENCE_S:.0f} s; see `ksmtuned status`"
        )


def _show(state: dict[str, Any], show: Show, is_given_up: bool) -> None:
    progress = state.get("progress")
    if isinstance(progress, int | float):
        note = "to be stopped: " if is_given_up else ""
        show(f"{note}{state.get('reason')}", min(1.0, max(0.0, progress)))


def _state(rundir: RunDir) -> dict[str, Any]:
    with suppress(KsmtunedError):
        return rundir.read(STATE) or {}
    return {}


def _is_over(fd: int) -> bool:
    """Has the process ended, or does it within a moment?"""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(_LOOK_S * 1000))
