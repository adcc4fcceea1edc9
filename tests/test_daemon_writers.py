"""Who may write: one daemon, and somebody else's hands on the same files."""

from __future__ import annotations

import pytest
from daemon_under_test import Daemon, Launch
from fakehost import FakeHost
from workplace import FIXED, Workplace


@pytest.mark.parametrize("arguments", [["run"], [], ["--once"], ["restore"]], ids=" ".join)
def test_a_second_writer_is_sent_away(
    daemon: Daemon, place: Workplace, host: FakeHost, arguments: list[str]
) -> None:
    before = host.controls()
    result = place.call(*arguments)
    assert result.returncode == 5, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert host.controls() == before
    assert daemon.tick()


def test_another_run_dir_does_not_make_a_second_writer(daemon: Daemon, place: Workplace) -> None:
    other = [*place.options[:-1], str(place.folder / "other")]
    result = place.call("--once", *other)
    assert result.returncode == 5
    assert daemon.process.poll() is None


def test_a_dry_run_may_look_on_while_the_daemon_runs(daemon: Daemon, place: Workplace) -> None:
    assert place.call("--once", "--dry-run").returncode == 0
    assert daemon.tick()


def test_status_may_look_on_while_the_daemon_runs(daemon: Daemon, place: Workplace) -> None:
    result = place.call("status")
    assert result.returncode == 0, result.stderr
    assert place.state()["reason"] in result.stdout
    assert daemon.tick()


def test_the_lock_ends_with_its_holder(launch: Launch, host: FakeHost) -> None:
    first = launch()
    first.start()
    first.kill()
    second = launch()
    second.start()
    assert host.knob("run") == "1"


def test_a_foreign_writer_is_respected(daemon: Daemon, host: FakeHost) -> None:
    host.set_knobs(pages_to_scan=7)
    daemon.tick()
    daemon.tick()
    assert host.pace() == ("1", "7", "15")


def test_a_foreign_writer_is_reported_once(daemon: Daemon, host: FakeHost) -> None:
    before = len(daemon.log)
    host.set_knobs(pages_to_scan=7)
    for _ in range(5):
        daemon.tick()
    told = [line for line in daemon.log[before:] if "pages_to_scan" in line]
    assert len(told) == 1, daemon.log[before:]
    assert "7" in told[0]


def test_a_control_left_to_somebody_else_stays_his_whatever_he_does_next(
    daemon: Daemon, host: FakeHost
) -> None:
    for value in (7, 8, 9):
        host.set_knobs(pages_to_scan=value)
        daemon.tick()
        assert host.knob("pages_to_scan") == str(value)


def test_the_other_controls_are_still_ours(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    host.set_knobs(pages_to_scan=7)
    daemon.tick()
    place.configure(FIXED.replace("15", "25"))
    daemon.tick()
    assert host.pace() == ("1", "7", "25")


def test_hup_takes_a_control_back(daemon: Daemon, host: FakeHost) -> None:
    host.set_knobs(pages_to_scan=7)
    daemon.tick()
    daemon.reload()
    assert host.knob("pages_to_scan") == "500"


def test_a_restart_takes_a_control_back(daemon: Daemon, host: FakeHost, launch: Launch) -> None:
    host.set_knobs(pages_to_scan=7)
    daemon.tick()
    daemon.stop()
    assert host.knob("pages_to_scan") == "7"
    launch().start()
    assert host.knob("pages_to_scan") == "500"


def test_reassert_writes_again(place: Workplace, host: FakeHost, launch: Launch) -> None:
    place.configure('on_foreign_write = "reassert"\n' + FIXED)
    daemon = launch()
    daemon.start()
    for _ in range(3):
        host.set_knobs(pages_to_scan=7, run=0)
        daemon.tick()
        assert host.pace() == ("1", "500", "15")


@pytest.mark.parametrize("mode", ["respect", "reassert"])
def test_a_foreign_unmerge_is_left_alone(
    place: Workplace, host: FakeHost, launch: Launch, mode: str
) -> None:
    place.configure(f'on_foreign_write = "{mode}"\n' + FIXED)
    daemon = launch()
    daemon.start()
    host.set_knobs(run=2)
    daemon.tick()
    daemon.tick()
    assert host.knob("run") == "2"


def test_a_control_that_we_never_wrote_may_be_changed_by_anybody(
    daemon: Daemon, host: FakeHost
) -> None:
    before = len(daemon.log)
    host.set_knobs(use_zero_pages=1, merge_across_nodes=0)
    daemon.tick()
    assert len(daemon.log) == before
    daemon.stop()
    assert (host.knob("use_zero_pages"), host.knob("merge_across_nodes")) == ("1", "0")


def test_the_hot_remove_flag_is_no_foreign_writer(daemon: Daemon, host: FakeHost) -> None:
    before = len(daemon.log)
    host.set_knobs(run=5)
    daemon.tick()
    assert len(daemon.log) == before
