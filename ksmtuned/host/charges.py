"""Whom an unmerge charges: how much of each process is merged, and the limits of its cgroups."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from ksmtuned.errors import Garbled, KsmtunedError
from ksmtuned.headroom import Limit
from ksmtuned.host.files import KernelFile, Tree
from ksmtuned.host.host import Host
from ksmtuned.units import PAGE_BYTES

_STAT_LINE = re.compile(rb"^ksm_(merging_pages|zero_pages) ([0-9]{1,18})$", re.M)
_NO_LIMIT_BYTES = 2**60  # version 1 writes "none" as almost 2^63
_HIERARCHIES = (  # the mount, the limit and what is charged; version 2, then 1
    ("", "sys/fs/cgroup", "memory.max", "memory.current"),
    ("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


class Charge(NamedTuple):
    """A process with merged pages."""

    pid: int
    bytes: int  # what its copies would take
    folders: tuple[tuple[str, str, str], ...]  # its cgroups, upwards: folder, limit, charged


def merged_bytes(tree: Tree, pid: int) -> int | None:
    """What a process's copies would take; None: it is gone, or the kernel does not say (< 5.19).

    Zero pages that KSM placed count since 6.6. Waits while the process's memory map is locked for
    writing, as it is during a madvise (fs/proc/base.c, since 6.14).
    Errors: KernelRefused (no right to read it).
    """
    found = dict(_STAT_LINE.findall(tree.read(f"proc/{pid}/ksm_stat") or b""))
    if b"merging_pages" not in found:
        alone = tree.read(f"proc/{pid}/ksm_merging_pages")  # 5.19 to 6.3
        if alone is None or not alone.strip().isdigit():
            return None
        found[b"merging_pages"] = alone[:18]
    return (int(found[b"merging_pages"]) + int(found.get(b"zero_pages", 0))) * PAGE_BYTES


def charges(host: Host, beat: Callable[[], None] = lambda: None) -> tuple[list[Charge], str]:
    """Every process with merged pages, and why some are not known (empty: all are).

    Errors: KernelRefused (proc cannot be listed).
    """
    found, unknown, is_told = [], "", False
    for pid in host.proc.pids():
        beat()
        try:
            merged = merged_bytes(host.tree, pid)
            is_told = is_told or merged is not None
            if merged:
                found.append(Charge(pid, merged, tuple(_folders(host.tree, pid))))
        except KsmtunedError as error:
            unknown = str(error)
    if not is_told and not unknown:
        unknown = "this kernel does not say how much of a process is merged (5.19 does)"
    return found, unknown


def limits(tree: Tree, found: list[Charge], name_of: Callable[[int], str]) -> tuple[Limit, ...]:
    """Every limit that these charges meet on their way up, each with all that would come to it."""
    needs: dict[tuple[str, str, str], dict[int, int]] = {}
    for charge in found:
        for cgroup in charge.folders:
            needs.setdefault(cgroup, {})[charge.pid] = charge.bytes
    result = []
    for (folder, limit_file, charged), below in needs.items():
        most, taken = _amount(tree, f"{folder}/{limit_file}"), _amount(tree, f"{folder}/{charged}")
        if most is None or taken is None:
            continue
        biggest = max(below, key=lambda pid: below[pid])
        more = f" and {len(below) - 1} more" if len(below) > 1 else ""
        result.append(
            Limit(
                path=tree.path(f"{folder}/{limit_file}"),
                whose=name_of(biggest) + more,
                need_bytes=sum(below.values()),
                room_bytes=max(0, most - taken),
            )
        )
    return tuple(result)


def _folders(tree: Tree, pid: int) -> list[tuple[str, str, str]]:
    """The process's cgroup and all above it, the mount included: in a container that is no root."""
    content = tree.read(f"proc/{pid}/cgroup") or b""
    found = []
    for line in content.decode(errors="surrogateescape").split("\n"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        parts = [part for part in path.split("/") if part]
        if not path.startswith("/") or ".." in parts or "\0" in path:
            continue
        for name, mount, limit, charged in _HIERARCHIES:
            if name in controllers.split(","):
                ways = range(len(parts), -1, -1)
                found += [("/".join((mount, *parts[:n])), limit, charged) for n in ways]
    return found


def _amount(tree: Tree, name: str) -> int | None:
    """Bytes in a cgroup's file; None: no such file, or no limit ("max")."""
    try:
        amount = KernelFile(tree, name).read_int()
    except Garbled:
        return None
    return None if amount is None or amount >= _NO_LIMIT_BYTES else amount
