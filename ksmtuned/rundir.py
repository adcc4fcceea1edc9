"""RUN_DIR: small JSON files, replaced whole, that outlive a crash but not a boot."""

from __future__ import annotations

import fcntl
import grp
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from errno import ELOOP
from pathlib import Path
from stat import S_ISREG
from typing import Any

from ksmtuned.errors import Garbled, KernelRefused, RunDirError

DEFAULT = Path("/run/ksmtuned")
STATE, ORIGINAL, HOLD = "state.json", "original.json", "hold"
_GROUP = "ksmtuned"  # may read state.json, where it exists
_WANTED = "a JSON object of ours; remove it if you do not need it"
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LIMIT_BYTES = 64 * 2**20  # 1000 guests take 500 KiB


class RunDir:
    """The folder; made at the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group_id = _group_id()

    def write(
        self,
        name: str,
        content: Mapping[str, Any],
        parts: Mapping[str, str] | None = None,
        mode: int = 0o640,
    ) -> None:
        """Replace the file; readers see the old one or the new one.

        parts: more of its content, the values of which are JSON text already.
        Errors: RunDirError (full, read-only, no folder).
        """
        target, draft = self.path / name, self.path / f".{name}.new"
        text = _text(content, parts)
        try:
            fd = self._create(draft)
            try:
                os.fchmod(fd, mode)  # whatever the umask
                if self._group_id is not None:
                    with suppress(PermissionError):
                        os.fchown(fd, -1, self._group_id)
                _write_all(fd, text)
            finally:
                os.close(fd)
            draft.replace(target)
        except OSError as error:
            raise RunDirError(target, error, "not written") from error

    def write_locked(self, name: str, content: Mapping[str, Any]) -> int | None:
        """A new file for its owner alone (0600), under flock(2) before anybody can see it: a
        reader who gets that lock knows that the writer is gone.

        Returns the descriptor that holds the lock; None: there is such a file already.
        Errors: RunDirError.
        """
        target, draft = self.path / name, self.path / f".{name}.{os.getpid()}"
        try:
            fd = self._create(draft)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                os.fchmod(fd, 0o600)
                _write_all(fd, _text(content))
                os.link(draft, target)  # unlike a rename, never over somebody else's
            except BaseException:
                os.close(fd)
                raise
            finally:
                draft.unlink(missing_ok=True)
        except FileExistsError:
            return None
        except OSError as error:
            raise RunDirError(target, error, "not written") from error
        return fd

    def is_locked(self, name: str) -> bool:
        """Does the writer of that file still hold it? False: no such file."""
        try:
            fd = os.open(self.path / name, _READ_FLAGS)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _create(self, draft: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(draft, flags, 0o640)
        except FileNotFoundError:
            self.path.mkdir(mode=0o755, parents=True)
        except FileExistsError:
            draft.unlink()  # left by a killed run
        return os.open(draft, flags, 0o640)

    def read(self, name: str, *, must_be_own: bool = False) -> dict[str, Any] | None:
        """What the file says; None if there is none.

        must_be_own: it is an order, so it has to be root's (or ours), and writable by nobody else.
        Errors: Garbled (no JSON object, not our own), KernelRefused (not permitted, no plain file).
        """
        path = self.path / name
        try:
            fd = os.open(path, _READ_FLAGS)
            try:
                stat = os.fstat(fd)
                if must_be_own and not _is_own(stat):
                    whose = f"user {stat.st_uid}'s, mode {stat.st_mode & 0o7777:o}"
                    raise Garbled(path, whose, "a file that only root can have written")
                content = _read_all(fd) if S_ISREG(stat.st_mode) else b""
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == ELOOP:
                raise Garbled(path, "a symbolic link", _WANTED) from error
            raise KernelRefused(path, error.errno or 0) from error
        try:
            found = json.loads(content, parse_constant=_no_constant, parse_float=_finite)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Garbled(path, content[:60].decode(errors="replace"), _WANTED)
        return found

    def is_own(self, name: str) -> bool:
        """Can only root (or we) have written it?"""
        try:
            return _is_own((self.path / name).lstat())
        except OSError:
            return False

    def set_aside(self, name: str) -> Path:
        """Keep a file that cannot be used under another name. Errors: RunDirError."""
        aside = self.path / f"{name}.garbled"
        try:
            return (self.path / name).replace(aside)
        except OSError as error:
            raise RunDirError(self.path / name, error, "not set aside") from error

    def remove(self, name: str) -> None:
        """Errors: RunDirError. A file that is not there is fine."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise RunDirError(self.path / name, error, "not removed") from error


def _is_own(stat: os.stat_result) -> bool:
    return stat.st_uid in (0, os.geteuid()) and not stat.st_mode & 0o022


def _text(content: Mapping[str, Any], parts: Mapping[str, str] | None = None) -> bytes:
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    more = [f"{json.dumps(key)}:{value}" for key, value in (parts or {}).items()]
    inside = ",".join(filter(None, [text[1:-1], *more]))
    return f"{{{inside}}}\n".encode()


def _read_all(fd: int) -> bytes:
    content = chunk = os.read(fd, 65536)
    while chunk and len(content) < _LIMIT_BYTES:
        chunk = os.read(fd, 2**20)
        content += chunk
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _group_id() -> int | None:
    try:
        return grp.getgrnam(_GROUP).gr_gid
    except KeyError:
        return None
