"""Pressure stall information that wakes: one open descriptor for each threshold."""

from __future__ import annotations

import os

from ksmtuned.errors import KernelRefused
from ksmtuned.host.files import Tree


class Pressure:
    """The files of proc/pressure. Source: Documentation/accounting/psi.rst."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def watch(self, resource: str, threshold: str) -> int:
        """A descriptor that poll(2) reports as POLLPRI at most once a window, while tasks wait
        longer for `resource` ("memory", "cpu") than `threshold` ("some 150000 2000000") says.

        Errors: KernelRefused (ENOENT: no PSI in this kernel; EOPNOTSUPP: switched off by psi=0;
        EPERM or EACCES: no right to; EINVAL: not that threshold).
        """
        name = f"proc/pressure/{resource}"
        try:
            fd = self._tree.open_to_watch(name)
            try:
                os.write(fd, threshold.encode() + b"\0")
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise KernelRefused(self._tree.path(name), error.errno or 0, threshold) from error
        return fd
