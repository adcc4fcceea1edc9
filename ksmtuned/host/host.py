"""The host as one thing: take a snapshot of it, write to it."""

from __future__ import annotations

import time
from errno import EACCES, EPERM
from pathlib import Path
from stat import S_ISDIR

from ksmtuned.errors import KernelRefused, UsageError
from ksmtuned.host.files import Tree
from ksmtuned.host.ksm import Ksm
from ksmtuned.host.pressure import Pressure
from ksmtuned.host.proc import Proc
from ksmtuned.host.process import Processes
from ksmtuned.model import Guest, Snapshot
from ksmtuned.units import printable


class Host:
    """Everything below one root. Errors: UsageError (no such root), NoKsm."""

    def __init__(self, root: Path) -> None:
        try:
            is_folder = S_ISDIR(root.stat().st_mode)
        except OSError as error:
            if error.errno in (EACCES, EPERM):
                raise KernelRefused(root, error.errno) from error
            is_folder = False
        if not is_folder:
            raise UsageError(f"--root {printable(str(root))}: no such folder")
        self.root = root
        self.tree = tree = Tree(root)
        self.ksm = Ksm(tree)
        self.proc = Proc(tree)
        self.processes = Processes(tree)
        self.pressure = Pressure(tree)

    @property
    def has_kvm(self) -> bool:
        """Is KVM loaded? Its device is what the kernel's news of guests is about."""
        try:
            return self.tree.is_folder("sys/devices/virtual/misc/kvm")
        except KernelRefused:
            return False

    def snapshot(
        self,
        guests: tuple[Guest, ...] = (),
        others: tuple[Guest, ...] = (),
        *,
        arrived_bytes: int | None = None,
        is_watched: bool = True,
    ) -> Snapshot:
        """One reading, now. is_watched: with what only a law that watches for changes reads.

        Errors: NoKsm, Garbled, KernelRefused.
        """
        ksm, unread = self.ksm.read()
        return Snapshot(
            time=time.time(),
            monotonic_s=time.monotonic(),
            ksm=ksm,
            meminfo=self.proc.meminfo(),
            ksmd_cpu_s=self.proc.ksmd_cpu_s(),
            cow_ksm=self.proc.cow_ksm() if is_watched else None,
            pressure_pct=self.proc.pressure_pct() if is_watched else None,
            arrived_bytes=arrived_bytes,
            guests=guests,
            others=others,
            unread=unread,
        )
