"""`ksmtuned config`: what is in force, is an edit valid, what does the old script's file mean."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ksmtuned.config import Config, Locations, load
from ksmtuned.errors import ExitStatus, UsageError
from ksmtuned.units import printable

SUMMARY = "show, check or import the configuration"
EPILOG = """\
show    every key with its value and the file that it came from
check   read all files; say what is wrong with the first bad one (exit 2), or which were read
import  turn FILE, the old script's /etc/ksmtuned.conf, into TOML on standard output; FILE is
        read, never executed, and a comment tells of each line that could not be carried over

example: move from the old ksmtuned, then look at the result before it counts
  ksmtuned config import /etc/ksmtuned.conf > /tmp/ksmtuned.toml
  ksmtuned config check --config /tmp/ksmtuned.toml
  cp /tmp/ksmtuned.toml /etc/ksmtuned.toml    (a running ksmtuned sees it within one tick)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what follows `ksmtuned config`."""
    parser.add_argument("action", choices=("show", "check", "import"), help="see below")
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="the file to import (import only)"
    )


def run(args: argparse.Namespace) -> int:
    """Do it. Errors: ConfigError, UsageError."""
    if args.action == "import":
        if args.file is None:
            raise UsageError(
                "config import: which file? Try: ksmtuned config import /etc/ksmtuned.conf"
            )
        from ksmtuned.config_import import import_file  # the daemon loads this module, not that

        _write(import_file(args.file))
        return ExitStatus.DONE
    if args.file is not None:
        raise UsageError(
            f"config {args.action}: takes no FILE; try: "
            f"ksmtuned config {args.action} --config {printable(str(args.file))}"
        )
    config = load(Locations.of(args.config, args.config_dir or ()))
    _write(_shown(config) if args.action == "show" else _verdict(config))
    return ExitStatus.DONE


def _shown(config: Config) -> str:
    from ksmtuned.config_text import show  # not for the daemon either

    return show(config)


def _verdict(config: Config) -> str:
    if not config.sources:
        return "Valid: there is no file, so every key has its built-in value\n"
    return f"Valid: {', '.join(printable(str(source.path)) for source in config.sources)}\n"


def _write(text: str) -> None:
    """In UTF-8, as TOML must be, whatever the locale says."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
