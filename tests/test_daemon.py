"""The daemon's life as its service manager sees it: ready, ticks, watchdog, log."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from daemon_under_test import Daemon, Launch
from fakehost import FakeHost
from workplace import CLASSIC, FIXED, PATIENCE_S, Workplace, environment, wait_until


def test_ready_and_the_first_ticks_status_travel_in_one_datagram(launch: Launch) -> None:
    ready = launch().start()
    assert ready.fields["READY"] == "1"
    assert ready.status


def test_when_it_is_ready_the_first_tick_is_done(daemon: Daemon, host: FakeHost) -> None:
    assert host.pace() == ("1", "500", "15")
    assert daemon.place.state()["written"] == {
        "run": 1,
        "pages_to_scan": 500,
        "sleep_millisecs": 15,
    }


def test_the_daemon_is_also_what_runs_without_a_verb(launch: Launch, place: Workplace) -> None:
    # The fixture says `run`; the verb may be left out.
    daemon = launch(verb=())
    daemon.start()
    assert place.host.pace() == ("1", "500", "15")


def test_usr1_is_one_tick_with_exactly_one_status(daemon: Daemon) -> None:
    for _ in range(20):
        daemon.tick()
    daemon.stop()
    before_stop = [n for n in daemon.heard if "STOPPING" not in n.fields]
    assert len([n for n in before_stop if n.status is not None]) == 1 + 20


def test_the_status_of_usr1_follows_the_writes_and_the_state_file(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    host.make_memory_short()
    host.add_guest(4000, rss_pages=host.total_kb // 4)
    daemon = launch()
    daemon.start()
    seen = [int(host.knob("pages_to_scan"))]
    for _ in range(4):
        daemon.tick()
        seen.append(int(host.knob("pages_to_scan")))
        assert place.state()["settings"]["pages_to_scan"] == seen[-1]
    assert seen == [300, 600, 900, 1200, 1250]


def test_the_timer_ticks_by_itself(place: Workplace, host: FakeHost, launch: Launch) -> None:
    place.configure(CLASSIC.replace("1 h", "0.1 s"))
    daemon = launch()
    daemon.start()
    assert host.knob("run") == "0"
    host.make_memory_short()
    host.add_guest(4000, rss_pages=host.total_kb // 4)
    wait_until(lambda: host.knob("pages_to_scan") == "1250", "five ticks of 0.1 s")
    assert daemon.process.poll() is None


def test_signals_that_come_together_are_not_lost(daemon: Daemon, host: FakeHost) -> None:
    daemon.place.configure(FIXED.replace("500", "600"))
    daemon.process.send_signal(signal.SIGUSR1)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("READY")
    assert host.knob("pages_to_scan") == "600"
    assert daemon.stop() == 0


def test_the_watchdog_is_fed_however_long_the_interval(launch: Launch) -> None:
    daemon = launch(WATCHDOG_USEC="1000000")
    pings = [daemon.start()] + [daemon.wait_for("WATCHDOG") for _ in range(5)]
    gaps = [b.received_s - a.received_s for a, b in pairwise(pings)]
    assert max(gaps) < 1.0, gaps
    assert 0.3 < sum(gaps[1:]) / len(gaps[1:]) < 0.7, gaps


def test_without_a_watchdog_there_is_no_ping(daemon: Daemon) -> None:
    daemon.tick()
    daemon.stop()
    assert not any("WATCHDOG" in n.fields for n in daemon.heard)


def test_what_does_not_change_is_not_logged_again(daemon: Daemon) -> None:
    before = len(daemon.log)
    assert before > 0
    for _ in range(20):
        daemon.tick()
    assert len(daemon.log) == before


def test_a_change_is_one_line_with_its_reason(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    daemon = launch()
    daemon.start()
    before = len(daemon.log)
    host.make_memory_short()
    host.add_guest(4000, name="web", rss_pages=host.total_kb // 4)
    daemon.tick()
    assert len(daemon.log) == before + 2
    assert daemon.log[-2] == "ksmtuned: guest web (4000) came: qemu-system-x86_64"
    assert place.state()["reason"] in daemon.log[-1]


def test_ticks_and_reloads_leak_no_descriptor(daemon: Daemon, host: FakeHost) -> None:
    descriptors = Path(f"/proc/{daemon.process.pid}/fd")
    daemon.reload()
    before = len(list(descriptors.iterdir()))
    for n in range(20):
        host.add_guest(4000 + n)
        daemon.tick()
        host.remove_process(4000 + n)
        daemon.reload()
    # A datagram arrives before the socket that it was sent from is closed.
    wait_until(
        lambda: len(list(descriptors.iterdir())) <= before, "no more descriptors than before"
    )


def test_a_service_manager_that_goes_away_is_survived(daemon: Daemon, host: FakeHost) -> None:
    (daemon.place.folder / "notify.sock").unlink()
    daemon.place.configure(FIXED.replace("500", "600"))
    daemon.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: host.knob("pages_to_scan") == "600", "a tick without anybody to tell")
    assert daemon.stop() == 0
    assert host.knob("run") == "0"


def test_without_a_service_manager_it_runs_in_the_foreground(
    place: Workplace, host: FakeHost
) -> None:
    command = [sys.executable, "-m", "ksmtuned", *place.options]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_until((place.run_dir / "state.json").exists, "the first tick")
        assert host.knob("run") == "1"
        process.terminate()
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert host.knob("run") == "0"
    assert stderr


def test_no_datagram_holds_a_line_break_in_its_status(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    host.add_guest(4000, name="a\nREADY=1\nb")
    host.set_knobs(pages_shared="x\nSTATUS=evil")
    daemon = launch()
    daemon.start()
    for _ in range(2):
        daemon.tick()
    keys = {key for n in daemon.heard for key in n.fields}
    assert all(re.fullmatch(r"[A-Z_]+", key) for key in keys)
    assert not any(n.status == "evil" for n in daemon.heard)


def test_a_file_name_cannot_forge_a_notification(daemon: Daemon, place: Workplace) -> None:
    before = len(daemon.log)
    (place.dropins / "50-x\nSTOPPING=1\nSTATUS=evil.toml").write_text('policy = "fixd"\n')
    assert "50-x" in daemon.tick()
    assert not any("STOPPING" in n.fields for n in daemon.heard)
    assert len(daemon.log) == before + 1
