"""Guests of libvirt: through its daemon, and only if the extra is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakehost import FakeHost
from fakeqmp import FakeQemu, fake_qemu
from workplace import Workplace

UUID = "6c2b0a9f-9f0e-4d53-8f0c-3a1f6f0a5d11"
OPTIONS = [
    *("-uuid", UUID, "-chardev", "socket,id=charmonitor,fd=31,server=on,wait=off"),
    *("-mon", "chardev=charmonitor,id=monitor,mode=control"),
]

# Stands for libvirt-python, with one domain; what it is sent goes to the fake QEMU's socket.
LIBVIRT = """
class libvirtError(Exception):
    pass
class _Domain:
    def name(self):
        return "web1"
class _Connection:
    def lookupByUUIDString(self, uuid):
        if uuid != {uuid!r}:
            raise libvirtError("Domain not found")
        return _Domain()
def registerErrorHandler(f, ctx):
    pass
def open(uri):
    assert uri == "qemu:///system"
    return _Connection()
"""
LIBVIRT_QEMU = """
import json, socket, time
def qemuMonitorCommand(domain, text, flags):
    if {hangs!r}:
        time.sleep(60)
    with socket.socket(socket.AF_UNIX) as s:
        s.connect({path!r})
        s.recv(1000)
        s.sendall(text.encode())
        return s.recv(100000).decode().split("\\n")[0]
"""


@pytest.fixture
def guest(place: Workplace) -> Iterator[FakeQemu]:
    with fake_qemu(place.host, place.folder / "guest") as guest:
        guest.appear(*OPTIONS, name="web1")
        yield guest


@pytest.fixture
def libvirt(place: Workplace, guest: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two modules, where the next ksmtuned finds them."""
    folder = place.folder / "modules"
    folder.mkdir()
    path = str(guest.folder / "run/vm.qmp")
    (folder / "libvirt.py").write_text(LIBVIRT.format(uuid=UUID))
    (folder / "libvirt_qemu.py").write_text(LIBVIRT_QEMU.format(path=path, hangs=False))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.mark.usefixtures("libvirt")
def test_commands_go_through_libvirt(place: Workplace, host: FakeHost, guest: FakeQemu) -> None:
    host.write("run/libvirt/qemu/web1.pid", f"{guest.pid}")
    result = place.call("share", "web1", "off")
    assert result.returncode == 0, result.stdout + result.stderr
    assert guest.sets() == ["pc.ram False", "mem1 False", "mem2 False"]


@pytest.mark.usefixtures("libvirt")
@pytest.mark.parametrize("noted", ["1", "", "no pid"])
def test_a_process_with_a_uuid_of_libvirts_that_is_not_its_guest_is_refused(
    place: Workplace, host: FakeHost, guest: FakeQemu, noted: str
) -> None:
    host.write("run/libvirt/qemu/web1.pid", noted)
    result = place.call("share", "web1", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "refused" in result.stderr
    assert guest.sets() == []


@pytest.mark.usefixtures("libvirt")
def test_a_guest_that_libvirt_does_not_know_is_told(place: Workplace, guest: FakeQemu) -> None:
    other = [word.replace("6c2b", "0000") for word in OPTIONS]
    guest.appear(*other, name="web1")
    result = place.call("share", "web1", "off")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "Domain not found" in result.stderr


@pytest.mark.usefixtures("guest")
def test_without_the_extra_its_name_is_told(place: Workplace) -> None:
    try:
        import libvirt  # noqa: F401  # only whether it is there
    except ImportError:
        result = place.call("share", "web1", "off")
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
        assert "pip install 'ksmtuned[libvirt]'" in result.stderr
    else:
        pytest.skip("libvirt-python is installed here")


def test_a_named_socket_goes_past_libvirt(place: Workplace, guest: FakeQemu) -> None:
    path = str(guest.folder / "run/vm.qmp")
    assert place.call("share", "web1", "off", "--qmp", path).returncode == 0


def test_a_libvirt_that_hangs_is_left_behind(
    place: Workplace, host: FakeHost, guest: FakeQemu, libvirt: Path
) -> None:
    host.write("run/libvirt/qemu/web1.pid", f"{guest.pid}")
    path = str(guest.folder / "run/vm.qmp")
    (libvirt / "libvirt_qemu.py").write_text(LIBVIRT_QEMU.format(path=path, hangs=True))
    result = place.call("share", "web1", "off", timeout=30)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "no answer within 10 s" in result.stderr
