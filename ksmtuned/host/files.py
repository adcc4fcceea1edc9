"""Reads and writes kernel files below one root; tells absent, garbled and refused apart."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
from errno import ENODEV, ENOENT, ENOTDIR, ESRCH
from pathlib import Path
from stat import S_ISDIR

from ksmtuned.errors import Garbled, KernelRefused

_ABSENT = (ENOENT, ENOTDIR, ESRCH, ENODEV)  # the last two: it went away while we held it open
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_INTEGER = re.compile(rb"\s*(-?[0-9]{1,20})\s*")
_PROC_SUPER_MAGIC, _SYSFS_MAGIC = 0x9FA0, 0x62656572  # linux/magic.h
_LIMIT_BYTES = 256 * 1024


class Tree:
    """The host's files below `root`, by relative name ("proc/meminfo").

    On procfs and sysfs a file may stay open between two readings; on any other file system
    it is opened each time, since there a writer may replace it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.is_procfs = _filesystem(root / "proc") == _PROC_SUPER_MAGIC
        self.is_sysfs = _filesystem(root / "sys/kernel/mm/ksm") == _SYSFS_MAGIC
        self._root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._kept: dict[str, int] = {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._kept_most = limit - 64 if limit > 0 else 2**20  # leave some for everything else

    def path(self, name: str) -> Path:
        """Where `name` really is: for messages."""
        return self.root / name

    def close(self) -> None:
        """Give every descriptor back."""
        for fd in (*self._kept.values(), self._root_fd):
            os.close(fd)
        self._kept = {}

    def read(self, name: str, *, keep: bool = False) -> bytes | None:
        """The file's content; None if there is no such file. `keep` it open if that is safe.

        Errors: KernelRefused (any errno but those that mean absent).
        """
        try:
            if name in self._kept:
                return self._read_kept(name)
            fd = os.open(name, _READ_FLAGS, dir_fd=self._root_fd)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise self._refused(name, error) from error
        keep = keep and len(self._kept) < self._kept_most
        if keep and (self.is_procfs if name.startswith("proc/") else self.is_sysfs):
            self._kept[name] = fd
            return self.read(name)
        try:
            return _read_all(fd)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise self._refused(name, error) from error
        finally:
            os.close(fd)

    def forget(self, name: str) -> None:
        """Close a file that was kept open."""
        fd = self._kept.pop(name, None)
        if fd is not None:
            os.close(fd)

    def read_int(self, name: str, *, keep: bool = False) -> int | None:
        """The integer in a kernel file; None if there is no such file.

        Errors: Garbled (no integer in it), KernelRefused (any errno but those that mean absent).
        """
        content = self.read(name, keep=keep)
        if content is None:
            return None
        match = _INTEGER.fullmatch(content)
        if match is None:
            raise Garbled(self.path(name), content.decode(errors="replace"), "a whole number")
        return int(match[1])

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
        """Is there such a folder?"""
        try:
            return S_ISDIR(os.stat(name, dir_fd=self._root_fd).st_mode)
        except OSError:
            return False

    def inodes(self, name: str) -> dict[str, int]:
        """Name and inode number of each entry of a folder. Errors: KernelRefused."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root_fd)
            try:
                with os.scandir(fd) as entries:
                    return {entry.name: entry.inode() for entry in entries}
            finally:
                os.close(fd)
        except OSError as error:
            raise self._refused(name, error) from error

    def _read_kept(self, name: str) -> bytes | None:
        try:
            return os.pread(self._kept[name], _LIMIT_BYTES, 0)
        except OSError:
            self.forget(name)
            raise

    def _refused(self, name: str, error: OSError, tried: int | str | None = None) -> KernelRefused:
        return KernelRefused(self.path(name), error.errno or 0, tried)


def _read_all(fd: int) -> bytes:
    content = chunk = os.read(fd, 4096)
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
    kind = ctypes.c_uint if platform.machine() == "s390x" else ctypes.c_long
    return kind.from_buffer(buffer).value
