"""First values survive: writes that are refused, come late or never, and kills in between."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from daemon_under_test import Daemon, Launch
from fakehost import FakeHost
from workplace import FIXED, PATIENCE_S, Workplace, environment, run_ksmtuned, wait_until

from ksmtuned.cli import main
from ksmtuned.errors import WriteBlocked
from ksmtuned.host.host import Host
from ksmtuned.leave import stop_ksmd
from ksmtuned.model import Write
from ksmtuned.originals import Originals
from ksmtuned.rundir import RunDir

OFF = 'policy = "off"\ninterval = "1 h"\n'
HASTE = "1000000"  # WATCHDOG_USEC: a tick waits a quarter of it for the kernel to take a write


@contextmanager
def held(*files: Path) -> Iterator[None]:
    """ksm_thread_mutex in ksmd's hands: who would write these files waits, who reads them not.

    By a read lease, which the kernel lets no writer break for 45 s; one that opens with
    O_NONBLOCK is refused with EAGAIN. Source: fcntl(2), F_SETLEASE.
    """
    descriptors = [os.open(file, os.O_RDONLY | os.O_CLOEXEC) for file in files]
    try:
        for fd in descriptors:
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # "somebody waits": ignored
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        yield
    finally:
        for fd in descriptors:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)  # a forked child has it open, too
            os.close(fd)


def fixed(pages_to_scan: int, *, sharing: int | None = None) -> str:
    """The policy `fixed`, and perhaps a control of [ksm] whose write waits for ksmd."""
    table = "" if sharing is None else f"[ksm]\nmax_page_sharing = {sharing}\n"
    return FIXED.replace("500", str(pages_to_scan)) + table


def kill_writers(daemon: Daemon) -> None:
    """kill -9 for the children that wait with a write; returns when none can write any more."""

    def are_dead() -> bool:
        return all(child.status() == psutil.STATUS_ZOMBIE for child in children)

    with suppress(psutil.NoSuchProcess):  # the daemon has ended, or has seen a child's end
        children = psutil.Process(daemon.process.pid).children()
        for child in children:
            child.kill()
        wait_until(are_dead, "the children's death")


def give_back(place: Workplace, launch: Launch, way: str) -> None:
    """Both ways back to the first values after a kill."""
    if way == "restore":
        result = place.call("restore")
        assert result.returncode == 0, result.stderr
    else:
        daemon = launch()
        daemon.start()
        assert daemon.stop() == 0, daemon.log


# -- refused, or killed before they were made --------------------------------------------------


@pytest.mark.parametrize("way", ["restore", "start and stop"])
def test_two_kills_between_saving_and_writing_lose_no_first_value(
    place: Workplace, host: FakeHost, launch: Launch, way: str
) -> None:
    first = host.controls()
    place.configure(fixed(500, sharing=300))
    daemon = launch()
    daemon.start()
    daemon.kill()
    for sharing in (400, 500):
        place.configure(fixed(500, sharing=sharing))
        with held(host.ksm / "max_page_sharing"):
            daemon = launch(WATCHDOG_USEC=HASTE)
            daemon.start()
            assert f'"last":{sharing}' in place.originals.read_text()
            kill_writers(daemon)
            daemon.kill()
        assert host.knob("max_page_sharing") == "300"
    give_back(place, launch, way)
    assert host.controls() == first


@pytest.mark.parametrize("way", ["stop", "restore", "start and stop"])
def test_two_refused_writes_after_a_taken_one_lose_no_first_value(
    daemon: Daemon, place: Workplace, host: FakeHost, launch: Launch, way: str
) -> None:
    for pages_to_scan in (600, 700):
        place.configure(fixed(pages_to_scan))
        with held(host.ksm / "pages_to_scan"):
            daemon.tick()
        assert place.state()["refused"]["pages_to_scan"]["errno"] == "EAGAIN"
    assert host.pace() == ("1", "500", "15")
    if way == "stop":
        assert daemon.stop() == 0
    else:
        daemon.kill()
        place.configure(fixed(700))
        give_back(place, launch, way)
    assert host.pace() == ("0", "100", "20")


def test_a_write_that_is_refused_for_good_is_given_back_by_restore(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    with held(host.ksm / "pages_to_scan"):
        assert daemon.stop() == 1
    assert host.pace() == ("0", "500", "20")
    assert any("pages_to_scan" in line for line in daemon.log)
    assert place.call("restore").returncode == 0
    assert host.pace() == ("0", "100", "20")


@pytest.mark.parametrize("kind", ["garbled", "a folder"])
def test_a_control_that_cannot_be_read_at_a_restart_keeps_its_first_value(
    daemon: Daemon, host: FakeHost, launch: Launch, kind: str
) -> None:
    daemon.kill()
    if kind == "garbled":
        host.set_knobs(pages_to_scan="rubbish")
    else:
        (host.ksm / "pages_to_scan").unlink()
        (host.ksm / "pages_to_scan").mkdir()
    second = launch()
    assert "pages_to_scan" in (second.start().status or "")
    if kind == "a folder":
        (host.ksm / "pages_to_scan").rmdir()
    host.set_knobs(pages_to_scan=500)
    second.tick()
    assert second.stop() == 0
    assert host.pace() == ("0", "100", "20")


def test_a_control_that_cannot_be_read_at_a_stop_stays_noted(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    host.set_knobs(pages_to_scan="rubbish")
    assert daemon.stop() == 1
    host.set_knobs(pages_to_scan=500)
    assert place.call("restore").returncode == 0
    assert host.pace() == ("0", "100", "20")


# -- late --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_stop", ["restore", "stop"])
def test_a_late_start_of_ksmd_does_not_outlive_a_stop(
    place: Workplace, host: FakeHost, launch: Launch, on_stop: str
) -> None:
    first = host.controls()
    place.configure(f'on_stop = "{on_stop}"\n' + OFF)
    daemon = launch(WATCHDOG_USEC=HASTE)
    daemon.start()
    place.configure(f'on_stop = "{on_stop}"\n' + FIXED)
    with held(host.ksm / "run"):
        assert "not taken" in daemon.tick()
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("EXTEND_TIMEOUT_USEC")
    assert daemon.wait() == 0, daemon.log
    assert host.controls() == first
    assert not place.originals.exists()


def test_a_stop_that_has_to_wait_keeps_systemd_patient(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    with held(host.ksm / "run"):
        daemon.process.send_signal(signal.SIGTERM)
        asked = [daemon.wait_for("EXTEND_TIMEOUT_USEC") for _ in range(2)]
    assert daemon.wait() == 0
    assert max(b.received_s - a.received_s for a, b in pairwise(asked)) < 5.0
    assert host.pace() == ("0", "100", "20")
    assert not place.originals.exists()


def test_a_late_write_of_a_killed_daemon_is_waited_for_and_undone_by_restore(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    first = host.controls()
    with held(host.ksm / "run"):
        daemon = launch(WATCHDOG_USEC=HASTE)
        daemon.start()
        daemon.kill()  # its child lives on, and will start ksmd
        restore = subprocess.Popen(
            [sys.executable, "-m", "ksmtuned", "restore", *place.options],
            env=environment(),
            stdout=subprocess.DEVNULL,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            restore.wait(3.0)  # longer than the daemon has patience with a lease
    assert restore.wait(PATIENCE_S) == 0
    assert host.controls() == first


def test_our_own_late_write_is_not_taken_for_somebody_elses(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    daemon = launch(WATCHDOG_USEC=HASTE)
    daemon.start()
    place.configure(OFF)
    with held(host.ksm / "run"):
        assert "not taken" in daemon.tick()
    wait_until(lambda: host.knob("run") == "0", "the late write lands")
    assert "somebody" not in daemon.tick()
    place.configure(FIXED)
    assert "somebody" not in daemon.tick()
    assert host.knob("run") == "1"
    assert daemon.stop() == 0
    assert host.pace() == ("0", "100", "20")


def test_after_a_pending_write_of_another_value_ours_is_written(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    daemon = launch(WATCHDOG_USEC=HASTE)
    daemon.start()
    with held(host.ksm / "run"):
        place.configure(OFF)
        assert "not taken" in daemon.tick()
        place.configure(FIXED)
        assert "not taken" in daemon.tick()
    wait_until(lambda: host.knob("run") == "0", "the first late write lands")
    assert "somebody" not in daemon.tick()
    assert host.knob("run") == "1"
    assert daemon.stop() == 0
    assert host.pace() == ("0", "100", "20")


def test_a_stop_does_not_call_ksmd_stopped_while_a_start_is_pending(
    place: Workplace, host: FakeHost
) -> None:
    ours = Host(host.root)
    originals = Originals(RunDir(place.run_dir), ours.proc.boot_id())
    start = Write("run", 0, 1)
    originals.note([start])
    with held(host.ksm / "run"):
        with pytest.raises(WriteBlocked):
            ours.ksm.write(start, 0.05)
        _, refused = stop_ksmd(ours, originals, ())
    wait_until(lambda: not ours.ksm.in_flight(), "the start lands, or a stop after it")
    assert refused or host.knob("run") == "0"


def test_a_control_of_the_table_ksm_that_lands_late_is_no_trouble_any_more(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(fixed(500, sharing=300))
    with held(host.ksm / "max_page_sharing"):
        daemon = launch(WATCHDOG_USEC=HASTE)
        assert "not taken" in (daemon.start().status or "")
    wait_until(lambda: host.knob("max_page_sharing") == "300", "the late write lands")
    daemon.tick()
    assert "max_page_sharing" not in daemon.tick()
    assert (place.state()["refused"], place.state()["foreign"]) == ({}, [])
    assert daemon.stop() == 0
    assert host.knob("max_page_sharing") == "256"


def test_writes_that_wait_do_not_starve_the_watchdog(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    daemon = launch(WATCHDOG_USEC=HASTE)
    pings = [daemon.start()]
    controls = ("run", "merge_across_nodes", "max_page_sharing")
    with held(*(host.ksm / control for control in controls)):
        table = "[ksm]\nmerge_across_nodes = 0\nmax_page_sharing = 300\n"
        place.configure(OFF.replace("1 h", "0.1 s") + table)
        daemon.process.send_signal(signal.SIGUSR1)
        pings += [daemon.wait_for("WATCHDOG") for _ in range(4)]
    gaps = [b.received_s - a.received_s for a, b in pairwise(pings)]
    assert max(gaps) < 1.0, gaps
    assert daemon.stop() == 0
    assert host.knob("max_page_sharing") == "256"


def test_an_unmerge_on_stop_that_cannot_stop_ksmd_is_told_and_can_be_made_up_for(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    host.set_knobs(pages_sharing=1000)
    place.configure('on_stop = "unmerge"\n' + FIXED)
    daemon = launch()
    daemon.start()

    def has_ended() -> bool:
        kill_writers(daemon)
        return daemon.process.poll() is not None

    with held(host.ksm / "run"):
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(has_ended, "it ends")
    assert daemon.wait() == 1
    said = "\n".join(daemon.log)
    assert "not unmerged: ksmd could not be stopped" in said
    assert "0 -> 2" not in said
    assert host.pace() == ("1", "100", "20")
    assert place.call("restore").returncode == 0
    assert host.knob("run") == "0"


# -- somebody else's ---------------------------------------------------------------------------


def test_a_stop_leaves_what_is_known_to_be_foreign_though_it_once_was_ours(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    place.configure(fixed(600))
    daemon.tick()
    host.set_knobs(pages_to_scan=500)  # what the control held before our last write
    assert "somebody else" in daemon.tick()
    assert daemon.stop() == 0
    assert host.pace() == ("0", "500", "20")


@pytest.mark.parametrize("mode", ["respect", "reassert"])
def test_an_unmerge_that_began_while_the_daemon_was_dead_is_left_alone(
    place: Workplace, host: FakeHost, launch: Launch, mode: str
) -> None:
    place.configure(f'on_foreign_write = "{mode}"\n' + FIXED)
    daemon = launch()
    daemon.start()
    daemon.kill()
    host.set_knobs(run=2)
    second = launch()
    assert "run" in (second.start().status or "")
    second.tick()
    second.reload()
    assert host.knob("run") == "2"
    assert second.stop() == 0
    assert host.pace() == ("2", "100", "20")


# -- no process left for the writer ------------------------------------------------------------


@pytest.fixture
def cannot_fork() -> list[str]:
    """A command's prefix: a user who may read and write anything, and have one process."""
    setpriv, prlimit = shutil.which("setpriv"), shutil.which("prlimit")
    if os.geteuid() != 0 or setpriv is None or prlimit is None:
        pytest.skip("needs root, setpriv and prlimit, to be another user with one process")
    user = 700_000 + os.getpid()  # root has no such limit, and nobody may have other processes
    rights = "+dac_override,+dac_read_search"
    prefix = [setpriv, f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    prefix += [f"--inh-caps={rights}", f"--ambient-caps={rights}", prlimit, "--nproc=1:1"]
    probe = [*prefix, sys.executable, "-c", "import ksmtuned.cli"]
    found = subprocess.run(probe, env=environment(), capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip(f"no such user here: {found.stderr.strip()[-200:]}")
    return prefix


def test_once_without_a_process_for_the_writer_is_a_refusal(
    place: Workplace, host: FakeHost, cannot_fork: list[str]
) -> None:
    result = run_ksmtuned("--once", *place.options, prefix=cannot_fork)
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines() == [
        f"ksmtuned: {host.ksm / 'run'}: Resource temporarily unavailable (tried 1)"
    ]
    assert host.pace() == ("0", "500", "15")
    assert place.call("restore").returncode == 0
    assert host.pace() == ("0", "100", "20")


def test_a_daemon_without_a_process_for_the_writer_lives_on_and_tells(
    place: Workplace, host: FakeHost, launch: Launch, cannot_fork: list[str]
) -> None:
    daemon = launch(prefix=cannot_fork)
    wait_until((place.run_dir / "state.json").exists, "the first tick")
    assert place.state()["refused"]["run"]["errno"] == "EAGAIN"
    assert daemon.stop() == 0
    assert host.pace() == ("0", "100", "20")


# -- kill -9 at any moment ---------------------------------------------------------------------

RESTLESS = """\
policy = "classic"
interval = "0.1 s"
[classic]
npages_boost = 7
npages_max = 100000
[ksm]
use_zero_pages = true
smart_scan = false
"""


def test_kill_9_at_any_moment_loses_no_first_value(
    place: Workplace, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = random.Random(9)
    # To import everything sixty times would take most of the time: one process does, and forks.
    here = [environment()["PYTHONPATH"], str(Path(__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))
    quick = multiprocessing.get_context("forkserver")
    quick.set_forkserver_preload(["ksmtuned.daemon", __name__])
    place.configure(RESTLESS)
    host.add_guest(4000, rss_pages=10_000_000)
    first = host.controls()
    for turn in range(30):
        doomed = quick.Process(target=ksmtuned, args=(place.options,))
        doomed.start()
        let_memory_come_and_go(place, moments)
        doomed.kill()
        doomed.join()
        found = complete(place)
        assert place.originals.exists()
        next_one = quick.Process(target=ksmtuned, args=(place.options,))
        next_one.start()
        wait_until(partial(has_published, place, next_one.pid), "its first tick")
        next_one.terminate()
        next_one.join(PATIENCE_S)
        assert (next_one.exitcode, host.controls()) == (0, first), (turn, found)
        assert not place.originals.exists()


def ksmtuned(options: list[str]) -> None:
    """`ksmtuned run` in a process that has imported it already."""
    sys.exit(main(["run", *options]))


def let_memory_come_and_go(place: Workplace, moments: random.Random) -> None:
    """From before the first save until some moment after it."""
    changes = [place.host.make_memory_short, place.host.make_memory_plentiful]

    def has_saved() -> bool:
        moments.choice(changes)()
        return place.originals.exists()

    def is_over() -> bool:
        moments.choice(changes)()
        return time.monotonic() >= end_s

    wait_until(has_saved, "the first save")
    end_s = time.monotonic() + moments.uniform(0.0, 0.35)
    wait_until(is_over, "the moment")


def has_published(place: Workplace, pid: int | None) -> bool:
    """Is state.json by this process?"""
    try:
        return bool(place.state()["pid"] == pid)
    except FileNotFoundError:
        return False


def complete(place: Workplace) -> dict[str, str]:
    """The controls; one that was killed between O_TRUNC and write, as no kernel file can be, gets
    back what it held before."""
    for name, value in place.host.controls().items():
        if value == "":
            noted = json.loads(place.originals.read_text())["controls"][name]
            place.host.set_knobs(**{name: noted["before"]})
    return place.host.controls()
