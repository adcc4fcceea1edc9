"""The kernel's own news: a virtual machine came or went, memory was plugged in or out."""

from __future__ import annotations

import os
import socket

import pyudev

# A guest's event comes before its memory; and a start is often a few short-lived machines, made
# to find out what KVM can do. So the news is acted on a little later, once.
SETTLE_S = 0.8


class Uevents:
    """The kernel's uevent broadcast: works with and without udevd.

    Errors at start: OSError (no netlink here), ImportError (no libudev).
    """

    def __init__(self) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        self._monitor.filter_by("misc")
        self._monitor.filter_by("memory")
        self._monitor.start()

    def fileno(self) -> int:
        """To poll."""
        return int(self._monitor.fileno())

    def take(self) -> bool:
        """Was there any news that changes how much memory is wanted?"""
        is_news = False
        while True:
            try:
                device = self._monitor.poll(timeout=0)
            except OSError:  # ENOBUFS: more came than fits, and some of it is lost
                self._clear_error()
                return True
            if device is None:
                return is_news
            is_news |= device.subsystem == "memory" or device.sys_name == "kvm"

    def _clear_error(self) -> None:
        """Or poll(2) would report it for ever: pyudev does not ask what the error is."""
        with socket.socket(fileno=os.dup(self.fileno())) as same:
            same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
