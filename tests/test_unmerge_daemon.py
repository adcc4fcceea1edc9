"""`ksmtuned unmerge` where a daemon runs: it asks, the daemon does it and holds."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemon_under_test import Daemon, Launch
from fakehost import FakeHost
from test_regressions_writes import held
from workplace import FIXED, NOBODY, PATIENCE_S, Workplace, environment, wait_until

from ksmtuned.host.lease import Lease, daemon_pid

OFF = 'policy = "off"\ninterval = "1 h"\n'


@pytest.fixture
def merged(host: FakeHost) -> FakeHost:
    """Two guests have 1000 pages in common."""
    host.set_knobs(pages_sharing=1000, pages_shared=1000)
    for pid, name in ((4000, "vm1"), (4001, "vm2")):
        host.add_guest(pid, name=name)
        host.merge(pid, pages=1000)
    return host


@contextmanager
def asking(place: Workplace, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`ksmtuned unmerge`, left waiting."""
    command = [sys.executable, "-m", "ksmtuned", *place.options, "unmerge", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment(), stdout=pipe, stderr=pipe, text=True) as asker:
        try:
            yield asker
        finally:
            asker.kill()


def end_of(asker: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status, and what it said on stderr."""
    _, said = asker.communicate(timeout=PATIENCE_S)
    return asker.returncode, said


def wait_for_intent(place: Workplace) -> None:
    wait_until((place.run_dir / "intent.json").exists, "the command asks")


def wait_for_work(place: Workplace) -> None:
    """Until the daemon is at it; something keeps its first write waiting."""
    wait_until(lambda: place.state()["phase"] == "unmerge", "the daemon unmerges")


# -- done ----------------------------------------------------------------------------------------


def test_the_daemon_unmerges_and_holds(place: Workplace, merged: FakeHost, launch: Launch) -> None:
    daemon = launch()
    daemon.start()
    result = place.call("unmerge")
    assert result.returncode == 0, result.stderr
    assert "ksmd stays stopped until `ksmtuned resume`" in result.stdout
    assert merged.knob("run") == "0"
    assert json.loads(place.originals.read_text())["controls"]["run"]["last"] == 2
    status = daemon.wait_for("STATUS").status or ""
    assert "held since" in status
    state = place.state()
    assert (state["phase"], state["code"], state["settings"]) == ("hold", "hold", {"run": 0})
    assert state["reason"] in status
    assert any("held since" in line for line in daemon.log)
    assert any("unmerge of the whole host is asked for" in line for line in daemon.log)


@pytest.mark.usefixtures("merged")
def test_one_unmerge_is_one_usr1_and_exactly_one_status(place: Workplace, launch: Launch) -> None:
    daemon = launch()
    daemon.start()
    assert place.call("unmerge").returncode == 0
    daemon.wait_for("STATUS")
    daemon.expect_silence()
    assert "held since" in daemon.tick()


@pytest.mark.parametrize("policy", ["adaptive", "classic", "advisor", "fixed", "off"])
def test_every_policy_is_held(
    place: Workplace, merged: FakeHost, launch: Launch, policy: str
) -> None:
    place.configure(f'policy = "{policy}"\nprofile = "test"\ninterval = "1 h"\n')
    merged.make_memory_short()
    merged.set_meminfo(MemAvailable=merged.total_kb // 10)
    daemon = launch()
    daemon.start()
    assert place.call("unmerge").returncode == 0
    wait_until(lambda: place.state()["phase"] == "hold", "the daemon holds")
    daemon.process.send_signal(signal.SIGHUP)
    assert "held since" in (daemon.wait_for("READY").status or "")
    for _ in range(3):
        assert "held since" in daemon.tick()
        assert merged.knob("run") == "0"
    assert not any("somebody else" in line for line in daemon.log)


@pytest.mark.usefixtures("merged")
def test_a_restart_does_not_end_the_hold_and_resume_does(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    first = launch()
    first.start()
    place.call("unmerge")
    assert first.stop() == 0
    assert host.knob("run") == "0"
    second = launch()
    assert "held since" in (second.start().status or "")
    assert host.knob("run") == "0"
    result = place.call("resume")
    second.wait_for("STATUS")
    assert result.returncode == 0
    assert "follows its policy again" in result.stdout
    assert host.pace() == ("1", "500", "15")
    assert place.state()["phase"] == "scan"


@pytest.mark.usefixtures("merged")
def test_a_crash_does_not_end_the_hold(place: Workplace, host: FakeHost, launch: Launch) -> None:
    first = launch()
    first.start()
    place.call("unmerge")
    first.kill()
    assert place.call("restore").returncode == 0  # ExecStopPost
    assert host.knob("run") == "0"
    second = launch()
    assert "held since" in (second.start().status or "")
    assert host.knob("run") == "0"


@pytest.mark.parametrize(("mode", "run"), [("respect", "1"), ("reassert", "0")])
def test_somebody_else_who_starts_ksmd_under_a_hold_is_treated_as_ever(
    place: Workplace, merged: FakeHost, launch: Launch, mode: str, run: str
) -> None:
    place.configure(f'on_foreign_write = "{mode}"\n' + FIXED)
    daemon = launch()
    daemon.start()
    place.call("unmerge")
    daemon.wait_for("STATUS")
    merged.set_knobs(run=1)
    assert "run: somebody else changed 0 to 1" in daemon.tick()
    assert merged.knob("run") == run


def test_somebody_elses_unmerge_under_a_hold_is_left_alone(
    place: Workplace, merged: FakeHost, launch: Launch
) -> None:
    daemon = launch()
    daemon.start()
    place.call("unmerge")
    daemon.wait_for("STATUS")
    merged.set_knobs(run=2)
    daemon.tick()
    daemon.tick()
    assert merged.knob("run") == "2"


def test_an_unmerge_that_was_asked_for_beats_a_foreign_value_of_run(
    place: Workplace, merged: FakeHost, launch: Launch
) -> None:
    place.configure(OFF)
    daemon = launch()
    daemon.start()
    merged.set_knobs(run=1)
    assert "somebody else changed 0 to 1" in daemon.tick()
    assert place.call("unmerge").returncode == 0
    assert merged.knob("run") == "0"


def test_an_answer_that_cannot_be_written_does_not_break_the_hold(
    place: Workplace, merged: FakeHost, launch: Launch
) -> None:
    daemon = launch()
    daemon.start()
    with asking(place) as asker:
        with held(merged.ksm / "run"):
            wait_for_work(place)
            (place.run_dir / "outcome.json").mkdir()
        wait_until(lambda: place.state()["phase"] == "hold", "the daemon holds")
        assert any("outcome.json" in line for line in daemon.log)
        asker.kill()
    assert merged.knob("run") == "0"
    (place.run_dir / "outcome.json").rmdir()
    assert daemon.stop() == 0


# -- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("guest", [[], ["vm1"]], ids=["whole host", "one guest"])
def test_what_is_refused_changes_nothing_and_the_policy_goes_on(
    place: Workplace, merged: FakeHost, launch: Launch, guest: list[str]
) -> None:
    merged.limit(4001, room_bytes=1)
    daemon = launch()
    daemon.start()
    before = merged.controls()
    result = place.call("unmerge", *guest)
    assert result.returncode == 1
    assert ("cannot be unmerged yet" if guest else "guest vm2 (pid 4001)") in result.stderr
    assert merged.controls() == before
    assert "run=2" not in daemon.wait_for("STATUS").fields["STATUS"]
    assert not (place.run_dir / "hold").exists()
    assert place.state()["phase"] == "scan"
    daemon.tick()
    assert merged.controls() == before


def test_what_is_refused_leaves_a_foreign_value_foreign(
    place: Workplace, merged: FakeHost, launch: Launch
) -> None:
    merged.limit(4001, room_bytes=1)
    daemon = launch()
    daemon.start()
    merged.set_knobs(run=0)
    daemon.tick()
    assert place.call("unmerge").returncode == 1
    daemon.wait_for("STATUS")
    daemon.tick()
    assert merged.knob("run") == "0"


# -- an order must be one ------------------------------------------------------------------------


def put_intent(place: Workplace, **changes: Any) -> Path:
    content = {"schema": 1, "id": "x", "verb": "unmerge", "guest": None, "force": False}
    path = place.run_dir / "intent.json"
    path.write_text(json.dumps(content | changes))
    path.chmod(0o600)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The lock of a command that waits."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def assert_ignored(daemon: Daemon, place: Workplace, why: str | None) -> None:
    """It is neither obeyed nor kept, and told once."""
    before = place.host.controls()
    status = daemon.tick()
    assert place.host.controls() == before
    assert why is None or why in status
    assert "held" not in daemon.tick()
    assert place.host.controls() == before
    left = {path.name for path in place.run_dir.iterdir()}
    assert left == {"state.json", "original.json"}


@pytest.mark.usefixtures("merged")
def test_the_intents_of_these_tests_are_obeyed_where_nothing_is_wrong(
    place: Workplace, daemon: Daemon
) -> None:
    with locked(put_intent(place)):
        assert "held since" in daemon.tick()


@pytest.mark.usefixtures("merged")
def test_an_intent_of_somebody_else_is_no_order(place: Workplace, daemon: Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    path = put_intent(place)
    with locked(path):
        os.chown(path, NOBODY, NOBODY)
        assert_ignored(daemon, place, f"user {NOBODY}'s, mode 600")


@pytest.mark.usefixtures("merged")
def test_an_intent_that_others_can_write_is_no_order(place: Workplace, daemon: Daemon) -> None:
    path = put_intent(place)
    with locked(path):
        path.chmod(0o666)
        assert_ignored(daemon, place, "mode 666")


@pytest.mark.usefixtures("merged")
def test_an_intent_whose_command_is_gone_is_no_order(place: Workplace, daemon: Daemon) -> None:
    put_intent(place)
    assert_ignored(daemon, place, None)


@pytest.mark.usefixtures("merged")
def test_a_link_is_no_order(place: Workplace, daemon: Daemon) -> None:
    path = put_intent(place).rename(place.folder / "elsewhere.json")
    with locked(path):
        (place.run_dir / "intent.json").symlink_to(path)
        assert_ignored(daemon, place, "a symbolic link")


GARBLED = [
    {"verb": "explode"},
    {"verb": ["unmerge"]},
    {"guest": 7},
    {"guest": ""},
    {"guest": "x" * 1000},
    {"force": 1},
    {"id": None},
    {"id": ""},
]


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize("changes", GARBLED, ids=lambda changes: str(changes)[:30])
def test_a_garbled_intent_is_no_order(
    place: Workplace, daemon: Daemon, changes: dict[str, Any]
) -> None:
    with locked(put_intent(place, **changes)):
        assert_ignored(daemon, place, "an order that this daemon knows")


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": NaN}', "[" * 100_000])
def test_what_is_no_json_is_no_order(place: Workplace, daemon: Daemon, text: str) -> None:
    path = put_intent(place)
    path.write_text(text)
    with locked(path):
        assert_ignored(daemon, place, None)


# -- who is asked --------------------------------------------------------------------------------


def test_the_kernel_says_who_the_daemon_is(place: Workplace, daemon: Daemon) -> None:
    assert daemon_pid(place.root) == daemon.process.pid


def test_whoever_holds_the_lease_and_is_no_daemon_is_not_sent_a_signal(
    place: Workplace, merged: FakeHost
) -> None:
    with Lease(place.root):  # as --once does: USR1 would end it
        (place.run_dir / "state.json").write_text(json.dumps({"pid": os.getpid()}))
        result = place.call("unmerge")
        assert result.returncode == 5
        place.call("resume")
    assert merged.knob("run") == "0"
    assert not (place.run_dir / "intent.json").exists()


@pytest.mark.usefixtures("merged")
def test_a_daemon_that_looks_elsewhere_is_not_asked(place: Workplace, daemon: Daemon) -> None:
    other = place.folder / "other"
    result = place.call("unmerge", "--run-dir", str(other))
    assert result.returncode == 5
    assert "--run-dir" in result.stderr
    assert not other.exists()
    assert daemon.tick()


@pytest.mark.usefixtures("merged")
def test_a_stale_pid_in_the_state_file_is_not_believed(place: Workplace, launch: Launch) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        daemon = launch()
        daemon.start()
        state = place.state() | {"pid": bystander.pid}
        (place.run_dir / "state.json").write_text(json.dumps(state))
        assert place.call("unmerge").returncode == 5
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.usefixtures("merged")
def test_one_command_at_a_time(place: Workplace, daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    with asking(place) as first:
        wait_for_intent(place)
        second = place.call("unmerge")
        assert second.returncode == 5
        assert "another ksmtuned command waits" in second.stderr
        daemon.process.send_signal(signal.SIGCONT)
        assert end_of(first)[0] == 0


# -- given up, gone, killed ----------------------------------------------------------------------


def test_ctrl_c_takes_back_what_is_not_begun(
    place: Workplace, merged: FakeHost, daemon: Daemon
) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    with asking(place) as asker:
        wait_for_intent(place)
        asker.send_signal(signal.SIGINT)
        status, said = end_of(asker)
    daemon.process.send_signal(signal.SIGCONT)
    assert status == 130
    assert "nothing was done" in said
    assert "held" not in daemon.wait_for("STATUS").fields["STATUS"]
    assert merged.pace() == ("1", "500", "15")


def test_a_command_that_is_killed_before_it_is_begun_asks_for_nothing(
    place: Workplace, merged: FakeHost, daemon: Daemon
) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    with asking(place) as asker:
        wait_for_intent(place)
        asker.kill()
        asker.wait()
    daemon.process.send_signal(signal.SIGCONT)
    assert "held" not in daemon.wait_for("STATUS").fields["STATUS"]
    assert merged.pace() == ("1", "500", "15")


def test_while_it_waits_for_the_kernel_the_watchdog_is_fed_and_the_state_file_follows(
    place: Workplace, merged: FakeHost, launch: Launch
) -> None:
    daemon = launch(WATCHDOG_USEC="1000000")
    daemon.start()
    with asking(place) as asker:
        with held(merged.ksm / "run"):
            wait_for_work(place)
            assert place.state()["progress"] == 0.0
            seen = place.state()["time"]
            wait_until(lambda: place.state()["time"] > seen + 2, "the state file follows")
            assert merged.knob("run") == "1"
        assert end_of(asker) == (0, "")
    pings = [n.received_s for n in daemon.heard if n.fields.keys() & {"READY", "WATCHDOG"}]
    assert max(b - a for a, b in pairwise(pings)) < 1.0
    assert merged.knob("run") == "0"


def test_ctrl_c_before_the_pages_are_touched_stops_it(
    place: Workplace, merged: FakeHost, launch: Launch
) -> None:
    place.configure(FIXED)
    daemon = launch()
    daemon.start()
    with asking(place) as asker:
        with held(merged.ksm / "run"):
            wait_for_work(place)
            asker.send_signal(signal.SIGINT)
            wait_until(lambda: not (place.run_dir / "errand.json").exists(), "it is withdrawn")
        status, said = end_of(asker)
    assert status == 1
    assert "stopped, as asked" in said
    assert json.loads(place.originals.read_text())["controls"]["run"]["last"] == 0


def test_a_daemon_that_is_killed_half_way_is_told_and_the_next_one_holds(
    place: Workplace, merged: FakeHost, launch: Launch
) -> None:
    place.configure(OFF)
    first = launch()
    first.start()
    with asking(place) as asker, held(merged.ksm / "run"):
        wait_for_work(place)
        assert (place.run_dir / "hold").exists()
        child = psutil.Process(first.process.pid).children()[0]
        first.kill()
        status, said = end_of(asker)
        child.kill()
        child.wait(PATIENCE_S)  # or its write, half killed, empties the plain file
    assert status == 1
    assert "the daemon ended before it was done" in said
    assert not (place.run_dir / "errand.json").exists()
    place.configure(FIXED)
    second = launch()
    assert "held since" in (second.start().status or "")
    assert merged.knob("run") == "0"


def test_a_writer_that_is_killed_leaves_a_stated_state(
    place: Workplace, merged: FakeHost, launch: Launch
) -> None:
    place.configure(OFF)
    daemon = launch()
    daemon.start()
    with asking(place) as asker, held(merged.ksm / "run"):
        wait_for_work(place)
        psutil.Process(daemon.process.pid).children()[0].kill()
        status, said = end_of(asker)
    assert status == 1
    assert "0 B of 3.9 MiB given back, 3.9 MiB still merged" in said
    assert "the writer was killed by signal 9 (tried 2)" in said
    assert "ksmd stays stopped" in said
    wait_until(lambda: place.state()["phase"] == "hold", "the daemon holds")
    assert merged.knob("run") == "0"


def test_a_stop_half_way_waits_for_the_kernel_and_gives_the_pace_back(
    place: Workplace, merged: FakeHost, launch: Launch
) -> None:
    merged.set_knobs(pages_to_scan=77)
    daemon = launch()
    daemon.start()
    with asking(place) as asker:
        with held(merged.ksm / "run"):
            wait_for_work(place)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for("STOPPING")
            daemon.wait_for("EXTEND_TIMEOUT_USEC")
        assert daemon.wait() == 0, daemon.log
        status, said = end_of(asker)
    assert status == 1
    assert "stopped, as asked" in said
    assert (merged.knob("run"), merged.knob("pages_to_scan")) == ("0", "77")
