"""A socket that a process's command line names: opened inside that process's own file system, and
spoken to only if that very process listens at it."""

from __future__ import annotations

import os
import socket
import stat
import struct
from errno import EAGAIN, ECONNREFUSED, ELOOP, ENOENT, ENOTSOCK
from pathlib import Path

from ksmtuned.errors import GuestGone, KernelRefused, WrongPeer
from ksmtuned.host.files import Tree
from ksmtuned.host.oneprocess import Process, is_our_namespace
from ksmtuned.units import printable

_LINKS_MOST = 40  # as the kernel does (linux/namei.h, MAXSYMLINKS)
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_HINTS = {
    ENOENT: "the guest names this socket, and there is none; --qmp PATH names another",
    ELOOP: "a symbolic link is in the socket's place; --qmp PATH names another",
    ENOTSOCK: "that is no socket; --qmp PATH names another",
    ECONNREFUSED: "nobody listens at this socket any more; --qmp PATH names another",
    EAGAIN: "somebody else speaks with this monitor, which takes one at a time; try again later",
}


def connect_inside(tree: Tree, process: Process, path: str, limit_s: float) -> socket.socket:
    """A connection to the socket that the process itself sees at `path`, checked.

    A symbolic link on the way is followed below the process's own root, and never from there.
    Errors: KernelRefused (no socket, no right to look), WrongPeer, GuestGone.
    """
    shown = tree.path(f"proc/{process.pid}/root") / path.lstrip("/")
    try:
        place = _find(tree, process, path)
    except OSError as error:
        raise _refused(shown, process, error) from error
    return _connect(tree, process, place, shown, limit_s)


def connect_here(tree: Tree, process: Process, path: Path, limit_s: float) -> socket.socket:
    """A connection to the socket that the caller sees at `path`, checked alike.

    Errors: as above.
    """
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise KernelRefused(path, error.errno or 0) from error
    return _connect(tree, process, place, path, limit_s)


def _find(tree: Tree, process: Process, path: str) -> int:
    """A descriptor of what the process sees at `path`. Errors: OSError."""
    home = tree.path(f"proc/{process.pid}")
    root = os.open(home / "root", os.O_PATH | os.O_CLOEXEC)
    try:
        if path.startswith("/"):
            return _Walk(root, root).go(path)
        start = os.open(home / "cwd", os.O_PATH | os.O_CLOEXEC)
        try:
            return _Walk(root, start).go(path)
        finally:
            os.close(start)
    finally:
        os.close(root)


def _connect(
    tree: Tree, process: Process, place: int, shown: Path, limit_s: float
) -> socket.socket:
    """Connect to the socket behind a descriptor, which is closed. It is the one that was found,
    whatever the path leads to by now."""
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not stat.S_ISSOCK(os.fstat(place).st_mode):
            raise OSError(ENOTSOCK, os.strerror(ENOTSOCK))
        ours.settimeout(limit_s)
        ours.connect(f"/proc/self/fd/{place}")
        _check_peer(tree, process, ours, shown)
    except OSError as error:
        ours.close()
        raise _refused(shown, process, error) from error
    except (WrongPeer, GuestGone):
        ours.close()
        raise
    finally:
        os.close(place)
    return ours


def _check_peer(tree: Tree, process: Process, ours: socket.socket, shown: Path) -> None:
    """Errors: WrongPeer, GuestGone. Source: unix(7), SO_PEERCRED: who called listen(2)."""
    raw = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    peer_pid: int = struct.unpack("3i", raw)[0]
    if not is_our_namespace(tree):
        raise WrongPeer(
            printable(f"{shown}: who listens there cannot be told from this pid namespace; ")
            + "run ksmtuned in the host's (a container: --pid=host)"
        )
    if not process.is_alive:
        raise GuestGone(f"process {process.pid}", "before it could be spoken to")
    if peer_pid != process.pid:
        raise WrongPeer(
            printable(
                f"{shown}: refused: process {peer_pid or '?'} listens there, not guest "
                f"{process.pid}; nothing was sent to it; --qmp PATH names the right socket"
            )
        )


class _Walk:
    """The folders passed on the way through a path, "/" and ".." ending at the first one.

    Each part is looked up in the folder found before, never by a whole path: whoever changes a
    part meanwhile can lead to another file below the root, but not out of it.
    """

    def __init__(self, root: int, start: int) -> None:
        self._root = root
        self._folders = [os.dup(start)]
        self._links = 0

    def go(self, path: str) -> int:
        """A descriptor of what is there; no symbolic link. Errors: OSError."""
        parts = [*reversed(path.split("/"))]
        try:
            while parts:
                parts += reversed(self._step(parts.pop(), is_last=not any(parts)))
            return os.dup(self._folders[-1])
        finally:
            self._back(0)

    def _step(self, part: str, *, is_last: bool) -> list[str]:
        """Enter one part; if that is a symbolic link, the parts that it stands for."""
        if part == "..":
            self._back(max(1, len(self._folders) - 1))
        if part in ("", ".", ".."):
            return []
        found = os.open(part, _LOOK, dir_fd=self._folders[-1])
        self._folders.append(found)
        if not stat.S_ISLNK(os.fstat(found).st_mode):
            return []  # what is no folder fails at the next part: ENOTDIR
        self._links += 1
        if is_last or self._links > _LINKS_MOST:
            raise OSError(ELOOP, os.strerror(ELOOP))
        target = os.readlink("", dir_fd=found)
        self._back(len(self._folders) - 1)
        if target.startswith("/"):
            self._back(0)
            self._folders.append(os.dup(self._root))
        return target.split("/")

    def _back(self, count: int) -> None:
        """Leave all but the first `count` folders."""
        while len(self._folders) > count:
            os.close(self._folders.pop())


def _refused(shown: Path, process: Process, error: OSError) -> KernelRefused | GuestGone:
    if not process.is_alive:
        return GuestGone(f"process {process.pid}", "before it could be spoken to")
    errno = EAGAIN if isinstance(error, TimeoutError) else error.errno or 0
    return KernelRefused(shown, errno, hint=_HINTS.get(errno))
