"""Which processes are guests, what they are called, and what their memory is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakehost import FakeHost

from ksmtuned.guests.inventory import Inventory
from ksmtuned.guests.rules import guest_name, program, recogniser
from ksmtuned.host.host import Host
from ksmtuned.settings import GuestsTable

PATTERNS = GuestsTable().comm
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "comm",
    [
        "qemu-kvm",
        "qemu-system-x86",
        "qemu-system-aar",
        "qemu:debian12",
        ".qemu-system-x8",  # as NixOS wraps it
        "kvm",
        "cloud-hyperviso",  # cut by the kernel
        "firecracker",
        "crosvm",
    ],
)
def test_a_vmm_of_every_name_is_a_guest(comm: str) -> None:
    assert recogniser(PATTERNS)(comm)


@pytest.mark.parametrize(
    "comm",
    ["qemu-img", "qemu-nbd", "qemu-ga", "qemu-x86_64", "kvm-pit/1234", "bash", "akvm", "ksmd", ""],
)
def test_what_only_resembles_a_vmm_is_no_guest(comm: str) -> None:
    assert not recogniser(PATTERNS)(comm)


def test_no_pattern_means_no_guest() -> None:
    assert not recogniser([])("qemu-kvm")
    assert not recogniser([])("")


@pytest.mark.parametrize(
    ("cmdline", "name"),
    [
        (["qemu", "-name", "web1"], "web1"),
        (["qemu", "-name", "guest=web1,debug-threads=on"], "web1"),
        (["qemu", "-name", "web1,process=qemu:web1"], "web1"),
        (["qemu", "-name", "a,,b,debug-threads=on"], "a,b"),
        (["qemu", "-name", "debug-threads=on"], "otherwise"),
        (["firecracker", "--id", "fc-1"], "fc-1"),
        (["qemu", "-name"], "otherwise"),
        ([], "otherwise"),
    ],
)
def test_a_guest_is_called_what_its_command_line_says(cmdline: list[str], name: str) -> None:
    assert guest_name(cmdline, otherwise="otherwise") == name


def test_a_program_name_that_the_kernel_cut_is_completed_but_never_replaced() -> None:
    cmdline = ["/usr/bin/qemu-system-x86_64", "-S"]
    assert program("qemu-system-x86", cmdline) == "qemu-system-x86_64"
    assert program("qemu-kvm", cmdline) == "qemu-kvm"
    assert program("qemu-system-aar", cmdline) == "qemu-system-aar"


@pytest.fixture
def fake(folder: Path) -> FakeHost:
    return FakeHost(folder / "host")


def inventory(fake: FakeHost, measure: str = "rss") -> Inventory:
    return Inventory(Host(fake.root), PATTERNS, measure)


def memory(guests: Inventory) -> dict[str, int]:
    return {guest.name: guest.memory_bytes for guest in guests.read()}


def test_guests_come_grow_and_go(fake: FakeHost) -> None:
    guests = inventory(fake)
    assert memory(guests) == {}
    fake.add_guest(1000, name="a", rss_pages=100)
    fake.add_guest(1001, name="b", rss_pages=200)
    assert memory(guests) == {"a": 100 * PAGE, "b": 200 * PAGE}
    fake.resize(1000, rss_pages=150)
    fake.remove_process(1001)
    assert memory(guests) == {"a": 150 * PAGE}


def test_a_pid_that_is_given_to_another_process_is_another_guest(fake: FakeHost) -> None:
    guests = inventory(fake)
    fake.add_guest(1000, name="a", rss_pages=100)
    (first,) = guests.read()
    fake.add_guest(1000, name="b", rss_pages=100)
    (second,) = guests.read()
    assert (first.name, second.name) == ("a", "b")
    assert first.start_time != second.start_time


def test_a_process_that_takes_another_program_is_seen(fake: FakeHost) -> None:
    guests = inventory(fake)
    fake.add_process(1000, comm="rpc-libvirtd")
    assert memory(guests) == {}
    fake.rename(1000, comm="qemu-kvm")
    assert len(guests.read()) == 1


def test_a_guest_that_dies_while_it_is_read_is_left_out(fake: FakeHost) -> None:
    guests = inventory(fake)
    fake.add_guest(1000, name="a")
    fake.add_guest(1001, name="b")
    guests.read()
    fake.half_vanish(1000)
    assert list(memory(guests)) == ["b"]


def test_a_garbled_process_hides_no_other(fake: FakeHost) -> None:
    fake.add_guest(1000, name="a")
    fake.add_guest(1001, name="b")
    fake.write("proc/1000/stat", "1000 (qemu-kvm) S one two\n")
    assert list(memory(inventory(fake))) == ["b"]


def test_a_comm_with_brackets_and_line_ends_is_read_right(fake: FakeHost) -> None:
    fake.add_guest(1000, name="a", comm="qemu:) S 2\n(", rss_pages=7)
    assert [guest.memory_bytes for guest in inventory(fake).read()] == [7 * PAGE]


def test_a_kernel_thread_is_no_guest_whatever_its_name(fake: FakeHost) -> None:
    fake.add_kernel_thread(1000, comm="kvm")
    assert memory(inventory(fake)) == {}


def test_without_a_measure_no_memory_is_read(fake: FakeHost) -> None:
    fake.add_guest(1000, name="a")
    assert memory(inventory(fake, "none")) == {"a": 0}


def test_a_cgroup_counts_once_however_many_guests_are_in_it(fake: FakeHost) -> None:
    for pid, name in ((1000, "a"), (1001, "b"), (1002, "c")):
        fake.add_guest(pid, name=name, rss_pages=100)
        fake.write(f"proc/{pid}/cgroup", "0::/machine.slice/pod\n")
    fake.write("proc/1002/cgroup", "0::/machine.slice/vm.scope/libvirt/emulator\n")
    fake.write("sys/fs/cgroup/machine.slice/pod/memory.stat", "anon 4096\nfile 1\n")
    fake.write("sys/fs/cgroup/machine.slice/vm.scope/memory.stat", "anon 8192\n")
    found = memory(inventory(fake, "cgroup"))
    assert (found["a"] + found["b"], found["c"]) == (4096, 8192)


def test_cgroup_v1_is_understood(fake: FakeHost) -> None:
    fake.add_guest(1000, name="a")
    fake.write("proc/1000/cgroup", "4:cpu,cpuacct:/x\n3:memory:/vm\n0::/\n")
    fake.write("sys/fs/cgroup/memory/vm/memory.stat", "cache 1\ntotal_rss 12288\n")
    assert memory(inventory(fake, "cgroup")) == {"a": 12288}


def test_a_cgroup_path_never_leads_out_of_the_tree(fake: FakeHost) -> None:
    fake.add_guest(1000, name="a", rss_pages=3)
    fake.write("proc/1000/cgroup", "0::/../../../etc\n")
    fake.write("etc/memory.stat", "anon 999999\n")
    assert memory(inventory(fake, "cgroup")) == {"a": 3 * PAGE}


def test_pss_is_read_and_where_it_is_missing_rss_counts(fake: FakeHost) -> None:
    fake.add_guest(1000, name="a", rss_pages=10)
    fake.add_guest(1001, name="b", rss_pages=10)
    fake.write("proc/1000/smaps_rollup", "0-1 ---p 0 0:0 0 [rollup]\nRss: 40 kB\nPss: 12 kB\n")
    (fake.root / "proc/1001/smaps_rollup").unlink()
    assert memory(inventory(fake, "pss")) == {"a": 12 * 1024, "b": 10 * PAGE}


@pytest.fixture
def vmm(tmp_path: Path) -> Path:
    """A program of the name of QEMU that sleeps."""
    program = tmp_path / "qemu-system-x86_64"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    return program


def names_on_this_machine(guests: Inventory, pid: int) -> list[str]:
    return [guest.vmm for guest in guests.read() if guest.pid == pid]


def test_on_a_real_procfs_a_guest_is_followed_until_it_dies(vmm: Path) -> None:
    guests = Inventory(Host(Path("/")), PATTERNS, "rss")
    with subprocess.Popen([vmm, "100"]) as process:
        assert names_on_this_machine(guests, process.pid) == ["qemu-system-x86_64"]
        (guest,) = (guest for guest in guests.read() if guest.pid == process.pid)
        assert guest.memory_bytes > 0
        process.kill()
    assert names_on_this_machine(guests, process.pid) == []


def test_on_a_real_procfs_a_fresh_process_is_looked_at_again_after_its_exec(vmm: Path) -> None:
    """As libvirt does it: fork first, take the VMM's program a moment later."""
    guests = Inventory(Host(Path("/")), PATTERNS, "rss")
    code = f"import os; input(); os.execv({str(vmm)!r}, ['vmm', '100'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert names_on_this_machine(guests, process.pid) == []
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        while Path(f"/proc/{process.pid}/comm").read_text() != "qemu-system-x86\n":
            pass
        assert names_on_this_machine(guests, process.pid) == ["qemu-system-x86"]
        process.kill()
