"""Did the kernel do what QEMU says was done? A pure function of two looks at the guest.

The mappings' flags are the proof: the kernel takes the flag away only after every merged page of
the mapping has got its own memory (mm/ksm.c, ksm_madvise()). The counts follow late: a page is
counted out when ksmd comes by the next time, and never while it is stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from ksmtuned.units import PAGE_BYTES, size

# QEMU also offers its firmware and video memory, which are no backends: these stay merged.
_LEFT_RATIO = 0.05  # of what was merged
_MOVED_RATIO = 0.9  # of the backends' size: their mappings are a little larger or split

_LATE = " (ksmd counts them out when it comes by again)"


class Verdict(StrEnum):
    """What is known of the change."""

    VERIFIED = "verified"
    FAILED = "failed"  # the kernel shows that it did not happen
    UNVERIFIED = "unverified"  # the kernel does not show whether it did


class Look(NamedTuple):
    """One look at a guest's process."""

    merged_pages: int | None  # merging_pages and zero_pages; None: this kernel does not tell
    is_mergeable: bool | None  # as a whole; None: this kernel does not tell
    offered_bytes: int | None  # its mappings that are offered to KSM; None: not to be seen


def judge(before: Look, after: Look, wanted: bool, sizes: Sequence[int]) -> tuple[Verdict, str]:
    """The verdict, and one phrase why. sizes: of the backends, in bytes."""
    if after.merged_pages is None:
        return Verdict.UNVERIFIED, "this kernel does not tell what KSM holds of a process"
    if after.is_mergeable is False:
        if wanted:
            return Verdict.FAILED, "the kernel says that nothing of it can be merged"
        late = "" if is_counted_out(before, after) else _LATE
        return Verdict.VERIFIED, f"{_merged(before, after)}{late}, and nothing of it is offered"
    offered = _is_offered(before, after, wanted, sizes)
    if offered is None:
        return _without_mappings(before, after, wanted)
    if offered == wanted:
        word = "offered" if wanted else "no longer offered"
        late = "" if wanted or is_counted_out(before, after) else _LATE
        return Verdict.VERIFIED, f"{_merged(before, after)}{late}, and its RAM is {word} to KSM"
    word = "not offered" if wanted else "still offered"
    return Verdict.FAILED, f"the kernel says that its RAM is {word} to KSM"


def is_counted_out(before: Look, after: Look) -> bool:
    """Has the count of merged pages fallen, as far as it will?"""
    return (after.merged_pages or 0) <= (before.merged_pages or 0) * _LEFT_RATIO


def is_out(look: Look, sizes: Sequence[int]) -> bool:
    """Is no backend offered to KSM, by the mappings?"""
    offered = look.offered_bytes
    return offered is not None and bool(sizes) and offered < min(sizes) * _MOVED_RATIO


def _is_offered(before: Look, after: Look, wanted: bool, sizes: Sequence[int]) -> bool | None:
    """Is the RAM offered to KSM now, by the mappings? None: not to be seen."""
    if before.offered_bytes is None or after.offered_bytes is None:
        return None
    if wanted:
        return after.offered_bytes >= sum(sizes) * _MOVED_RATIO
    fallen_bytes = before.offered_bytes - after.offered_bytes
    return fallen_bytes < sum(sizes) * _MOVED_RATIO and not is_out(after, sizes)


def _without_mappings(before: Look, after: Look, wanted: bool) -> tuple[Verdict, str]:
    if wanted and after.is_mergeable:
        return Verdict.VERIFIED, "the kernel says that it can be merged"
    if not wanted and before.merged_pages and is_counted_out(before, after):
        return Verdict.VERIFIED, _merged(before, after)
    return Verdict.UNVERIFIED, f"{_merged(before, after)}, and its mappings may not be read"


def _merged(before: Look, after: Look) -> str:
    had, left = before.merged_pages or 0, after.merged_pages or 0
    back = f": {size((had - left) * PAGE_BYTES)} given back to it" if had > left else ""
    return f"merged pages {had} -> {left}{back}"
