"""The policy advisor on this machine's real KSM: no stall, and every file comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_under_test import Daemon
from realksm import KSM, RealKsm
from workplace import Workbench, wait_until

pytestmark = pytest.mark.live

PAGES = 65_536  # 256 MiB
# Two passes over all anonymous memory of a host with 4 GiB of it take 80 s; left alone, the
# advisor needs 300 s for two passes over these tenants, and hours for a guest. Seen: 11 s.
MERGED_WITHIN_S = 90.0
ADVISOR = 'policy = "advisor"\n'


@pytest.fixture
def bench(folder: Path) -> Workbench:
    if not (KSM / "advisor_mode").exists():
        pytest.skip("live: this kernel has no advisor")
    bench = Workbench(folder)
    bench.dropins.mkdir()
    bench.configure(ADVISOR)
    return bench


def test_enabled_before_the_tenants_start_it_merges_them_and_a_stop_restores_every_file(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    real_ksm.write("pages_to_scan", 150)
    before = real_ksm.controls()
    with Daemon(bench) as daemon:
        daemon.start()
        assert "[scan-time]" in real_ksm.read("advisor_mode")
        with real_ksm.tenants(2, pages=PAGES):
            wait_until(
                lambda: real_ksm.number("pages_sharing") > PAGES * 9 // 10,
                "256 MiB merged",
                MERGED_WITHIN_S,
            )
            assert daemon.stop() == 0
            assert real_ksm.controls() == before


def test_a_stalled_advisor_is_started_again(real_ksm: RealKsm, bench: Workbench) -> None:
    """The stall by hand: 20 pages per batch, as after a tiny first pass."""
    before = real_ksm.controls()
    with real_ksm.tenants(2, pages=PAGES):
        real_ksm.write("advisor_min_pages_to_scan", 20)
        real_ksm.write("advisor_mode", "scan-time")
        advised = real_ksm.controls()
        with Daemon(bench) as daemon:
            daemon.start()
            wait_until(
                lambda: real_ksm.number("pages_sharing") > PAGES * 9 // 10,
                "256 MiB merged",
                MERGED_WITHIN_S,
            )
            assert any("has stalled at 20 pages" in line for line in daemon.log), daemon.log
            assert daemon.stop() == 0
    after = real_ksm.controls()
    for controls in (after, advised):  # the pace is that of the administrator's own advisor
        controls.pop("pages_to_scan")
    assert after == advised
    real_ksm.write("advisor_mode", "none")
    real_ksm.write("advisor_min_pages_to_scan", before["advisor_min_pages_to_scan"])


@pytest.mark.parametrize("end", ["restore", "start and stop"])
def test_after_kill_9_every_file_comes_back(real_ksm: RealKsm, bench: Workbench, end: str) -> None:
    real_ksm.write("pages_to_scan", 150)
    before = real_ksm.controls()
    with real_ksm.tenants(1, pages=1000):
        with Daemon(bench) as first:
            first.start()
            wait_until(lambda: real_ksm.number("full_scans") > 0, "a pass", 20)
            first.kill()
        assert real_ksm.controls() != before
        if end == "restore":
            assert bench.call("restore").returncode == 0
        else:
            with Daemon(bench) as second:
                second.start()
                assert second.stop() == 0
        assert real_ksm.controls() == before


def test_another_policy_takes_the_pace_over_without_a_refusal(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    before = real_ksm.controls()
    with Daemon(bench) as daemon:
        daemon.start()
        bench.configure('policy = "fixed"\n[fixed]\npages_to_scan = 150\nsleep_millisecs = 200\n')
        daemon.reload()
        assert bench.state()["refused"] == {}
        assert "[none]" in real_ksm.read("advisor_mode")
        assert real_ksm.read("pages_to_scan") == "150"
        assert daemon.stop() == 0
    assert real_ksm.controls() == before
