"""The configuration: found as bytes, taken in as one frozen value, or refused in one line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import tomli
from pydantic import ValidationError

from ksmtuned.errors import ConfigError
from ksmtuned.settings import Key, RootTable, keys, tables

MAIN = Path("/etc/ksmtuned.toml")
FOLDERS = (
    Path("/usr/lib/ksmtuned.toml.d"),
    Path("/run/ksmtuned.toml.d"),
    Path("/etc/ksmtuned.toml.d"),
)
MOST_BYTES = 2**20  # no configuration is longer; a log file given by mistake is
# Opening never waits for the other end of a FIFO and never makes a terminal ours.
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_DEV_NULL = os.makedev(1, 3)
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Locations:
    """Where the configuration is looked for."""

    main: Path
    main_required: bool
    folders: tuple[Path, ...]  # of drop-ins, from low to high precedence

    @classmethod
    def of(cls, config: Path | None, config_dirs: Sequence[Path]) -> Locations:
        """The places that --config and --config-dir name; the system's where they do not."""
        return cls(
            main=MAIN if config is None else config,
            main_required=config is not None,
            folders=tuple(config_dirs) or FOLDERS,
        )


@dataclass(frozen=True, slots=True)
class Source:
    """A configuration file as it was found: two of them are equal if nothing changed."""

    path: Path
    content: bytes = b""
    error: str | None = None  # why it could not be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The effective configuration, and where each part of it came from."""

    settings: RootTable
    origins: Mapping[str, Path]  # dotted key -> the file that set it; absent: built-in
    sources: tuple[Source, ...]  # from low to high precedence


def load(where: Locations) -> Config:
    """The configuration on disk. Errors: ConfigError."""
    return parse(read_sources(where))


def read_sources(where: Locations) -> tuple[Source, ...]:
    """The main file and every effective drop-in, unparsed; cheap enough for every tick.

    A file that cannot be read is a Source too, with its error: that a reload is due is seen by
    comparing, and whether it fails is for parse to say.
    """
    found = []
    main = read_source(where.main, may_be_missing=not where.main_required)
    if main is not None:
        found.append(main)
    drop_ins: dict[str, Path] = {}
    for folder in where.folders:
        try:
            # A later folder's name replaces the same name of an earlier one.
            drop_ins |= {name: folder / name for name in _drop_in_names(folder)}
        except OSError as error:
            found.append(Source(folder, error=_reason(error)))
    # No drop-in may be missing: a name that points nowhere is somebody's mistake.
    read = (read_source(drop_ins[name]) for name in sorted(drop_ins))
    found += [source for source in read if source is not None and not _disables(source)]
    return tuple(found)


def _drop_in_names(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208  # each tick: no Path for each name
    except FileNotFoundError:
        return []
    return [name for name in names if name.endswith(".toml") and not name.startswith(".")]


def _disables(drop_in: Source) -> bool:
    return drop_in.error is None and not drop_in.content.strip()


def read_source(path: Path, may_be_missing: bool = False) -> Source | None:
    """The file as it is now; None if it is missing and may be."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except FileNotFoundError as error:
        return None if may_be_missing else Source(path, error=_reason(error))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return Source(path, error=_reason(error))
    try:
        return _content(path, descriptor)
    except OSError as error:
        return Source(path, error=_reason(error))
    finally:
        os.close(descriptor)


def _content(path: Path, descriptor: int) -> Source:
    status = os.fstat(descriptor)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == _DEV_NULL:
        return Source(path)
    if stat.S_ISDIR(status.st_mode):
        return Source(path, error="is a directory, not a file")
    if not stat.S_ISREG(status.st_mode):
        return Source(path, error="is not a regular file")
    content = b""
    # One read may return less than there is, and below /proc st_size is 0: read up to the end.
    piece = min(max(status.st_size, 4096), MOST_BYTES) + 1
    while len(content) <= MOST_BYTES and (more := os.read(descriptor, piece)):
        content += more
    if len(content) > MOST_BYTES:
        return Source(path, error="is larger than 1 MiB, so hardly a configuration")
    return Source(path, content)


def _reason(error: OSError | ValueError) -> str:
    code = getattr(error, "errno", None)
    return os.strerror(code) if code else str(error)


def parse(sources: Iterable[Source]) -> Config:
    """The configuration that the files make together. Errors: ConfigError, on the first problem.

    Tables merge key by key, lists replace. Each file is judged by itself, so that the error
    names the right one; what only shows in the sum is judged at the end.
    """
    sources = tuple(sources)
    merged: dict[str, Any] = {}
    origins: dict[str, Path] = {}
    for source in sources:
        _merge(merged, origins, checked(source), source.path)
    settings = RootTable.model_validate(merged)
    _check_limits(settings, origins, sources)
    return Config(settings=settings, origins=MappingProxyType(origins), sources=sources)


def _merge(
    merged: dict[str, Any], origins: dict[str, Path], table: dict[str, Any], path: Path
) -> None:
    for name, value in table.items():
        if isinstance(value, dict):
            merged.setdefault(name, {}).update(value)
            origins.update({f"{name}.{key}": path for key in value})
        else:
            merged[name] = value
            origins[name] = path


def _check_limits(
    settings: RootTable, origins: Mapping[str, Path], sources: tuple[Source, ...]
) -> None:
    """The one rule between two keys: npages_min is not above npages_max."""
    low, high = settings.classic.npages_min, settings.classic.npages_max
    if low <= high:
        return
    at_min, at_max = (origins.get(f"classic.npages_{end}") for end in ("min", "max"))
    order = [source.path for source in sources]
    # The built-in values agree, so at least one of the two was set; the later one is to blame.
    blamed = max((path for path in (at_max, at_min) if path), key=order.index)
    if blamed == at_max:
        problem = f"must be at least npages_min ({low}, {at_min or 'built-in'}), not {high}"
        raise ConfigError(blamed, "classic.npages_max", problem)
    problem = f"must be at most npages_max ({high}, {at_max or 'built-in'}), not {low}"
    raise ConfigError(blamed, "classic.npages_min", problem)


def checked(source: Source) -> dict[str, Any]:
    """The keys that one file sets, as TOML has them, each valid by itself. Errors: ConfigError."""
    if source.error is not None:
        raise ConfigError(source.path, None, source.error)
    table = _toml(source)
    try:
        RootTable.model_validate(table)
    except ValidationError as error:
        _refuse(source.path, error)
    return table


def _toml(source: Source) -> dict[str, Any]:
    try:
        return tomli.loads(source.content.decode("utf-8-sig"))  # -sig: some editors leave a mark
    except UnicodeDecodeError as error:
        wrong = source.content[error.start]
        problem = f"is not UTF-8 text: byte 0x{wrong:02x} at offset {error.start}"
    except tomli.TOMLDecodeError as error:
        what, _, place = str(error).rstrip(")").rpartition(" (at ")
        problem = f"{place}: {what}"
    except RecursionError:
        problem = "is nested too deeply"
    except ValueError as error:  # such as a number of more digits than Python converts
        problem = str(error).partition(";")[0]
    raise ConfigError(source.path, None, problem)


def _refuse(path: Path, error: ValidationError) -> NoReturn:
    first, *others = error.errors(include_url=False)
    names = [part for part in first["loc"] if isinstance(part, str)]  # an int is a list's index
    if first["type"] == "extra_forbidden":
        problem = _unknown(names, first["input"])
    else:
        problem = _wrong(names, first)
    more = f" (and {len(others)} more)" if others else ""
    raise ConfigError(path, ".".join(map(_shortened, names)), problem + more) from None


def _wrong(names: list[str], error: Mapping[str, Any]) -> str:
    dotted, found = ".".join(names), _shown(error["input"])
    if dotted in tables():
        return f"must be a table, [{dotted}], not {found}"
    key = next(key for key in keys() if key.dotted == dotted)
    inside = len(error["loc"]) > len(names)  # an item of a list is wrong
    problem = f"must be {key.allowed}, not {f'[{found}]' if inside else found}"
    if error["type"] == "value_error":  # raised by settings.py, with a way out
        problem += f": {error['ctx']['error']}"
    return problem


def _unknown(names: list[str], value: Any) -> str:
    """What to say of a key that does not exist: the one that was probably meant, if any."""
    what = "unknown table" if isinstance(value, dict) else "unknown key"
    *table, name = names
    if isinstance(value, dict) and not table:
        return f"{what}{_did_you_mean(name, {known: known for known in tables()})}"
    here = {key.name: key.name for key in keys() if [key.table] == (table or [""])}
    elsewhere = {key.name: _place(key) for key in keys()}
    if name in elsewhere:  # the right word in the wrong table beats a similar one in this
        here = {}
    return f"{what}{_did_you_mean(name, here) or _did_you_mean(name, elsewhere)}"


def _place(key: Key) -> str:
    where = f"in [{key.table}]" if key.table else "at the top, above the first table"
    return f"{key.name} {where}"


def _did_you_mean(name: str, known: Mapping[str, str]) -> str:
    import difflib  # only when something is wrong: the daemon has no room for it

    meant = name[:60].lower().replace("-", "_")
    close = difflib.get_close_matches(meant, known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""


def _shown(value: Any) -> str:
    """A TOML value in a few characters. Never walked into: it may be nested for ever."""
    match value:
        case dict():
            return "a table"
        case list():
            return f"a list of {len(value)}"
        case bool():
            return str(value).lower()
        case int() if value.bit_length() > 100:
            return "a number far beyond that"
        case str():
            return f'"{_shortened(value)}"'
    return _shortened(str(value))


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return text[: _SHOWN_CHARACTERS - 3] + "..."
