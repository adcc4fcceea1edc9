"""Where a QEMU can be spoken to, by its command line: a pure function of the words.

Source: QEMU, util/qemu-option.c (the syntax), chardev/char.c (unix:PATH), monitor/monitor.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath

_LIBVIRTS = "charmonitor"  # what libvirt calls the monitor that it keeps to itself
_TRUE = ("on", "yes", "true", "y")


@dataclass(frozen=True, slots=True)
class Monitors:
    """The places where a QEMU listens for a QMP client, in the order of its command line."""

    paths: tuple[str, ...] = ()  # of sockets; as the guest sees them, relative to its folder
    is_libvirts: bool = False  # libvirt holds a monitor of its own


def monitors(cmdline: Sequence[str]) -> Monitors:
    """Every QMP monitor on a Unix socket at which QEMU is the server."""
    chardevs = {
        chardev.get("id", ""): chardev
        for option, value in _options(cmdline)
        if option == "chardev" and (chardev := properties(value, "backend"))
    }
    found = list(filter(None, (_monitor(o, v, chardevs) for o, v in _options(cmdline))))
    paths = [chardev["path"] for chardev in found if _is_reachable(chardev)]
    is_libvirts = any(chardev.get("id") == _LIBVIRTS for chardev in found)
    return Monitors(tuple(dict.fromkeys(paths)), is_libvirts)


def is_qemu(comm: str, cmdline: Sequence[str]) -> bool:
    """Does a process call itself QEMU, by its comm or by its program's name?"""
    names = (comm, PurePath(cmdline[0]).name if cmdline else "")
    return any("qemu" in name or name == "kvm" for name in names)


def uuid(cmdline: Sequence[str]) -> str | None:
    """The guest's UUID in lower case: -uuid (libvirt), -smbios type=1,uuid=... (Proxmox)."""
    found = None
    for option, value in _options(cmdline):
        if option == "uuid":
            found = value
        elif option == "smbios" and properties(value, "file").get("type") == "1":
            found = properties(value, "file").get("uuid", found)
    return found.lower() if found else None


def vm_id(cmdline: Sequence[str]) -> str | None:
    """The number that Proxmox gives to a guest: -id."""
    return next((value for option, value in _options(cmdline) if option == "id"), None)


def properties(text: str, first: str) -> dict[str, str]:
    """The properties in "key=value,flag,..."; ",," stands for a comma in a value.

    first: the key of a first word without "=". A flag alone is "on", and "no" before it "off".
    """
    found: dict[str, str] = {}
    for place, word in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = word.replace("\0", ",").partition("=")
        if equals:
            found[key] = value
        elif place == 0:
            found[first] = key
        elif key.startswith("no") and len(key) > 2:
            found[key[2:]] = "off"
        else:
            found[key] = "on"
    return found


def _options(cmdline: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option with the word behind it; one dash or two."""
    for word, value in pairwise(cmdline):
        if word.startswith("-"):
            yield word.removeprefix("-").removeprefix("-"), value


def _monitor(
    option: str, value: str, chardevs: Mapping[str, Mapping[str, str]]
) -> Mapping[str, str] | None:
    """The character device of a QMP monitor; None: the option is about something else."""
    if option in ("qmp", "qmp-pretty"):
        kind, _, rest = value.partition(":")
        if kind == "unix":
            return {"backend": "socket"} | properties(rest, "path")
        return chardevs.get(rest) if kind == "chardev" else None
    if option == "mon":
        wanted = properties(value, "chardev")
        if wanted.get("mode") == "control":
            return chardevs.get(wanted.get("chardev", ""))
    return None


def _is_reachable(chardev: Mapping[str, str]) -> bool:
    """A socket with a name in a folder, at which QEMU waits for others, and not libvirt's."""
    return (
        chardev.get("backend") == "socket"
        and bool(chardev.get("path"))
        and chardev.get("server") in _TRUE
        and chardev.get("abstract") not in _TRUE
        and chardev.get("id") != _LIBVIRTS
    )
