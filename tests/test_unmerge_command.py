"""`ksmtuned unmerge` and `resume` where no daemon runs: figures, refusals, and the hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from daemon_under_test import Daemon
from fakehost import BOOT_ID, FakeHost
from workplace import NOBODY, Workplace

MERGED = 1000  # pages: 3.9 MiB where pages are 4 KiB


@pytest.fixture
def merged(host: FakeHost) -> FakeHost:
    """A host where ksmd runs, and two guests have pages in common."""
    host.set_knobs(run=1, pages_sharing=MERGED, pages_shared=MERGED)
    for pid, name in ((4000, "vm1"), (4001, "vm2")):
        host.add_guest(pid, name=name)
        host.merge(pid, pages=MERGED)
    return host


def hold_of(place: Workplace) -> Path:
    return place.run_dir / "hold"


def assert_nothing_changed(place: Workplace, before: dict[str, str]) -> None:
    assert place.host.controls() == before
    assert list(place.run_dir.iterdir()) == []


def test_it_leaves_ksmd_stopped_and_a_hold(place: Workplace, merged: FakeHost) -> None:
    result = place.call("unmerge")
    assert result.returncode == 0, result.stderr
    assert "ksmd stays stopped until `ksmtuned resume`" in result.stdout
    assert merged.knob("run") == "0"
    assert json.loads(hold_of(place).read_text())["verb"] == "unmerge"
    assert hold_of(place).stat().st_mode & 0o7777 == 0o644


@pytest.mark.usefixtures("merged")
def test_run_was_2_in_between(place: Workplace) -> None:
    assert place.call("unmerge").returncode == 0
    entry = json.loads(place.originals.read_text())["controls"]["run"]
    assert (entry["last"], entry["before"]) == (2, 0)


def test_restore_does_not_start_ksmd_behind_the_hold(place: Workplace, merged: FakeHost) -> None:
    place.call("unmerge")
    assert place.call("restore").returncode == 0
    assert merged.knob("run") == "0"


def test_a_dry_run_tells_the_figures_and_changes_nothing(
    place: Workplace, merged: FakeHost
) -> None:
    before = merged.controls()
    merged.limit(4000, room_bytes=2**40)
    result = place.call("unmerge", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "need      3.9 MiB for the copies" in result.stdout
    assert "limit     guest vm1 (pid 4000): needs 3.9 MiB" in result.stdout
    assert "run=2" in result.stdout
    assert_nothing_changed(place, before)


@pytest.mark.usefixtures("merged")
def test_a_dry_run_may_look_on_while_the_daemon_runs(place: Workplace, daemon: Daemon) -> None:
    assert place.call("unmerge", "--dry-run").returncode == 0
    assert daemon.tick()
    assert place.host.knob("run") == "1"


def test_what_does_not_fit_is_foretold_and_refused_with_the_figures(
    place: Workplace, merged: FakeHost
) -> None:
    merged.set_knobs(pages_sharing=10**9)
    before = merged.controls()
    foretold, refused = place.call("unmerge", "--dry-run"), place.call("unmerge")
    assert (foretold.returncode, refused.returncode) == (1, 1)
    assert "nothing: it would be refused" in foretold.stdout
    assert "3.7 TiB" in refused.stderr
    assert refused.stderr.strip().split(": ", 1)[1] in foretold.stdout
    assert_nothing_changed(place, before)


@pytest.mark.parametrize("above", [0, 1, 2], ids=["its own", "its parent's", "the mount's"])
def test_a_cgroups_limit_refuses_wherever_it_is_on_the_way_up(
    place: Workplace, merged: FakeHost, above: int
) -> None:
    before = merged.controls()
    page = os.sysconf("SC_PAGE_SIZE")
    needs = 1 if above == 0 else 2  # guests below it
    file = merged.limit(4001, room_bytes=needs * MERGED * page - 1, above=above)
    result = place.call("unmerge")
    assert result.returncode == 1
    assert str(file) in result.stderr
    assert_nothing_changed(place, before)
    merged.limit(4001, room_bytes=needs * MERGED * page, above=above)
    assert place.call("unmerge").returncode == 0


def test_a_limit_of_cgroups_version_1_counts(place: Workplace, merged: FakeHost) -> None:
    merged.write("proc/4001/cgroup", "9:pids:/x\n4:cpu,memory:/machine/vm2\n0::/\n")
    folder = "sys/fs/cgroup/memory/machine"
    merged.write(f"{folder}/memory.limit_in_bytes", "9223372036854771712\n")  # none
    merged.write(f"{folder}/memory.usage_in_bytes", "1073741824\n")
    merged.write(f"{folder}/vm2/memory.limit_in_bytes", "1073741825\n")
    merged.write(f"{folder}/vm2/memory.usage_in_bytes", "1073741824\n")
    result = place.call("unmerge")
    assert result.returncode == 1
    assert "guest vm2 (pid 4001)" in result.stderr
    assert "vm2/memory.limit_in_bytes leaves only 1 B" in result.stderr


def test_zero_pages_count_under_a_limit_too(place: Workplace, merged: FakeHost) -> None:
    merged.merge(4001, pages=0, zero_pages=MERGED)
    merged.limit(4001, room_bytes=1)
    assert "vm2" in place.call("unmerge").stderr


def test_a_process_that_is_no_guest_counts_too(place: Workplace, merged: FakeHost) -> None:
    merged.add_process(5000, comm="postgres")
    merged.merge(5000, pages=MERGED)
    merged.limit(5000, room_bytes=1)
    assert "pid 5000" in place.call("unmerge").stderr


def test_force_overrides_both(place: Workplace, merged: FakeHost) -> None:
    merged.set_knobs(pages_sharing=10**9)
    merged.limit(4001, room_bytes=1)
    result = place.call("unmerge", "--force")
    assert result.returncode == 0, result.stderr
    assert merged.knob("run") == "0"
    assert hold_of(place).exists()


def test_a_need_that_is_not_known_is_refused(place: Workplace, merged: FakeHost) -> None:
    (merged.ksm / "pages_sharing").unlink()
    before = merged.controls()
    result = place.call("unmerge")
    assert result.returncode == 1
    assert "pages_sharing cannot be read" in result.stderr
    assert_nothing_changed(place, before)


def test_a_need_that_is_not_known_can_be_forced(place: Workplace, merged: FakeHost) -> None:
    (merged.ksm / "pages_sharing").unlink()
    result = place.call("unmerge", "--force")
    assert result.returncode == 0, result.stderr
    assert "how much was merged cannot be read" in result.stdout
    assert json.loads(place.originals.read_text())["controls"]["run"]["last"] == 2


def test_somebody_elses_unmerge_is_left_alone(place: Workplace, merged: FakeHost) -> None:
    merged.set_knobs(run=2)
    before = merged.controls()
    result = place.call("unmerge")
    assert result.returncode == 1
    assert "somebody else unmerges (run=2)" in result.stderr
    assert_nothing_changed(place, before)


def test_one_guest_without_qmp_is_refused_with_what_would_help(
    place: Workplace, merged: FakeHost
) -> None:
    before = merged.controls()
    for guest in ("vm1", "4000"):
        result = place.call("unmerge", guest)
        assert result.returncode == 1
        assert "vm1 alone cannot be unmerged yet" in result.stderr
        assert "`ksmtuned unmerge` unmerges the whole host" in result.stderr
    foretold = place.call("unmerge", "vm1", "--dry-run")
    assert foretold.returncode == 1
    assert "need      3.9 MiB" in foretold.stdout
    assert_nothing_changed(place, before)


@pytest.mark.parametrize(("name", "why"), [("vm3", "no such guest"), ("twin", "more than one")])
def test_a_guest_must_be_one(place: Workplace, merged: FakeHost, name: str, why: str) -> None:
    merged.add_guest(4002, name="twin")
    merged.add_guest(4003, name="twin")
    result = place.call("unmerge", name)
    assert result.returncode == 2
    assert why in result.stderr
    assert "(4003)" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_ordinary_user_may_not_unmerge_and_is_told_so(
    place: Workplace, merged: FakeHost
) -> None:
    result = place.call_without_rights("unmerge")
    assert result.returncode == 4, result.stderr
    assert merged.knob("run") == "1"


# -- the hold ------------------------------------------------------------------------------------


def test_once_under_a_hold_writes_run_alone_and_says_why(
    place: Workplace, merged: FakeHost
) -> None:
    place.call("unmerge")
    merged.set_knobs(run=1)
    before = merged.controls()
    result = place.call("--once", "--json")
    told = json.loads(result.stdout)
    assert (told["phase"], told["code"], told["written"]) == ("hold", "hold", {"run": 0})
    assert told["reason"].startswith("held since 20")
    assert told["reason"].endswith("by unmerge: `ksmtuned resume` ends it")
    assert merged.controls() == before | {"run": "0"}


def test_once_waits_for_nothing_under_a_hold(place: Workplace, merged: FakeHost) -> None:
    place.configure('policy = "adaptive"\nprofile = "test"\n')
    place.call("unmerge")
    result = place.call("--once", "--wait")
    assert "held since" in result.stdout
    assert merged.knob("run") == "0"


def test_resume_ends_it_and_says_when_there_was_none(place: Workplace, merged: FakeHost) -> None:
    place.call("unmerge")
    first, second = place.call("resume"), place.call("resume")
    assert (first.returncode, second.returncode) == (0, 0)
    assert "no daemon runs" in first.stdout
    assert "there was no hold" in second.stdout
    assert not hold_of(place).exists()
    place.call("--once")
    assert merged.knob("run") == "1"


def test_status_tells_of_it_also_without_a_daemon(place: Workplace, merged: FakeHost) -> None:
    assert "hold" not in place.call("status").stdout
    place.call("unmerge")
    assert "hold      held since" in place.call("status").stdout
    assert merged.knob("run") == "0"


def test_a_reboot_ends_it(place: Workplace, merged: FakeHost) -> None:
    place.call("unmerge")
    merged.write("proc/sys/kernel/random/boot_id", BOOT_ID.replace("0", "1") + "\n")
    place.call("--once")
    assert merged.knob("run") == "1"


@pytest.mark.parametrize("content", ["", "[1]", '{"since": 1e999}', '{"since": "x", "verb": 3}'])
def test_a_hold_that_is_not_understood_still_holds(
    place: Workplace, merged: FakeHost, content: str
) -> None:
    hold_of(place).write_text(content)
    result = place.call("--once")
    assert result.returncode == 0, result.stderr
    assert "a file that is not understood" in result.stdout
    assert merged.knob("run") == "0"


@pytest.mark.usefixtures("merged")
def test_a_hold_that_anybody_can_have_written_is_none(place: Workplace) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    place.call("unmerge")
    os.chown(hold_of(place), NOBODY, NOBODY)
    result = place.call("--once")
    assert result.returncode == 1
    assert f"user {NOBODY}'s" in result.stderr
