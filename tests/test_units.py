"""Amounts as people write them, and text made fit to print."""

from __future__ import annotations

from contextlib import suppress
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksmtuned.units import duration, parse_duration, parse_size, printable, size


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0 B", 0),
        ("512 B", 512),
        ("1 KiB", 1024),
        ("2 MiB", 2 * 2**20),
        ("2MiB", 2 * 2**20),
        (" 2  MiB ", 2 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("4 TiB", 2**42),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, amount: int) -> None:
    assert parse_size(text) == amount


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100 ms", 0.1), ("60 s", 60.0), ("1.5 min", 90.0), ("2h", 7200.0), ("1 d", 86400.0)],
)
def test_a_duration_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "60", "s", "60 S", "-60 s", "+60 s", "1e3 s", "nan s", "inf s", "1,5 s", ".5 s",
        "5. s", "60 s s", "1 min 30 s", "0x10 s", "٣ s", "60 s\0", "9" * 31 + " s", "2 MB", "2 M",
    ],
)  # fmt: skip
def test_an_amount_in_any_other_form_is_refused_with_the_units_that_exist(text: str) -> None:
    with pytest.raises(ValueError, match=r'a number with one of ms, s, min, h, d, like "60 s"'):
        parse_duration(text)
    with pytest.raises(ValueError, match=r"a number with one of B, KiB, MiB, GiB, TiB"):
        parse_size(text)


@given(st.text())
def test_whatever_the_text_it_is_an_amount_or_a_value_error(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with suppress(ValueError):
            assert 0 <= parse(text) < inf


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (3 * 2**30, "3.0 GiB"),
        (-1536, "-1.5 KiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_a_size_is_told_in_its_biggest_unit(amount: int, text: str) -> None:
    assert size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (60, "60 s"), (120, "2 min"), (5400, "90 min"), (172800, "2 d")],
)
def test_a_duration_is_told_in_a_unit_of_which_there_are_two(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.text())
def test_printable_text_is_one_line_whatever_went_in(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


def test_printable_leaves_ordinary_text_alone_and_escapes_traps() -> None:
    assert printable("vm-1 (büro)") == "vm-1 (büro)"
    assert printable("a\x1b[31mb\n\u202e\udcff") == r"a\x1b[31mb\n\u202e\udcff"
