"""RUN_DIR as other programs find it."""

from __future__ import annotations

import os
import shutil
import stat

from daemon_under_test import Daemon, Launch
from fakehost import FakeHost
from workplace import Workplace


def test_the_state_file_has_the_keys_of_the_contract(daemon: Daemon) -> None:
    state = daemon.place.state()
    assert state["schema"] == 1
    assert {
        *("time", "policy", "phase", "code", "reason", "snapshot", "settings", "written"),
        *("refused", "saving_bytes", "profit_bytes", "totals", "guests"),
    } <= set(state)
    assert {"ksm", "meminfo", "ksmd_cpu_seconds"} <= set(state["snapshot"])


def test_the_state_file_is_not_for_everybody(daemon: Daemon) -> None:
    mode = (daemon.place.run_dir / "state.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o640


def test_the_state_file_is_replaced_not_rewritten(daemon: Daemon) -> None:
    path = daemon.place.run_dir / "state.json"
    with path.open() as reader:  # keeps the old inode from being used again
        daemon.tick()
        assert os.fstat(reader.fileno()).st_ino != path.stat().st_ino
        assert reader.read().rstrip().endswith("}")


def test_a_replaced_state_file_leaves_no_other_file(daemon: Daemon) -> None:
    daemon.tick()
    names = {file.name for file in daemon.place.run_dir.iterdir()}
    assert names == {"state.json", "original.json"}


def test_run_dir_is_made_if_it_is_missing(place: Workplace, launch: Launch) -> None:
    place.run_dir.rmdir()
    launch().start()
    assert (place.run_dir / "state.json").exists()


def test_nothing_is_written_where_the_first_values_cannot_be_saved(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    before = host.controls()
    place.run_dir.rmdir()
    place.run_dir.write_text("in the way\n")
    daemon = launch()
    try:
        daemon.start()
    except AssertionError:
        assert daemon.wait() not in (0, 70)
        assert len(daemon.log) == 1
    assert str(place.run_dir) in "\n".join(daemon.log)
    assert host.controls() == before


def test_a_run_dir_that_breaks_later_is_survived_and_reported_once(
    daemon: Daemon, place: Workplace
) -> None:
    shutil.rmtree(place.run_dir)
    place.run_dir.write_text("in the way\n")
    for _ in range(3):
        daemon.tick()
    told = [line for line in daemon.log if str(place.run_dir) in line]
    assert 1 <= len(told) <= 2, told  # the state file, and perhaps the original values
    place.run_dir.unlink()
    daemon.tick()
    assert place.state()["schema"] == 1
