"""`ksmtuned share` on real QEMU guests and this machine's real KSM."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemon_under_test import Daemon
from realksm import RealKsm
from realqemu import FILLED_PAGES, Qemu, qemus
from workplace import Workbench, wait_until

from ksmtuned.host.files import Tree
from ksmtuned.host.oneprocess import Process

# Every test here waits for its turn on this machine, also those that need only QEMU.
pytestmark = [pytest.mark.live, pytest.mark.usefixtures("real_ksm")]

FLAT_OUT = {"pages_to_scan": 20_000, "sleep_millisecs": 1, "run": 1}
OFF = 'policy = "off"\ninterval = "1 h"\n'
FIXED = 'policy = "fixed"\ninterval = "1 h"\n[fixed]\npages_to_scan = 20000\nsleep_millisecs = 1\n'


@pytest.fixture
def bench(folder: Path) -> Workbench:
    bench = Workbench(folder)
    bench.dropins.mkdir()
    bench.configure(OFF)
    return bench


def is_merged(guest: Qemu) -> bool:
    return guest.merged_pages() >= FILLED_PAGES


@contextmanager
def merging(ksm: RealKsm, guests: list[Qemu]) -> Iterator[None]:
    """ksmd flat out, from when all of them are merged."""
    for name, value in FLAT_OUT.items():
        ksm.write(name, value)
    for guest in guests:
        wait_until(lambda g=guest: is_merged(g), f"{guest.name} merged", 40)  # type: ignore[misc]  # mypy cannot infer a default's type
    yield
    ksm.write("run", 0)


def test_one_of_four_guests_is_taken_out_and_in_again_while_ksmd_runs(
    real_ksm: RealKsm, bench: Workbench, folder: Path
) -> None:
    with (
        qemus(folder, ["vm1", "vm2", "vm3", "vm4"]) as guests,
        merging(real_ksm, guests),
    ):
        vm1, *others = guests
        before = [guest.merged_pages() for guest in guests]
        off = bench.call("share", "vm1", "off")
        assert off.returncode == 0, off.stdout + off.stderr
        assert "verified" in off.stdout
        assert vm1.merged_pages() < before[0] * 0.05
        assert all(is_merged(guest) for guest in others)
        assert real_ksm.number("pages_sharing") >= 2 * FILLED_PAGES

        on = bench.call("share", "vm1", "on", "--json")
        assert on.returncode == 0, on.stdout + on.stderr
        assert json.loads(on.stdout)["verified"] is True
        wait_until(lambda: is_merged(vm1), "vm1 merged again", 40)
        assert [guest.merged_pages() for guest in guests] == before


def test_off_is_verified_while_ksmd_is_stopped_and_its_counts_stand_still(
    real_ksm: RealKsm, bench: Workbench, folder: Path
) -> None:
    with qemus(folder, ["vm1", "vm2"]) as guests:
        with merging(real_ksm, guests):
            pass
        off = bench.call("share", "vm1", "off")
        assert off.returncode == 0, off.stdout + off.stderr
        assert "verified" in off.stdout
        assert is_merged(guests[0]), "the kernel counts at once here: this test proves nothing"
        assert "when it comes by again" in off.stdout
        again = bench.call("share", "vm1", "off")
        assert again.returncode == 0, again.stdout + again.stderr
        real_ksm.write("run", 1)
        wait_until(lambda: guests[0].merged_pages() < FILLED_PAGES * 0.05, "counted out", 20)
        assert is_merged(guests[1])


def test_a_guest_that_began_with_mem_merge_off_can_be_taken_in(
    real_ksm: RealKsm, bench: Workbench, folder: Path
) -> None:
    with (
        qemus(folder, ["in"]) as inside,
        qemus(folder, ["out"], "-machine", "pc,mem-merge=off") as outside,
    ):
        on = bench.call("share", "out", "on")
        assert on.returncode == 0, on.stdout + on.stderr
        with merging(real_ksm, [*inside, *outside]):
            assert bench.call("share", "out", "off").returncode == 0
            wait_until(lambda: outside[0].merged_pages() == 0, "all of it is out", 5)


@pytest.mark.parametrize("order", [("off", "on"), ("on", "off", "off")])
def test_every_backend_of_a_guest_with_two_nodes_is_set(
    bench: Workbench, folder: Path, order: tuple[str, ...]
) -> None:
    """One of them has merge=off from the start, and QEMU offers it to KSM all the same."""
    nodes = [
        *("-object", "memory-backend-ram,id=ram0,size=64M", "-numa", "node,memdev=ram0"),
        *("-object", "memory-backend-ram,id=ram1,size=64M,merge=off", "-numa", "node,memdev=ram1"),
    ]
    with qemus(folder, ["numa"], *nodes) as (guest,):
        process = Process(Tree(Path("/")), guest.pid, 0)
        for state in order:
            result = bench.call("share", "numa", state, "--json")
            assert result.returncode == 0, result.stdout + result.stderr
            found = json.loads(result.stdout)
            after = {b["path"]: b["after"] for b in found["backends"]}
            wanted = state == "on"
            assert after == {"/objects/ram0": wanted, "/objects/ram1": wanted}
            offered_bytes = process.mergeable_bytes() or 0
            assert (offered_bytes >= 128 * 2**20) == wanted
            assert wanted or offered_bytes < 16 * 2**20


def test_shared_memory_is_told(bench: Workbench, folder: Path) -> None:
    memfd = ("-object", "memory-backend-memfd,id=m,size=128M", "-machine", "pc,memory-backend=m")
    with qemus(folder, ["shared"], *memfd):
        result = bench.call("share", "shared", "on")
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
        assert "its memory is shared" in result.stderr


def test_a_process_that_calls_itself_qemu_and_names_anothers_socket_is_refused(
    bench: Workbench, folder: Path
) -> None:
    """A shell of that name, which waits and ignores the words behind its script."""
    program = folder / "qemu-system-x86_64"
    shutil.copy(shutil.which("bash") or "/bin/bash", program)
    with qemus(folder, ["victim"]) as (victim,):
        words = ["-name", "guest=impostor", "-qmp", f"unix:{victim.socket},server=on,wait=off"]
        command = [str(program), "-c", "read -r line", *words]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as impostor:
            result = bench.call("share", "impostor", "off")
            assert impostor.poll() is None
            impostor.kill()
        assert result.returncode == 1
        assert f"process {victim.pid} listens there" in result.stderr
        state = json.loads(bench.call("share", "victim", "off", "--json").stdout)
        assert state["backends"][0]["before"] is True  # nobody had touched it


def test_a_monitor_that_somebody_else_uses_is_told_within_its_time(
    bench: Workbench, folder: Path
) -> None:
    with qemus(folder, ["busy"]) as (guest,), socket.socket(socket.AF_UNIX) as other:
        other.connect(str(guest.socket))
        other.recv(1000)
        result = bench.call("share", "busy", "off", timeout=40)
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
        assert "somebody else speaks with it" in result.stderr


def test_a_running_daemon_is_told_and_lives_on(
    real_ksm: RealKsm, bench: Workbench, folder: Path
) -> None:
    bench.configure(FIXED)
    with qemus(folder, ["vm1", "vm2"]) as guests, Daemon(bench) as daemon:
        daemon.start()
        for guest in guests:
            wait_until(lambda g=guest: is_merged(g), f"{guest.name} merged", 40)  # type: ignore[misc]  # mypy cannot infer a default's type
        daemon.expect_silence()
        found = json.loads(bench.call("share", "vm1", "off", "--json").stdout)
        assert (found["verified"], found["daemon_told"]) == (True, True)
        daemon.wait_for("STATUS")
        assert daemon.stop() == 0
        assert real_ksm.read("run") == "0"
