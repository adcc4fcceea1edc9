"""A model of ksmd and of the memory it walks: fast, pure, true to mm/ksm.c where a law can tell.

Memory is counted in blocks of 256 equal pages. Source: mm/ksm.c (6.18): ksm_do_scan,
scan_get_next_rmap_item, cmp_and_merge_page, should_skip_rmap_item, __ksm_enter, __ksm_exit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from ksmtuned.model import KsmStat

BLOCK = 256  # pages
PAGE = 4096
JIFFY_S = 0.004
MIB = 2**20


class Kind(Enum):
    """What a page holds."""

    COMMON = "common"  # equal in all guests
    ZERO = "zero"
    VOLATILE = "volatile"  # different at every visit
    UNIQUE = "unique"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What this kernel has."""

    pages_scanned: bool = True
    smart_scan: bool = True  # with pages_skipped
    ksm_zero_pages: bool = True
    general_profit: bool = True
    cow_ksm: bool = True
    is_ksmd_visible: bool = True
    says_who_offers: bool = True


NEW_KERNEL = Kernel()
KERNEL_6_12 = Kernel(says_who_offers=False)
KERNEL_6_1 = Kernel(
    pages_scanned=False,
    smart_scan=False,
    ksm_zero_pages=False,
    general_profit=False,
    says_who_offers=False,
)
KERNEL_5_10 = Kernel(
    pages_scanned=False,
    smart_scan=False,
    ksm_zero_pages=False,
    general_profit=False,
    cow_ksm=False,
    says_who_offers=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """CPU time for one page, in microseconds: seen on 6.18, a million pages on the list."""

    first: float = 1.5  # a checksum that is new or has changed
    search: float = 8.5  # unchanged, and not found: two trees are walked
    merge: float = 6.0
    merged: float = 0.9  # already merged
    skipped: float = 0.25
    noise: float = 0.15  # of a batch, at most, either way


class Node:
    """One page in the stable tree."""

    __slots__ = ("items", "live")

    def __init__(self) -> None:
        self.items = 0  # reverse map items, of pages written to since, too
        self.live = 0  # mappings of the shared page


class Block:
    """256 pages of one process that go through everything together."""

    __slots__ = (
        "age",
        "content",
        "has_item",
        "is_ksm",
        "is_zeroed",
        "kind",
        "node",
        "queued",
        "seen",
        "skips",
    )

    def __init__(self, kind: Kind, content: object) -> None:
        self.kind, self.content = kind, content
        self.seen: object = None  # the checksum at the last visit
        self.node: Node | None = None
        self.is_ksm = False  # maps the shared page; else, with a node, it was written to since
        self.is_zeroed = False  # maps the kernel's zero page
        self.has_item = False
        self.queued = False  # counted as unshared
        self.age = self.skips = 0


@dataclass(slots=True, eq=False)
class Mm:
    """A process that offers its memory."""

    blocks: list[Block] = field(default_factory=list)
    hole_cpu_s: float = 0.0  # what walking its unmapped parts takes, in one pass (before 6.18)
    is_alive: bool = True


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which ksmd runs without a pause."""

    begin_s: float
    end_s: float
    scanned: int  # pages, from begin to end
    skipped: int
    ended_passes: int


class Ksmd:
    """The thread, its list, its trees and its counters."""

    def __init__(self, kernel: Kernel, costs: Costs, seed: int) -> None:
        self.kernel, self.costs, self._random = kernel, costs, random.Random(seed)
        self.run = 0
        self.pages_to_scan, self.sleep_millisecs = 100, 20
        self.smart_scan, self.use_zero_pages = 1, 0
        self.full_scans = self.scanned = self.skipped = self.zero_blocks = self.cow_blocks = 0
        self.anon_blocks = 0
        self.arrived_blocks = 0  # in all processes that offer memory, since the start
        self.ran: list[tuple[float, float]] = []  # every stretch: begin, end
        self._cpu_s = 0.0
        self._stretch: Stretch | None = None
        self._wakes_s = 0.0  # when the sleep under way ends
        self._batch_left = 0
        self._mms: list[Mm] = []
        self._at: int | None = None  # the cursor: an index into the list; None: between passes
        self._todo: Iterator[Block] = iter(())
        self._hole_s = 0.0
        self._block_left, self._block_us, self._is_skipping = 0, 0.0, False
        self._items = self._unshared = self._shared = self._sharing = 0
        self._stable: dict[object, Node] = {}
        self._unstable: dict[object, Block] = {}

    # -- what processes do -----------------------------------------------------------------------

    def enter(self, mm: Mm) -> None:
        """Just before the cursor, so that it is visited last; at the end if that is at the head."""
        if self._at is None:
            self._mms.append(mm)
        else:
            self._mms.insert(self._at, mm)
            self._at += 1

    def leave(self, mm: Mm) -> None:
        """Its memory is free at once; its items go when ksmd comes by: next, but not at once."""
        for block in mm.blocks:
            self._unmap(block)
        mm.is_alive = False
        index = self._mms.index(mm)
        if index == self._at:
            self._todo, self._block_left, self._hole_s = iter(()), 0, 0.0
            return
        self._mms.pop(index)
        if self._at is not None and index < self._at:
            self._at -= 1
        if any(block.has_item for block in mm.blocks):
            self._mms.insert(0 if self._at is None else self._at + 1, mm)

    def fill(self, mm: Mm, block: Block) -> None:
        """A block that the process now uses."""
        mm.blocks.append(block)
        self.anon_blocks += 1

    def write(self, block: Block, content: object) -> None:
        """The process changes a block: merged pages are copied at once, counted at the next
        visit."""
        self.cow_blocks += block.is_ksm
        self.arrived_blocks += block.is_zeroed
        self._unmap(block)
        self.anon_blocks += 1
        block.content = content

    def _unmap(self, block: Block) -> None:
        if block.is_zeroed:
            self.zero_blocks -= 1
            block.is_zeroed = False
            return
        if block.is_ksm and block.node:
            block.is_ksm = False
            block.node.live -= 1
            if block.node.live:
                return
        self.anon_blocks -= 1

    # -- time ------------------------------------------------------------------------------------

    @property
    def is_in_pass(self) -> bool:
        """Does the cursor stand inside a pass?"""
        return self._at is not None

    def due_s(self) -> float:
        """When it next does something by itself."""
        if self._stretch:
            return self._stretch.end_s
        return self._wakes_s if self.run & 1 and self._mms else math.inf

    def advance(self, now_s: float) -> None:
        """What is due now: a stretch ends, a batch begins."""
        if self._stretch:
            self._end_stretch(self._stretch)
            if self._batch_left:
                self._begin_stretch(now_s)
            else:
                jiffies = max(1, math.ceil(self.sleep_millisecs / 1000 / JIFFY_S))
                self._wakes_s = now_s + (jiffies * JIFFY_S if self.sleep_millisecs else 0.0)
        elif self.run & 1 and self._mms:
            self._batch_left = self.pages_to_scan
            self._begin_stretch(now_s)

    def set_sleep(self, millisecs: int, now_s: float) -> None:
        """A change wakes ksmd at once."""
        if millisecs != self.sleep_millisecs:
            self._wakes_s = min(self._wakes_s, now_s)
        self.sleep_millisecs = millisecs

    def set_run(self, run: int, now_s: float) -> None:
        """A stop takes effect after the batch under way."""
        if run and not self.run:
            self._wakes_s = max(self._wakes_s, now_s)
        self.run = run

    def cpu_s(self, now_s: float) -> float:
        """CPU time up to now."""
        return self._cpu_s + (now_s - self._stretch.begin_s if self._stretch else 0.0)

    def stat(self, now_s: float) -> KsmStat:
        """The folder, as it reads now."""
        has, part, stretch = self.kernel, 0.0, self._stretch
        if stretch and stretch.end_s > stretch.begin_s:
            part = min(1.0, (now_s - stretch.begin_s) / (stretch.end_s - stretch.begin_s))
        scanned = self.scanned + int(part * stretch.scanned if stretch else 0)
        skipped = self.skipped + int(part * stretch.skipped if stretch else 0)
        others = self._shared + self._sharing + self._unshared
        profit = (self._sharing + self.zero_blocks) * PAGE - self._items * 64
        return KsmStat(
            run=self.run,
            pages_to_scan=self.pages_to_scan,
            sleep_millisecs=self.sleep_millisecs,
            merge_across_nodes=1,
            use_zero_pages=self.use_zero_pages,
            max_page_sharing=256,
            smart_scan=self.smart_scan if has.smart_scan else None,
            pages_shared=self._shared * BLOCK,
            pages_sharing=self._sharing * BLOCK,
            pages_unshared=self._unshared * BLOCK,
            pages_volatile=max(0, self._items - others) * BLOCK,
            full_scans=self.full_scans,
            pages_scanned=scanned if has.pages_scanned else None,
            pages_skipped=skipped if has.smart_scan else None,
            ksm_zero_pages=self.zero_blocks * BLOCK if has.ksm_zero_pages else None,
            general_profit=profit * BLOCK if has.general_profit else None,
        )

    # -- a batch ---------------------------------------------------------------------------------

    def _end_stretch(self, stretch: Stretch) -> None:
        self._stretch = None
        self._cpu_s += stretch.end_s - stretch.begin_s
        self.scanned += stretch.scanned
        self.skipped += stretch.skipped
        self.full_scans += stretch.ended_passes
        self.ran.append((stretch.begin_s, stretch.end_s))

    def _begin_stretch(self, now_s: float) -> None:
        """Walk on until the batch, the pass or the road ends. A hole is a stretch of its own."""
        if self._hole_s:
            self._stretch = Stretch(now_s, now_s + self._hole_s, 0, 0, 0)
            self._hole_s = 0.0
            return
        cpu_us, scanned, skipped, passes = 5.0, 0, 0, 0
        while self._batch_left and not self._hole_s:
            if not self._block_left and not self._next_block():
                self._batch_left, passes = 0, 1
                break
            if self._is_skipping:
                pages = self._block_left
                skipped += pages
            else:
                pages = min(self._block_left, self._batch_left)
                scanned += pages
                self._batch_left -= pages
            self._block_left -= pages
            cpu_us += pages * self._block_us
        noise = 1 + self._random.uniform(-self.costs.noise, self.costs.noise)
        self._stretch = Stretch(now_s, now_s + cpu_us * noise / 1e6, scanned, skipped, passes)

    def _next_block(self) -> bool:
        """Go to the next block, over to the next process. False: the pass is at its end."""
        while not self._hole_s:
            for block in self._todo:
                if block.is_zeroed:  # not anonymous memory any more: the item goes, no visit
                    self._forget(block)
                    continue
                self._visit(block)
                return True
            if not self._next_mm():
                return False
        return True

    def _next_mm(self) -> bool:
        if self._at is None:
            self._unstable.clear()
            following = 0
        elif self._mms[self._at].is_alive:
            following = self._at + 1
        else:
            self._bury(self._at)
            following = self._at
        while following < len(self._mms) and not self._mms[following].is_alive:
            self._bury(following)
        if following >= len(self._mms):
            self._at = None
            return False
        self._at = following
        mm = self._mms[following]
        self._todo, self._hole_s = iter(mm.blocks), mm.hole_cpu_s
        return True

    def _bury(self, index: int) -> None:
        for block in self._mms.pop(index).blocks:
            self._leave_trees(block)
            self._forget(block)

    def _forget(self, block: Block) -> None:
        self._items -= block.has_item
        block.has_item, block.seen, block.age, block.skips = False, None, 0, 0

    # -- a page ----------------------------------------------------------------------------------

    def _visit(self, block: Block) -> None:
        self._block_left, self._is_skipping = BLOCK, False
        if block.is_ksm:
            self._block_us = self.costs.merged
            return
        self._items += not block.has_item
        block.has_item = True
        if self._skips(block):
            self._leave_trees(block)
            self._is_skipping, self._block_us = True, self.costs.skipped
            return
        self._leave_trees(block)
        checksum = object() if block.kind is Kind.VOLATILE else block.content
        if block.seen != checksum:
            block.seen, self._block_us = checksum, self.costs.first
            return
        self._block_us = self.costs.merge if self._merges(block) else self.costs.search

    def _skips(self, block: Block) -> bool:
        if not (self.kernel.smart_scan and self.smart_scan):
            return False
        age = block.age
        block.age = min(255, age + 1)
        if age < 3:
            return False
        if not block.skips:
            block.skips = 1 if age <= 3 else 2 if age <= 5 else 4 if age <= 8 else 8
            return False
        block.skips -= 1
        return True

    def _merges(self, block: Block) -> bool:
        if block.kind is Kind.ZERO and self.use_zero_pages:
            block.is_zeroed = True
            self.zero_blocks += 1
            self.anon_blocks -= 1
            return True
        node = self._stable.get(block.content)
        if node and node.live:
            self._share(block, node)
            self.anon_blocks -= 1
            return True
        other = self._unstable.pop(block.content, None)
        if other and other is not block and other.queued and other.content == block.content:
            self._leave_trees(other)
            node = self._stable[block.content] = Node()
            self._share(other, node)
            self._share(block, node)
            self.anon_blocks -= 1
            return True
        self._unstable[block.content] = block
        block.queued = True
        self._unshared += 1
        return False

    def _share(self, block: Block, node: Node) -> None:
        block.node, block.is_ksm = node, True
        self._shared += not node.items
        self._sharing += bool(node.items)
        node.items += 1
        node.live += 1

    def _leave_trees(self, block: Block) -> None:
        if block.queued:
            block.queued = False
            self._unshared -= 1
        if block.node:
            block.node.items -= 1
            self._sharing -= bool(block.node.items)
            self._shared -= not block.node.items
            block.node = None
