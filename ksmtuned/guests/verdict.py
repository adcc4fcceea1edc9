"""Did the kernel do what QEMU says was done? A pure function of two looks at the guest."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from ksmtuned.units import PAGE_BYTES, size

# QEMU also offers its firmware and video memory, which are no backends: these stay merged.
_OTHER_BYTES = 32 * 2**20
_LEFT_RATIO = 0.05  # of what was merged; more than that was not given back
_MOVED_RATIO = 0.9  # of the backends' size: their mappings are a little larger or split


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
    if not wanted and _stays_merged(before, after):
        left = f"{after.merged_pages} of {before.merged_pages} pages are still merged"
        return Verdict.FAILED, left
    if after.is_mergeable is False:
        if wanted:
            return Verdict.FAILED, "the kernel says that nothing of it can be merged"
        return Verdict.VERIFIED, f"{_merged(before, after)}, and nothing of it is offered to KSM"
    offered = _is_offered(before, after, wanted, sizes)
    if offered is None:
        return _without_mappings(before, after, wanted)
    if offered == wanted:
        word = "offered" if wanted else "no longer offered"
        return Verdict.VERIFIED, f"{_merged(before, after)}, and its RAM is {word} to KSM"
    word = "not offered" if wanted else "still offered"
    return Verdict.FAILED, f"the kernel says that its RAM is {word} to KSM"


def _stays_merged(before: Look, after: Look) -> bool:
    """Were there pages to give back, and they were not?"""
    had, left = before.merged_pages or 0, after.merged_pages or 0
    return had * PAGE_BYTES > _OTHER_BYTES and left > had * _LEFT_RATIO


def _is_offered(before: Look, after: Look, wanted: bool, sizes: Sequence[int]) -> bool | None:
    """Is the RAM offered to KSM now, by the mappings? None: not to be seen."""
    if before.offered_bytes is None or after.offered_bytes is None:
        return None
    if wanted:
        return after.offered_bytes >= sum(sizes) * _MOVED_RATIO
    fallen_bytes = before.offered_bytes - after.offered_bytes
    is_out = fallen_bytes >= sum(sizes) * _MOVED_RATIO
    return not is_out and after.offered_bytes >= min(sizes) * _MOVED_RATIO


def _without_mappings(before: Look, after: Look, wanted: bool) -> tuple[Verdict, str]:
    if wanted and after.is_mergeable:
        return Verdict.VERIFIED, "the kernel says that it can be merged"
    if not wanted and (before.merged_pages or 0) > 0:
        return Verdict.VERIFIED, _merged(before, after)
    why = "nothing of it was merged yet" if not wanted else "this kernel does not tell"
    return Verdict.UNVERIFIED, f"{why}, and its mappings may not be read"


def _merged(before: Look, after: Look) -> str:
    had, left = before.merged_pages or 0, after.merged_pages or 0
    back = f": {size((had - left) * PAGE_BYTES)} given back to it" if had > left else ""
    return f"merged pages {had} -> {left}{back}"
