"""The guests as a table of 80 columns, from their JSON: the state file's is not to be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksmtuned.units import PAGE_BYTES, printable, size

_NAME_MOST = 18
_HEAD = ("RAM", "MERGED", "ZERO", "SAVES", "PROFIT")

Row = Mapping[str, Any]


def table(guests: Sequence[Row], others: Sequence[Row], total_bytes: int | None) -> list[str]:
    """Lines: guests by what they save, then other processes, a total, and why some merge nothing.

    total_bytes: what KSM saves on this host, of which the listed ones may be only a part.
    """
    listed = [*guests, *others]
    if not listed:
        return ["No guest is here, and no other process with mergeable memory."]
    lines = [_line("GUEST" if guests else "PROCESS", "PID", _HEAD, "SHARING")]
    lines += map(_row, _by_saving(guests))
    if guests and others:
        lines.append("other processes with mergeable memory")
    lines += map(_row, _by_saving(others))
    lines.append(_total(listed))
    saved = sum(_number(row, "saving_bytes") or 0 for row in listed)
    if total_bytes is not None and total_bytes > saved:
        lines.append(f"{size(total_bytes - saved)} more are saved by processes not listed here")
    why = [row for row in listed if row.get("why_not")]
    lines += ["", "not merged, or not known to be:"] if why else []
    return lines + [f"  {_title(row)}: {printable(str(row['why_not']))}" for row in why]


def _by_saving(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -(_number(row, "saving_bytes") or 0))


def _row(row: Row) -> str:
    merged = _number(row, "merging_pages")
    zero = _number(row, "zero_pages")
    amounts = (
        _number(row, "ram_bytes"),
        None if merged is None else merged * PAGE_BYTES,
        None if zero is None else zero * PAGE_BYTES,
        # Without any figure, the share of nothing is not known to be nothing.
        None if merged is None else _number(row, "saving_bytes"),
        _number(row, "profit_bytes"),
    )
    share = row.get("share")
    sharing = share if share in ("on", "off") else "?"
    if share == "on" and row.get("mergeable") is False:
        sharing = "in vain"
    return _line(_name(row), str(_number(row, "pid") or "?"), list(map(_size, amounts)), sharing)


def _total(rows: Sequence[Row]) -> str:
    def of(key: str, unit: int = 1) -> str:
        known = [amount for row in rows if (amount := _number(row, key)) is not None]
        return _size(sum(known) * unit if known else None)

    sums = (
        of("ram_bytes"),
        of("merging_pages", PAGE_BYTES),
        of("zero_pages", PAGE_BYTES),
        of("saving_bytes"),
        of("profit_bytes"),
    )
    return _line("total", str(len(rows)), sums, "")


def _line(name: str, pid: str, amounts: Sequence[str], sharing: str) -> str:
    columns = " ".join(f"{amount:>8}" for amount in amounts)
    return f"{name:<{_NAME_MOST}}{pid:>8} {columns} {sharing}".rstrip()


def _name(row: Row) -> str:
    text = printable(str(row.get("name") or "?"))
    return text if len(text) <= _NAME_MOST else f"{text[: _NAME_MOST - 3]}..."


def _title(row: Row) -> str:
    return f"{printable(str(row.get('name')))} ({_number(row, 'pid')})"


def _size(amount: int | None) -> str:
    """In eight columns: "12.5 GiB", "512 MiB"."""
    if amount is None:
        return "-"
    text = size(amount)
    number, _, unit = text.partition(" ")
    return text if len(text) <= 8 else f"{float(number):.0f} {unit}"


def _number(row: Row, key: str) -> int | None:
    value = row.get(key)
    is_sane = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return value if is_sane else None
