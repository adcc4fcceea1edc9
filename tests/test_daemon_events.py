"""A daemon on this machine's processes and on a made-up KSM: what wakes it, and what it says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_under_test import Daemon
from fakehost import FakeHost
from workplace import CLASSIC, Workplace, wait_until

ADAPTIVE = 'policy = "adaptive"\nprofile = "test"\ninterval = "1 h"\n'
HIDDEN = 'mount -t tmpfs none /proc/pressure && exec "$@"'


@pytest.fixture
def live(place: Workplace) -> Workplace:
    """DIR/proc is the real one, DIR/sys is not: nothing of this machine's is written to."""
    shutil.rmtree(place.host.root / "proc")
    (place.host.root / "proc").symlink_to("/proc")
    place.configure(ADAPTIVE)
    return place


def without_pressure() -> list[str]:
    """A command's prefix: a mount namespace in which the kernel has no PSI. Skips without root."""
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HIDDEN, "sh"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace for this test here: {probe.stderr.strip()}")
    return prefix


def about_events(daemon: Daemon) -> list[str]:
    return [line for line in daemon.log if "seen at the next look" in line]


def test_without_kvm_and_pressure_it_says_so_once_and_goes_on(live: Workplace) -> None:
    with Daemon(live, prefix=without_pressure()) as daemon:
        daemon.start()
        wait_until(lambda: len(about_events(daemon)) >= 3, f"three lines in {daemon.log}")
        daemon.process.send_signal(1)  # a reload asks for no second telling
        wait_until(lambda: live.state()["totals"]["reloads"] == 1, "reloaded")
        told = about_events(daemon)
        assert daemon.stop() == 0
    assert len(told) == 3, told
    assert told[0] == "ksmtuned: no KVM on this host: a guest's start is seen at the next look"
    for resource, line in zip(("memory", "cpu"), told[1:], strict=True):
        assert line.startswith(f"ksmtuned: no events of {resource} pressure (")
        assert f"pressure/{resource}: No such file or directory (tried some " in line


def test_a_policy_that_counts_its_looks_asks_for_no_events(live: Workplace) -> None:
    live.configure(CLASSIC)
    with Daemon(live) as daemon:
        daemon.start()
        descriptors = Path(f"/proc/{daemon.process.pid}/fd")
        assert not [fd for fd in descriptors.iterdir() if "pressure" in str(fd.readlink())]
        assert about_events(daemon) == []
        # One that follows them, taken up by a reload, does.
        live.configure(ADAPTIVE)
        daemon.process.send_signal(1)
        wait_until(lambda: about_events(daemon) != [], "it listens")  # there is no KVM in DIR/sys
        assert daemon.stop() == 0


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is called as QEMU is, and that no event announces."""
    program = tmp_path / "qemu-system-x86_64"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with subprocess.Popen([program, "100"]) as process:
        yield process
        process.kill()


def test_a_guest_that_was_there_before_is_told_at_the_start(
    live: Workplace, sleeper: subprocess.Popen[bytes]
) -> None:
    with Daemon(live) as daemon:
        daemon.start()
        wait_until(lambda: any("here already" in line for line in daemon.log), f"{daemon.log}")
        told = [line for line in daemon.log if "here already" in line]
        assert any(f"({sleeper.pid})" in line or " more" in line for line in told)
        assert daemon.stop() == 0


def test_on_a_copied_tree_nothing_is_said_of_events(place: Workplace, host: FakeHost) -> None:
    place.configure(ADAPTIVE)
    host.add_guest(4000)
    with Daemon(place) as daemon:
        daemon.start()
        daemon.place.state()
        assert about_events(daemon) == []
        assert daemon.stop() == 0
