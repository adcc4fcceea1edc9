"""The fair shares of the saving: they add up, to the page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ksmtuned.model import Details, Guest, KsmStat
from ksmtuned.shares import apportion, fair_shares
from ksmtuned.units import PAGE_BYTES


def process(merging: int | None, zero: int | None = 0) -> Guest:
    details = Details(merging_pages=merging, zero_pages=zero)
    return Guest(pid=1, start_time=1, name="a", vmm="q", memory_bytes=0, details=details)


def host(shared: int, sharing: int, zero: int = 0) -> KsmStat:
    return KsmStat(run=0, pages_shared=shared, pages_sharing=sharing, ksm_zero_pages=zero)


def pages(ksm: KsmStat, *processes: Guest) -> list[int]:
    return [share // PAGE_BYTES for share in fair_shares(ksm, processes)]


def test_merging_pages_share_in_proportion_and_zero_pages_count_in_full() -> None:
    # Ten pages kept for forty mappings: thirty are saved, three of each four.
    assert pages(host(10, 30, 7), process(20, 7), process(20, 0)) == [15 + 7, 15]


def test_what_others_merge_is_not_given_to_those_who_are_listed() -> None:
    assert pages(host(10, 30), process(20)) == [15]


def test_a_rest_goes_to_the_largest_remainder() -> None:
    assert pages(host(1, 2), process(1), process(1), process(1)) == [1, 1, 0]
    assert apportion(10, [1, 1, 4]) == [2, 2, 6]
    assert apportion(7, [3, 2, 2]) == [3, 2, 2]


def test_figures_of_a_moment_ago_never_come_to_more_than_the_host_saves() -> None:
    assert pages(host(1, 10, 3), process(100, 5), process(100, 5)) == [5 + 2, 5 + 1]


def test_where_nothing_is_known_nothing_is_shared() -> None:
    assert pages(host(10, 30), process(None, None), process(0)) == [0, 0]
    assert pages(KsmStat(run=0), process(5, 5)) == [0]
    assert fair_shares(host(1, 2), []) == []


PAGES = st.integers(0, 10**12)


@given(st.lists(st.tuples(PAGES, PAGES), min_size=1), st.floats(0.01, 1))
def test_they_always_add_up_to_the_host_s_saving(
    figures: list[tuple[int, int]], ratio: float
) -> None:
    """Where all processes that merge are listed."""
    merging = sum(figure[0] for figure in figures)
    sharing = int(merging * ratio)
    ksm = host(merging - sharing, sharing, sum(figure[1] for figure in figures))
    shares = fair_shares(ksm, [process(*figure) for figure in figures])
    assert sum(shares) == ksm.saving_bytes
    assert all(share >= 0 for share in shares)


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**9), min_size=1))
def test_no_share_is_a_whole_unit_from_its_exact_value(total: int, weights: list[int]) -> None:
    given_out, whole = apportion(total, weights), sum(weights)
    for got, weight in zip(given_out, weights, strict=True):
        assert whole == 0 or abs(got * whole - total * weight) < whole
