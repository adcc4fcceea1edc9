"""The values that everything else speaks of: what was read, what was decided, what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Protocol

from ksmtuned.errors import ExitStatus, KsmtunedError
from ksmtuned.units import PAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class KsmStat:
    """One reading of the KSM folder; a field is spelled like its file.

    None: this kernel has no such file, or it could not be read (then Snapshot.unread says why).
    Source: mm/ksm.c; Documentation/ABI/testing/sysfs-kernel-mm-ksm.
    """

    # controls
    run: int  # 0 stop, 1 scan, 2 unmerge; +4 for a moment during memory hot-remove
    pages_to_scan: int | None = None  # pages per batch
    sleep_millisecs: int | None = None  # between two batches
    merge_across_nodes: int | None = None
    use_zero_pages: int | None = None
    max_page_sharing: int | None = None
    stable_node_chains_prune_millisecs: int | None = None
    smart_scan: int | None = None  # since 6.7
    advisor_mode: str | None = None  # "none" or "scan-time" (since 6.8)
    advisor_max_cpu: int | None = None  # percent of a core
    advisor_min_pages_to_scan: int | None = None
    advisor_max_pages_to_scan: int | None = None
    advisor_target_scan_time: int | None = None  # seconds
    # counters
    pages_shared: int | None = None
    pages_sharing: int | None = None
    pages_unshared: int | None = None
    pages_volatile: int | None = None
    full_scans: int | None = None  # passes; reset to 0 by run=2
    stable_node_chains: int | None = None
    stable_node_dups: int | None = None
    pages_scanned: int | None = None  # since 6.6; skipped pages are not counted
    pages_skipped: int | None = None  # since 6.7
    ksm_zero_pages: int | None = None  # since 6.6
    general_profit: int | None = None  # bytes, signed (since 6.4)

    @property
    def saving_bytes(self) -> int:
        """Memory that merging gave back, gross: (pages_sharing + ksm_zero_pages) pages."""
        return ((self.pages_sharing or 0) + (self.ksm_zero_pages or 0)) * PAGE_BYTES

    def value(self, control: str) -> int | str | None:
        """The control's value as it is compared: run without its hot-remove flag."""
        value: int | str | None = getattr(self, control)
        return self.run & RUN_MASK if control == "run" else value


RUN_MASK = 3  # bit 2 only says that memory is being taken off line (mm/ksm.c, KSM_RUN_OFFLINE)
RUN_STOP, RUN_SCAN, RUN_UNMERGE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Meminfo:
    """The lines of /proc/meminfo that policies need, in bytes; None: this kernel has no such line.

    Source: fs/proc/meminfo.c.
    """

    total_bytes: int  # MemTotal, never 0
    free_bytes: int  # MemFree
    buffers_bytes: int = 0  # Buffers
    cached_bytes: int = 0  # Cached: the page cache, shared memory included
    available_bytes: int | None = None  # MemAvailable (since 3.14)
    anon_bytes: int = 0  # AnonPages: mapped anonymous memory, a merged page once
    arc_bytes: int = 0  # what ZFS's cache could give back, and MemAvailable does not count
    swap_free_bytes: int | None = None  # SwapFree


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What is known about a process that KSM may merge; None: not known, or not to be known here.

    Read in rotation, so up to 1 s old for each 32 processes, and as old as the tick. A figure is
    spelled like its line in proc/PID/ksm_stat.
    """

    uuid: str | None = None
    ram_bytes: int | None = None  # what the virtual machine was given at its start
    uid: int | None = None  # real user
    cgroup: str | None = None  # as proc/PID/cgroup says
    merging_pages: int | None = None  # pages of this process that are merged with others
    zero_pages: int | None = None  # those that KSM replaced by the kernel's zero page
    rmap_items: int | None = None  # what ksmd keeps in mind about it: 64 bytes each
    profit_bytes: int | None = None  # ksm_process_profit, signed
    mergeable: bool | None = None  # may the memory that matters be merged at all?
    why_not: str | None = None  # one short phrase, where mergeable is not true
    share: str | None = None  # "on" or "off": is memory offered to KSM?


UNKNOWN = Details()


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A virtual machine's process; in Snapshot.others, any other with mergeable memory."""

    pid: int
    start_time: int  # clock ticks since boot: with pid, the identity of a process
    name: str  # what people call it; from outside, so never trusted
    vmm: str  # its program; completed from the command line where the kernel cut its comm
    memory_bytes: int  # by the measure that the policy asked for; always current
    details: Details = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One immutable reading of the host."""

    time: float  # seconds since the epoch, for people
    monotonic_s: float  # for rates
    ksm: KsmStat
    meminfo: Meminfo
    ksmd_cpu_s: float | None = None  # CPU time of ksmd since boot; None: not visible here
    cow_ksm: int | None = None  # merged pages written to, and so copied, since boot (since 5.18)
    pressure_pct: float | None = None  # memory pressure: "some", 10 s average; None: no PSI
    # Anonymous memory that came to processes which offer theirs to KSM, since we watch; None: this
    # kernel does not say which they are (before 6.14).
    arrived_bytes: int | None = None
    guests: tuple[Guest, ...] = ()
    others: tuple[Guest, ...] = ()  # no guests, but with mergeable memory
    unread: Mapping[str, KsmtunedError] = field(default_factory=dict)  # KSM files, and why

    @property
    def guest_memory_bytes(self) -> int:
        """What all guests use together."""
        return sum(guest.memory_bytes for guest in self.guests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Values wanted for the controls; None: leave that one alone. Spelled like the files."""

    run: int | None = None
    pages_to_scan: int | None = None
    sleep_millisecs: int | None = None
    merge_across_nodes: int | None = None
    use_zero_pages: int | None = None
    max_page_sharing: int | None = None
    stable_node_chains_prune_millisecs: int | None = None
    smart_scan: int | None = None
    advisor_mode: str | None = None
    advisor_max_cpu: int | None = None
    advisor_min_pages_to_scan: int | None = None
    advisor_max_pages_to_scan: int | None = None
    advisor_target_scan_time: int | None = None

    def wanted(self) -> dict[str, int | str]:
        """Only what is wanted, by control."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in pairs if value is not None}


CONTROLS: tuple[str, ...] = tuple(f.name for f in fields(Settings))
ADVISOR_CONTROLS = tuple(name for name in CONTROLS if name.startswith("advisor_"))
ADVISOR_MODES = ADVISOR_OFF, ADVISOR_ON = "none", "scan-time"
PAGES_WITHOUT_ADVISOR = 100  # what a change to "none" sets pages_to_scan to (mm/ksm.c)


class Phase(StrEnum):
    """What ksmd is meant to be doing."""

    SCAN = "scan"
    STOP = "stop"
    SETTLE = "settle"  # stopped while new memory still fills
    BURST = "burst"  # scanning at the budget's pace
    WATCH = "watch"  # stopped until something changes
    UNMERGE = "unmerge"  # merged pages get their own memory back
    HOLD = "hold"  # stopped until somebody says `ksmtuned resume`


class Code(StrEnum):
    """Why, for machines."""

    IDLE = "idle"  # memory is plentiful
    BOOST = "boost"  # memory is short: faster
    DECAY = "decay"  # still committed, no longer short: slower
    FIXED = "fixed"
    OFF = "off"
    SETTLE = "settle"
    BURST = "burst"
    PROBE = "probe"  # one cheap pass, to see whether anything changed unseen
    WATCH = "watch"
    PLENTY = "plenty"  # memory is plentiful, and the profile scans only when it is not
    ADVISOR = "advisor"  # the kernel's advisor sets the pace
    ADVISOR_START = "advisor-start"
    ADVISOR_RESTART = "advisor-restart"  # it has stalled
    NO_ADVISOR = "no-advisor"  # this kernel has none: a constant pace instead
    UNMERGE = "unmerge"
    HOLD = "hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a policy wants, and why."""

    settings: Settings
    phase: Phase
    code: Code
    reason: str  # one sentence for people: value, limit, consequence
    next_tick_s: float | None = None  # when to look again; None: the policy's own interval
    progress: float | None = None  # of the work under way, 0 to 1
    is_routine: bool = False  # only holds a pace: not worth a line in the log


@dataclass(frozen=True, slots=True)
class Write:
    """One write to a control."""

    control: str
    old: int | str
    new: int | str

    def __str__(self) -> str:
        return f"{self.control}: {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A write that did not take."""

    write: Write
    error: KsmtunedError


def exit_status(refused: Sequence[Refusal]) -> ExitStatus:
    """What the shell is told of these refusals: the worst."""
    return max((refusal.error.exit_status for refusal in refused), default=ExitStatus.DONE)


class Policy(Protocol):
    """A law: a pure function of the snapshot and of its own past."""

    @property
    def interval_s(self) -> float:
        """Between two ticks, where the configuration does not say."""

    @property
    def guest_memory(self) -> str:
        """The measure of guest memory that it reads: rss, cgroup, pss or none."""

    @property
    def needs_daemon(self) -> bool:
        """Does what it sets need somebody to end it?"""

    @property
    def follows_events(self) -> bool:
        """Is news (a guest came, memory is under pressure) worth a look at once? A law that
        counts its looks says no, and so does one that always wants the same."""

    def unattended(self, now: Snapshot) -> Decision:
        """What may be left without a daemon."""

    def start(self) -> Any:
        """The past of a policy that has not decided anything yet."""

    def decide(self, now: Snapshot, past: Any) -> tuple[Decision, Any]:
        """What to do now, and the past for the next call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One turn of the loop, done: what was seen, decided, written and refused."""

    policy: str
    now: Snapshot
    decision: Decision
    planned: tuple[Write, ...] = ()
    written: tuple[Write, ...] = ()
    refused: tuple[Refusal, ...] = ()
    foreign: tuple[str, ...] = field(default=())  # one line for each control left to somebody else
