"""Unmerging on this machine's real KSM: refused where it does not fit; done, held, and ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from daemon_under_test import Daemon
from realksm import RealKsm, limited
from workplace import Workbench, wait_until

pytestmark = pytest.mark.live

PAGES = 65_536  # 256 MiB
FAST = 'policy = "fixed"\ninterval = "1 s"\n[fixed]\npages_to_scan = 5000\nsleep_millisecs = 5\n'


@pytest.fixture
def bench(folder: Path) -> Workbench:
    bench = Workbench(folder)
    bench.dropins.mkdir()
    bench.configure(FAST)
    return bench


def wait_for_merge(ksm: RealKsm) -> None:
    wait_until(lambda: ksm.number("pages_sharing") > PAGES * 9 // 10, "256 MiB merged", 50)


@contextmanager
def merging(ksm: RealKsm, bench: Workbench) -> Iterator[tuple[Daemon, list[int]]]:
    """A daemon that has made the kernel merge what two processes have in common."""
    with ksm.tenants(2, pages=PAGES) as pids, Daemon(bench, WATCHDOG_USEC="1000000") as daemon:
        daemon.start()
        wait_for_merge(ksm)
        yield daemon, pids


def longest_silence_s(daemon: Daemon) -> float:
    """Between two signs of life for the watchdog."""
    pings = [n.received_s for n in daemon.heard if n.fields.keys() & {"READY", "WATCHDOG"}]
    return max(b - a for a, b in pairwise(pings))


def test_where_a_cgroups_limit_forbids_it_nothing_is_changed(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    with merging(real_ksm, bench) as (daemon, pids), limited(pids, 64 * 2**20) as file:
        before, sharing = real_ksm.controls(), real_ksm.number("pages_sharing")
        foretold, refused = bench.call("unmerge", "--dry-run"), bench.call("unmerge")
        assert (foretold.returncode, refused.returncode) == (1, 1)
        assert f"{file} leaves only 64.0 MiB" in refused.stderr
        assert f"{file} leaves only 64.0 MiB" in foretold.stdout
        assert real_ksm.controls() == before
        assert real_ksm.number("pages_sharing") >= sharing
        assert not (bench.run_dir / "hold").exists()
        assert longest_silence_s(daemon) < 1.0
        assert daemon.stop() == 0


def test_where_it_fits_nothing_is_shared_the_daemon_holds_and_resume_merges_again(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    with merging(real_ksm, bench) as (daemon, _):
        assert bench.call("unmerge", "--dry-run").returncode == 0
        result = bench.call("unmerge")
        assert result.returncode == 0, result.stderr
        assert (real_ksm.number("pages_shared"), real_ksm.number("pages_sharing")) == (0, 0)
        assert "256.0 MiB of 256.0 MiB given back" in result.stdout
        held_s = time.monotonic()
        while time.monotonic() < held_s + 5:
            assert (real_ksm.read("run"), real_ksm.number("pages_shared")) == ("0", 0)
            time.sleep(0.1)
        assert bench.state()["phase"] == "hold"
        assert daemon.process.poll() is None
        assert not any("somebody else" in line for line in daemon.log), daemon.log
        assert bench.call("resume").returncode == 0
        wait_for_merge(real_ksm)
        assert longest_silence_s(daemon) < 1.0
        assert daemon.stop() == 0


def test_adaptive_merges_again_after_a_resume(real_ksm: RealKsm, bench: Workbench) -> None:
    bench.configure('policy = "adaptive"\nprofile = "test"\n')
    with merging(real_ksm, bench) as (daemon, _):
        assert bench.call("unmerge").returncode == 0
        assert real_ksm.number("pages_shared") == 0
        assert bench.call("resume").returncode == 0
        wait_for_merge(real_ksm)
        assert daemon.stop() == 0


def test_without_a_daemon_the_command_does_it_itself(real_ksm: RealKsm, bench: Workbench) -> None:
    with real_ksm.tenants(2, pages=PAGES):
        real_ksm.merge(PAGES * 9 // 10)
        result = bench.call("unmerge")
        assert result.returncode == 0, result.stderr
        assert (real_ksm.read("run"), real_ksm.number("pages_shared")) == ("0", 0)
        held = bench.call("--once")
        assert "held since" in held.stdout
        assert real_ksm.read("run") == "0"


def test_on_stop_unmerge_gives_every_page_back(real_ksm: RealKsm, bench: Workbench) -> None:
    bench.configure('on_stop = "unmerge"\n' + FAST)
    with merging(real_ksm, bench) as (daemon, _):
        assert daemon.stop() == 0, daemon.log
        assert (real_ksm.read("run"), real_ksm.number("pages_shared")) == ("0", 0)
        assert any("EXTEND_TIMEOUT_USEC" in n.fields for n in daemon.heard)


def test_by_force_into_a_full_cgroup_leaves_a_stated_state_and_the_daemon_alive(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    with merging(real_ksm, bench) as (daemon, pids), limited(pids, 64 * 2**20):
        result = bench.call("unmerge", "--force")
        assert real_ksm.read("run") == "0"
        assert "ksmd stays stopped" in result.stdout + result.stderr
        assert bench.state()["phase"] == "hold"
        assert daemon.stop() == 0
