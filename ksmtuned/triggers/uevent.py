"""The kernel's own news: a virtual machine came or went, memory was plugged in or out."""

from __future__ import annotations

import os
import socket
from enum import Enum
from typing import Any, NamedTuple

import pyudev


class News(Enum):
    """What happened."""

    CREATED = "create"  # a virtual machine; its memory is not there yet
    DESTROYED = "destroy"
    MEMORY = "memory"  # plugged in or out, taken on or off line
    LOST = "lost"  # nobody knows: more came than fits


class Uevent(NamedTuple):
    """One piece of news."""

    news: News
    thread_id: int | None = None  # that created the machine, in the initial pid namespace


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

    def take(self) -> list[Uevent]:
        """What came since last asked, in order."""
        came: list[Uevent] = []
        while True:
            try:
                device = self._monitor.poll(timeout=0)
            except OSError:  # ENOBUFS: more came than fits, and some of it is lost
                self._clear_error()
                return [*came, Uevent(News.LOST)]
            if device is None:
                return came
            if device.subsystem == "memory":
                came.append(Uevent(News.MEMORY))
            elif device.sys_name == "kvm":
                came += _of_kvm(device)

    def _clear_error(self) -> None:
        """Or poll(2) would report it for ever: pyudev does not ask what the error is."""
        with socket.socket(fileno=os.dup(self.fileno())) as same:
            same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _of_kvm(device: Any) -> list[Uevent]:
    """Source: virt/kvm/kvm_main.c, kvm_uevent_notify_change()."""
    event, thread = device.properties.get("EVENT"), device.properties.get("PID", "")
    if event not in (News.CREATED.value, News.DESTROYED.value):
        return []
    return [Uevent(News(event), int(thread) if thread.isdecimal() else None)]
