"""Unmerging is refused where it would not fit; on_stop = unmerge leaves ksmd stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from daemon_under_test import Daemon
from fakehost import FakeHost
from snapshots import GIB, QUIET
from workplace import Workplace

from ksmtuned.errors import DoesNotFit, LimitTooLow
from ksmtuned.headroom import Headroom, Limit, headroom


def host_of_64_gib(need_bytes: int, available_bytes: int, swap_free_bytes: int = 0) -> Headroom:
    meminfo = replace(
        QUIET.meminfo, available_bytes=available_bytes, swap_free_bytes=swap_free_bytes
    )
    return headroom(meminfo, need_bytes)


def limit(whose: str, need_bytes: int, room_bytes: int) -> Limit:
    path = Path(f"/cgroup/{whose}/memory.max")
    return Limit(path=path, whose=whose, need_bytes=need_bytes, room_bytes=room_bytes)


def test_what_fits_with_room_to_spare_is_allowed() -> None:
    host_of_64_gib(10 * GIB, 12 * GIB).check()


def test_what_would_just_fit_is_refused_with_the_figures() -> None:
    with pytest.raises(DoesNotFit, match=r"needs 10\.0 GiB and 1\.3 GiB to spare.*only 11\.0 GiB"):
        host_of_64_gib(10 * GIB, 11 * GIB).check()


def test_swap_counts_as_room() -> None:
    host_of_64_gib(10 * GIB, 8 * GIB, swap_free_bytes=4 * GIB).check()


def test_nothing_merged_always_fits() -> None:
    host_of_64_gib(0, 0).check()


def test_a_limit_without_room_is_refused_with_its_name_and_figures() -> None:
    need = replace(host_of_64_gib(GIB, 60 * GIB), limits=(limit("vm1", GIB, GIB // 2),))
    with pytest.raises(
        LimitTooLow, match=r"vm1: .*1\.0 GiB.*vm1/memory.max leaves only 512\.0 MiB"
    ):
        need.check()


def test_of_two_limits_without_room_the_tightest_is_told() -> None:
    limits = (limit("a", 5, 4), limit("b", 90, 10), limit("c", 1, 10))
    need = replace(host_of_64_gib(GIB, 60 * GIB), limits=limits)
    assert [str(problem).split(": ")[1] for problem in need.problems] == ["b", "a"]


def stopped(place: Workplace, launch: Callable[..., Daemon], *, status: int = 0) -> str:
    """What a daemon with on_stop = unmerge says from start to end."""
    place.configure('policy = "fixed"\non_stop = "unmerge"\n')
    daemon = launch()
    daemon.start()
    assert place.host.knob("run") == "1"
    assert daemon.stop() == status
    return "\n".join(daemon.log)


def test_on_stop_unmerge_leaves_ksmd_stopped_and_the_pace_restored(
    place: Workplace, host: FakeHost, launch: Callable[..., Daemon]
) -> None:
    host.set_knobs(run=1, pages_to_scan=77, pages_sharing=1000)
    said = stopped(place, launch)
    assert (host.knob("run"), host.knob("pages_to_scan")) == ("0", "77")
    assert "run: 0 -> 2" in said
    assert not (place.run_dir / "hold").exists()


def test_on_stop_unmerge_that_does_not_fit_only_stops_ksmd(
    place: Workplace, host: FakeHost, launch: Callable[..., Daemon]
) -> None:
    host.set_knobs(pages_sharing=10**9)
    said = stopped(place, launch, status=1)
    assert host.knob("run") == "0"
    assert "not unmerged" in said
    assert "run: 0 -> 2" not in said


def test_on_stop_unmerge_that_a_guests_limit_forbids_only_stops_ksmd(
    place: Workplace, host: FakeHost, launch: Callable[..., Daemon]
) -> None:
    host.set_knobs(pages_sharing=1000)
    host.add_guest(4000, name="tight")
    host.merge(4000, pages=1000)
    host.limit(4000, room_bytes=1000)
    said = stopped(place, launch, status=1)
    assert host.knob("run") == "0"
    assert "guest tight (pid 4000)" in said
    assert "run: 0 -> 2" not in said
