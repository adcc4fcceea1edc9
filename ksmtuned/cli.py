"""The command line: finds the verb, reads the options, turns errors into one line and a status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from errno import EIO, ENOSPC
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from ksmtuned import __version__, rundir
from ksmtuned.commands import config, guests, restore, resume, run, share, status, unmerge
from ksmtuned.errors import ExitStatus, KsmtunedError, UsageError
from ksmtuned.units import printable

VERBS: dict[str, ModuleType] = {
    "run": run,
    "status": status,
    "guests": guests,
    "share": share,
    "unmerge": unmerge,
    "resume": resume,
    "restore": restore,
    "config": config,
}

_ABOUT = """\
Decides when, and how fast, the kernel merges identical memory pages (KSM) of virtual machines.

commands:
{verbs}

Without a command, ksmtuned is `ksmtuned run`: the daemon, in the foreground.
`ksmtuned COMMAND --help` tells more. Options may stand before or after the command.
"""
_STATUSES = """\
exit status: 0 done; 1 the answer is bad news; 2 wrong usage or configuration; 3 no KSM in this
kernel; 4 not permitted; 5 another instance runs; 70 a bug
"""


class _Parser(argparse.ArgumentParser):
    """argparse, but wrong usage is one line and an exception."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{printable(message)}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status (errors.ExitStatus)."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KsmtunedError as error:
        print(f"ksmtuned: {error}", file=sys.stderr)
        return int(error.exit_status)
    except BrokenPipeError:  # `ksmtuned status | head -1`: whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(ExitStatus.BAD_NEWS)
    except OSError as error:
        if error.errno not in (ENOSPC, EIO) or error.filename is not None:
            return _bug()
        print(f"ksmtuned: cannot print: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(ExitStatus.BAD_NEWS)
    except KeyboardInterrupt:
        return 128 + 2  # as a shell reports SIGINT
    except Exception:  # noqa: BLE001  # a bug: told in full; systemd restarts and restores
        return _bug()


def _bug() -> int:
    sys.excepthook(*sys.exc_info())
    print("ksmtuned: this is a bug; please report it with the lines above", file=sys.stderr)
    return int(ExitStatus.BUG)


def _run(argv: list[str]) -> int:
    verb, rest = _split_verb(argv)
    args = parser_of(verb).parse_intermixed_args(rest)
    args.program = _program()
    status = int(VERBS[verb or "run"].run(args))
    sys.stdout.flush()
    return status


def _program() -> list[str]:
    """The words that call us again as we were called."""
    if Path(sys.argv[0]).name == "__main__.py":
        return [sys.executable, "-m", "ksmtuned"]
    return [sys.argv[0]]


def parser_of(verb: str | None) -> argparse.ArgumentParser:
    """The parser of one verb; of None, that of the program without one."""
    module = VERBS[verb or "run"]
    parser = _Parser(
        prog=f"ksmtuned {verb}" if verb else "ksmtuned",
        usage=None if verb else "%(prog)s [COMMAND] [OPTION]...",
        description=f"{module.SUMMARY[:1].upper()}{module.SUMMARY[1:]}."
        if verb
        else _ABOUT.format(verbs=_verb_lines()),
        epilog=f"{module.EPILOG}\n{_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    _add_common_arguments(parser)
    return parser


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    common = parser.add_argument_group("where things are")
    add = partial(common.add_argument, type=Path, metavar="DIR")
    add("--root", default=Path("/"), help="the host: DIR/proc and DIR/sys (default: /)")
    add("--config", metavar="FILE", help="the main file (default: /etc/ksmtuned.toml)")
    add(
        "--config-dir",
        action="append",
        default=[],
        help="a folder of drop-ins, instead of /usr/lib, /run and /etc/ksmtuned.toml.d; "
        "may be repeated, a later one hides an earlier one's file of the same name",
    )
    add("--run-dir", default=rundir.DEFAULT, help="state and first values (default: /run/ksmtuned)")
    parser.add_argument("--version", action="version", version=f"ksmtuned {__version__}")


def _split_verb(argv: list[str]) -> tuple[str | None, list[str]]:
    """The verb, wherever among the options it stands, and the rest."""
    takes_value = _options_with_value(map(parser_of, VERBS))
    skip = False
    for place, word in enumerate(argv):
        if word == "--":
            break
        if skip or word.startswith("-"):
            skip = not skip and word in takes_value
            continue
        if word not in VERBS:
            raise UsageError(f"{printable(word)}: no such command; there are {', '.join(VERBS)}")
        return word, argv[:place] + argv[place + 1 :]
    return None, argv


def _options_with_value(parsers: Iterable[argparse.ArgumentParser]) -> set[str]:
    actions = (action for parser in parsers for action in parser._actions)
    return {option for a in actions if a.nargs != 0 for option in a.option_strings}


def _verb_lines() -> str:
    return "\n".join(f"  {verb:10} {m.SUMMARY}" for verb, m in VERBS.items())
