"""How fast ksmd is to go: the batch and the sleep that take a given share of one core."""

from __future__ import annotations

from typing import NamedTuple

# A kernel's timer ticks every 4 ms at 250 Hz, and a sleep ends on one: shorter sleeps are a guess.
_SLEEP_LEAST_MS = 4.0
_BATCH_MS = (5.0, 50.0)  # shorter ones are all overhead; longer ones hold up who writes to `run`
_FULL_SHARE = 0.95  # from here on ksmd may as well not sleep; but the least sleep is 4 to 8 ms
_FULL_BATCH_MS = 100.0
_KEEP_RATIO = 0.15  # a batch that differs by less is not worth a write


class Pace(NamedTuple):
    """What ksmd's two files are to hold."""

    pages_to_scan: int  # pages per batch
    sleep_millisecs: int  # between two batches


def pace(share: float, ns_per_page: float) -> Pace:
    """The pace that takes `share` (0 to 1) of one core."""
    if share >= _FULL_SHARE:
        batch_ms, sleep_ms = _FULL_BATCH_MS, 1.0
    else:
        batch_ms = min(max(_SLEEP_LEAST_MS * share / (1.0 - share), _BATCH_MS[0]), _BATCH_MS[1])
        sleep_ms = batch_ms * (1.0 / share - 1.0)
    pages = max(16, int(batch_ms * 1e6 / ns_per_page))
    return Pace(pages, max(1, round(sleep_ms)))


def steady(wanted: Pace, pages_to_scan: int | None) -> Pace:
    """The wanted pace, with the batch that is set already if it is close enough."""
    if pages_to_scan and abs(wanted.pages_to_scan - pages_to_scan) <= pages_to_scan * _KEEP_RATIO:
        return wanted._replace(pages_to_scan=pages_to_scan)
    return wanted
