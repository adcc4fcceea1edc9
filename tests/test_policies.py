"""The laws: tables first, then what holds for every host."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshots import GIB, QUIET, guest, host

from ksmtuned.model import Code, Phase, Settings, Snapshot
from ksmtuned.policies import POLICIES, build
from ksmtuned.policies.classic import Classic, ClassicPast

MIB = 2**20
# 20 % of 64 GiB in kB, rounded down as the shell does
THRESHOLD = 64 * MIB * 20 // 100 * 1024


def test_plenty_of_memory_stops_ksmd_and_keeps_the_pace_for_later() -> None:
    decision, past = Classic().decide(host(free_bytes=60 * GIB), ClassicPast(664))
    assert decision.settings == Settings(run=0)
    assert (decision.phase, decision.code) == (Phase.STOP, Code.IDLE)
    assert past == ClassicPast(664)


def test_short_memory_boosts() -> None:
    now = host(free_bytes=3 * GIB, guests_bytes=55 * GIB)
    decision, past = Classic().decide(now, ClassicPast(364))
    assert decision.settings == Settings(run=1, pages_to_scan=664, sleep_millisecs=10)
    assert decision.code == Code.BOOST
    assert decision.reason == (
        "free 3.0 GiB is below 12.8 GiB (20 % of 64.0 GiB): 364 -> 664 pages per batch"
    )
    assert past == ClassicPast(664)


def test_committed_but_not_short_decays() -> None:
    now = host(free_bytes=20 * GIB, guests_bytes=60 * GIB)
    decision, past = Classic().decide(now, ClassicPast(364))
    assert decision.code == Code.DECAY
    assert past == ClassicPast(314)
    assert "guests use 60.0 GiB" in decision.reason


def test_exactly_the_threshold_is_neither_short_nor_idle() -> None:
    assert Classic().decide(host(free_bytes=THRESHOLD), ClassicPast(364))[0].code == Code.DECAY
    assert Classic().decide(host(free_bytes=THRESHOLD + 1024), ClassicPast())[0].code == Code.IDLE
    assert Classic().decide(host(free_bytes=THRESHOLD - 1024), ClassicPast())[0].code == Code.BOOST


@pytest.mark.parametrize(
    ("now", "expected"),
    [(0, 300), (1000, 1250), (1250, 1250)],
)
def test_a_boost_stops_at_the_ceiling(now: int, expected: int) -> None:
    assert Classic().decide(host(free_bytes=0), ClassicPast(now))[1] == ClassicPast(expected)


def test_the_first_decay_lands_on_the_floor() -> None:
    now = host(free_bytes=20 * GIB, guests_bytes=60 * GIB)
    assert Classic().decide(now, ClassicPast())[1] == ClassicPast(64)


@pytest.mark.parametrize(
    ("total_gib", "sleep_millisecs"), [(1, 160), (4, 40), (15, 10), (16, 10), (64, 10), (12288, 10)]
)
def test_a_small_host_sleeps_longer(total_gib: int, sleep_millisecs: int) -> None:
    now = host(total_bytes=total_gib * GIB, free_bytes=0)
    assert Classic().decide(now, ClassicPast())[0].settings.sleep_millisecs == sleep_millisecs


def test_proxmox_sleeps_by_its_own_base() -> None:
    now = host(total_bytes=64 * GIB, free_bytes=0)
    settings = Classic(sleep_msec=100).decide(now, ClassicPast())[0].settings
    assert settings.sleep_millisecs == 25


def test_a_12_tib_host_loses_no_digits() -> None:
    total = 12 * 2**40
    threshold = total // 1024 * 20 // 100 * 1024
    short = host(total_bytes=total, free_bytes=threshold - 1024)
    idle = host(total_bytes=total, free_bytes=threshold + 1024)
    assert Classic().is_short(short)
    assert not Classic().is_short(idle)


def test_the_constant_counts_where_it_is_above_the_share() -> None:
    now = host(total_bytes=8 * GIB, free_bytes=3 * GIB)
    assert Classic(thres_const=4 * GIB).is_short(now)
    assert not Classic().is_short(now)


def test_free_memory_may_be_what_the_kernel_calls_available() -> None:
    now = host(free_bytes=1 * GIB)
    now = replace(now, meminfo=replace(now.meminfo, available_bytes=50 * GIB))
    assert Classic().is_short(now)
    assert not Classic(free_memory="available").is_short(now)


def test_without_memavailable_the_sum_of_ksmtuned_is_used() -> None:
    assert not Classic(free_memory="available").is_short(host(free_bytes=50 * GIB))


KB = st.integers(0, 64 * MIB)
SNAPSHOTS = st.builds(
    lambda free, buffers, used: host(
        free_bytes=free * 1024, buffers_bytes=buffers * 1024, guests_bytes=used * 1024
    ),
    KB,
    KB,
    KB,
)


@given(st.lists(SNAPSHOTS, max_size=30), st.integers(0, 5000), st.integers(0, 5000))
def test_classic_never_leaves_its_limits(hosts: list[Snapshot], low: int, more: int) -> None:
    law = Classic(npages_min=low, npages_max=low + more)
    past = law.start()
    for now in hosts:
        decision, past = law.decide(now, past)
        pages = decision.settings.pages_to_scan
        assert pages is None or low <= pages <= low + more
        assert (decision.settings.run == 1) == (pages is not None)


@given(SNAPSHOTS)
def test_a_constant_host_ends_at_a_constant_pace(now: Snapshot) -> None:
    law, past = Classic(), ClassicPast()
    for _ in range(30):  # 1250 / 50, and some more
        past = law.decide(now, past)[1]
    once_more, past = law.decide(now, past)
    assert law.decide(now, past)[0].settings == once_more.settings


@given(SNAPSHOTS, st.integers(0, 2000), st.sampled_from(sorted(POLICIES)))
def test_a_policy_is_a_pure_function(now: Snapshot, npages: int, name: str) -> None:
    law = build(name, {})
    past = ClassicPast(npages) if name == "classic" else law.start()
    assert law.decide(now, past) == law.decide(now, past)
    assert law.decide(now, past)[0].reason


@given(SNAPSHOTS, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_fixed_is_what_it_was_told(now: Snapshot, pages: int, millisecs: int) -> None:
    law = build("fixed", {"pages_to_scan": pages, "sleep_millisecs": millisecs})
    decision, _ = law.decide(now, law.start())
    assert decision.settings == Settings(run=1, pages_to_scan=pages, sleep_millisecs=millisecs)


@given(SNAPSHOTS)
def test_off_only_ever_stops(now: Snapshot) -> None:
    law = build("off", {})
    assert law.decide(now, law.start())[0].settings == Settings(run=0)


def test_two_guests_count_together() -> None:
    now = replace(QUIET, guests=(guest(2 * GIB, 1), guest(3 * GIB, 2)))
    assert now.guest_memory_bytes == 5 * GIB


def test_each_policy_says_itself_whether_news_is_worth_a_look() -> None:
    follows = {name: build(name, {}).follows_events for name in POLICIES}
    assert follows == {
        "adaptive": True,
        "advisor": True,
        "classic": False,  # it counts its looks
        "fixed": False,
        "off": False,
    }
