"""Hosts where something is missing, garbled or refused: the loop survives and says so."""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from daemon_under_test import Daemon, Launch
from fakehost import COUNTERS, FakeHost
from workplace import FIXED, Workplace, read_only

OPTIONAL = (
    *("pages_to_scan", "sleep_millisecs", "merge_across_nodes", "use_zero_pages"),
    *("max_page_sharing", "stable_node_chains_prune_millisecs", "smart_scan", "advisor_mode"),
    *("advisor_max_cpu", "advisor_min_pages_to_scan", "advisor_max_pages_to_scan"),
    *("advisor_target_scan_time", *COUNTERS),
)


def test_any_optional_file_may_go_and_come_back(daemon: Daemon, host: FakeHost) -> None:
    for name in OPTIONAL:
        file = host.ksm / name
        content = file.read_text()
        file.unlink()
        assert daemon.tick(), name
        assert daemon.place.state()["snapshot"]["ksm"].get(name) is None
        file.write_text(content)
        daemon.tick()
        if name != "advisor_mode":
            assert str(daemon.place.state()["snapshot"]["ksm"][name]) == content.strip()


@pytest.mark.parametrize("image", ["kernel-6.1", "kernel-5.10"])
def test_an_old_kernel_is_tuned_like_a_new_one(place: Workplace, image: str, folder: Path) -> None:
    old = Workplace(FakeHost(folder / image, image), place.folder)
    with Daemon(old) as daemon:
        daemon.start()
        assert old.host.pace() == ("1", "500", "15")
        assert daemon.stop() == 0
        assert old.host.pace() == ("0", "100", "20")


@pytest.mark.parametrize("content", ["rubbish\n", "", "12 monkeys\n", "\x00\xff", "9" * 5000])
def test_a_garbled_file_is_reported_once_and_hides_no_other(
    daemon: Daemon, host: FakeHost, content: str
) -> None:
    (host.ksm / "pages_shared").write_bytes(content.encode("latin-1"))
    host.set_knobs(pages_sharing=12)
    before = len(daemon.log)
    for _ in range(3):
        daemon.tick()
    ksm = daemon.place.state()["snapshot"]["ksm"]
    assert (ksm["pages_shared"], ksm["pages_sharing"]) == (None, 12)
    assert len([line for line in daemon.log[before:] if "pages_shared" in line]) == 1


def test_a_garbled_control_is_survived(daemon: Daemon, host: FakeHost) -> None:
    host.set_knobs(run="rubbish")
    assert daemon.tick()
    host.set_knobs(run=1)
    assert daemon.tick()
    assert any("ksm/run" in line for line in daemon.log)


def test_a_meminfo_that_is_gone_is_survived_and_named(daemon: Daemon, host: FakeHost) -> None:
    meminfo = host.root / "proc/meminfo"
    text = meminfo.read_text()
    meminfo.unlink()
    assert daemon.tick()
    meminfo.write_text(text)
    assert daemon.tick()
    assert any("meminfo" in line for line in daemon.log)
    assert daemon.stop() == 0
    assert host.pace() == ("0", "100", "20")


def test_without_the_ksm_folder_it_ends_with_3_and_one_line(host: FakeHost, launch: Launch) -> None:
    shutil.rmtree(host.ksm)
    daemon = launch()
    assert daemon.wait() == 3
    assert len(daemon.log) == 1
    assert not any("READY" in n.fields for n in daemon.heard)


def test_a_host_without_a_visible_ksmd_is_tuned(host: FakeHost, launch: Launch) -> None:
    host.remove_process(37)
    daemon = launch()
    daemon.start()
    assert daemon.place.state()["snapshot"]["ksmd_cpu_seconds"] is None


def test_a_control_that_became_a_folder_is_reported_and_the_others_are_written(
    daemon: Daemon, place: Workplace, host: FakeHost
) -> None:
    (host.ksm / "pages_to_scan").unlink()
    (host.ksm / "pages_to_scan").mkdir()
    place.configure(FIXED.replace("500", "600").replace("15", "25"))
    daemon.tick()
    assert host.knob("sleep_millisecs") == "25"
    assert any("pages_to_scan" in line for line in daemon.log)


def test_a_control_that_never_answers_does_not_stop_the_watchdog(
    host: FakeHost, launch: Launch
) -> None:
    (host.ksm / "pages_volatile").unlink()
    os.mkfifo(host.ksm / "pages_volatile")  # nobody will ever write into it
    daemon = launch(WATCHDOG_USEC="1000000")
    pings = [daemon.start()] + [daemon.wait_for("WATCHDOG") for _ in range(4)]
    assert max(b.received_s - a.received_s for a, b in pairwise(pings)) < 1.0


def test_a_value_cut_short_would_be_noticed(daemon: Daemon, place: Workplace) -> None:
    place.configure(FIXED.replace("500", "1250"))
    daemon.tick()
    place.configure(FIXED.replace("500", "64"))
    daemon.tick()
    assert place.host.knob("pages_to_scan") == "64"
    assert place.state()["written"] == {"pages_to_scan": 64}


def test_a_read_only_sysfs_is_reported_for_each_control_and_survived(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    daemon = launch(prefix=read_only(host.ksm))
    daemon.start()
    refused = place.state()["refused"]
    assert {name: entry["errno"] for name, entry in refused.items()} == {
        "run": "EROFS",
        "pages_to_scan": "EROFS",
        "sleep_millisecs": "EROFS",
    }
    assert {name: entry["tried"] for name, entry in refused.items()} == {
        "run": 1,
        "pages_to_scan": 500,
        "sleep_millisecs": 15,
    }
    assert "read-only" in refused["run"]["error"].lower()
    before = len(daemon.log)
    for _ in range(5):
        daemon.tick()
    assert len(daemon.log) == before
    assert daemon.stop() == 0


def test_a_value_that_the_kernel_refuses_does_not_keep_the_others(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    # A file of the real kernel stands in: it takes -1000 to 1000 and answers EINVAL to the rest.
    (host.ksm / "pages_to_scan").unlink()
    (host.ksm / "pages_to_scan").symlink_to("/proc/self/oom_score_adj")
    place.configure(FIXED.replace("500", "1250"))
    daemon = launch()
    daemon.start()
    refused = place.state()["refused"]
    assert refused.keys() == {"pages_to_scan"}
    assert (refused["pages_to_scan"]["errno"], refused["pages_to_scan"]["tried"]) == (
        "EINVAL",
        1250,
    )
    assert "advisor_mode" in refused["pages_to_scan"]["error"]
    assert (host.knob("run"), host.knob("sleep_millisecs")) == ("1", "15")
    before = len(daemon.log)
    daemon.tick()
    assert len(daemon.log) == before


def test_a_value_that_reads_back_otherwise_is_reported(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    # Again a file of the real kernel: 0 written into it means 50000, the default.
    (host.ksm / "pages_to_scan").unlink()
    (host.ksm / "pages_to_scan").symlink_to("/proc/self/timerslack_ns")
    place.configure(FIXED.replace("500", "0"))
    daemon = launch()
    daemon.start()
    refused = place.state()["refused"]
    assert refused.keys() == {"pages_to_scan"}
    assert "50000" in refused["pages_to_scan"]["error"]
    assert host.knob("run") == "1"
