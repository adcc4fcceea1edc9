"""Reads and writes kernel files below one root; tells absent, garbled and refused apart."""

from __future__ import annotations

import ctypes
import os
import re
import resource
from errno import EACCES, ENODEV, ENOENT, ENOTDIR, EPERM, ESRCH
from pathlib import Path
from stat import S_ISDIR

from ksmtuned.errors import Garbled, KernelRefused

_ABSENT = (
    ENOENT,
    ENOTDIR,
    EPERM,
    ESRCH,
    ENODEV,
)  # the last two: it went away while we held it open
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_INTEGER = re.compile(rb"\s*(-?[0-9]{1,20})\s*")
_PROC_SUPER_MAGIC, _SYSFS_MAGIC = 0x9FA0, 0x62656572  # linux/magic.h
_BLOCK_BYTES, _LIMIT_BYTES = 4096, 256 * 1024


class KernelFile:
    """One file that is read again and again.

    On procfs and sysfs it stays open in between, unless descriptors are short: a process's file
    then fails once the process is gone, also if its pid was given to another one.
    """

    __slots__ = ("_block_bytes", "_fd", "_name", "_tree")

    def __init__(self, tree: Tree, name: str) -> None:
        self._tree, self._name = tree, name
        self._fd: int | None = None
        self._block_bytes = _BLOCK_BYTES

    def __del__(self) -> None:
        self._close()

    def read(self) -> bytes | None:
        """The content now; None: no such file. Errors: KernelRefused."""
        try:
            if self._fd is None and not self._tree.may_stay_open(self._name):
                return self._tree.read(self._name)
            if self._fd is None:
                self._fd = self._tree.open(self._name)
            if self._fd is None:
                return self._tree.read(self._name)
            # No more than needed: a large buffer costs more than the read.
            while len(content := os.pread(self._fd, self._block_bytes, 0)) == self._block_bytes:
                if self._block_bytes >= _LIMIT_BYTES:
                    break
                self._block_bytes *= 4
            return content
        except OSError as error:
            self._close()
            pass_if_absent(self._tree.path(self._name), error)
            return None

    def read_int(self) -> int | None:
        """The integer in it; None: no such file. Errors: Garbled, KernelRefused."""
        content = self.read()
        if content is None:
            return None
        match = _INTEGER.fullmatch(content)
        if match is None:
            text = content.decode(errors="replace")
            raise Garbled(self._tree.path(self._name), text, "a whole number")
        return int(match[1])

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Tree:
    """The host's files below `root`, by relative name ("proc/meminfo")."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.is_procfs = _filesystem(root / "proc") == _PROC_SUPER_MAGIC
        self._is_sysfs = _filesystem(root / "sys/kernel/mm/ksm") == _SYSFS_MAGIC
        self._root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._fd_most = limit - 64 if limit > 0 else 2**20  # leave some for everything else

    def path(self, name: str) -> Path:
        """Where `name` really is: for messages."""
        return self.root / name

    def may_stay_open(self, name: str) -> bool:
        """Does statfs(2) say procfs or sysfs? Elsewhere a writer may replace a file."""
        return self.is_procfs if name.startswith("proc/") else self._is_sysfs

    def open(self, name: str) -> int | None:
        """A descriptor to keep; None: there are few left. Errors: OSError, as it comes."""
        fd = os.open(name, _READ_FLAGS, dir_fd=self._root_fd)
        if fd > self._fd_most:
            os.close(fd)
            return None
        return fd

    def open_to_watch(self, name: str) -> int:
        """A descriptor to write a threshold to, and then to poll. Errors: OSError, as it comes."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(name, flags, dir_fd=self._root_fd)

    def read(self, name: str) -> bytes | None:
        """The file's content; None if there is no such file.

        Errors: KernelRefused (any errno but those that mean absent).
        """
        try:
            fd = os.open(name, _READ_FLAGS, dir_fd=self._root_fd)
            try:
                return _read_all(fd)
            finally:
                os.close(fd)
        except OSError as error:
            pass_if_absent(self.path(name), error)
            return None

    def write(self, name: str, value: int | str, *, may_wait: bool = False) -> None:
        """Write a control, whole. The kernel may hold us until it takes a lock (mm/ksm.c).

        may_wait: wait also where the file is a pipe that nobody reads, as a kernel file never is.
        Errors: KernelRefused.
        """
        try:
            # O_TRUNC: in a plain file, 64 written over 1250 must not leave a rest.
            flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY
            flags |= 0 if may_wait else os.O_NONBLOCK
            fd = os.open(name, flags, dir_fd=self._root_fd)
            try:
                os.write(fd, f"{value}\n".encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise self._refused(name, error, value) from error

    def probe_writable(self, name: str) -> None:
        """Errors: KernelRefused, if the file could not be opened for writing."""
        try:
            os.close(
                os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._root_fd)
            )
        except OSError as error:
            raise self._refused(name, error) from error

    def is_folder(self, name: str) -> bool:
        """Is there such a folder? Errors: KernelRefused (we may not look)."""
        try:
            return S_ISDIR(os.stat(name, dir_fd=self._root_fd).st_mode)
        except OSError as error:
            if error.errno in (EACCES, EPERM):
                raise self._refused(name, error) from error
            return False

    def numbered(self, name: str) -> dict[int, int]:
        """The entries of a folder whose name is a number, and each one's inode number.

        Errors: KernelRefused.
        """
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root_fd)
            try:
                with os.scandir(fd) as entries:
                    return {int(e.name): e.inode() for e in entries if e.name.isdecimal()}
            finally:
                os.close(fd)
        except OSError as error:
            raise self._refused(name, error) from error

    def _refused(self, name: str, error: OSError, tried: int | str | None = None) -> KernelRefused:
        return KernelRefused(self.path(name), error.errno or 0, tried)


def pass_if_absent(path: Path, error: OSError) -> None:
    """Errors: KernelRefused, unless the error means that there is no such file."""
    if error.errno not in _ABSENT:
        raise KernelRefused(path, error.errno or 0) from error


def _read_all(fd: int) -> bytes:
    content = chunk = os.read(fd, _BLOCK_BYTES)
    if len(chunk) < _BLOCK_BYTES:
        return chunk  # the kernel's small files come whole, and so do plain ones
    while chunk and len(content) < _LIMIT_BYTES:
        chunk = os.read(fd, _LIMIT_BYTES)
        content += chunk
    return content


def _filesystem(path: Path) -> int | None:
    """The magic number of the file system at `path`, by statfs(2); None: no such path."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct statfs is 120 bytes or less
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return None
    # f_type comes first; it is a long everywhere but on s390x (asm/statfs.h).
    kind = ctypes.c_uint if os.uname().machine == "s390x" else ctypes.c_long
    return kind.from_buffer(buffer).value
