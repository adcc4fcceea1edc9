"""Real virtual machines: QEMU with KVM, stopped before its first instruction (-S)."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ksmtuned.triggers.uevent import News, Uevents

QEMU = "qemu-system-x86_64"
_PATIENCE_S = 20.0


def need_kvm() -> None:
    """Skips where there is no QEMU, or no KVM for it."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"live: no {QEMU} here (apt-get install qemu-system-x86)")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("live: no /dev/kvm here, or not for us")


@contextmanager
def guest(*options: str, name: str = "vm1", mib: int = 256) -> Iterator[subprocess.Popen[bytes]]:
    """A guest that never runs; killed at the end."""
    command = [QEMU, "-accel", "kvm", "-S", "-nodefaults", "-display", "none"]
    command += ["-m", str(mib), "-name", name, *options]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_machine(uevents: Uevents, process: subprocess.Popen[bytes]) -> None:
    """Until the kernel has told that this process created a virtual machine."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        threads = {event.thread_id for event in uevents.take() if event.news is News.CREATED}
        if any(thread and _belongs(thread, process.pid) for thread in threads):
            return
        assert process.poll() is None, f"{QEMU} ended by itself: {process.returncode}"
        time.sleep(0.002)
    pytest.fail("no event of KVM came")


def _belongs(thread: int, pid: int) -> bool:
    return Path(f"/proc/{pid}/task/{thread}").exists()


def listen() -> Uevents:
    """The kernel's news, for the test itself. Skips where there is none."""
    try:
        return Uevents()
    except (OSError, ImportError) as error:
        pytest.skip(f"live: no kernel events here: {error}")
