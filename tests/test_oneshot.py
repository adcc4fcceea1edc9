"""ksmtuned --once, restore and the command line, from outside."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from fakehost import COUNTERS, FakeHost
from workplace import CLASSIC, Workplace

PAGE = 4096


def once_json(place: Workplace, *arguments: str) -> dict[str, Any]:
    """What `--once --json` says, after it succeeded."""
    result = place.call("--once", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_once_writes_what_was_decided(place: Workplace, host: FakeHost) -> None:
    result = place.call("--once")
    assert (result.returncode, result.stderr) == (0, "")
    assert host.knob("pages_to_scan") == "500"
    assert host.knob("sleep_millisecs") == "15"
    assert host.knob("run") == "1"


def test_once_says_what_it_saw_why_what_it_wrote_and_how_to_undo_it(place: Workplace) -> None:
    text = place.call("--once").stdout
    assert "pages_to_scan: 100 -> 500" in text
    assert "run: 0 -> 1" in text
    assert "restore" in text
    assert "GiB" in text


def test_once_leaves_other_controls_alone(place: Workplace, host: FakeHost) -> None:
    before = host.controls()
    place.call("--once")
    after = host.controls()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"run", "pages_to_scan", "sleep_millisecs"}


def test_once_json_has_the_keys_of_the_contract(place: Workplace) -> None:
    found = once_json(place)
    assert found["schema"] == 1
    assert {
        *("time", "policy", "phase", "code", "reason", "snapshot", "settings", "written"),
        *("refused", "saving_bytes", "profit_bytes", "totals", "guests"),
    } <= set(found)
    assert {"ksm", "meminfo", "ksmd_cpu_seconds"} <= set(found["snapshot"])


def test_once_json_time_is_now_in_seconds_since_the_epoch(place: Workplace) -> None:
    before = time.time()
    assert before <= once_json(place)["time"] <= time.time()


def test_once_json_tells_what_it_wrote(place: Workplace) -> None:
    found = once_json(place)
    wanted = {"run": 1, "pages_to_scan": 500, "sleep_millisecs": 15}
    assert found["settings"] == wanted
    assert found["written"] == wanted
    assert found["refused"] == {}
    assert found["policy"] == "fixed"


def test_once_json_shows_every_ksm_file_under_its_own_name(
    place: Workplace, host: FakeHost
) -> None:
    host.set_knobs(**{name: 1000 + n for n, name in enumerate(COUNTERS)})
    ksm = once_json(place)["snapshot"]["ksm"]
    files = {file.name for file in host.ksm.iterdir()}
    assert files <= set(ksm)
    assert {name: ksm[name] for name in COUNTERS} == {
        name: 1000 + n for n, name in enumerate(COUNTERS)
    }


@pytest.mark.parametrize("text", ["[none] scan-time", "none", "none [scan-time]", "scan-time"])
def test_advisor_mode_reads_with_and_without_brackets(
    place: Workplace, host: FakeHost, text: str
) -> None:
    host.set_knobs(advisor_mode=text)
    mode = once_json(place, "--dry-run")["snapshot"]["ksm"]["advisor_mode"]
    assert mode == ("none" if text in ("none", "[none] scan-time") else "scan-time")


def test_the_saving_counts_zero_pages(place: Workplace, host: FakeHost) -> None:
    host.set_knobs(pages_sharing=1000, ksm_zero_pages=24)
    assert once_json(place)["saving_bytes"] == 1024 * PAGE


def test_the_saving_counts_what_is_there_on_an_old_kernel(place: Workplace, host: FakeHost) -> None:
    (host.ksm / "ksm_zero_pages").unlink()
    host.set_knobs(pages_sharing=1000)
    assert once_json(place)["saving_bytes"] == 1000 * PAGE


def test_the_profit_may_be_negative(place: Workplace, host: FakeHost) -> None:
    host.set_knobs(general_profit=-123456)
    assert once_json(place)["profit_bytes"] == -123456


def test_the_profit_is_null_where_the_kernel_has_no_such_file(
    place: Workplace, host: FakeHost
) -> None:
    (host.ksm / "general_profit").unlink()
    assert once_json(place)["profit_bytes"] is None


def test_the_cpu_time_of_ksmd_is_in_seconds(place: Workplace, host: FakeHost) -> None:
    host.set_ksmd_cpu_ns(12_500_000_000)
    assert once_json(place)["snapshot"]["ksmd_cpu_seconds"] == pytest.approx(12.5, abs=0.011)


def test_guests_are_listed_with_pid_name_and_program(place: Workplace, host: FakeHost) -> None:
    place.configure(CLASSIC)
    host.add_guest(4000, name="web1", rss_pages=1000)
    host.add_process(4001, comm="bash")
    guests = once_json(place)["guests"]
    assert [g["pid"] for g in guests] == [4000]
    assert guests[0]["vmm"] == "qemu-system-x86_64"
    assert guests[0]["name"]


def test_control_characters_in_a_guests_name_are_escaped(place: Workplace, host: FakeHost) -> None:
    place.configure(CLASSIC)
    host.add_guest(4000, name="evil\x1b[2Jguest\n")
    for arguments in (["--once"], ["--once", "--json"], ["status"], ["status", "--json"]):
        result = place.call(*arguments)
        assert "\x1b" not in result.stdout + result.stderr


# -- what classic measures -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "code"), [("rss", "decay"), ("cgroup", "idle"), ("pss", "idle"), ("none", "idle")]
)
def test_guests_are_measured_as_the_configuration_says(
    place: Workplace, host: FakeHost, measure: str, code: str
) -> None:
    place.configure(f'policy = "classic"\n[classic]\nguest_memory = "{measure}"\n')
    host.add_guest(4000, rss_pages=host.total_kb // 4)  # all of it
    host.write("sys/fs/cgroup/machine.slice/machine-4000.scope/memory.stat", "anon 4096\n")
    host.write("proc/4000/smaps_rollup", "0-1 ---p 0 00:00 0 [rollup]\nPss:   4 kB\n")
    assert once_json(place)["code"] == code


@pytest.mark.parametrize(("measure", "code"), [("ksmtuned", "idle"), ("available", "boost")])
def test_free_memory_is_measured_as_the_configuration_says(
    place: Workplace, host: FakeHost, measure: str, code: str
) -> None:
    place.configure(f'policy = "classic"\n[classic]\nfree_memory = "{measure}"\n')
    host.set_meminfo(Cached=host.total_kb // 2, MemAvailable=1000)  # all of it shared memory
    assert once_json(place)["code"] == code


# -- dry run -----------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_leaves_no_file(place: Workplace, host: FakeHost) -> None:
    before = host.controls()
    result = place.call("--once", "--dry-run")
    assert result.returncode == 0
    assert host.controls() == before
    assert list(place.run_dir.iterdir()) == []


def test_a_dry_run_does_not_even_make_run_dir(place: Workplace) -> None:
    place.run_dir.rmdir()
    assert place.call("--once", "--dry-run").returncode == 0
    assert not place.run_dir.exists()


def test_a_dry_run_says_what_would_be_written(place: Workplace) -> None:
    text = place.call("--once", "--dry-run").stdout
    assert "pages_to_scan: 100 -> 500" in text
    assert "run: 0 -> 1" in text


def test_a_dry_run_in_json_says_what_is_planned_and_wrote_nothing(place: Workplace) -> None:
    found = once_json(place, "--dry-run")
    assert found["planned"] == {"run": 1, "pages_to_scan": 500, "sleep_millisecs": 15}
    assert found["written"] == {}


def test_a_dry_run_needs_no_run_dir(place: Workplace) -> None:
    place.run_dir.rmdir()
    place.run_dir.write_text("in the way\n")
    assert place.call("--once", "--dry-run").returncode == 0


# -- what is written ---------------------------------------------------------------------------


def test_a_value_that_is_right_is_not_written_again(place: Workplace, host: FakeHost) -> None:
    host.set_knobs(pages_to_scan=500)
    before = (host.ksm / "pages_to_scan").stat().st_mtime_ns
    assert set(once_json(place)["written"]) == {"run", "sleep_millisecs"}
    assert (host.ksm / "pages_to_scan").stat().st_mtime_ns == before


def test_a_shorter_value_leaves_no_rest_of_a_longer_one(place: Workplace, host: FakeHost) -> None:
    host.set_knobs(pages_to_scan=1250)
    place.configure('policy = "fixed"\n[fixed]\npages_to_scan = 64\n')
    once_json(place)
    assert host.knob("pages_to_scan") == "64"


def test_the_hot_remove_flag_of_run_is_not_a_value(place: Workplace, host: FakeHost) -> None:
    host.set_knobs(run=5)  # 1, while memory is being taken off line
    assert "run" not in once_json(place)["written"]


def test_the_ksm_table_sets_controls_that_no_policy_moves(place: Workplace, host: FakeHost) -> None:
    place.configure('policy = "off"\n[ksm]\nuse_zero_pages = true\nmax_page_sharing = 512\n')
    result = place.call("--once")
    assert result.returncode == 0, result.stderr
    assert (host.knob("use_zero_pages"), host.knob("max_page_sharing")) == ("1", "512")


def test_a_control_that_this_kernel_lacks_is_left_out(place: Workplace, host: FakeHost) -> None:
    (host.ksm / "sleep_millisecs").unlink()
    place.call("--once")
    assert host.knob("pages_to_scan") == "500"
    assert not (host.ksm / "sleep_millisecs").exists()


@pytest.mark.parametrize("name", sorted(file for file in (*COUNTERS, "smart_scan", "advisor_mode")))
def test_once_works_without_any_optional_file(place: Workplace, host: FakeHost, name: str) -> None:
    (host.ksm / name).unlink()
    found = once_json(place)
    assert found["snapshot"]["ksm"].get(name) is None
    assert host.knob("run") == "1"


@pytest.mark.parametrize("image", ["kernel-6.18", "kernel-6.1", "kernel-5.10"])
def test_once_works_on_every_kernel(place: Workplace, image: str) -> None:
    old = Workplace(FakeHost(place.folder / image, image), place.folder)
    assert once_json(old)["written"]["run"] == 1
