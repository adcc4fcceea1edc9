"""Where a QEMU says that it can be spoken to: command lines as people and programs write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksmtuned.guests.monitors import Monitors, is_qemu, monitors, properties, uuid, vm_id

PROXMOX = [
    *("/usr/bin/kvm", "-id", "104", "-name", "web1,debug-threads=on", "-no-shutdown"),
    *("-chardev", "socket,id=qmp,path=/var/run/qemu-server/104.qmp,server=on,wait=off"),
    *("-mon", "chardev=qmp,mode=control"),
    *("-chardev", "socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5"),
    *("-mon", "chardev=qmp-event,mode=control"),
    *("-pidfile", "/var/run/qemu-server/104.pid", "-daemonize"),
    *("-smbios", "type=1,uuid=6C2B0A9F-9f0e-4d53-8f0c-3a1f6f0a5d11", "-m", "2048"),
]
LIBVIRT = [
    *("/usr/bin/qemu-system-x86_64", "-name", "guest=web1,debug-threads=on", "-S"),
    *("-object", '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/k.aes"}'),
    *("-uuid", "6c2b0a9f-9f0e-4d53-8f0c-3a1f6f0a5d11", "-no-user-config", "-nodefaults"),
    *("-chardev", "socket,id=charmonitor,fd=31,server=on,wait=off"),
    *("-mon", "chardev=charmonitor,id=monitor,mode=control"),
    *("-chardev", "socket,id=charchannel0,path=/run/libvirt/qemu/channel/1,server=on,wait=off"),
]
OLD_LIBVIRT = [
    word.replace("fd=31", "path=/var/lib/libvirt/qemu/domain-1-web1/monitor.sock,server,nowait")
    for word in LIBVIRT
]


def test_proxmox_listens_at_one_socket_and_calls_at_another() -> None:
    assert monitors(PROXMOX) == Monitors(("/var/run/qemu-server/104.qmp",))
    assert uuid(PROXMOX) == "6c2b0a9f-9f0e-4d53-8f0c-3a1f6f0a5d11"
    assert vm_id(PROXMOX) == "104"


@pytest.mark.parametrize("cmdline", [LIBVIRT, OLD_LIBVIRT])
def test_libvirts_monitor_is_its_own(cmdline: list[str]) -> None:
    assert monitors(cmdline) == Monitors((), is_libvirts=True)
    assert uuid(cmdline) == "6c2b0a9f-9f0e-4d53-8f0c-3a1f6f0a5d11"


def test_a_second_monitor_of_a_libvirt_guest_is_free() -> None:
    more = [*LIBVIRT, "-qmp", "unix:/run/web1.qmp,server=on,wait=off"]
    assert monitors(more) == Monitors(("/run/web1.qmp",), is_libvirts=True)


@pytest.mark.parametrize(
    "words",
    [
        ["-qmp", "unix:/run/a.qmp,server=on,wait=off"],
        ["-qmp", "unix:/run/a.qmp,server,nowait"],
        ["--qmp", "unix:path=/run/a.qmp,server=yes"],
        ["-qmp-pretty", "unix:/run/a.qmp,server=on"],
        ["-chardev", "socket,id=m,path=/run/a.qmp,server=on", "-mon", "m,mode=control"],
        ["-mon", "chardev=m,mode=control", "-chardev", "socket,id=m,path=/run/a.qmp,server=on"],
        ["-chardev", "socket,id=m,path=/run/a.qmp,server=on", "-qmp", "chardev:m"],
        ["-chardev", "backend=socket,id=m,server,path=/run/a.qmp", "-mon", "m,mode=control"],
        ["-qmp", "unix:/run/a.qmp,server=on", "-qmp", "unix:/run/a.qmp,server=on"],
    ],
    ids=" ".join,
)
def test_every_way_to_write_it_is_read(words: list[str]) -> None:
    assert monitors(["qemu", *words]) == Monitors(("/run/a.qmp",))


@pytest.mark.parametrize(
    "words",
    [
        ["-qmp", "unix:/run/a.qmp"],  # QEMU is the client
        ["-qmp", "unix:/run/a.qmp,server=on,server=off"],  # the last one counts
        ["-qmp", "unix:a,abstract=on,server=on"],  # no file
        ["-qmp", "tcp:localhost:4444,server=on"],  # nobody knows who listens
        ["-qmp", "stdio"],
        ["-monitor", "unix:/run/a.mon,server=on"],  # for people
        ["-mon", "chardev=m", "-chardev", "socket,id=m,path=/run/a.mon,server=on"],
        ["-mon", "chardev=x,mode=control"],  # no such device
        ["-chardev", "socket,id=m,path=/run/a.ser,server=on"],  # a serial line
        ["-qmp"],
        [],
    ],
    ids=" ".join,
)
def test_what_is_no_monitor_to_speak_to_is_left_out(words: list[str]) -> None:
    assert monitors(["qemu", *words]) == Monitors()


def test_several_are_kept_in_their_order() -> None:
    words = ["-qmp", "unix:/b,server=on", "-qmp", "unix:/a,server=on"]
    assert monitors(["qemu", *words]).paths == ("/b", "/a")


@pytest.mark.parametrize(
    ("comm", "program", "answer"),
    [
        ("qemu-system-x86", "/usr/bin/qemu-system-x86_64", True),
        ("web1", "/usr/bin/qemu-system-x86_64", True),  # -name process=web1
        ("kvm", "/usr/bin/kvm", True),
        (".qemu-system-x8", "", True),
        ("cloud-hyperviso", "/usr/bin/cloud-hypervisor", False),
        ("kvmtool", "lkvm", False),
    ],
)
def test_qemu_has_many_names(comm: str, program: str, answer: bool) -> None:
    assert is_qemu(comm, [program, "-S"]) is answer
    assert is_qemu(comm, []) is (answer and comm != "web1")


PATHS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=()), min_size=1)


@given(PATHS)
def test_any_path_is_read_back_however_many_commas_it_has(name: str) -> None:
    path = f"/{name}"
    quoted = path.replace(",", ",,")
    chardev = f"socket,id=m,path={quoted},server=on"
    found = monitors(["qemu", "-chardev", chardev, "-mon", "chardev=m,mode=control"])
    assert found.paths == (path,)
    if "=" not in path:
        assert monitors(["qemu", "-qmp", f"unix:{quoted},server=on"]).paths == (path,)


@given(st.dictionaries(st.text("abcxyz", min_size=1), st.text(",=ab\n"), min_size=1))
def test_properties_are_read_back(written: dict[str, str]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in written.items())
    assert properties(text, "first") == written


@given(st.lists(st.sampled_from(["-qmp", "-mon", "-chardev", "-uuid", "-smbios"]) | st.text()))
def test_no_command_line_is_too_strange(cmdline: list[str]) -> None:
    assert all(monitors(cmdline).paths)
    uuid(cmdline)
    vm_id(cmdline)
