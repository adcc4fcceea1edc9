"""Unmerging is refused where it would not fit; on_stop = unmerge leaves ksmd stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from daemon_under_test import Daemon
from fakehost import FakeHost
from snapshots import GIB, QUIET
from workplace import Workplace

from ksmtuned.errors import DoesNotFit
from ksmtuned.host.unmerge import check_headroom
from ksmtuned.model import Snapshot
from ksmtuned.units import PAGE_BYTES


def merged(saved_bytes: int, available_bytes: int, swap_free_bytes: int = 0) -> Snapshot:
    """A host of 64 GiB."""
    return replace(
        QUIET,
        ksm=replace(QUIET.ksm, pages_sharing=saved_bytes // PAGE_BYTES),
        meminfo=replace(
            QUIET.meminfo, available_bytes=available_bytes, swap_free_bytes=swap_free_bytes
        ),
    )


def test_what_fits_with_room_to_spare_is_allowed() -> None:
    check_headroom(merged(10 * GIB, 12 * GIB))


def test_what_would_just_fit_is_refused_with_the_figures() -> None:
    with pytest.raises(DoesNotFit, match=r"needs 10\.0 GiB and 1\.3 GiB to spare.*only 11\.0 GiB"):
        check_headroom(merged(10 * GIB, 11 * GIB))


def test_swap_counts_as_room() -> None:
    check_headroom(merged(10 * GIB, 8 * GIB, swap_free_bytes=4 * GIB))


def test_zero_pages_need_room_too() -> None:
    now = merged(0, 5 * GIB)
    with pytest.raises(DoesNotFit):
        check_headroom(replace(now, ksm=replace(now.ksm, ksm_zero_pages=6 * GIB // PAGE_BYTES)))


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


def test_on_stop_unmerge_that_does_not_fit_only_stops_ksmd(
    place: Workplace, host: FakeHost, launch: Callable[..., Daemon]
) -> None:
    host.set_knobs(pages_sharing=10**9)
    said = stopped(place, launch, status=1)
    assert host.knob("run") == "0"
    assert "not unmerged" in said
    assert "run: 0 -> 2" not in said
