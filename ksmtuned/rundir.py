"""RUN_DIR: small JSON files, replaced whole, that outlive a crash but not a boot."""

from __future__ import annotations

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
STATE, ORIGINAL = "state.json", "original.json"
_GROUP = "ksmtuned"  # may read state.json, where it exists
_WANTED = "a JSON object of ours; remove it if you do not need it"
_LIMIT_BYTES = 64 * 2**20  # 1000 guests take 500 KiB


class RunDir:
    """The folder; made at the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group_id = _group_id()

    def write(
        self, name: str, content: Mapping[str, Any], parts: Mapping[str, str] | None = None
    ) -> None:
        """Replace the file; readers see the old one or the new one. Mode 0640.

        parts: more of its content, the values of which are JSON text already.
        Errors: RunDirError (full, read-only, no folder).
        """
        target, draft = self.path / name, self.path / f".{name}.new"
        text = _text(content, parts or {})
        try:
            fd = self._create(draft)
            try:
                os.fchmod(fd, 0o640)  # whatever the umask
                if self._group_id is not None:
                    with suppress(PermissionError):
                        os.fchown(fd, -1, self._group_id)
                _write_all(fd, text)
            finally:
                os.close(fd)
            draft.replace(target)
        except OSError as error:
            raise RunDirError(target, error, "not written") from error

    def _create(self, draft: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(draft, flags, 0o640)
        except FileNotFoundError:
            self.path.mkdir(mode=0o755, parents=True)
        except FileExistsError:
            draft.unlink()  # left by a killed run
        return os.open(draft, flags, 0o640)

    def read(self, name: str) -> dict[str, Any] | None:
        """What the file says; None if there is none.

        Errors: Garbled (no JSON object), KernelRefused (not permitted, no plain file).
        """
        path = self.path / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                is_file = S_ISREG(os.fstat(fd).st_mode)
                content = _read_all(fd) if is_file else b""
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


def _text(content: Mapping[str, Any], parts: Mapping[str, str]) -> bytes:
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    more = [f"{json.dumps(key)}:{value}" for key, value in parts.items()]
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
