"""`ksmtuned guests`: each guest with what is merged of it, and its fair share of the saving."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from ksmtuned.config import Locations, load
from ksmtuned.errors import ExitStatus, Garbled, KernelRefused, KsmtunedError
from ksmtuned.guestlist import guests_json
from ksmtuned.guests.inventory import Inventory
from ksmtuned.host.host import Host
from ksmtuned.report import SCHEMA
from ksmtuned.rundir import STATE, RunDir
from ksmtuned.units import duration, printable

SUMMARY = "each guest: its memory, what is merged of it, its fair share of the saving"
EPILOG = """\
RAM      what the guest was given
MERGED   its pages that are merged with others, each counted by every process that has it
ZERO     its pages that KSM replaced by the kernel's zero page
SAVES    its fair share of the saving; the shares add up to what KSM saves on this host
PROFIT   MERGED and ZERO less what ksmd needs to keep track of its pages, as the kernel reckons it
SHARING  on: its memory is offered to KSM; off: it is not; in vain: it is, and cannot be merged

Root sees what is now. Others see what the daemon last published, if they may (group ksmtuned);
there, a guest's figures may be a second old for each 32 guests.

example: the guests that save the most
  ksmtuned guests --json | jq -r '.guests | sort_by(-.saving_bytes)[:5][].name'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to print it."""
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Errors: NoKsm, ConfigError, Garbled, KernelRefused (no right to see it)."""
    host = Host(args.root)
    found = _live(host, args) or _published(RunDir(args.run_dir))
    if args.json:
        print(json.dumps(found, allow_nan=False))
        return ExitStatus.DONE
    from ksmtuned.guesttable import table  # the daemon loads this module, and never needs that one

    lines = table(found["guests"], found["others"], found["saving_bytes"])
    age_s = time.time() - found["time"]
    if found["source"] == STATE and age_s >= 2:
        lines.append(f"published {duration(age_s)} ago")
    print("\n".join(map(printable, lines)))
    return ExitStatus.DONE


def _live(host: Host, args: argparse.Namespace) -> dict[str, Any] | None:
    """What is now; None: some process does not let us look."""
    comm = load(Locations.of(args.config, args.config_dir)).settings.guests.comm
    inventory = Inventory(host, comm, "rss")
    now = host.snapshot(inventory.read(), inventory.others, is_watched=False)
    if inventory.is_blind:
        return None
    return _json(now.time, "live", now.ksm.saving_bytes, guests_json(now))


def _published(rundir: RunDir) -> dict[str, Any]:
    try:
        state = rundir.read(STATE)
    except KernelRefused as error:
        raise _NotSeen(f"{error}, or as a member of group ksmtuned") from error
    if state is None:
        raise _NotSeen(
            "only root may look into other users' processes, and no daemon has published what "
            "there is: run as root"
        )
    lists = {key: state.get(key, []) for key in ("guests", "others")}
    numbers = state.get("time"), state.get("saving_bytes")
    if not all(map(_is_list_of_objects, lists.values())) or not all(map(_is_number, numbers)):
        path = rundir.path / STATE
        raise Garbled(path, "another kind of object", "what ksmtuned publishes")
    return _json(state["time"], STATE, state["saving_bytes"], lists)


def _json(
    time_s: float, source: str, saving_bytes: int, lists: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    about = {"schema": SCHEMA, "time": time_s, "source": source, "saving_bytes": saving_bytes}
    return about | lists


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**63


class _NotSeen(KsmtunedError):
    """Neither the processes nor the state file may be looked at."""

    exit_status = ExitStatus.NOT_PERMITTED
