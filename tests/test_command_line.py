"""Options, verbs, exit statuses: what a shell sees."""

from __future__ import annotations

import json

import pytest
from fakehost import FakeHost
from workplace import Workplace, run_ksmtuned


def test_options_go_before_or_after_the_subcommand(place: Workplace) -> None:
    place.call("--once")
    before = run_ksmtuned(*place.options, "restore")
    place.call("--once")
    after = run_ksmtuned("restore", *place.options)
    assert (before.returncode, before.stdout) == (after.returncode, after.stdout)
    assert before.returncode == 0


def test_options_on_both_sides_of_the_subcommand_both_count(
    place: Workplace, host: FakeHost
) -> None:
    place.call("--once")
    half = len(place.options) // 2
    result = run_ksmtuned(*place.options[:half], "restore", *place.options[half:])
    assert result.returncode == 0, result.stderr
    assert host.knob("run") == "0"


def test_once_goes_after_options_too(place: Workplace) -> None:
    assert run_ksmtuned("--once", *place.options, "--dry-run").returncode == 0
    assert run_ksmtuned("--dry-run", *place.options, "--once").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-option"],
        ["no-such-verb"],
        ["config"],
        ["config", "no-such-verb"],
        ["--root"],
        ["run", "left-over"],
        ["--dry-run"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_status_2(place: Workplace, arguments: list[str]) -> None:
    result = place.call(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_root_that_does_not_exist_is_one_line(place: Workplace) -> None:
    result = run_ksmtuned("--once", "--root", str(place.folder / "nowhere"))
    assert result.returncode in (2, 3)
    assert len(result.stderr.splitlines()) == 1
    assert "nowhere" in result.stderr


def test_a_main_file_that_is_named_must_exist(place: Workplace) -> None:
    place.config.unlink()
    result = place.call("--once")
    assert result.returncode == 2
    assert str(place.config) in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_folder_of_drop_ins_may_be_missing(place: Workplace) -> None:
    place.dropins.rmdir()
    assert place.call("--once").returncode == 0


def test_the_version_is_one_word_that_looks_like_one() -> None:
    result = run_ksmtuned("--version")
    assert result.returncode == 0
    assert any(part[0].isdigit() and "." in part for part in result.stdout.split())


def test_help_names_the_verbs() -> None:
    result = run_ksmtuned("--help")
    assert result.returncode == 0
    for verb in ("run", "--once", "status", "restore", "config"):
        assert verb in result.stdout


def test_a_kernel_without_ksm_is_one_line_and_exit_status_3(
    place: Workplace, host: FakeHost
) -> None:
    host.ksm.rename(host.ksm.with_name("gone"))
    result = place.call("--once")
    assert result.returncode == 3
    assert len(result.stderr.splitlines()) == 1
    assert str(host.ksm) in result.stderr


def test_an_ordinary_user_may_not_write_and_is_told_so(place: Workplace, host: FakeHost) -> None:
    result = place.call_without_rights("--once")
    assert result.returncode == 4, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "root" in result.stderr
    assert host.knob("run") == "0"


def test_a_refused_write_is_told_with_its_way_out_and_the_others_are_done(
    place: Workplace, host: FakeHost
) -> None:
    pages_to_scan = host.ksm / "pages_to_scan"
    result = place.call_without_rights("--once", "--json", below=pages_to_scan)
    assert result.returncode == 4, result.stderr
    refused = json.loads(result.stdout)["refused"]
    assert refused.keys() == {"pages_to_scan"}
    assert (refused["pages_to_scan"]["errno"], refused["pages_to_scan"]["tried"]) == ("EACCES", 500)
    assert "run as root" in refused["pages_to_scan"]["error"]
    assert (host.knob("run"), host.knob("sleep_millisecs")) == ("1", "15")


def test_an_ordinary_user_may_dry_run(place: Workplace) -> None:
    result = place.call_without_rights("--once", "--dry-run")
    assert result.returncode == 0, result.stderr


def test_status_reads_without_a_daemon(place: Workplace) -> None:
    result = place.call("status")
    assert result.returncode in (0, 1)
    assert "Traceback" not in result.stderr
