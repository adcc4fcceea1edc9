"""The configuration of the old ksmtuned script, turned into ours without running it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ksmtuned.config import Source, checked, parse, read_source
from ksmtuned.errors import ConfigError
from ksmtuned.settings import keys
from ksmtuned.shell import Assignment, Leftover, read_assignments
from ksmtuned.units import printable, size

_MOST_NOTES = 100  # somebody gave us another kind of file
_WHOLE = re.compile(r"\+?(-?(?:0|[1-9][0-9]{0,30}))", re.ASCII)
_SLEEP = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", re.ASCII)  # what sleep(1) takes
_SLEEP_UNITS = {"": "s", "s": "s", "m": "min", "h": "h", "d": "d"}
_METRICS = {"pss": "pss", "rss": "rss", "rsz": "rss", "rssize": "rss"}  # ps(1)'s names


def import_file(path: Path) -> str:
    """Our TOML for the shell-style file. Errors: ConfigError, if it is not a readable text."""
    source = read_source(path)
    assert source is not None  # only a file that may be missing gives None
    if source.error is not None:
        raise ConfigError(path, None, source.error)
    if b"\0" in source.content:
        raise ConfigError(path, None, "is not a text file, so not a configuration of ksmtuned")
    return translate(source.content, path)


def translate(content: bytes, path: Path) -> str:
    """Our TOML for what the file assigns, with a comment on all that could not be carried over.

    Whatever the bytes are, the result is a valid configuration.
    """
    script = content.decode("utf-8-sig", errors="replace")
    statements = read_assignments(script)
    carried, lost = _carry_over(statements)
    if "KSM_PS_METRIC" in script:
        _fill_in_proxmox(carried)
    lost += _without_contradiction(carried)
    notes = [_about_the_constant(carried), *_about_proxmox(script)]
    head = f"Made by `ksmtuned config import {path}`; a key that is not here keeps its default."
    parts = [
        'policy = "classic"',
        _comment(head),
        *_rendered(carried),
        *_remarks("Not carried over:", lost),
        *_remarks("Good to know:", notes),
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class _Carried:
    value: str  # in TOML
    origin: str  # for the comment beside it


def _carry_over(
    statements: list[Assignment | Leftover],
) -> tuple[dict[str, _Carried], list[str]]:
    """The keys that have a counterpart, by our dotted name, and a remark for each of the rest."""
    last = {found.name: found for found in statements if isinstance(found, Assignment)}
    carried: dict[str, _Carried] = {}
    lost = []
    for found in statements:
        if isinstance(found, Assignment) and found is not last[found.name]:
            continue  # assigned again further down, as in a shell
        try:
            carried |= _converted(found)
        except ValueError as reason:
            lost.append(f"line {found.line}: {_short(found.text)}: {reason}")
    return carried, lost


def _converted(found: Assignment | Leftover) -> dict[str, _Carried]:
    """Our key for one assignment; nothing for an empty one. Errors: ValueError, with the reason."""
    if isinstance(found, Leftover):
        raise ValueError(found.reason)
    if found.name in _GONE:
        raise ValueError(_GONE[found.name])
    if found.name not in _KEYS:
        raise ValueError("ksmtuned has no such key")
    if found.value is None:
        raise ValueError("only a shell can tell this value; write it out")
    if not found.value.strip():
        return {}  # the script takes its default then
    key, convert = _KEYS[found.name]
    value = convert(found.value.strip())
    try:
        checked(Source(Path(), f"{key} = {value}".encode()))
    except ConfigError as error:
        raise ValueError(error.problem) from None
    return {key: _Carried(value, f"{found.name}, line {found.line}")}


def _whole(text: str) -> str:
    match = _WHOLE.fullmatch(text)
    if match is None:
        raise ValueError("not a plain whole number")
    return match[1]


def _kilobytes(text: str) -> str:
    amount = int(_whole(text))
    return f'"{amount // 1024} MiB"' if amount % 1024 == 0 else f'"{amount} KiB"'


def _sleep(text: str) -> str:
    match = _SLEEP.fullmatch(text)
    if match is None:
        raise ValueError("not a plain number of seconds")
    return f'"{match[1]} {_SLEEP_UNITS[match[2]]}"'


def _metric(text: str) -> str:
    if text not in _METRICS:
        raise ValueError("only pss, rss and rsz have a counterpart")
    return f'"{_METRICS[text]}"'


_KEYS: Mapping[str, tuple[str, Callable[[str], str]]] = {
    "KSM_MONITOR_INTERVAL": ("interval", _sleep),
    "KSM_SLEEP_MSEC": ("classic.sleep_msec", _whole),
    "KSM_NPAGES_BOOST": ("classic.npages_boost", _whole),
    "KSM_NPAGES_DECAY": ("classic.npages_decay", _whole),
    "KSM_NPAGES_MIN": ("classic.npages_min", _whole),
    "KSM_NPAGES_MAX": ("classic.npages_max", _whole),
    "KSM_THRES_COEF": ("classic.thres_coef", _whole),
    "KSM_THRES_CONST": ("classic.thres_const", _kilobytes),
    "KSM_PS_METRIC": ("classic.guest_memory", _metric),
}
_GONE: Mapping[str, str] = {
    "LOGFILE": "the journal keeps the log: journalctl -u ksmtuned",
    "DEBUG": "the reason for each change is always logged; `ksmtuned status` has the last one",
    "PIDFILE": "systemd keeps the process id; there is no such file",
    "KSM_MAX_KERNEL_PAGES": "the kernel has had no max_kernel_pages since 2.6.33",
    "START": "systemctl enable or disable ksmtuned decides that",
}


def _fill_in_proxmox(carried: dict[str, _Carried]) -> None:
    """What Proxmox's script does where its file is silent, and other scripts do not."""
    carried.setdefault("classic.sleep_msec", _Carried("100", "the default of Proxmox's script"))
    carried.setdefault("classic.guest_memory", _Carried('"pss"', "the default of Proxmox's script"))


def _about_proxmox(script: str) -> Iterator[str]:
    if "KSM_PS_METRIC" in script:
        yield (
            "KSM_PS_METRIC tells that this is Proxmox's file: the default of its script for "
            "KSM_SLEEP_MSEC is 100 ms, not 10"
        )
        yield 'guest_memory = "pss" is costly with big guests; "cgroup" costs nothing'
    else:
        yield (
            "if this file served Proxmox's script: its default for KSM_SLEEP_MSEC is 100 ms, not "
            '10, and it measures PSS (guest_memory = "pss")'
        )


def _about_the_constant(carried: Mapping[str, _Carried]) -> str:
    """Told always: the script's own default has the mistake too."""
    constant = carried.get("classic.thres_const", _Carried('"2 MiB"', "")).value
    percent = int(carried.get("classic.thres_coef", _Carried("20", "")).value)
    amount = _bytes_of(constant)
    rather = f" ({_round(amount * 1024)} was probably meant)" if 0 < amount < 2**30 else ""
    effect = f"only below {_round(amount * 100 // percent)} of RAM" if percent else "always"
    return (
        f"KSM_THRES_CONST={amount // 1024} meant {constant[1:-1]}: the script compares it with "
        f"kB{rather}; as it is, it takes effect {effect}"
    )


def _round(amount: int) -> str:
    return size(amount).replace(".0 ", " ")


def _bytes_of(constant: str) -> int:
    settings = parse([Source(Path(), f"classic.thres_const = {constant}".encode())]).settings
    return settings.classic.thres_const


def _without_contradiction(carried: dict[str, _Carried]) -> list[str]:
    """Take out npages_min and npages_max if they cannot both hold."""
    try:
        parse([Source(Path(), "\n".join(_rendered(carried)).encode())])
    except ConfigError as error:
        lost = {key: carried.pop(key, None) for key in ("classic.npages_min", "classic.npages_max")}
        names = " and ".join(entry.origin for entry in lost.values() if entry)
        return [f"{names}: {error.key} {error.problem.replace(', .)', ', the same file)')}"]
    return []


def _rendered(carried: Mapping[str, _Carried]) -> Iterator[str]:
    table = ""
    for key in keys():
        entry = carried.get(key.dotted)
        if entry is None:
            continue
        if key.table != table:
            table = key.table
            yield f"\n[{table}]"
        yield f"{key.name} = {entry.value}  # {entry.origin}"


def _remarks(title: str, remarks: list[str]) -> Iterator[str]:
    if not remarks:
        return
    yield f"\n# {title}"
    yield from map(_comment, remarks[:_MOST_NOTES])
    if len(remarks) > _MOST_NOTES:
        yield f"# and {len(remarks) - _MOST_NOTES} more"


def _comment(text: str) -> str:
    return f"# {printable(text)}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
