"""The law of ksmtuned: scan faster while memory is short, slower while it is not."""

from __future__ import annotations

from dataclasses import dataclass

from ksmtuned.model import Code, Decision, Phase, Settings, Snapshot
from ksmtuned.units import size

_UINT_MAX = 2**32 - 1  # what the kernel's files hold


@dataclass(frozen=True, slots=True)
class ClassicPast:
    """What the last decision left behind."""

    npages: int = 0  # pages per batch; survives a stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Classic:
    """Scan faster while memory is short, slower while it is not, not at all when idle.

    threshold = max(thres_coef % of RAM, thres_const)
    idle      = committed + threshold < total  and  free > threshold
    npages'   = clamp(npages + (boost if free < threshold else decay), min, max)
    sleep     = max(10 ms, sleep_msec * 16 GiB / total)
    Whole numbers, in kB, as in the script. Source: ksmtuned 0.1.0, adjust().
    """

    npages_boost: int = 300
    npages_decay: int = -50
    npages_min: int = 64
    npages_max: int = 1250
    sleep_msec: int = 10  # for 16 GiB; a larger host sleeps less, a smaller one more
    thres_coef: int = 20  # percent of RAM
    thres_const: int = 2 * 2**20  # bytes
    guest_memory: str = "rss"
    free_memory: str = "ksmtuned"
    interval_s: float = 60.0
    needs_daemon: bool = False
    follows_events: bool = False  # it counts its looks: one more is a step more

    def unattended(self, now: Snapshot) -> Decision:
        """The same as with a daemon."""
        return self.decide(now, self.start())[0]

    def start(self) -> ClassicPast:
        """Nothing decided yet: the first scan starts from 0 pages, boosted or clamped."""
        return ClassicPast()

    def decide(self, now: Snapshot, past: ClassicPast) -> tuple[Decision, ClassicPast]:
        """One step of the law."""
        if self.is_idle(now):
            settings = Settings(run=0)
            decision = Decision(
                settings=settings, phase=Phase.STOP, code=Code.IDLE, reason=self._why_idle(now)
            )
            return decision, past
        is_short = self.is_short(now)
        npages = self._clamp(past.npages + (self.npages_boost if is_short else self.npages_decay))
        decision = Decision(
            settings=Settings(
                run=1, pages_to_scan=npages, sleep_millisecs=self._sleep_millisecs(now)
            ),
            phase=Phase.SCAN,
            code=Code.BOOST if is_short else Code.DECAY,
            reason=f"{self._why_scan(now)}: {_change(past.npages, npages)} pages per batch",
        )
        return decision, ClassicPast(npages)

    def is_idle(self, now: Snapshot) -> bool:
        """Is there room for all that guests may still use?"""
        threshold = self.threshold_bytes(now)
        committed = now.guest_memory_bytes // 1024 * 1024
        fits = committed + threshold < now.meminfo.total_bytes
        return fits and self.free_bytes(now) > threshold

    def is_short(self, now: Snapshot) -> bool:
        """Is so little free that ksmd should hurry?"""
        return self.free_bytes(now) < self.threshold_bytes(now)

    def threshold_bytes(self, now: Snapshot) -> int:
        """Free memory below this is short."""
        share_kb = now.meminfo.total_bytes // 1024 * self.thres_coef // 100
        return max(share_kb, self.thres_const // 1024) * 1024

    def free_bytes(self, now: Snapshot) -> int:
        """What counts as free: MemFree + Buffers + Cached (shared memory included), or
        MemAvailable where the settings say so and the kernel has it."""
        meminfo = now.meminfo
        if self.free_memory == "available" and meminfo.available_bytes is not None:
            return meminfo.available_bytes
        return meminfo.free_bytes + meminfo.buffers_bytes + meminfo.cached_bytes

    def _sleep_millisecs(self, now: Snapshot) -> int:
        scaled = self.sleep_msec * 16 * 1024 * 1024 // (now.meminfo.total_bytes // 1024)
        return min(max(scaled, 10), _UINT_MAX)

    def _clamp(self, npages: int) -> int:
        return self.npages_min if npages < self.npages_min else min(npages, self.npages_max)

    def _why_idle(self, now: Snapshot) -> str:
        return (
            f"free {size(self.free_bytes(now))} is above {self._threshold(now)} and guests use "
            f"{size(now.guest_memory_bytes)}, which leaves as much: stop"
        )

    def _why_scan(self, now: Snapshot) -> str:
        free, threshold = size(self.free_bytes(now)), self._threshold(now)
        if self.is_short(now):
            return f"free {free} is below {threshold}"
        if self.free_bytes(now) == self.threshold_bytes(now):
            return f"free {free} is just {threshold}"
        return (
            f"guests use {size(now.guest_memory_bytes)} and leave less than {threshold}, "
            f"though free {free} is above it"
        )

    def _threshold(self, now: Snapshot) -> str:
        threshold = size(self.threshold_bytes(now))
        if self.threshold_bytes(now) == self.thres_const // 1024 * 1024:
            return f"the limit of {threshold}"
        total = size(now.meminfo.total_bytes)
        return f"{threshold} ({self.thres_coef} % of {total})"


def _change(before: int, after: int) -> str:
    return f"{before} -> {after}" if before != after else f"still {after}"
