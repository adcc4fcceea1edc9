"""A guest's command line: its RAM, its id, what keeps KSM out of its memory."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksmtuned.guests.launch import launch_of
from ksmtuned.guests.options import keyvals, options, parse_bytes
from ksmtuned.guests.rules import guest_name, judge, scope_name

MIB, GIB = 2**20, 2**30
QEMU = "qemu-system-x86_64"
RAM, FILE, MEMFD = "memory-backend-ram", "memory-backend-file", "memory-backend-memfd"
LIBVIRT_MEMFD = json.dumps(
    {"qom-type": "memory-backend-memfd", "id": "pc.ram", "share": True, "size": 2 * GIB}
)
LIBVIRT_RAM = json.dumps({"qom-type": "memory-backend-ram", "id": "pc.ram", "size": 2 * GIB})
DIMM = ("-object", "memory-backend-ram,id=m1,size=1G", "-device", "pc-dimm,memdev=m1")


def words(text: str) -> list[str]:
    return [QEMU, *text.split()]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("512M", 512 * MIB),
        ("1.5G", 3 * GIB // 2),
        ("0x10M", 16 * MIB),
        ("2g", 2 * GIB),
        ("1048576k", GIB),
        ("8b", 8),
        ("4GiB", 4 * GIB),
        ("", None),
        ("-1", None),
        ("1e9", None),
        ("9" * 20, None),
        ("G", None),
    ],
)
def test_a_size_is_read_as_qemu_reads_it(text: str, size: int | None) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("-m 512", 512 * MIB),
        ("-m 2G", 2 * GIB),
        ("-m 2G,slots=2,maxmem=8G", 2 * GIB),
        ("-m size=1048576k", GIB),
        ("--m size=1,slots=2", MIB),
        ("-m 1G -m 2G", 2 * GIB),
        (
            "-object memory-backend-ram,id=a,size=1G -object memory-backend-ram,id=b,size=1G",
            2 * GIB,
        ),
        ("-m 1G -object memory-backend-ram,id=a,size=1G -machine q35,memory-backend=a", GIB),
        ("-m lots", None),
        ("-S", None),
        ("-m", None),
    ],
)
def test_qemus_ram_is_what_its_command_line_says(line: str, size: int | None) -> None:
    assert launch_of(QEMU, words(line)).ram_bytes == size


def test_a_dimm_in_a_slot_comes_on_top() -> None:
    assert launch_of(QEMU, [QEMU, "-m", "2G", *DIMM]).ram_bytes == 3 * GIB


def test_libvirts_json_objects_are_understood() -> None:
    line = [QEMU, "-machine", "pc-q35-9.0,memory-backend=pc.ram", "-object", LIBVIRT_MEMFD]
    launch = launch_of(QEMU, line)
    assert launch.ram_bytes == 2 * GIB
    assert launch.obstacle is not None
    assert launch.obstacle.why == "shared memory (memory-backend-memfd)"


def test_the_uuid_is_taken_from_the_command_line() -> None:
    assert launch_of(QEMU, words("-uuid 0a9f -m 1G")).uuid == "0a9f"
    assert launch_of(QEMU, words("-m 1G")).uuid is None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-machine q35,mem-merge=off", "started with mem-merge=off"),
        ("-M q35 -machine mem-merge=no", "started with mem-merge=off"),
        ("-mem-path /dev/hugepages", "huge pages (hugetlbfs)"),
        (
            f"-object {FILE},id=a,size=1G,mem-path=/dev/hugepages/x -machine memory-backend=a",
            "huge pages (hugetlbfs)",
        ),
        (
            "-object memory-backend-memfd,id=a,size=1G,hugetlb=on -machine memory-backend=a",
            "huge pages (hugetlbfs)",
        ),
        (
            "-object memory-backend-file,id=a,size=1G,mem-path=/x,share=on -numa node,memdev=a",
            "shared memory (memory-backend-file)",
        ),
        (
            "-object memory-backend-ram,id=a,size=1G,merge=off -machine memory-backend=a",
            "started with merge=off",
        ),
        (
            "-device vfio-pci,host=0000:01:00.0",
            "memory pinned for a passed-through device (vfio-pci)",
        ),
        ("-object sev-guest,id=s", "encrypted memory (sev-guest)"),
    ],
)
def test_what_keeps_ksm_out_is_told(line: str, why: str) -> None:
    obstacle = launch_of(QEMU, words(line)).obstacle
    assert obstacle is not None
    assert obstacle.why == why


@pytest.mark.parametrize(
    "line",
    [
        "-m 1G",
        "-machine q35,mem-merge=on",
        # Shared memory beside the guest's own: a window to a neighbour, a persistent disk.
        "-m 1G -object memory-backend-memfd,id=shm,size=1M -device ivshmem-plain,memdev=shm",
        # Two nodes, of which one is private.
        f"-object {RAM},id=a -object {MEMFD},id=b -numa node,memdev=a -numa node,memdev=b",
        "-object memory-backend-memfd,id=a,size=1G,share=off -machine memory-backend=a",
        "-object memory-backend-file,id=a,size=1G,mem-path=/srv/x -machine memory-backend=a",
    ],
)
def test_ordinary_memory_is_no_obstacle(line: str) -> None:
    assert launch_of(QEMU, words(line)).obstacle is None


def test_libvirts_private_ram_is_no_obstacle() -> None:
    line = [QEMU, "-machine", "q35,memory-backend=pc.ram", "-object", LIBVIRT_RAM]
    assert launch_of(QEMU, line).obstacle is None


@pytest.mark.parametrize(
    ("line", "size", "why"),
    [
        ("--memory size=2G,mergeable=on", 2 * GIB, None),
        ("--memory=size=2G,mergeable=on", 2 * GIB, None),
        ("--memory size=2G", 2 * GIB, "started without mergeable=on"),
        ("--memory size=1G,shared=on,mergeable=on", GIB, "shared memory (shared=on)"),
        ("--memory size=1G,hugepages=on,mergeable=on", GIB, "huge pages (hugetlbfs)"),
        (
            "--memory size=0 --memory-zone id=a,size=1G,mergeable=on id=b,size=1G --cpus boot=1",
            2 * GIB,
            None,
        ),
        (
            "--memory size=1G,mergeable=on --device path=/sys/bus/pci/devices/0",
            GIB,
            "memory pinned for a passed-through device (VFIO)",
        ),
        ("--api-socket /tmp/x", None, None),
    ],
)
def test_cloud_hypervisor_is_read(line: str, size: int | None, why: str | None) -> None:
    launch = launch_of("cloud-hypervisor", ["cloud-hypervisor", *line.split()])
    assert launch.ram_bytes == size
    assert (launch.obstacle.why if launch.obstacle else None) == why


def test_firecracker_tells_nothing_of_its_ram_and_crosvm_counts_in_mib() -> None:
    assert launch_of("firecracker", ["firecracker", "--id", "x"]).ram_bytes is None
    assert launch_of("crosvm", ["crosvm", "run", "-m", "256"]).ram_bytes == 256 * MIB
    assert launch_of("crosvm", ["crosvm", "run", "--mem", "size=512"]).ram_bytes == 512 * MIB


@pytest.mark.parametrize(
    "line", ["-machine none,accel=kvm:tcg -S", "-M none", "-machine type=none"]
)
def test_a_machine_of_type_none_is_a_probe(line: str) -> None:
    assert launch_of(QEMU, words(line)).is_probe


def test_a_guest_is_no_probe() -> None:
    assert not launch_of(QEMU, words("-machine q35 -m 1G -S")).is_probe


@pytest.mark.parametrize(
    ("cgroup", "name"),
    [
        (r"/machine.slice/machine-qemu\x2d3\x2dweb\x2d1.scope", "web-1"),
        (r"/machine.slice/machine-qemu\x2d3\x2dweb.scope/libvirt/emulator", "web"),
        ("/qemu.slice/100.scope", "100"),
        ("/system.slice/my-vm.service", "my-vm"),
        ("/user.slice/user-1000.slice/session-4.scope", None),
        ("/user.slice/user@1000.service", None),
        ("/", None),
        ("", None),
        (None, None),
    ],
)
def test_a_control_group_may_name_a_guest(cgroup: str | None, name: str | None) -> None:
    assert scope_name(cgroup) == name


def test_proxmoxs_number_names_what_has_no_name() -> None:
    assert guest_name(["kvm", "-id", "100", "-name", "web,debug-threads=on"], "kvm") == "web"
    assert guest_name(["kvm", "-id", "100"], "kvm") == "100"


@given(st.lists(st.text(max_size=30), max_size=12))
def test_no_command_line_is_an_error(cmdline: list[str]) -> None:
    for vmm in (QEMU, "cloud-hypervisor", "firecracker", "crosvm"):
        launch = launch_of(vmm, [vmm, *cmdline])
        assert launch.ram_bytes is None or 0 <= launch.ram_bytes < 2**70


@given(
    st.text(st.sampled_from('{}[]":,=size1G-')),
    st.sampled_from(["m", "object", "machine", "device", "numa", "uuid"]),
)
def test_no_option_s_value_is_an_error(value: str, option: str) -> None:
    launch_of(QEMU, [QEMU, f"-{option}", value])


def test_commas_and_json_are_keyvals_alike() -> None:
    assert keyvals("a,,b,size=1", "name") == {"name": "a,b", "size": "1"}
    assert keyvals('{"size": 1, "share": true, "x": "y"}', "name") == {
        "size": "1",
        "share": "true",
        "x": "y",
    }
    assert keyvals("{broken", "name") == {}


def test_only_wanted_options_are_read() -> None:
    line = ["qemu", "-m", "1G", "-S", "-name", "-m", "--memory-zone", "a", "b", "stray"]
    assert list(options(line, ("m", "memory-zone"))) == [
        ("m", "1G"),
        ("memory-zone", "a"),
        ("memory-zone", "b"),
        ("memory-zone", "stray"),
    ]


# -- the verdict -----------------------------------------------------------------------------------

HUGE = launch_of(QEMU, words("-mem-path /dev/hugepages")).obstacle
MERGE_OFF = launch_of(QEMU, words("-machine q35,mem-merge=off")).obstacle
VFIO = launch_of(QEMU, words("-device vfio-pci,host=1")).obstacle
PAGES = GIB // 4096


@pytest.mark.parametrize(
    ("is_offered", "visited", "merged", "obstacle", "verdict"),
    [
        (True, 0, 0, None, (True, None, "on")),
        (False, 0, 0, None, (False, "it offers KSM no memory", "off")),
        (False, 0, 0, MERGE_OFF, (False, "started with mem-merge=off", "off")),
        # Switched on while it runs: then it is the kernel that is right.
        (True, 0, 0, MERGE_OFF, (True, None, "on")),
        # Switched off while it runs: what ksmd still keeps in mind says nothing.
        (False, PAGES, 0, None, (False, "it offers KSM no memory", "off")),
        # Video memory is mergeable even where no RAM is.
        (True, 4096, 10, HUGE, (False, "huge pages (hugetlbfs)", "off")),
        (True, PAGES // 2, 10, HUGE, (True, None, "on")),
        (True, PAGES, 10, VFIO, (False, VFIO and VFIO.why, "on")),
        (True, PAGES, PAGES // 2, VFIO, (True, None, "on")),
        # Before 6.14 the kernel says nothing.
        (None, 0, 0, None, (None, "this kernel does not say (before 6.14)", None)),
        (None, 100, 0, None, (True, None, "on")),
        (None, 0, 0, HUGE, (False, "huge pages (hugetlbfs)", "off")),
        (None, 0, 0, VFIO, (False, VFIO and VFIO.why, None)),
    ],
)
def test_kernel_and_command_line_are_weighed(
    is_offered: bool | None, visited: int, merged: int, obstacle: object, verdict: object
) -> None:
    assert judge(is_offered, visited, merged, obstacle, GIB) == verdict  # type: ignore[arg-type]
