"""Who came and who left, in words."""

from __future__ import annotations

from ksmtuned.comings import Comings
from ksmtuned.model import Details, Guest


def guest(pid: int, name: str, start_time: int = 1, ram_bytes: int | None = None) -> Guest:
    return Guest(
        pid=pid,
        start_time=start_time,
        name=name,
        vmm="qemu-kvm",
        memory_bytes=0,
        details=Details(ram_bytes=ram_bytes),
    )


A, B = guest(1, "a", ram_bytes=2**30), guest(2, "b")


def test_at_first_all_are_told_in_one_line() -> None:
    assert Comings().lines([]) == []
    assert Comings().lines([A]) == ["here already: 1 guest: a (1)"]
    many = [guest(pid, f"vm{pid}") for pid in range(7)]
    assert Comings().lines(many) == [
        "here already: 7 guests: vm0 (0), vm1 (1), vm2 (2), vm3 (3), vm4 (4) and 2 more"
    ]


def test_later_each_has_a_line() -> None:
    comings = Comings()
    assert comings.lines([]) == []
    assert comings.lines([A, B]) == [
        "guest a (1) came: qemu-kvm, 1.0 GiB of RAM",
        "guest b (2) came: qemu-kvm",
    ]
    assert comings.lines([A, B]) == []
    assert comings.lines([B]) == ["guest a (1) left"]


def test_a_storm_is_one_line() -> None:
    comings = Comings()
    comings.lines([A])
    many = [guest(pid, f"vm{pid}") for pid in range(10, 20)]
    assert comings.lines(many) == [
        "came: 10 guests: vm10 (10), vm11 (11), vm12 (12), vm13 (13), vm14 (14) and 5 more",
        "guest a (1) left",
    ]


def test_a_pid_that_passed_to_another_guest_is_one_that_left_and_one_that_came() -> None:
    comings = Comings()
    comings.lines([A])
    assert comings.lines([guest(1, "new", start_time=2)]) == [
        "guest new (1) came: qemu-kvm",
        "guest a (1) left",
    ]


def test_one_on_trial_is_not_told_until_it_has_passed() -> None:
    comings = Comings()
    comings.lines([])
    assert comings.lines([B], on_trial={2}) == []
    assert comings.lines([B]) == ["guest b (2) came: qemu-kvm"]
    # A guest that creates a second machine is a guest all the same.
    assert comings.lines([B], on_trial={2}) == []
    assert comings.lines([]) == ["guest b (2) left"]


def test_one_that_ends_on_trial_is_never_told() -> None:
    comings = Comings()
    comings.lines([])
    comings.lines([B], on_trial={2})
    assert comings.lines([]) == []
