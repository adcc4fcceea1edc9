"""What happens to the guests, and when: every scenario of the contest, as values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ksmtuned.units import PAGE_BYTES

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One guest: when it comes and goes, what its memory holds, what happens to it."""

    start_s: float
    mib: int = 512
    end_s: float | None = None  # None: it stays
    common_pct: int = 40  # equal in all guests
    zero_pct: int = 10
    volatile_pct: int = 5  # rewritten for ever; the rest is unique and stable
    rewrites_per_s: int = 500  # pages
    later: tuple[tuple[float, str], ...] = ()  # (second, command): guest.c says which there are

    def commands(self) -> Iterator[tuple[float, str]]:
        """Everything that it is told, first what it starts with."""
        if self.mib:
            yield self.start_s, f"grow {self.mib}"
        yield from self.later


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The same story for every controller."""

    summary: str
    guests: tuple[Guest, ...]
    seconds: float = 150.0
    split_s: float = 74.0  # t50, t90 and t99 are of the best saving before this second
    change_s: float | None = None  # `again` is counted from this second


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """One thing to do to one guest. An empty command: start it; "quit": end it."""

    at_s: float
    guest: int
    command: str


def events(scenario: Scenario, seconds: float) -> list[Event]:
    """What happens before that second, in order."""
    found = []
    for number, guest in enumerate(scenario.guests):
        found.append(Event(guest.start_s, number, ""))
        found += [Event(at_s, number, command) for at_s, command in guest.commands()]
        if guest.end_s is not None:
            found.append(Event(guest.end_s, number, "quit"))
    # A stable sort: what one guest is told at the same second stays in order.
    return sorted((e for e in found if e.at_s < seconds), key=lambda event: event.at_s)


def mergeable_pages(scenario: Scenario, seconds: float) -> int:
    """Pages that were ever offered to KSM before that second."""
    return sum(_growth_pages(event.command) for event in events(scenario, seconds))


def peak_bytes(scenario: Scenario, seconds: float) -> int:
    """The most memory that guests hold at one time, merged or not. A hog does not count."""
    held = [0] * len(scenario.guests)
    peak = 0
    for event in events(scenario, seconds):
        if event.command == "quit":
            held[event.guest] = 0
        held[event.guest] += _growth_pages(event.command) * PAGE_BYTES
        peak = max(peak, sum(held))
    return peak


def _growth_pages(command: str) -> int:
    match command.split():
        case ["grow", mib]:
            return int(mib) * MIB // PAGE_BYTES
        case ["sparse", _, pages]:
            return int(pages)
    return 0


def _some(count: int, later: tuple[tuple[float, str], ...] = ()) -> tuple[Guest, ...]:
    """Guests that come one a second."""
    return tuple(Guest(start_s=float(n), later=later) for n in range(count))


def _updated(count: int) -> tuple[Guest, ...]:
    """Guests that are updated one a second from second 60 on."""
    return tuple(Guest(start_s=float(n), later=((60.0 + n, "update 33"),)) for n in range(count))


SCENARIOS = {
    "storm": Scenario(
        summary="8 guests of 512 MiB in 8 s, 3 more at 75 s",
        guests=_some(8) + tuple(Guest(start_s=75.0 + n) for n in range(3)),
        change_s=75.0,
    ),
    "churn": Scenario(
        summary="a guest of 384 MiB comes every 10 s and stays 60 s; half of it is common",
        guests=tuple(
            Guest(start_s=n * 10.0, end_s=n * 10.0 + 60, mib=384, common_pct=50, zero_pct=5)
            for n in range(14)
        ),
    ),
    "barren": Scenario(
        summary="6 guests of 512 MiB with next to nothing in common",
        guests=tuple(
            Guest(start_s=float(n), common_pct=2, zero_pct=1, volatile_pct=10, rewrites_per_s=1000)
            for n in range(6)
        ),
        seconds=120.0,
    ),
    "big": Scenario(
        summary="14 guests of 1 GiB in 7 s",
        guests=tuple(Guest(start_s=n * 0.5, mib=1024, volatile_pct=2) for n in range(14)),
    ),
    "late": Scenario(
        summary="8 guests of 256 MiB, each of which doubles after 40 s",
        guests=tuple(
            Guest(start_s=float(n), mib=256, later=((40.0 + n, "grow 256"),)) for n in range(8)
        ),
        split_s=40.0,
        change_s=40.0,
    ),
    "update": Scenario(
        summary="8 guests of 512 MiB; from 60 s on a third of each is rewritten, common again",
        guests=_updated(8),
        split_s=60.0,
        change_s=60.0,
    ),
    "reboot": Scenario(
        summary="8 guests of 512 MiB, one of which rewrites all its memory in place at 60 s",
        guests=(Guest(start_s=0.0, later=((60.0, "reboot"),)), *_some(8)[1:]),
        split_s=60.0,
        change_s=60.0,
    ),
    "sparse": Scenario(
        summary="6 guests of 512 MiB, at 3 s a mapping of 4 TiB with 4096 pages, 2 guests at 75 s",
        guests=(
            *_some(6),
            Guest(start_s=3.0, mib=0, rewrites_per_s=0, later=((3.0, "sparse 4 4096"),)),
            *(Guest(start_s=75.0 + n) for n in range(2)),
        ),
        change_s=75.0,
    ),
    "pressure": Scenario(
        summary="6 guests of 512 MiB; 10 % of memory left from 40 s to 100 s; 2 more at 60 s",
        guests=(
            *_some(6),
            Guest(
                start_s=5.0,
                end_s=105.0,
                mib=0,
                rewrites_per_s=0,
                # In two steps: memory that a virtual machine never touched comes at 0.4 GiB/s.
                later=((5.0, "press 35"), (40.0, "press 10"), (100.0, "release")),
            ),
            *(Guest(start_s=60.0 + n, mib=256) for n in range(2)),
        ),
        split_s=40.0,
        change_s=60.0,
    ),
}
