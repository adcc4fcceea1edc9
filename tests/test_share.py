"""`ksmtuned share`: what it asks of QEMU, what it believes, what it refuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fakehost import FakeHost
from fakeqmp import MERGED, SOCKET, FakeQemu, fake_qemu
from workplace import Workplace

MONITOR = ("-qmp", f"unix:{SOCKET},server=on,wait=off")
UUID = "6c2b0a9f-9f0e-4d53-8f0c-3a1f6f0a5d11"

Start = Callable[..., FakeQemu]


@pytest.fixture
def start(place: Workplace) -> Iterator[Start]:
    """Starts fake guests; each has a file system of its own."""
    with ExitStack() as stack:
        count = 0

        def start(behaviour: str = "normal", *options: str, name: str = "vm") -> FakeQemu:
            nonlocal count
            count += 1
            guest = stack.enter_context(
                fake_qemu(place.host, place.folder / f"guest{count}", behaviour)
            )
            guest.appear(*(options or MONITOR), name=name)
            return guest

        yield start


def test_off_sets_every_backend_and_is_verified(place: Workplace, start: Start) -> None:
    guest = start()
    result = place.call("share", "vm", "off")
    assert result.returncode == 0, result.stderr
    assert guest.sets() == ["pc.ram False", "mem1 False", "mem2 False"]
    assert f"merged pages {MERGED} -> 0: 78.1 MiB given back" in result.stdout
    assert "verified" in result.stdout
    assert "until the guest ends" in result.stdout


def test_on_undoes_off(place: Workplace, start: Start) -> None:
    guest = start()
    place.call("share", "vm", "off")
    result = place.call("share", "vm", "on")
    assert result.returncode == 0, result.stderr
    assert guest.sets()[3:] == ["pc.ram True", "mem1 True", "mem2 True"]


def test_what_is_as_wanted_is_not_set_again(place: Workplace, start: Start) -> None:
    guest = start()
    result = place.call("share", "vm", "on")
    assert result.returncode == 0, result.stdout + result.stderr
    assert guest.sets() == []
    assert "merge was on already" in result.stdout


def test_what_is_off_by_its_flag_is_put_on_and_off_to_be_out_for_sure(
    place: Workplace, start: Start
) -> None:
    """QEMU offers a backend with merge=off at start all the same."""
    guest = start()
    place.call("share", "vm", "off")
    guest.show_ksm(MERGED, "yes")
    result = place.call("share", "vm", "off")
    assert result.returncode == 0, result.stdout + result.stderr
    assert guest.sets()[3:5] == ["pc.ram True", "pc.ram False"]
    assert guest.sets()[-1] == "mem2 False"


def test_json_tells_the_same(place: Workplace, start: Start) -> None:
    guest = start()
    found = json.loads(place.call("share", "vm", "off", "--json").stdout)
    assert found["guest"]["pid"] == guest.pid
    assert (found["share"], found["verified"], found["qemu"]) == (False, True, "8.2.1")
    assert (found["merging_pages_before"], found["merging_pages_after"]) == (MERGED, 0)
    assert [b["path"] for b in found["backends"]] == [
        "/objects/pc.ram",
        "/objects/mem1",
        "/objects/mem2",
    ]
    assert all(b["before"] and not b["after"] for b in found["backends"])
    assert found["daemon_told"] is False


def test_it_writes_no_ksm_file(place: Workplace, host: FakeHost, start: Start) -> None:
    start()
    before = host.controls()
    place.call("share", "vm", "off")
    assert host.controls() == before


# -- whom -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["vm", "pid", UUID, UUID.upper(), "104"])
def test_a_guest_is_found_by_name_pid_uuid_and_number(
    place: Workplace, start: Start, word: str
) -> None:
    guest = start("normal", *MONITOR, "-uuid", UUID, "-id", "104")
    start(name="other")
    result = place.call("share", str(guest.pid) if word == "pid" else word, "off")
    assert result.returncode == 0, result.stderr
    assert len(guest.sets()) == 3


def test_an_unknown_guest_is_one_line_with_those_that_there_are(
    place: Workplace, start: Start
) -> None:
    guest = start()
    result = place.call("share", "nobody", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert f"vm (pid {guest.pid})" in result.stderr


def test_an_ambiguous_name_touches_nobody(place: Workplace, start: Start) -> None:
    guests = [start(), start()]
    result = place.call("share", "vm", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    for guest in guests:
        assert f"vm (pid {guest.pid})" in result.stderr
        assert not guest.has_heard()


def test_a_process_that_is_no_guest_is_not_spoken_to_even_by_pid(
    place: Workplace, start: Start
) -> None:
    guest = start()
    place.host.rename(guest.pid, comm="sshd")
    result = place.call("share", str(guest.pid), "off")
    assert result.returncode == 1
    assert not guest.has_heard()


def test_another_state_than_on_or_off_is_wrong_usage(place: Workplace) -> None:
    assert place.call("share", "vm", "maybe").returncode == 2
    assert place.call("share", "vm").returncode == 2


# -- traps ------------------------------------------------------------------------------------


def test_a_process_that_names_somebody_elses_socket_is_refused(
    place: Workplace, start: Start
) -> None:
    victim, impostor = start(name="victim"), start(name="impostor")
    (impostor.proc / "root").unlink()
    (impostor.proc / "root").symlink_to(victim.folder)
    result = place.call("share", "impostor", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert f"process {victim.pid} listens there, not guest {impostor.pid}" in result.stderr
    assert not victim.has_heard()
    assert not impostor.has_heard()


def test_a_named_socket_must_belong_to_the_guest_too(place: Workplace, start: Start) -> None:
    victim = start(name="victim")
    start(name="vm")
    path = str(victim.folder / SOCKET.lstrip("/"))
    assert place.call("share", "vm", "off", "--qmp", path).returncode == 1
    assert not victim.has_heard()


def test_a_named_socket_is_used_instead_of_the_command_lines(
    place: Workplace, start: Start
) -> None:
    guest = start("normal", "-qmp", "unix:/nowhere,server=on")
    path = str(guest.folder / SOCKET.lstrip("/"))
    assert place.call("share", "vm", "off").returncode == 1
    assert place.call("share", "vm", "off", "--qmp", path).returncode == 0


@pytest.mark.parametrize("path", ["/../../../../../../..{outside}", "/run/link", "/abs"])
def test_a_path_never_leads_out_of_the_guests_own_file_system(
    place: Workplace, start: Start, path: str
) -> None:
    """Outside, the very same guest listens: only the way there is wrong."""
    outside = place.folder / "outside"
    guest = start("normal", "-qmp", f"unix:{path.format(outside=outside)}/vm.qmp,server=on")
    outside.mkdir()
    os.link(guest.folder / "run/vm.qmp", outside / "vm.qmp")
    (guest.folder / "run/link").symlink_to("../../outside")
    (guest.folder / "abs").symlink_to(outside)
    result = place.call("share", "vm", "off")
    assert result.returncode == 1, result.stdout
    assert not guest.has_heard()


def test_links_to_folders_are_followed_inside_it(place: Workplace, start: Start) -> None:
    """/var/run -> /run, as Proxmox has it."""
    guest = start("normal", "-qmp", "unix:/var/run/vm.qmp,server=on")
    (guest.folder / "var").mkdir()
    (guest.folder / "var/run").symlink_to("/run")
    assert place.call("share", "vm", "off").returncode == 0


def test_a_relative_path_starts_in_the_guests_folder(place: Workplace, start: Start) -> None:
    start("normal", "-qmp", "unix:vm.qmp,server=on")
    assert place.call("share", "vm", "off").returncode == 0


def test_a_link_in_the_sockets_place_is_refused(place: Workplace, start: Start) -> None:
    guest = start("normal", "-qmp", "unix:/run/link.qmp,server=on")
    (guest.folder / "run/link.qmp").symlink_to("vm.qmp")
    result = place.call("share", "vm", "off")
    assert result.returncode == 1
    assert "symbolic link" in result.stderr
    assert not guest.has_heard()


def test_links_without_an_end_are_refused(place: Workplace, start: Start) -> None:
    guest = start("normal", "-qmp", "unix:/a/vm.qmp,server=on")
    (guest.folder / "a").symlink_to("b")
    (guest.folder / "b").symlink_to("/a")
    assert place.call("share", "vm", "off").returncode == 1


def test_what_is_no_socket_is_refused(place: Workplace, start: Start) -> None:
    guest = start("normal", "-qmp", "unix:/run/file,server=on")
    (guest.folder / "run/file").write_text("")
    result = place.call("share", "vm", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "no socket" in result.stderr


def test_a_socket_at_which_nobody_listens_is_told(place: Workplace, start: Start) -> None:
    guest = start("normal", "-qmp", "unix:/run/old.qmp,server=on")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(guest.folder / "run/old.qmp"))
    result = place.call("share", "vm", "off")
    assert result.returncode == 1
    assert "nobody listens" in result.stderr


def test_if_the_first_socket_is_dead_the_next_one_is_tried(place: Workplace, start: Start) -> None:
    guest = start("normal", "-qmp", "unix:/nowhere,server=on", *MONITOR)
    assert place.call("share", "vm", "off").returncode == 0
    assert len(guest.sets()) == 3


# -- a monitor that does not do as it should -----------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ("garbage", "does not speak QMP"),
        ("huge", "more than 1 MiB"),
        ("nonsense", "no list of objects"),
        ("countless", "more memory backends than there can be"),
        ("empty", "no memory backend"),
        ("shared", "its memory is shared"),
    ],
)
def test_what_cannot_work_is_one_line_and_changes_nothing(
    place: Workplace, start: Start, behaviour: str, told: str
) -> None:
    guest = start(behaviour)
    result = place.call("share", "vm", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert told in result.stderr
    assert guest.sets() == []


def test_a_refused_backend_puts_the_others_back_and_says_so(place: Workplace, start: Start) -> None:
    guest = start("refuses")
    result = place.call("share", "vm", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert guest.sets() == ["pc.ram False", "mem1 False", "mem1 True", "pc.ram True"]
    assert "put back: pc.ram, mem1" in result.stderr
    assert "\x1b" not in result.stderr


def test_a_hang_up_half_way_says_how_far_it_came(place: Workplace, start: Start) -> None:
    start("hangs up")
    result = place.call("share", "vm", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "hung up" in result.stderr
    assert "merge is off on pc.ram, mem1; of mem2 it is not known" in result.stderr


def test_a_guest_that_ends_half_way_is_told(place: Workplace, start: Start) -> None:
    start("dies")
    other = start(name="other")
    result = place.call("share", "vm", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "it ended while" in result.stderr
    assert not other.has_heard()


def test_events_in_between_do_no_harm(place: Workplace, start: Start) -> None:
    start("talkative")
    result = place.call("share", "vm", "off")
    assert result.returncode == 0, result.stderr


# -- what the kernel says ------------------------------------------------------------------------


def test_a_qemu_that_does_nothing_is_found_out(place: Workplace, start: Start) -> None:
    start("deaf")
    result = place.call("share", "vm", "off")
    assert result.returncode == 1
    assert "failed    the kernel says that its RAM is still offered to KSM" in result.stdout
    assert "QEMU 9.1.0" in result.stdout


def test_without_ksm_stat_it_is_unverified(place: Workplace, start: Start) -> None:
    guest = start()
    (guest.proc / "ksm_stat").unlink()
    (guest.proc / "ksm_merging_pages").unlink()
    result = place.call("share", "vm", "on", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["verified"] is None


def test_on_an_old_kernel_ksm_merging_pages_is_enough(place: Workplace, start: Start) -> None:
    guest = start("deaf")
    (guest.proc / "ksm_stat").write_text("ksm_rmap_items 30000\n")
    (guest.proc / "ksm_merging_pages").write_text(f"{MERGED}\n")
    result = place.call("share", "vm", "off", "--json")
    assert json.loads(result.stdout)["merging_pages_after"] == MERGED
    assert json.loads(result.stdout)["verified"] is False


def test_memory_on_hugetlbfs_is_told_before_it_is_offered(place: Workplace, start: Start) -> None:
    guest = start()
    with (guest.proc / "status").open("a") as status:
        status.write("HugetlbPages:\t 3145728 kB\n")
    result = place.call("share", "vm", "on")
    assert result.returncode == 1
    assert "hugetlbfs" in result.stderr
    assert not guest.sets()


# -- room ----------------------------------------------------------------------------------------


def test_off_is_refused_with_the_figures_if_memory_does_not_suffice(
    place: Workplace, host: FakeHost, start: Start
) -> None:
    guest = start()
    host.set_meminfo(MemAvailable=host.total_kb // 50 + 70 * 1024)  # 70 MiB, and 2 % kept
    result = place.call("share", "vm", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "needs 78.1 MiB" in result.stderr
    assert "70.0 MiB to give" in result.stderr
    assert guest.sets() == []
    assert place.call("share", "vm", "on").returncode == 0  # that costs nothing
    assert place.call("share", "vm", "off", "--force").returncode == 0


@pytest.mark.parametrize("version", [1, 2])
def test_off_is_refused_if_a_cgroup_above_the_guest_is_full(
    place: Workplace, host: FakeHost, start: Start, version: int
) -> None:
    guest = start()
    mount = "sys/fs/cgroup" + ("/memory" if version == 1 else "")
    line = "0::/vms/web/emulator\n" if version == 2 else "4:memory:/vms/web/emulator\n"
    host.write(f"proc/{guest.pid}/cgroup", line)
    host.write(f"{mount}/vms/web/memory.stat", "anon 1\n")
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    prefix = "total_" if version == 1 else ""
    host.write(f"{mount}/vms/memory.stat", f"{prefix}inactive_file {10 * 2**20}\n")
    host.write(f"{mount}/vms/{names[0]}", f"{2**30}\n")
    host.write(f"{mount}/vms/{names[1]}", f"{2**30 - 60 * 2**20}\n")
    result = place.call("share", "vm", "off")
    assert result.returncode == 1
    assert "its cgroup " in result.stderr
    assert "/vms has 70.0 MiB to give" in result.stderr
    assert guest.sets() == []
    host.write(f"{mount}/vms/{names[1]}", f"{2**30 - 90 * 2**20}\n")
    assert place.call("share", "vm", "off").returncode == 0


# -- no way there --------------------------------------------------------------------------------


def test_without_a_monitor_it_says_what_would_work(place: Workplace, start: Start) -> None:
    start("normal", "-m", "1G")
    result = place.call("share", "vm", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "--qmp PATH" in result.stderr
    assert "mem-merge=off" in result.stderr
    assert "nosharepages" in result.stderr


def test_another_vmm_than_qemu_is_told(place: Workplace, start: Start) -> None:
    guest = start()
    guest.appear(*MONITOR, name="ch", comm="cloud-hyperviso")
    result = place.call("share", "ch", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "only QEMU" in result.stderr
    assert not guest.has_heard()


def test_who_may_not_read_ksm_stat_is_told_to_be_root(place: Workplace, start: Start) -> None:
    guest = start()
    for name in ("ksm_stat", "ksm_merging_pages"):
        (guest.proc / name).chmod(0o400)
    result = place.call_without_rights("share", "vm", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (4, 1), result.stderr
    assert guest.sets() == []


def test_the_help_says_how_long_it_lasts(place: Workplace) -> None:
    assert "until the guest ends" in " ".join(place.call("share", "--help").stdout.split())


def test_the_daemon_loads_nothing_for_it() -> None:
    """Its memory is counted: asyncio alone is 4 MiB."""
    code = "import sys, ksmtuned.cli, ksmtuned.daemon; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "ksmtuned.daemon" in loaded
    assert not loaded & {"asyncio", "qemu", "qemu.qmp", "libvirt", "ksmtuned.share"}
