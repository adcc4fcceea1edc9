"""Real virtual machines and their real events: a guest is named at once, a probe wakes nobody."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from daemon_under_test import Daemon
from realkvm import guest, listen, need_kvm, wait_for_machine
from workplace import Workbench, wait_until

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("real_ksm")]

ADAPTIVE = 'policy = "adaptive"\nprofile = "test"\n'
# Between two looks nothing but events: what happens within the hour is their doing.
EVENTS_ALONE = f'{ADAPTIVE}interval = "1 h"\n'


@pytest.fixture
def bench(folder: Path) -> Workbench:
    bench = Workbench(folder)
    bench.dropins.mkdir()
    need_kvm()
    return bench


def published(bench: Workbench) -> dict[int, dict[str, Any]]:
    """The guests in state.json, by pid."""
    return {guest["pid"]: guest for guest in bench.state()["guests"]}


def ticks(daemon: Daemon) -> int:
    """How often it looked so far; this is one more, by USR1."""

    def published() -> int:
        return int(daemon.place.state()["totals"]["ticks"])

    before = published()
    daemon.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: published() > before, "one more look")
    return published()


def quiet(daemon: Daemon) -> int:
    """Wait until it only watches; how often it looked."""

    def is_watching() -> bool:
        ticks(daemon)
        return str(daemon.place.state()["phase"]) == "watch"

    wait_until(is_watching, "a watch")
    time.sleep(0.5)
    return ticks(daemon)


@pytest.mark.parametrize("config", [ADAPTIVE, EVENTS_ALONE], ids=["every second", "events alone"])
def test_a_guest_is_named_within_a_second(bench: Workbench, config: str) -> None:
    bench.configure(config)
    with Daemon(bench) as daemon:
        daemon.start()
        quiet(daemon)
        started_s = time.monotonic()
        with guest(name="guest=vm1,debug-threads=on") as vm:
            line = f"ksmtuned: guest vm1 ({vm.pid}) came: qemu-system-x86_64, 256.0 MiB of RAM"
            wait_until(lambda: line in daemon.log, f"{line} in {daemon.log}", 5)
            took_s = time.monotonic() - started_s
            wait_until(lambda: vm.pid in published(bench), "published", 5)
            found = published(bench)[vm.pid]
        wait_until(lambda: f"ksmtuned: guest vm1 ({vm.pid}) left" in daemon.log, f"{daemon.log}", 5)
        assert daemon.stop() == 0
    print(f"named {took_s:.2f} s after its program was started")
    assert took_s < 1.0
    assert (found["name"], found["ram_bytes"]) == ("vm1", 256 * 2**20)


def test_ten_capability_probes_wake_it_at_most_once(bench: Workbench) -> None:
    bench.configure(EVENTS_ALONE)
    uevents = listen()
    with Daemon(bench) as daemon:
        daemon.start()
        before = quiet(daemon)
        for _ in range(10):
            with guest(name="probe") as probe:
                wait_for_machine(uevents, probe)  # else nothing would be proved
                time.sleep(0.05)
        time.sleep(1.5)
        woken = ticks(daemon) - before - 1
        assert not [line for line in daemon.log if "probe" in line], daemon.log
        # It is not deaf: one that stays does wake it.
        with guest(name="stays") as vm:
            wait_until(lambda: any(f"stays ({vm.pid}) came" in s for s in daemon.log), "named", 5)
        assert daemon.stop() == 0
    print(f"ten probes woke it {woken} times")
    assert woken <= 1
