"""Snapshots for the pure half: a quiet host, and what differs from it."""

from __future__ import annotations

from dataclasses import replace

from ksmtuned.model import Guest, KsmStat, Meminfo, Snapshot

GIB = 2**30

QUIET = Snapshot(
    time=0.0,
    monotonic_s=0.0,
    ksm=KsmStat(run=0, pages_to_scan=100, sleep_millisecs=20, smart_scan=1, max_page_sharing=256),
    meminfo=Meminfo(total_bytes=64 * GIB, free_bytes=60 * GIB),
)


def guest(memory_bytes: int, pid: int = 1000) -> Guest:
    """A guest that uses so much."""
    return Guest(pid=pid, start_time=1, name="vm", vmm="qemu-kvm", memory_bytes=memory_bytes)


def host(
    *, total_bytes: int = 64 * GIB, free_bytes: int, buffers_bytes: int = 0, guests_bytes: int = 0
) -> Snapshot:
    """A host with so much memory, and one guest."""
    meminfo = Meminfo(total_bytes=total_bytes, free_bytes=free_bytes, buffers_bytes=buffers_bytes)
    return replace(QUIET, meminfo=meminfo, guests=(guest(guests_bytes),))
