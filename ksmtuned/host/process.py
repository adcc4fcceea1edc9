"""What proc says about one process: what KSM does with it, whose it is, where it belongs."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from ksmtuned.errors import KernelRefused
from ksmtuned.host.files import KernelFile, Tree

# Two formats in one file: "key value", and since 6.14 also "key: yes". Source: fs/proc/base.c,
# proc_pid_ksm_stat().
_KSM_LINE = re.compile(rb"^(\w+):? (-?[0-9]{1,19}|yes|no)$", re.M)
_TGID_LINE = re.compile(rb"^Tgid:\t([0-9]{1,10})$", re.M)
_UID_LINE = re.compile(rb"^Uid:\t([0-9]{1,10})\t", re.M)
_ANSWERS = {b"yes": True, b"no": False}


class ProcessKsm(NamedTuple):
    """What KSM does with a process; None: this kernel does not say. Spelled like the kernel."""

    rmap_items: int | None = None  # since 6.1
    zero_pages: int | None = None  # since 6.6
    merging_pages: int | None = None  # since 5.19
    process_profit: int | None = None  # bytes, signed (since 6.4)
    merge_any: bool | None = None  # by prctl(2), so areas to come count as well (since 6.14)
    mergeable: bool | None = None  # is there a mergeable area? (since 6.14)

    @property
    def takes_part(self) -> bool:
        """Is there anything that KSM may merge, or has merged?"""
        return bool(self.mergeable or self.merge_any or self.merging_pages or self.zero_pages)


_NOTHING = ProcessKsm()


@lru_cache(maxsize=64)  # of most processes, all files are alike
def _parse(content: bytes) -> ProcessKsm:
    found = dict(_KSM_LINE.findall(content))
    return ProcessKsm(
        rmap_items=_number(found.get(b"ksm_rmap_items")),
        zero_pages=_number(found.get(b"ksm_zero_pages")),
        merging_pages=_number(found.get(b"ksm_merging_pages")),
        process_profit=_number(found.get(b"ksm_process_profit")),
        merge_any=_ANSWERS.get(found.get(b"ksm_merge_any", b"")),
        mergeable=_ANSWERS.get(found.get(b"ksm_mergeable", b"")),
    )


class Processes:
    """The host's processes, by pid, below the tree's root. All of them may vanish at any time."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def ksm_stat(self, pid: int) -> KernelFile:
        """For ksm, as long as the process lives."""
        return KernelFile(self._tree, f"proc/{pid}/ksm_stat")

    def ksm(self, pid: int, content: bytes | None) -> ProcessKsm | None:
        """What its ksm_stat says. None: the process is gone.

        Errors: KernelRefused (only its owner and root may look).
        """
        if content is None and not self._tree.is_folder(f"proc/{pid}"):
            return None
        if content == b"":  # a kernel thread, or a process that is just ending
            return _NOTHING
        found = _parse(content or b"")
        if found.merging_pages is not None:
            return found
        return found._replace(merging_pages=self._merging_pages(pid))  # before 6.4

    def _merging_pages(self, pid: int) -> int | None:
        content = self._tree.read(f"proc/{pid}/ksm_merging_pages") or b""
        return _number(content.strip())

    def process_of(self, thread_id: int) -> int | None:
        """The process that a thread belongs to; None: it is gone."""
        return self._status(thread_id, _TGID_LINE)

    def uid(self, pid: int) -> int | None:
        """Its real user; None: it is gone."""
        return self._status(pid, _UID_LINE)

    def _status(self, pid: int, line: re.Pattern[bytes]) -> int | None:
        try:
            match = line.search(self._tree.read(f"proc/{pid}/status") or b"")
        except KernelRefused:
            return None
        return int(match[1]) if match else None

    def cgroup(self, pid: int) -> str | None:
        """Its control group's path: of version 2 if that says more than "/", else the one that
        accounts for its memory, else systemd's. None: it is gone, or the kernel has none."""
        try:
            content = self._tree.read(f"proc/{pid}/cgroup") or b""
        except KernelRefused:
            return None
        found: dict[str, str] = {}
        for line in content.decode(errors="replace").splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            for controller in controllers.split(","):
                found[controller] = path
        paths = [found[name] for name in ("", "memory", "name=systemd") if name in found]
        return next((path for path in paths if path != "/"), paths[0] if paths else None)


def _number(text: bytes | None) -> int | None:
    try:
        return int(text) if text and len(text) <= 20 else None
    except ValueError:
        return None
