"""The host as one thing: take a snapshot of it, write to it."""

from __future__ import annotations

import time
from pathlib import Path

from ksmtuned.errors import UsageError
from ksmtuned.host.files import Tree
from ksmtuned.host.ksm import Ksm
from ksmtuned.host.proc import Proc
from ksmtuned.model import Guest, Snapshot
from ksmtuned.units import printable


class Host:
    """Everything below one root. Errors: UsageError (no such root), NoKsm."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UsageError(f"--root {printable(str(root))}: no such folder")
        self.root = root
        tree = Tree(root)
        self.ksm = Ksm(tree)
        self.proc = Proc(tree)

    def snapshot(self, guests: tuple[Guest, ...] = ()) -> Snapshot:
        """One reading, now. Errors: NoKsm, Garbled, KernelRefused."""
        ksm, unread = self.ksm.read()
        return Snapshot(
            time=time.time(),
            monotonic_s=time.monotonic(),
            ksm=ksm,
            meminfo=self.proc.meminfo(),
            ksmd_cpu_s=self.proc.ksmd_cpu_s(),
            cow_ksm=self.proc.cow_ksm(),
            pressure_pct=self.proc.pressure_pct(),
            guests=guests,
            unread=unread,
        )
