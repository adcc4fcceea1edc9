"""`ksmtuned guests`: live for root, the daemon's word for others, and the same keys in both."""

from __future__ import annotations

import json
from typing import Any

import pytest
from daemon_under_test import Daemon, Launch
from fakehost import FakeHost
from workplace import CLASSIC, Workplace

from ksmtuned.guesttable import table
from ksmtuned.units import PAGE_BYTES

KEYS = {
    "pid", "start_time", "name", "vmm", "uuid", "ram_bytes", "memory_bytes", "uid", "cgroup",
    "merging_pages", "zero_pages", "rmap_items", "saving_bytes", "profit_bytes", "mergeable",
    "why_not", "share", "trust_group",
}  # fmt: skip
HUGE = ("-m", "1G", "-mem-path", "/dev/hugepages")


@pytest.fixture
def host(place: Workplace) -> FakeHost:
    """Two guests that merge, one that cannot, and a program that is none."""
    host = place.host
    host.add_guest(4000, name="small", options=("-m", "1G"))
    host.add_guest(4001, name="big", options=("-m", "4G"))
    host.add_guest(4002, name="huge", options=HUGE)
    host.add_process(5000, comm="jvm")
    host.write("proc/5000/cgroup", "0::/\n")
    host.set_ksm_stat(4000, mergeable="yes", merging_pages=100, zero_pages=7)
    host.set_ksm_stat(4001, mergeable="yes", merging_pages=300, process_profit=-64)
    host.set_ksm_stat(4002, mergeable="yes")
    host.set_ksm_stat(5000, mergeable="yes", merging_pages=100)
    host.set_knobs(pages_shared=125, pages_sharing=375, ksm_zero_pages=7)
    return host


def as_json(place: Workplace, *options: str) -> dict[str, Any]:
    result = place.call("guests", "--json", *options)
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def rows(found: dict[str, Any], key: str = "guests") -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found[key]}


@pytest.mark.usefixtures("host")
def test_every_key_of_the_contract_is_there(place: Workplace) -> None:
    found = as_json(place)
    assert found["schema"] == 1
    assert all(set(row) == KEYS for row in (*found["guests"], *found["others"]))
    big = rows(found)["big"]
    assert {key: big[key] for key in ("pid", "vmm", "ram_bytes", "merging_pages", "share")} == {
        "pid": 4001,
        "vmm": "qemu-system-x86_64",
        "ram_bytes": 4 * 2**30,
        "merging_pages": 300,
        "share": "on",
    }
    assert (big["profit_bytes"], big["mergeable"], big["why_not"]) == (-64, True, None)


@pytest.mark.usefixtures("host")
def test_the_shares_add_up_to_the_host_s_saving(place: Workplace) -> None:
    found = as_json(place)
    shares = [row["saving_bytes"] for row in (*found["guests"], *found["others"])]
    assert sum(shares) == found["saving_bytes"] == (375 + 7) * PAGE_BYTES
    assert rows(found)["small"]["saving_bytes"] == (75 + 7) * PAGE_BYTES
    assert rows(found, "others")["jvm"]["saving_bytes"] == 75 * PAGE_BYTES


@pytest.mark.usefixtures("host")
def test_a_guest_that_merges_nothing_says_why(place: Workplace) -> None:
    huge = rows(as_json(place))["huge"]
    assert (huge["mergeable"], huge["share"]) == (False, "off")
    assert huge["why_not"] == "huge pages (hugetlbfs)"


@pytest.mark.usefixtures("host")
def test_the_table_fits_80_columns_and_is_sorted_by_saving(place: Workplace) -> None:
    result = place.call("guests")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:9] == [
        "GUEST                  PID      RAM   MERGED     ZERO    SAVES   PROFIT SHARING",
        "big                   4001  4.0 GiB  1.2 MiB      0 B  900 KiB    -64 B on",
        "small                 4000  1.0 GiB  400 KiB 28.0 KiB  328 KiB      0 B on",
        "huge                  4002  1.0 GiB      0 B      0 B      0 B      0 B off",
        "other processes with mergeable memory",
        "jvm                   5000        -  400 KiB      0 B  300 KiB      0 B on",
        "total                    4  6.0 GiB  2.0 MiB 28.0 KiB  1.5 MiB    -64 B",
        "",
        "not merged, or not known to be:",
    ]
    assert lines[9:] == ["  huge (4002): huge pages (hugetlbfs)"]


def test_no_guest_is_said_in_words(place: Workplace) -> None:
    result = place.call("guests")
    assert result.stdout == "No guest is here, and no other process with mergeable memory.\n"
    assert as_json(place)["guests"] == []


def test_a_name_from_outside_is_escaped_and_cut(place: Workplace) -> None:
    place.host.add_guest(4000, name="\x1b[2Jred\nalert" + "x" * 100)
    result = place.call("guests")
    assert "\x1b" not in result.stdout
    assert "\\x1b[2Jred\\nale..." in result.stdout
    assert len(result.stdout.splitlines()) == 3


@pytest.mark.usefixtures("host")
def test_the_daemon_publishes_the_same_keys_and_values(place: Workplace, launch: Launch) -> None:
    place.configure(CLASSIC)
    daemon = launch()
    daemon.start()
    state, live = place.state(), as_json(place)
    assert sorted(state["guests"], key=lambda row: row["pid"]) == live["guests"]
    assert state["others"] == live["others"]
    once = json.loads(place.call("--once", "--dry-run", "--json").stdout)
    assert once["guests"] == live["guests"]


def test_the_daemon_follows_figures_and_shares(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC)
    daemon = launch()
    daemon.start()
    host.set_ksm_stat(4000, mergeable="yes", merging_pages=0)
    host.set_knobs(pages_shared=100, pages_sharing=300)
    host.remove_process(4002)
    daemon.tick()
    found = rows(place.state())
    assert set(found) == {"small", "big"}
    assert (found["small"]["merging_pages"], found["small"]["saving_bytes"]) == (0, 0)
    assert found["big"]["saving_bytes"] == 225 * PAGE_BYTES


# -- without rights --------------------------------------------------------------------------------


def hide(host: FakeHost) -> None:
    """As the kernel does: mode 0400, root's."""
    for file in host.root.glob("proc/[0-9]*/ksm_*"):
        file.chmod(0o400)


def test_an_ordinary_user_sees_what_the_daemon_published(
    place: Workplace, host: FakeHost, daemon: Daemon
) -> None:
    daemon.tick()
    place.run_dir.joinpath("state.json").chmod(0o644)
    hide(host)
    result = place.call_without_rights("guests", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["source"] == "state.json"
    assert found["guests"] == place.state()["guests"]


def test_one_who_may_not_read_that_either_is_told_in_one_line(
    place: Workplace, host: FakeHost, daemon: Daemon
) -> None:
    daemon.tick()
    hide(host)
    result = place.call_without_rights("guests")
    assert (result.returncode, result.stdout) == (4, "")
    assert "state.json: Permission denied: run as root, or as a member of group" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_rights_and_without_a_daemon_it_is_exit_4(place: Workplace, host: FakeHost) -> None:
    hide(host)
    result = place.call_without_rights("guests")
    assert (result.returncode, result.stdout) == (4, "")
    assert "run as root" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"guests": 7, "others": [], "time": 1, "saving_bytes": 1},
        {"guests": [7], "others": [], "time": 1, "saving_bytes": 1},
        {"guests": [], "others": [], "time": "x", "saving_bytes": 1},
    ],
)
def test_a_state_file_of_another_kind_is_told(
    place: Workplace, host: FakeHost, state: dict[str, Any]
) -> None:
    (place.run_dir / "state.json").write_text(json.dumps(state))
    hide(host)
    result = place.call_without_rights("guests")
    assert result.returncode == 1
    assert "is not what ksmtuned publishes" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# -- the table alone -------------------------------------------------------------------------------


def test_what_a_state_file_claims_is_taken_only_as_what_it_should_be() -> None:
    evil = {"name": ["x"], "pid": True, "saving_bytes": "9", "share": "\x1b", "why_not": "\x1b[2J"}
    lines = table([evil, {}], [], None)
    assert not any("\x1b" in line for line in lines)
    assert lines[1].split() == ["['x']", "?", "-", "-", "-", "-", "-", "?"]


def test_memory_that_is_offered_and_cannot_be_merged_is_offered_in_vain() -> None:
    pinned = {"name": "a", "pid": 1, "share": "on", "mergeable": False, "why_not": "pinned"}
    (_, row, *_) = table([pinned], [], None)
    assert row.endswith(" in vain")
    assert len(row) <= 80


def test_a_saving_that_nobody_listed_accounts_for_is_told() -> None:
    row = {"name": "a", "pid": 1, "saving_bytes": 4096, "merging_pages": 1}
    lines = table([row], [], 4096 + 2**20)
    assert lines[-1] == "1.0 MiB more are saved by processes not listed here"
    assert table([row], [], 4096)[-1].startswith("total")


def test_amounts_of_any_size_keep_their_columns() -> None:
    row = {
        "name": "n" * 50,
        "pid": 4194304,
        "ram_bytes": 1023 * 2**30 + 2**29,
        "merging_pages": 999 * 2**18,
        "zero_pages": 12345,
        "saving_bytes": 100 * 2**40,
        "profit_bytes": -(1023 * 2**20),
        "share": "on",
        "mergeable": True,
    }
    widths = {len(line.rstrip()) for line in table([row], [], None)[:2]}
    assert max(widths) <= 80
