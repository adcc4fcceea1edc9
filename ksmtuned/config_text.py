"""The configuration written out for people: the example file, and what is in force."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any

from ksmtuned.config import Config
from ksmtuned.settings import Key, keys, tables
from ksmtuned.units import printable

_HEAD = """\
# ksmtuned: when, and how fast, the kernel merges identical memory pages (KSM).
# Every key is here, commented out at its default: meaning.  unit and range.  default.
# A file of your own in /etc/ksmtuned.toml.d (name.toml) may hold just the keys that you change.
# An edit is picked up within one tick. Before: ksmtuned config check. After: ksmtuned config show.
"""
_WIDTH = 100
_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def example() -> str:
    """The text of etc/ksmtuned.toml, made from the schema."""
    parts = [_HEAD]
    for table, members in groupby(keys(), attrgetter("table")):
        parts += [_heading(table)] if table else []
        parts += [_entry(key) for key in members]
    return "\n".join(parts)


def _heading(table: str) -> str:
    return f"# {tables()[table].__doc__}\n[{table}]\n"


def _entry(key: Key) -> str:
    value = key.sample if key.default is None else key.default
    span = f"{key.unit}, {key.span}" if key.unit else key.allowed
    facts = f"{span}.  Default: {_default(key)}"
    return f"{_comment(key.meaning, facts)}\n# {key.name} = {toml(key, value)}\n"


def _default(key: Key) -> str:
    if key.default is None:
        return key.unset
    return "as below" if isinstance(key.default, tuple) else toml(key, key.default)


def _comment(meaning: str, facts: str) -> str:
    """Both on one line if they fit, else the facts on a line of their own."""
    line = f"# {meaning}  {facts}"
    if len(line) <= _WIDTH:
        return line
    wrapped = textwrap.fill(meaning, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    return f"{wrapped}\n#   {facts}"


def show(config: Config) -> str:
    """Every effective key as TOML, each with the file that it came from."""
    return "\n".join(_shown_lines(config)) + "\n"


def _shown_lines(config: Config) -> Iterator[str]:
    for table, members in groupby(keys(), attrgetter("table")):
        values = getattr(config.settings, table) if table else config.settings
        if table:
            yield f"\n[{table}]"
        for key in members:
            line = _assignment(key, getattr(values, key.name))
            origin = config.origins.get(key.dotted)
            yield f"{line:<40}  # {printable(str(origin)) if origin else 'built-in'}"


def _assignment(key: Key, value: Any) -> str:
    """The key as a line of TOML; commented out if nothing is set."""
    return f"# {key.name}: {key.unset}" if value is None else f"{key.name} = {toml(key, value)}"


def toml(key: Key, value: Any) -> str:
    """The value as it is written in a file; it reads back as exactly the same value."""
    match key.kind:
        case "a size":
            return f'"{_exact_size(value)}"'
        case "a time":
            return f'"{repr(value).removesuffix(".0")} s"'
    # JSON's numbers, texts and lists of texts are TOML too.
    return json.dumps(value, ensure_ascii=False)


def _exact_size(amount: int) -> str:
    for unit, factor in _UNITS:
        if amount and amount % factor == 0:
            return f"{amount // factor} {unit}"
    return f"{amount} B"


if __name__ == "__main__":
    print(example(), end="")  # `python -m ksmtuned.config_text > etc/ksmtuned.toml`
