"""What the files of one process hold, as fs/proc prints them."""

from __future__ import annotations

import os

PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024

# Fields of proc/PID/stat by their number in proc(5).
STIME, PRIORITY, THREADS, START, VSIZE, RSS = 15, 18, 20, 22, 23, 24


def stat_line(
    pid: int,
    comm: str,
    *,
    flags: int = 0,
    parent: int = 1,
    start: int = 23,
    rss_pages: int = 0,
    stime: int = 0,
) -> str:
    """proc/PID/stat with all its 52 fields."""
    fields = [0] * 53  # by their number in proc(5); 0 is unused
    fields[4:9] = [parent, pid, pid, 0, -1]
    fields[9] = flags
    fields[STIME] = stime
    fields[PRIORITY], fields[THREADS], fields[START] = 20, 1, start
    fields[VSIZE] = (rss_pages + 5000) * PAGE_KB * 1024 if rss_pages else 0
    fields[RSS], fields[25] = rss_pages, 2**64 - 1
    return f"{pid} ({comm}) S " + " ".join(str(f) for f in fields[4:]) + "\n"


def status(pid: int, comm: str, parent: int, rss_pages: int, shared: int, is_thread: bool) -> str:
    head = f"Name:\t{comm}\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t{pid}\nNgid:\t0\n"
    ids = f"Pid:\t{pid}\nPPid:\t{parent}\nTracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n"
    memory = (
        f"VmSize:\t{(rss_pages + 5000) * PAGE_KB:>8} kB\n"
        f"VmRSS:\t{rss_pages * PAGE_KB:>8} kB\n"
        f"RssAnon:\t{(rss_pages - shared) * PAGE_KB:>8} kB\n"
        f"RssFile:\t{shared * PAGE_KB:>8} kB\nRssShmem:\t       0 kB\n"
    )
    return head + ids + ("" if is_thread else memory) + "Threads:\t1\n"


def smaps_rollup(rss_pages: int, shared: int) -> str:
    lines = ["55d0c0000000-7ffd00000000 ---p 00000000 00:00 0                          [rollup]"]
    pss = rss_pages - shared // 2
    for key, pages in (
        ("Rss", rss_pages),
        ("Pss", pss),
        ("Anonymous", rss_pages - shared),
    ):
        lines.append(f"{key + ':':<16} {pages * PAGE_KB:>11} kB")
    return "\n".join(lines) + "\n"
