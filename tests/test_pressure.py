"""Pressure that wakes: what the kernel grants is polled, what it refuses is told once."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
from errno import EACCES, EINVAL, ENOENT, EOPNOTSUPP, EPERM
from pathlib import Path

import pytest
from fakehost import FakeHost
from workplace import wait_until

from ksmtuned.errors import KernelRefused
from ksmtuned.events import Events
from ksmtuned.host.host import Host
from ksmtuned.triggers.psi import THRESHOLDS, Pressures
from ksmtuned.triggers.trial import PAUSE_S

_BUSY = "import time\nend = time.monotonic() + 0.3\nwhile time.monotonic() < end: pass"


class Kernel:
    """Grants descriptors that a test can make urgent (POLLPRI), by what sockets call so."""

    def __init__(self) -> None:
        self.ours: dict[str, socket.socket] = {}
        self.asked: dict[str, str] = {}

    def watch(self, resource: str, threshold: str) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        self.ours[resource] = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        listener.close()
        self.asked[resource] = threshold
        return theirs.detach()

    def press(self, resource: str) -> None:
        self.ours[resource].send(b"!", socket.MSG_OOB)

    def break_all(self) -> None:
        for end in self.ours.values():
            at_once = struct.pack("ii", 1, 0)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)  # close() resets it
            end.close()

    def close(self) -> None:
        for end in self.ours.values():
            end.close()


def polled(pressures: Pressures) -> list[tuple[int, int]]:
    poll = select.poll()
    for fd in pressures.filenos():
        poll.register(fd, select.POLLPRI)
    return poll.poll(1000)


def test_what_is_under_pressure_is_told_apart() -> None:
    kernel = Kernel()
    pressures = Pressures(kernel.watch)
    assert kernel.asked == THRESHOLDS
    kernel.press("cpu")
    ready = polled(pressures)
    assert pressures.take(ready) == {"cpu"}
    kernel.press("memory")
    assert pressures.take(polled(pressures)) == {"cpu", "memory"}
    assert pressures.refused == {}
    pressures.drop_broken([(fd, select.POLLERR) for fd in pressures.filenos()])
    kernel.close()


def test_a_descriptor_that_broke_is_closed_and_polled_no_more() -> None:
    """Else poll(2) would return at once for ever."""
    kernel = Kernel()
    pressures = Pressures(kernel.watch)
    (broken, *_) = pressures.filenos()
    assert pressures.drop_broken([(broken, select.POLLERR)]) == [broken]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(broken)
    assert broken not in pressures.filenos()
    pressures.drop_broken([(fd, select.POLLERR) for fd in pressures.filenos()])
    kernel.close()


@pytest.mark.parametrize("errno", [EOPNOTSUPP, ENOENT, EACCES, EPERM, EINVAL])
def test_each_refusal_is_survived_and_kept(errno: int) -> None:
    def refuse(resource: str, threshold: str) -> int:
        raise KernelRefused(Path("/x", resource), errno, threshold)

    pressures = Pressures(refuse)
    assert pressures.filenos() == {}
    assert {resource: error.errno for resource, error in pressures.refused.items()} == {
        "memory": errno,
        "cpu": errno,
    }


def test_thresholds_need_no_capability() -> None:
    """kernel/sched/psi.c: windows of 0.5 to 10 s; without CAP_SYS_RESOURCE, multiples of 2 s."""
    for threshold in THRESHOLDS.values():
        kind, stall, window = threshold.split()
        assert kind == "some"
        assert 0 < int(stall) <= int(window) <= 10_000_000
        assert int(window) % 2_000_000 == 0


def test_a_missing_file_is_a_refusal_that_says_what_was_tried(folder: Path) -> None:
    host = Host(FakeHost(folder / "host").root)
    (folder / "host/proc/pressure/memory").unlink()
    with pytest.raises(KernelRefused, match=r"pressure/memory: No such file .*tried some 1 2"):
        host.pressure.watch("memory", "some 1 2")


def test_on_this_kernel_a_threshold_is_granted_and_wakes() -> None:
    host = Host(Path("/"))
    try:
        fd = host.pressure.watch("cpu", "some 1000 2000000")
    except KernelRefused as error:
        pytest.skip(f"no pressure events for us here: {error}")
    busy = [sys.executable, "-c", _BUSY]
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    count = (os.cpu_count() or 1) * 2  # more than there are CPUs, so that some have to wait
    processes = [subprocess.Popen(busy) for _ in range(count)]
    try:
        assert poll.poll(10_000) == [(fd, select.POLLPRI)]
    finally:
        for process in processes:
            process.wait()
        os.close(fd)


def test_on_this_kernel_an_impossible_threshold_is_refused() -> None:
    if not os.access("/proc/pressure/memory", os.W_OK):
        pytest.skip("no pressure files for us here")
    with pytest.raises(KernelRefused) as caught:
        Host(Path("/")).pressure.watch("memory", "some 3000000 2000000")
    assert caught.value.errno in (EINVAL, EOPNOTSUPP, EPERM)


# -- all events together ---------------------------------------------------------------------------


def no_probe(_: int) -> bool:
    return False


def test_where_proc_is_no_procfs_there_are_no_events_and_nothing_is_said(folder: Path) -> None:
    said: list[str] = []
    events = Events(Host(FakeHost(folder / "host").root), no_probe, said.append)
    poll = select.poll()
    events.register(poll, is_scanning=True)
    assert poll.poll(0) == []
    assert (events.take([]), events.remaining_s(), said) == (False, None, [])


def test_cpu_pressure_is_polled_only_while_ksmd_takes_part_in_it() -> None:
    def descriptors(*, is_scanning: bool) -> int:
        registered: list[int] = []
        poll = _Poll(registered)
        events.register(poll, is_scanning=is_scanning)  # type: ignore[arg-type]  # looks alike
        return len(registered)

    said: list[str] = []
    events = Events(Host(Path("/")), no_probe, said.append)
    if any("pressure" in line for line in said):
        pytest.skip(f"no pressure events here: {said}")
    assert descriptors(is_scanning=True) == descriptors(is_scanning=False) + 1


class _Poll:
    def __init__(self, registered: list[int]) -> None:
        self._registered = registered

    def register(self, thing: int, _: int) -> None:
        self._registered.append(thing)


def listening(kernel: Kernel) -> tuple[Events, select.poll]:
    """This machine's events, with pressure that a test can make."""
    host = Host(Path("/"))
    host.pressure = kernel  # type: ignore[assignment]  # opens what the kernel would
    events = Events(host, no_probe, lambda _: None)
    poll = select.poll()
    events.register(poll, is_scanning=True)
    return events, poll


def test_pressure_is_worth_a_look_at_once_and_the_next_one_a_little_later() -> None:
    kernel = Kernel()
    events, poll = listening(kernel)
    events.take([])
    kernel.press("memory")
    ready = poll.poll(1000)
    assert events.take(ready)
    assert not events.take(ready)  # still under pressure: not again at once
    assert 0 < (events.remaining_s() or 0) <= PAUSE_S
    kernel.close()


def test_a_threshold_that_broke_does_not_keep_the_daemon_awake() -> None:
    kernel = Kernel()
    events, poll = listening(kernel)
    kernel.break_all()  # POLLERR and POLLHUP, for ever
    wait_until(lambda: bool(poll.poll(0)), "poll reports it")
    wait_until(lambda: not events.take(poll.poll(0)) and not poll.poll(0), "poll is quiet", 5)
