"""Was it done? A table of looks before and after."""

from __future__ import annotations

import pytest

from ksmtuned.guests.verdict import Look, Verdict, judge

RAM = 2**30
GUEST = 100_000  # merged pages
VGA = 2**24  # offered too, and no backend

VERIFIED, FAILED, UNVERIFIED = Verdict.VERIFIED, Verdict.FAILED, Verdict.UNVERIFIED


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        # 6.14 and later: the kernel says it all
        (Look(GUEST, True, RAM), Look(0, False, 0), VERIFIED),
        (Look(0, True, RAM), Look(0, False, 0), VERIFIED),  # nothing was merged yet
        (Look(GUEST, True, None), Look(0, False, None), VERIFIED),
        # QEMU keeps its firmware and video memory in
        (Look(GUEST, True, RAM + VGA), Look(4000, True, VGA), VERIFIED),
        (Look(5000, True, RAM + VGA), Look(4000, True, VGA), VERIFIED),
        (Look(GUEST, None, RAM + VGA), Look(4000, None, VGA), VERIFIED),
        (Look(GUEST, True, RAM), Look(4000, True, RAM), FAILED),  # it will be merged again
        # the counts follow only when ksmd comes by, and it may be stopped
        (Look(GUEST, True, RAM + VGA), Look(GUEST, True, VGA), VERIFIED),
        (Look(GUEST, True, RAM), Look(GUEST, False, 0), VERIFIED),
        (Look(GUEST, None, None), Look(GUEST, None, None), UNVERIFIED),
        # QEMU took the flag and did nothing
        (Look(GUEST, True, RAM + VGA), Look(GUEST, True, RAM + VGA), FAILED),
        (Look(0, True, RAM + VGA), Look(0, True, RAM + VGA), FAILED),
        # the kernel ran out of memory half way
        (Look(GUEST, True, RAM), Look(GUEST // 2, True, RAM), FAILED),
        # who can tell?
        (Look(None, None, RAM), Look(None, None, 0), UNVERIFIED),
        (Look(0, None, None), Look(0, None, None), UNVERIFIED),
        (Look(GUEST, None, None), Look(0, None, None), VERIFIED),
        (Look(GUEST, True, None), Look(0, True, None), VERIFIED),
    ],
)
def test_off(before: Look, after: Look, verdict: Verdict) -> None:
    assert judge(before, after, False, [RAM])[0] is verdict


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (Look(0, False, 0), Look(0, True, RAM), VERIFIED),
        (Look(400, True, VGA), Look(400, True, RAM + VGA), VERIFIED),
        (Look(400, None, VGA), Look(400, None, RAM + VGA), VERIFIED),
        (Look(400, True, None), Look(400, True, None), VERIFIED),
        (Look(0, False, 0), Look(0, False, 0), FAILED),
        (Look(400, True, VGA), Look(400, True, VGA), FAILED),  # QEMU did nothing
        (Look(400, None, None), Look(400, None, None), UNVERIFIED),
        (Look(None, None, 0), Look(None, None, RAM), UNVERIFIED),
    ],
)
def test_on(before: Look, after: Look, verdict: Verdict) -> None:
    assert judge(before, after, True, [RAM])[0] is verdict


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("is_offered", [True, False])
def test_if_nothing_changes_the_mappings_must_be_as_wanted(wanted: bool, is_offered: bool) -> None:
    look = Look(400, True, (RAM if is_offered else 0) + VGA)
    verdict = VERIFIED if wanted == is_offered else FAILED
    assert judge(look, look, wanted, [RAM // 2, RAM // 2])[0] is verdict


def test_one_of_two_nodes_left_behind_is_noticed() -> None:
    half = RAM // 2
    before, after = Look(0, True, RAM), Look(0, True, half)
    assert judge(before, after, False, [half, half])[0] is FAILED
    assert judge(after, after, True, [half, half])[0] is FAILED
