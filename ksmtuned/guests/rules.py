"""Which process is a guest, and what it is called: pure functions of what the process shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from itertools import pairwise
from pathlib import PurePath

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
    """The name on a VMM's command line: QEMU's -name, firecracker's --id; else `otherwise`."""
    for option, value in pairwise(cmdline):
        if option in ("-name", "--name"):
            return _qemu_name(value) or otherwise
        if option == "--id":
            return value or otherwise
    return otherwise


def _qemu_name(value: str) -> str:
    """The name in "guest=NAME,debug-threads=on" or "NAME,process=..."; ",," stands for a comma."""
    parts = value.replace(",,", "\0").split(",")
    named = [part.removeprefix("guest=") for part in parts if part.startswith("guest=")]
    first = parts[0] if "=" not in parts[0] else ""
    return (named[0] if named else first).replace("\0", ",")


def program(comm: str, cmdline: Sequence[str]) -> str:
    """The VMM's full name, where the kernel cut it: "qemu-system-x86" is qemu-system-x86_64."""
    name = PurePath(cmdline[0]).name if cmdline else ""
    return name if len(comm) == _COMM_MAX and name.startswith(comm) else comm
