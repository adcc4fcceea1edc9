"""Finds one guest of this host by what people call it: its name, pid, UUID or Proxmox number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ksmtuned.errors import Garbled, KernelRefused, NoSuchGuest
from ksmtuned.guests.monitors import Monitors, is_qemu, monitors, uuid, vm_id
from ksmtuned.guests.rules import guest_name, program, recogniser
from ksmtuned.host.files import Tree
from ksmtuned.host.oneprocess import Process, command_line
from ksmtuned.host.proc import Proc
from ksmtuned.units import printable

_SHOWN_MOST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A guest as its process shows it. Every word is from outside, so none is trusted."""

    process: Process
    name: str
    vmm: str  # its program
    uuid: str | None
    vm_id: str | None
    is_qemu: bool  # under one of its names; -name process=... changes one of them
    monitors: Monitors

    @property
    def label(self) -> str:
        """To be printed: "web1 (pid 4711)"."""
        return printable(f"{self.name} (pid {self.process.pid})")

    def answers_to(self, word: str) -> bool:
        """Is it what somebody calls `word`?"""
        return word in (self.name, str(self.process.pid), self.vm_id) or word.lower() == self.uuid


def find(tree: Tree, patterns: Sequence[str], word: str) -> Found:
    """The one guest that answers to `word`. patterns: which processes are guests, by their comm.

    Errors: NoSuchGuest (none or several, with those that there are), KernelRefused (of proc).
    """
    everyone = list(guests(tree, patterns))
    matching = [guest for guest in everyone if guest.answers_to(word)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise NoSuchGuest(f"{printable(word)}: which one? {_list(matching)}; name it by its pid")
    there = f"there are {_list(everyone)}" if everyone else "there is none on this host"
    raise NoSuchGuest(f"{printable(word)}: no guest of this name, pid or uuid; {there}")


def guests(tree: Tree, patterns: Sequence[str]) -> Iterator[Found]:
    """Every guest now, by pid. One that vanishes meanwhile, or is garbled, is left out."""
    proc, is_guest = Proc(tree), recogniser(patterns)
    for pid in sorted(proc.pids()):
        try:
            stat = proc.parse_stat(pid, proc.stat_line(pid))
            if stat is None or stat.is_kernel_thread or not is_guest(stat.comm):
                continue
            cmdline = command_line(tree, pid)
            if not cmdline:
                continue  # it has ended, and its parent has not asked yet
        except (Garbled, KernelRefused):
            continue
        yield Found(
            process=Process(tree, pid, stat.start_time),
            name=guest_name(cmdline, otherwise=stat.comm),
            vmm=program(stat.comm, cmdline),
            uuid=uuid(cmdline),
            vm_id=vm_id(cmdline),
            is_qemu=is_qemu(stat.comm, cmdline),
            monitors=monitors(cmdline),
        )


def _list(these: Sequence[Found]) -> str:
    shown = ", ".join(guest.label for guest in these[:_SHOWN_MOST])
    more = len(these) - _SHOWN_MOST
    return f"{shown} and {more} more" if more > 0 else shown
