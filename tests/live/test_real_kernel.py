"""The daemon on this machine's real KSM: pages merge, refusals are told, everything comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from daemon_under_test import Daemon
from realksm import KSM, RealKsm, ksmd_cpu_ns
from workplace import Workbench, wait_until

pytestmark = pytest.mark.live

PAGES = 65_536  # 256 MiB
SHORT_OF_MEMORY = 'policy = "classic"\ninterval = "1 s"\n[classic]\nthres_coef = 100\n'
GENTLE = 'policy = "fixed"\ninterval = "1 h"\n[fixed]\npages_to_scan = 150\nsleep_millisecs = 200\n'
HUGE_BATCHES = GENTLE.replace("150", "3000000").replace("200", "0")


@pytest.fixture
def bench(folder: Path) -> Workbench:
    bench = Workbench(folder)
    bench.dropins.mkdir()
    return bench


def merge_two_tenants(ksm: RealKsm) -> None:
    """Wait until the daemon has made the kernel merge what two processes have in common."""
    wait_until(lambda: ksm.number("pages_sharing") > PAGES * 9 // 10, "256 MiB merged", 50)


def test_two_processes_are_merged_and_a_stop_restores_every_file(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    before = real_ksm.controls()
    bench.configure(SHORT_OF_MEMORY)
    with real_ksm.tenants(2, pages=PAGES), Daemon(bench) as daemon:
        daemon.start()
        merge_two_tenants(real_ksm)
        wait_until(lambda: bench.state()["saving_bytes"] > 200 * 2**20, "state.json says so", 10)
        assert daemon.stop() == 0
        assert real_ksm.controls() == before


def test_after_kill_9_a_new_start_and_a_stop_restore_every_file(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    before = real_ksm.controls()
    bench.configure(SHORT_OF_MEMORY)
    with real_ksm.tenants(2, pages=PAGES):
        with Daemon(bench) as first:
            first.start()
            merge_two_tenants(real_ksm)
            first.kill()
        assert real_ksm.read("run") == "1"
        with Daemon(bench) as second:
            second.start()
            assert second.stop() == 0
        assert real_ksm.controls() == before


def test_after_kill_9_restore_gives_every_file_back(real_ksm: RealKsm, bench: Workbench) -> None:
    before = real_ksm.controls()
    bench.configure(GENTLE)
    with Daemon(bench) as daemon:
        daemon.start()
        daemon.kill()
    assert real_ksm.controls() != before
    assert bench.call("restore").returncode == 0
    assert real_ksm.controls() == before


def test_once_tunes_and_restore_undoes_it(real_ksm: RealKsm, bench: Workbench) -> None:
    before = real_ksm.controls()
    bench.configure(GENTLE)
    result = bench.call("--once")
    assert result.returncode == 0, result.stderr
    assert (real_ksm.read("run"), real_ksm.read("pages_to_scan")) == ("1", "150")
    assert bench.call("restore").returncode == 0
    assert real_ksm.controls() == before


def test_the_advisors_refusal_is_told_with_its_hint_and_run_is_written(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    if not (KSM / "advisor_mode").exists():
        pytest.skip("live: this kernel has no advisor")
    real_ksm.write("advisor_mode", "scan-time")
    pace = real_ksm.read("pages_to_scan")
    bench.configure(GENTLE)
    with Daemon(bench) as daemon:
        daemon.start()
        refusal = bench.state()["refused"]["pages_to_scan"]
        assert (refusal["errno"], refusal["tried"]) == ("EINVAL", 150)
        assert "write none to advisor_mode" in refusal["error"]
        assert (real_ksm.read("run"), real_ksm.read("sleep_millisecs")) == ("1", "200")
        daemon.tick()
        daemon.tick()
        told = [line for line in daemon.log if "pages_to_scan: Invalid argument" in line]
        assert len(told) == 1, daemon.log
        assert daemon.stop() == 0
    assert (real_ksm.read("run"), real_ksm.read("pages_to_scan")) == ("0", pace)


def test_controls_that_are_busy_while_pages_are_shared_are_told_with_what_would_help(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    wanted = {"max_page_sharing": 512, "merge_across_nodes": 0}
    wanted = {name: value for name, value in wanted.items() if (KSM / name).exists()}
    lines = "".join(f"{name} = {value}\n" for name, value in wanted.items())
    bench.configure(f'policy = "off"\ninterval = "1 h"\n[ksm]\n{lines}')
    with real_ksm.tenants(2, pages=1000):
        real_ksm.merge(900)
        with Daemon(bench) as daemon:
            daemon.start()
            refused = bench.state()["refused"]
            assert {name: refused[name]["errno"] for name in refused} == dict.fromkeys(
                wanted, "EBUSY"
            )
            assert all("unmerge" in refused[name]["error"] for name in wanted)
            daemon.tick()
            for name in wanted:
                assert len([line for line in daemon.log if f"{name}: " in line]) == 1, daemon.log
            assert daemon.stop() == 0


@contextmanager
def long_batches(ksm: RealKsm, bench: Workbench) -> Iterator[Daemon]:
    """A daemon whose ksmd is in the middle of a batch that takes seconds."""
    pages = 700_000  # a batch ends with the pass, so the pass must take seconds
    if _available_kb() < 3 * pages * 4:
        pytest.skip("live: too little memory for a batch of seconds")
    bench.configure(HUGE_BATCHES)
    with (
        ksm.tenants(1, pages=pages, is_full=False),
        Daemon(bench, WATCHDOG_USEC="1000000") as daemon,
    ):
        idle_ns = ksmd_cpu_ns()
        daemon.start()
        wait_until(lambda: ksmd_cpu_ns() > idle_ns + 200_000_000, "ksmd at work", 20)
        yield daemon


def test_a_write_that_waits_for_ksmds_batch_does_not_hold_up_the_watchdog(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    with long_batches(real_ksm, bench) as daemon:
        bench.configure(
            'policy = "off"\ninterval = "1 h"\n'
            "[ksm]\nmerge_across_nodes = 0\nmax_page_sharing = 512\n"  # these wait alike
        )
        # The worst moment: just before the next ping is due.
        ping_s = daemon.wait_for("WATCHDOG").received_s
        wait_until(lambda: time.monotonic() > ping_s + 0.45, "the next ping is near", 1)
        asked_s = time.monotonic()
        daemon.tick()
        wait_until(lambda: real_ksm.read("run") == "0", "run=0 after the batch", 30)
        waited_s = time.monotonic() - asked_s
        daemon.wait_for("WATCHDOG")
        pings = [n.received_s for n in daemon.heard if n.fields.keys() & {"READY", "WATCHDOG"}]
        gaps = [b - a for a, b in pairwise(pings)]
        assert max(gaps) < 1.0, gaps
        assert waited_s > 1.0, f"the write did not wait, nothing is proved: {waited_s:.2f} s"
        assert any("ksm/run: " in line for line in daemon.log), daemon.log
        assert daemon.stop() == 0


def test_a_stop_in_the_middle_of_a_batch_restores_every_file_after_it(
    real_ksm: RealKsm, bench: Workbench
) -> None:
    before = real_ksm.controls()
    with long_batches(real_ksm, bench) as daemon:
        daemon.stop()
        wait_until(lambda: real_ksm.read("run") == "0", "run=0 after the batch", 30)
        bench.call("restore")  # ExecStopPost
        assert real_ksm.controls() == before


def test_keep_leaves_the_kernel_as_it_was_tuned(real_ksm: RealKsm, bench: Workbench) -> None:
    bench.configure('on_stop = "keep"\n' + GENTLE)
    with Daemon(bench) as daemon:
        daemon.start()
        daemon.stop()
    found = [real_ksm.read(n) for n in ("run", "pages_to_scan", "sleep_millisecs")]
    assert found == ["1", "150", "200"]


def test_stop_leaves_ksmd_stopped(real_ksm: RealKsm, bench: Workbench) -> None:
    bench.configure('on_stop = "stop"\n' + GENTLE)
    real_ksm.write("run", 1)
    with Daemon(bench) as daemon:
        daemon.start()
        daemon.stop()
    assert real_ksm.read("run") == "0"


def _available_kb() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    return 0
