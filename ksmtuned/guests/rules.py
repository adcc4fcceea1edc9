"""Which process is a guest, and what it is called: pure functions of what the process shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from itertools import pairwise
from pathlib import PurePath
from typing import NamedTuple

from ksmtuned.guests.launch import Obstacle
from ksmtuned.units import PAGE_BYTES

_COMM_MAX = 15  # linux/sched.h, TASK_COMM_LEN without its end


def recogniser(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Tells whether a process's comm is that of a guest.

    patterns: globs; one without wildcards that is longer than a comm can be is cut as the kernel
    cuts it (cloud-hypervisor runs as "cloud-hyperviso").
    """
    cut = [p if set(p) & set("*?[") else p[:_COMM_MAX] for p in patterns]
    matcher = re.compile("|".join(translate(p) for p in cut) or r"(?!)")
    return lambda comm: matcher.match(comm) is not None


def guest_name(cmdline: Sequence[str], otherwise: str) -> str:
    """The name on a VMM's command line: QEMU's -name, firecracker's --id, Proxmox's -id; else
    `otherwise`."""
    numbered = ""
    for option, value in pairwise(cmdline):
        if option in ("-name", "--name"):
            return _qemu_name(value) or numbered or otherwise
        if option in ("-id", "--id"):
            numbered = numbered or value
    return numbered or otherwise


def scope_name(cgroup: str | None) -> str | None:
    """What the control group calls it: "vm1" of machine-qemu\\x2d3\\x2dvm1.scope (libvirt),
    "100" of 100.scope (Proxmox). None: nothing that tells one guest from another."""
    unit = (cgroup or "").removesuffix("/libvirt/emulator").rpartition("/")[2]
    name, _, kind = unit.rpartition(".")
    if kind not in ("scope", "service") or re.match(r"(session-|user@|init$|run-)", name):
        return None
    name = re.sub(r"\\x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), name)
    return re.sub(r"^machine-(qemu-[0-9]+-)?", "", name) or None


def _qemu_name(value: str) -> str:
    """The name in "guest=NAME,debug-threads=on" or "NAME,process=..."; ",," stands for a comma."""
    parts = value.replace(",,", "\0").split(",")
    named = [part.removeprefix("guest=") for part in parts if part.startswith("guest=")]
    first = parts[0] if "=" not in parts[0] else ""
    return (named[0] if named else first).replace("\0", ",")


class Verdict(NamedTuple):
    """Can a guest's memory be merged, if not why, and is it offered to KSM ("on", "off")?"""

    mergeable: bool | None
    why_not: str | None
    share: str | None


_MERGEABLE = Verdict(mergeable=True, why_not=None, share="on")
NOT_PERMITTED = "only root may look"
_OLD_KERNEL = "this kernel does not say (before 6.14)"
_SEEN_PART, _MERGED_PART = 8, 64  # of a guest's RAM: more than its video memory and its like


def judge(
    is_offered: bool | None,
    visited_pages: int,
    merged_pages: int,
    obstacle: Obstacle | None,
    ram_bytes: int | None,
) -> Verdict:
    """What the kernel says (None: nothing), what it did, and what the command line says, weighed.

    visited_pages: those that ksmd keeps in mind. merged_pages: with zero pages.
    """
    if is_offered is False:
        why = obstacle.why if obstacle else "it offers KSM no memory"
        return Verdict(mergeable=False, why_not=why, share="off")
    if obstacle and (obstacle.is_firm or is_offered is None):
        seen, part = (
            (merged_pages, _MERGED_PART) if obstacle.is_pinned else (visited_pages, _SEEN_PART)
        )
        if seen and ram_bytes and seen * PAGE_BYTES * part >= ram_bytes:
            return _MERGEABLE  # it was so at the start, and is no more
        share = ("on" if is_offered else None) if obstacle.is_pinned else "off"
        return Verdict(mergeable=False, why_not=obstacle.why, share=share)
    if is_offered or visited_pages or merged_pages:
        return _MERGEABLE
    return Verdict(mergeable=None, why_not=_OLD_KERNEL, share=None)


def program(comm: str, cmdline: Sequence[str]) -> str:
    """The VMM's full name, where the kernel cut it: "qemu-system-x86" is qemu-system-x86_64."""
    name = PurePath(cmdline[0]).name if cmdline else ""
    return name if len(comm) == _COMM_MAX and name.startswith(comm) else comm
