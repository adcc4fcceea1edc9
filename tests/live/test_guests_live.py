"""`ksmtuned guests` on the real kernel: what it says adds up, and is what the kernel says."""

from __future__ import annotations

import json
import mmap
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from realksm import RealKsm
from realkvm import guest, need_kvm
from workplace import Workbench, wait_until

from ksmtuned.host.host import Host
from ksmtuned.host.process import ProcessKsm
from ksmtuned.units import PAGE_BYTES

pytestmark = pytest.mark.live


def listed(bench: Workbench) -> dict[str, Any]:
    result = bench.call("guests", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def bench(folder: Path) -> Workbench:
    bench = Workbench(folder)
    bench.dropins.mkdir()
    bench.configure("")
    return bench


def test_shares_add_up_to_the_saving_in_sysfs(real_ksm: RealKsm, bench: Workbench) -> None:
    with real_ksm.tenants(3, pages=2000):
        real_ksm.merge(3500)
        found = listed(bench)
        saving = (real_ksm.number("pages_sharing") + real_ksm.number("ksm_zero_pages")) * PAGE_BYTES
    shares = [process["saving_bytes"] for process in (*found["guests"], *found["others"])]
    assert len(found["others"]) >= 3
    assert found["saving_bytes"] == saving
    assert abs(sum(shares) - saving) <= 0.02 * saving


def is_up(pid: int) -> bool:
    """Does its first virtual CPU exist? It is made after the memory."""
    names = Path(f"/proc/{pid}/fd").glob("*")
    return any("kvm-vcpu" in str(name.readlink()) for name in names)


@pytest.mark.usefixtures("real_ksm")
def test_what_a_real_qemu_was_started_with_is_told(bench: Workbench) -> None:
    need_kvm()
    memfd = "memory-backend-memfd,id=ram,size=128M"
    uuid = "0a9f9f0e-6c2b-4d53-8f0c-3a1f6f0a5d11"
    options = ("-object", memfd, "-machine", "pc,memory-backend=ram")
    with (
        guest("-uuid", uuid, name="guest=plain,debug-threads=on") as plain,
        guest("-machine", "pc,mem-merge=off", name="kept-out") as kept_out,
        guest(*options, name="shared", mib=128) as shared,
    ):
        for process in (plain, kept_out, shared):
            wait_until(partial(is_up, process.pid), "its machine is set up")
        found = {row["pid"]: row for row in listed(bench)["guests"]}
    assert (found[plain.pid]["name"], found[plain.pid]["uuid"]) == ("plain", uuid)
    assert found[plain.pid]["ram_bytes"] == 256 * 2**20
    verdicts = {
        row["name"]: (row["mergeable"], row["why_not"], row["share"]) for row in found.values()
    }
    assert verdicts == {
        "plain": (True, None, "on"),
        "kept-out": (False, "started with mem-merge=off", "off"),
        "shared": (False, "shared memory (memory-backend-memfd)", "off"),
    }


@pytest.mark.usefixtures("real_ksm")
def test_one_s_own_memory_is_seen_when_it_is_offered() -> None:
    """By the real ksm_stat of this kernel; needs no right but one's own."""
    processes = Host(Path("/")).processes

    def figures() -> ProcessKsm:
        found = processes.ksm(os.getpid(), processes.ksm_stat(os.getpid()).read())
        assert found is not None
        return found

    if figures().mergeable is None:
        pytest.skip("this kernel does not say (before 6.14)")
    before = figures().mergeable
    with mmap.mmap(-1, 16 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_MERGEABLE)
        assert figures().mergeable is True
        memory.madvise(mmap.MADV_UNMERGEABLE)
        assert figures().mergeable is before
