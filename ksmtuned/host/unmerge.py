"""Gives every merged page its own memory back: run=2, by a child that may die of it."""

from __future__ import annotations

from collections.abc import Callable

from ksmtuned.errors import DoesNotFit, WriteBlocked
from ksmtuned.host.host import Host
from ksmtuned.model import RUN_STOP, RUN_UNMERGE, Snapshot, Write

# Kept free beyond the need: allocators start to stall, and guests to swap, before the last page.
_RESERVE_RATIO = 0.02  # of RAM


def check_headroom(now: Snapshot) -> None:
    """Errors: DoesNotFit, if the merged pages' copies would not fit into memory and swap.

    need = (pages_sharing + ksm_zero_pages) pages; before 6.6 placed zero pages cannot be counted.
    Source: mm/ksm.c, unmerge_and_remove_all_rmap_items().
    """
    available = now.meminfo.available_bytes
    if available is None:
        available = now.meminfo.free_bytes
    room = available + (now.meminfo.swap_free_bytes or 0)
    reserve = int(now.meminfo.total_bytes * _RESERVE_RATIO)
    if now.ksm.saving_bytes + reserve > room:
        raise DoesNotFit(now.ksm.saving_bytes, room, reserve)


def unmerge(host: Host, beat: Callable[[], None], wait_s: float) -> None:
    """Unmerge everything and leave ksmd stopped. `beat` is called at least every wait_s.

    The kernel makes the writer the first to be killed when memory runs out, and a signal ends it
    half way: the child is for that. Errors: KernelRefused (ENOMEM, EINTR: unmerged in part),
    WriterKilled, WriteNotTaken.
    """
    for write in (Write("run", RUN_STOP, RUN_UNMERGE), Write("run", RUN_UNMERGE, RUN_STOP)):
        while not _is_done(host, write, wait_s):
            beat()


def _is_done(host: Host, write: Write, wait_s: float) -> bool:
    try:
        host.ksm.write(write, wait_s)
    except WriteBlocked:
        return False
    return True
