"""etc/ksmtuned.toml says what the code does, key for key."""

from __future__ import annotations

import re
from pathlib import Path

from ksmtuned.config import Locations, Source, load, parse
from ksmtuned.config_text import example
from ksmtuned.settings import RootTable, keys

FILE = Path(__file__).parent.parent / "etc" / "ksmtuned.toml"


def test_the_file_is_what_the_code_makes_of_its_schema() -> None:
    assert FILE.read_text() == example(), "run: python -m ksmtuned.config_text > etc/ksmtuned.toml"


def test_as_delivered_it_sets_nothing() -> None:
    config = load(Locations(main=FILE, main_required=True, folders=()))
    assert config.settings == RootTable()
    assert config.origins == {}


def test_with_every_key_uncommented_it_sets_every_key_to_its_default() -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", FILE.read_text(), flags=re.MULTILINE)
    config = parse([Source(FILE, text.encode())])
    assert set(config.origins) == {key.dotted for key in keys()}
    for key in keys():
        table = getattr(config.settings, key.table) if key.table else config.settings
        default = key.sample if key.default is None else key.default
        assert getattr(table, key.name) == default, key.dotted


def test_every_key_comes_with_meaning_range_and_default() -> None:
    parts = re.split(r"^\[(\w+)\]$", FILE.read_text(), flags=re.MULTILINE)
    text = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    for key in keys():
        blocks = text[key.table].split("\n\n")
        (block,) = (b for b in blocks if f"\n# {key.name} = " in b)
        told = " ".join(line.lstrip("# ") for line in block.splitlines()[:-1])
        assert told.startswith(key.meaning)
        assert re.search(r"(  |\n#   )\S[^\n]*\.  Default: \S", block), key.dotted
        assert key.span in told


def test_no_line_but_a_list_is_longer_than_a_terminal() -> None:
    assert all(len(li) <= 100 for li in FILE.read_text().splitlines() if "= [" not in li)


def test_every_key_has_a_meaning_and_a_word_for_what_it_must_be() -> None:
    for key in keys():
        assert key.meaning.endswith("."), key.dotted
        assert key.allowed, key.dotted
        assert (key.default is None) == bool(key.unset), key.dotted
