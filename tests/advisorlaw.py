"""The kernel's scan-time advisor on one host: mm/ksm.c, scan_time_advisor(), in numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from snapshots import GIB, QUIET

from ksmtuned.model import KsmStat, Meminfo, Snapshot, Write
from ksmtuned.units import PAGE_BYTES

WAKE_S = 0.004  # a sleep ends at a timer tick
OTHERS_BYTES = GIB // 4  # anonymous memory that nobody offers


@dataclass
class Kernel:
    """KSM with an advisor, and so many pages of guests, none of which merges."""

    guest_pages: int = 0
    time_s: float = 4000.0  # since boot
    cpu_s: float = 100.0  # of ksmd, so far
    page_s: float = 2.5e-6
    run: int = 0
    mode: str = "none"
    pages: int = 100
    sleep_ms: int = 20
    max_cpu: int = 70
    least: int = 500
    most: int = 30000
    target_s: int = 200
    full_scans: int = 0
    scanned: int = 0
    met: int = 0  # pages with a reverse map item
    cursor: int = 0
    pass_pages: int = 0  # that the pass under way visits
    start_s: float = 0.0  # the advisor's context
    change: int = 0
    last_scan_s: int = 0
    last_cpu_s: float = 0.0

    def snapshot(self) -> Snapshot:
        ksm = KsmStat(
            run=self.run,
            pages_to_scan=self.pages,
            sleep_millisecs=self.sleep_ms,
            advisor_mode=self.mode,
            advisor_max_cpu=self.max_cpu,
            advisor_min_pages_to_scan=self.least,
            advisor_max_pages_to_scan=self.most,
            advisor_target_scan_time=self.target_s,
            pages_shared=0,
            pages_sharing=0,
            pages_unshared=self.met,
            pages_volatile=0,
            full_scans=self.full_scans,
            pages_scanned=self.scanned,
            ksm_zero_pages=0,
        )
        memory = Meminfo(
            total_bytes=QUIET.meminfo.total_bytes,
            free_bytes=0,
            anon_bytes=self.guest_pages * PAGE_BYTES + OTHERS_BYTES,
        )
        return Snapshot(
            time=0.0,
            monotonic_s=self.time_s,
            ksm=ksm,
            meminfo=memory,
            ksmd_cpu_s=self.cpu_s,
        )

    def write(self, write: Write) -> None:
        names = {
            "advisor_max_cpu": "max_cpu",
            "advisor_min_pages_to_scan": "least",
            "advisor_max_pages_to_scan": "most",
            "advisor_target_scan_time": "target_s",
            "sleep_millisecs": "sleep_ms",
            "run": "run",
        }
        if write.control == "advisor_mode":
            self._set_mode(str(write.new))
        elif write.control == "pages_to_scan":
            assert self.mode == "none", "the kernel says EINVAL"
            self.pages = int(write.new)
        else:
            setattr(self, names[write.control], int(write.new))

    def _set_mode(self, mode: str) -> None:
        if mode == self.mode:
            return
        self.mode = mode
        self.pages = 100 if mode == "none" else self.least
        self.start_s, self.change, self.last_scan_s, self.last_cpu_s = 0.0, 0, 0, 0.0

    def live(self, seconds: float) -> None:
        """So much time passes."""
        end_s = self.time_s + seconds
        while self.run and self.guest_pages and self.pages and self.time_s < end_s:
            if not self.pass_pages:
                self.pass_pages, self.cursor = self.guest_pages, 0
                self.start_s = self.time_s if self.mode == "scan-time" else self.start_s
            self._scan(end_s)
        self.time_s = max(self.time_s, end_s)

    def _scan(self, end_s: float) -> None:
        """Batches until the pass or the time ends; the last batch of a pass ends with it."""
        rest = self.pass_pages - self.cursor
        batch_s = self.sleep_ms / 1000 + WAKE_S + min(rest, self.pages) * self.page_s
        batches = min(ceil(rest / self.pages), max(1, round((end_s - self.time_s) / batch_s)))
        visited = min(rest, batches * self.pages)
        self.time_s += batches * (self.sleep_ms / 1000 + WAKE_S) + visited * self.page_s
        self.cpu_s += visited * self.page_s
        self.scanned += visited
        self.cursor += visited
        self.met = max(self.met, self.cursor)
        if self.cursor == self.pass_pages:
            self.full_scans, self.pass_pages = self.full_scans + 1, 0
            if self.mode == "scan-time":
                self._advise()

    def _advise(self) -> None:
        scan_s = int(self.time_s - self.start_s) or 1
        cpu_pct = int((self.cpu_s - self.last_cpu_s) * 1000) * 100 // (scan_s * 1000) or 1
        factor = self.target_s * 100 // scan_s or 1
        change = scan_s * 100 // (self.last_scan_s or scan_s) or 1
        self.change = (70 * self.change + 30 * change) // 100
        pages = self.pages * 100 // factor * self.change // 100
        page_cost = self.pages // cpu_pct or 1
        pages = max(min(pages, page_cost * self.max_cpu), page_cost * 10)
        self.pages = min(pages, self.most)
        self.last_scan_s, self.last_cpu_s = scan_s, self.cpu_s
