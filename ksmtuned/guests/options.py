"""Words of a VMM's command line: pairs of option and value, lists of key=value, sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence

# QEMU and cloud-hypervisor: 512M, 1.5G, 0x40000000; firecracker and crosvm need no more.
_SIZE = re.compile(r"(0x[0-9a-f]{1,16}|[0-9]{1,20}(?:\.[0-9]{1,20})?)([bkmgtpe]?)(?:i?b)?", re.I)
_POWERS = {"": None, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_MOST_BYTES = 2**63
OFF, ON = ("off", "no", "false", "n"), ("on", "yes", "true", "y")


def options(cmdline: Sequence[str], wanted: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each wanted option with each of its values, in order, its name without dashes.

    "-m 1G", "--memory size=1G", "--memory=size=1G", "--memory-zone id=a id=b" are all understood.
    """
    name = ""
    for word in cmdline[1:]:
        if word.startswith("-"):
            name, has_value, value = word.lstrip("-").partition("=")
            if has_value and name in wanted:
                yield name, value
        elif name in wanted:
            yield name, word


def keyvals(text: str, implied: str) -> dict[str, str]:
    """What "size=1G,slots=2", "1G,slots=2" or '{"size": 1024}' says; ",," stands for a comma.

    implied: the key of a first word without one. Of what is no JSON object, nothing.
    """
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return {key: _text(value) for key, value in found.items()}
    words = text.replace(",,", "\0").split(",")
    if "=" not in words[0]:
        words[0] = f"{implied}={words[0]}"
    pairs = (word.partition("=") for word in words)
    return {key: value.replace("\0", ",") for key, _, value in pairs}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def parse_bytes(text: str, bare: str = "b") -> int | None:
    """Bytes in "512M"; `bare` is the suffix that is meant where there is none. None: no size."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    digits, power = match[1].lower(), _POWERS[match[2].lower()]
    if power is None:
        power = _POWERS[bare] or 0
    if digits.startswith("0x"):
        size = int(digits, 16) << power
    else:
        whole, _, part = digits.partition(".")
        size = (int(whole) << power) + ((int(part) << power) // 10 ** len(part) if part else 0)
    return size if size < _MOST_BYTES else None
