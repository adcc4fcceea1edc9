"""Who saves how much: the host's saving, fairly divided among the processes that merge."""

from __future__ import annotations

from collections.abc import Sequence

from ksmtuned.model import Guest, KsmStat
from ksmtuned.units import PAGE_BYTES


def fair_shares(ksm: KsmStat, processes: Sequence[Guest]) -> list[int]:
    """Bytes that each of these processes saves; signed never.

    share = merging * sharing / (shared + sharing)   pages, plus its zero pages in full
    Each merged page is mapped `sharing / shared` times more often than it is kept, and which of
    its users is the one to be charged for it is nobody's guess: so all are alike. The shares add
    up to what these processes account for, to the page: where all that merge are listed, to the
    host's saving_bytes. Source: mm/ksm.c (the sum of ksm_merging_pages is shared + sharing).
    """
    merging = [process.details.merging_pages or 0 for process in processes]
    zeros = [process.details.zero_pages or 0 for process in processes]
    shared, sharing = ksm.pages_shared or 0, ksm.pages_sharing or 0
    theirs = sum(merging)
    # Figures that are a moment old may come to more than the host has now: never share out more.
    known = sharing if theirs >= shared + sharing else theirs * sharing // (shared + sharing)
    zero_known = min(sum(zeros), ksm.ksm_zero_pages or 0)
    pages = zip(apportion(known, merging), apportion(zero_known, zeros), strict=True)
    return [(merged + zero) * PAGE_BYTES for merged, zero in pages]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole numbers, in proportion to the weights, by largest remainder; in order."""
    whole = sum(weights)
    if not total or not whole:
        return [0] * len(weights)
    if total == whole:
        return list(weights)
    exact = [divmod(total * weight, whole) for weight in weights]
    given = [quotient for quotient, _ in exact]
    left = total - sum(given)
    by_remainder = sorted(range(len(exact)), key=lambda place: -exact[place][1])
    for place in by_remainder[:left]:
        given[place] += 1
    return given
