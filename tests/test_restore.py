"""What a stop and a crash leave behind: the kernel's own values, wherever they are still ours."""

from __future__ import annotations

import json
import signal

import pytest
from daemon_under_test import Daemon, Launch
from fakehost import FakeHost
from workplace import CLASSIC, FIXED, Workplace

EVERYTHING = (
    FIXED
    + """
[ksm]
use_zero_pages = true
smart_scan = false
max_page_sharing = 512
stable_node_chains_prune_millisecs = 3000
merge_across_nodes = false
"""
)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_stop_restores_every_file(
    place: Workplace, host: FakeHost, launch: Launch, signum: int
) -> None:
    before = host.controls()
    place.configure(EVERYTHING)
    daemon = launch()
    daemon.start()
    changed = {name for name, value in host.controls().items() if value != before[name]}
    assert changed == {
        *("run", "pages_to_scan", "sleep_millisecs", "use_zero_pages", "smart_scan"),
        *("max_page_sharing", "stable_node_chains_prune_millisecs", "merge_across_nodes"),
    }
    assert daemon.stop(signum) == 0
    assert host.controls() == before


def test_a_stop_says_so_before_it_ends(daemon: Daemon) -> None:
    daemon.stop()
    assert any(n.fields.get("STOPPING") == "1" for n in daemon.heard)


def test_a_clean_stop_leaves_nothing_to_restore(daemon: Daemon, place: Workplace) -> None:
    assert place.originals.exists()
    daemon.stop()
    assert not place.originals.exists()


def test_after_a_crash_a_new_start_and_a_stop_restore_the_first_values(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    before = host.controls()
    place.configure(EVERYTHING)
    first = launch()
    first.start()
    first.kill()
    assert host.controls() != before
    second = launch()
    second.start()
    assert second.stop() == 0
    assert host.controls() == before


def test_after_two_crashes_too(place: Workplace, host: FakeHost, launch: Launch) -> None:
    before = host.controls()
    for pages in ("500", "600"):
        place.configure(FIXED.replace("500", pages))
        daemon = launch()
        daemon.start()
        assert host.knob("pages_to_scan") == pages
        daemon.kill()
    third = launch()
    third.start()
    third.stop()
    assert host.controls() == before


def test_after_a_crash_restore_gives_the_first_values_back(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    before = host.controls()
    place.configure(EVERYTHING)
    daemon = launch()
    daemon.start()
    daemon.kill()
    assert place.call("restore").returncode == 0
    assert host.controls() == before


def test_a_crash_after_many_writes_restores_the_first_values_too(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    host.make_memory_short()
    host.add_guest(4000, rss_pages=host.total_kb // 4)
    before = host.controls()
    daemon = launch()
    daemon.start()
    for _ in range(5):
        daemon.tick()
    daemon.kill()
    place.call("restore")
    assert host.controls() == before


def test_after_a_crash_a_control_that_somebody_changed_is_his(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    daemon.kill()
    host.set_knobs(sleep_millisecs=99)
    place.call("restore")
    assert (host.knob("run"), host.knob("pages_to_scan")) == ("0", "100")
    assert host.knob("sleep_millisecs") == "99"


def test_a_stop_leaves_a_control_that_somebody_changed(daemon: Daemon, host: FakeHost) -> None:
    host.set_knobs(pages_to_scan=999)
    daemon.stop()
    assert host.knob("pages_to_scan") == "999"
    assert (host.knob("run"), host.knob("sleep_millisecs")) == ("0", "20")


def test_a_stop_leaves_a_foreign_unmerge(daemon: Daemon, host: FakeHost) -> None:
    host.set_knobs(run=2)
    daemon.tick()
    daemon.stop()
    assert host.knob("run") == "2"


def test_a_first_run_of_2_is_given_back_as_0(host: FakeHost, launch: Launch) -> None:
    host.set_knobs(run=2)
    daemon = launch()
    daemon.start()
    daemon.stop()
    assert host.knob("run") == "0"


def test_a_first_run_with_the_hot_remove_flag_is_given_back_without_it(
    host: FakeHost, launch: Launch
) -> None:
    host.set_knobs(run=4)
    daemon = launch()
    daemon.start()
    assert host.knob("run") == "1"
    daemon.stop()
    assert host.knob("run") == "0"


def test_a_value_that_was_reached_again_by_itself_needs_no_restore(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    host.set_knobs(run=1, pages_to_scan=500, sleep_millisecs=15)
    daemon = launch()
    daemon.start()
    assert place.state()["written"] == {}
    daemon.stop()
    assert (host.knob("run"), host.knob("pages_to_scan")) == ("1", "500")


def test_the_values_of_another_boot_are_forgotten(host: FakeHost, launch: Launch) -> None:
    first = launch()
    first.start()
    first.kill()
    host.write("proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n")
    host.set_knobs(run=0, pages_to_scan=111, sleep_millisecs=22)
    second = launch()
    second.start()
    second.stop()
    assert host.knob("run") == "0"
    assert (host.knob("pages_to_scan"), host.knob("sleep_millisecs")) == ("111", "22")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"boot_id": 5}', "\x00\x00\x00"])
def test_a_broken_original_json_does_not_keep_the_daemon_from_starting(
    place: Workplace, launch: Launch, content: str
) -> None:
    place.originals.write_text(content)
    daemon = launch()
    daemon.start()
    assert daemon.stop() == 0


def test_a_control_that_cannot_be_restored_does_not_keep_the_others(
    daemon: Daemon, host: FakeHost
) -> None:
    (host.ksm / "pages_to_scan").unlink()
    (host.ksm / "pages_to_scan").mkdir()
    daemon.stop()
    assert (host.knob("run"), host.knob("sleep_millisecs")) == ("0", "20")
    assert any("pages_to_scan" in line for line in daemon.log)


# -- on_stop -----------------------------------------------------------------------------------


def test_keep_leaves_everything_as_it_is(place: Workplace, host: FakeHost, launch: Launch) -> None:
    place.configure('on_stop = "keep"\n' + FIXED)
    daemon = launch()
    daemon.start()
    during = host.controls()
    assert daemon.stop() == 0
    assert host.controls() == during


@pytest.mark.parametrize("on_stop", ["keep", "stop"])
def test_the_services_restore_after_the_stop_does_not_undo_it(
    place: Workplace, host: FakeHost, launch: Launch, on_stop: str
) -> None:
    place.configure(f'on_stop = "{on_stop}"\n' + FIXED)
    daemon = launch()
    daemon.start()
    daemon.stop()
    after_stop = host.controls()
    assert place.call("restore").returncode == 0  # ExecStopPost
    assert host.controls() == after_stop


def test_stop_ends_the_scanning(place: Workplace, host: FakeHost, launch: Launch) -> None:
    host.set_knobs(run=1)
    place.configure('on_stop = "stop"\n' + FIXED)
    daemon = launch()
    daemon.start()
    assert daemon.stop() == 0
    assert host.knob("run") == "0"


def test_on_stop_is_the_one_that_the_last_edit_left(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    place.configure('on_stop = "keep"\n' + FIXED)
    daemon.tick()
    daemon.stop()
    assert host.knob("run") == "1"


@pytest.mark.usefixtures("daemon")
def test_original_json_names_the_boot_and_every_control_that_was_written(
    place: Workplace, host: FakeHost
) -> None:
    found = json.loads(place.originals.read_text())
    boot_id = (host.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    assert found["boot_id"] == boot_id
    for control in ("run", "pages_to_scan", "sleep_millisecs"):
        assert control in json.dumps(found)
    assert "use_zero_pages" not in json.dumps(found)
