"""run=2, by a child that may die of it: every merged page gets its own memory back."""

from __future__ import annotations

from collections.abc import Iterator

from ksmtuned.errors import WriteBlocked
from ksmtuned.host.host import Host
from ksmtuned.model import RUN_STOP, RUN_UNMERGE, Write

_POLL_S = 0.05  # how long one look at a waiting child may take

UNMERGE = Write("run", RUN_STOP, RUN_UNMERGE)
AFTERWARDS = Write("run", RUN_UNMERGE, RUN_STOP)


def unmerge_all(host: Host) -> Iterator[None]:
    """Unmerge everything and leave ksmd stopped; one turn of the iterator for each look.

    The kernel makes the writer the first to be killed when memory runs out, and a signal ends it
    half way: the child is for that. Source: mm/ksm.c, run_store().
    Errors: KernelRefused (ENOMEM, EINTR: unmerged in part, and run is 0), WriterKilled,
    WriteNotTaken.
    """
    yield from until_taken(host, UNMERGE)
    yield from until_taken(host, AFTERWARDS)


def until_taken(host: Host, write: Write) -> Iterator[None]:
    """One write that waits for ksmd's batch, however long; one turn for each look.

    Errors: as Ksm.write, but for WriteBlocked.
    """
    while not _is_taken(host, write):
        yield


def _is_taken(host: Host, write: Write) -> bool:
    try:
        host.ksm.write(write, _POLL_S)
    except WriteBlocked:
        return False
    return True
