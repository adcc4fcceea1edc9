"""A hundred broken configurations, each refused with a line that names file and key."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from daemon_under_test import Daemon
from fakehost import FakeHost
from workplace import Workplace

from ksmtuned.cli import main


@dataclass(frozen=True)
class Broken:
    """One thing that is wrong: how to make the file, and the key that must be named."""

    name: str
    make: Callable[[Path], object]
    key: str | None


def text(content: str, key: str | None) -> Broken:
    name = content.replace("\n", " ").encode("unicode_escape").decode()[:60]
    return Broken(name, lambda path: path.write_text(content), key)


def raw(name: str, content: bytes) -> Broken:
    return Broken(name, lambda path: path.write_bytes(content), None)


def _top_level() -> list[Broken]:
    values = {
        "policy": ("5", '"clasic"', '""', "true", '["classic"]', "{}", '"Classic"', "nan"),
        "profile": ("1", '"prod"', "false", "1979-05-27"),
        "interval": (
            *("60", '"60"', '"-1 s"', '"0.01 s"', '"2 d"', '"nan s"', '"inf s"', "nan", "inf"),
            *('"60 parsecs"', "true", '""', '["60 s"]', '"60 MiB"', '"1e3 s"'),
        ),
        "on_stop": ('"explode"', "0", "nan"),
        "on_foreign_write": ('"fight"', "true"),
    }
    return [text(f"{key} = {v}\n", key) for key, each in values.items() for v in each]


def _tables() -> list[Broken]:
    values = {
        "classic.npages_boost": ("-1", '"300"', "1.5", "nan", "true", "{}"),
        "classic.npages_decay": ("1", '"-50"', "-0.5"),
        "classic.npages_min": ("-1", "[64]", "1979-05-27"),
        "classic.npages_max": ("63", "-1", "inf"),
        "classic.sleep_msec": ("0", "-10", "nan", '"soon"'),
        "classic.thres_coef": ("-1", "101", "nan", "inf", '"20 %"', "true"),
        "classic.thres_const": ("2048", '"2 MB"', '"-2 MiB"', '"2 s"', "nan", '"MiB"'),
        "classic.guest_memory": ('"vsz"', "1"),
        "classic.free_memory": ('"all"', "[]"),
        "fixed.pages_to_scan": ("-1", "4294967296", '"100"', "1.5", "nan"),
        "fixed.sleep_millisecs": ("-1", "4294967296", '"20 ms"', "true"),
        "ksm.use_zero_pages": ("2", '"yes"'),
        "ksm.smart_scan": ("-1", "nan"),
        "ksm.max_page_sharing": ("1", "0", '"256"'),
        "ksm.stable_node_chains_prune_millisecs": ("-1", "4294967296"),
        "ksm.merge_across_nodes": ("2", '"false"'),
    }
    cases = []
    for dotted, each in values.items():
        table, key = dotted.split(".")
        cases += [text(f"[{table}]\n{key} = {v}\n", dotted) for v in each]
    return cases


def _unknown_keys() -> list[Broken]:
    return [
        text('polcy = "off"\n', "polcy"),
        text('Policy = "off"\n', "Policy"),
        text("[clasic]\nnpages_min = 5\n", "clasic"),
        text("[classic]\nnpages_bost = 5\n", "classic.npages_bost"),
        text("[ksm]\nrun = 1\n", "ksm.run"),
        text("[ksm]\npages_to_scan = 1\n", "ksm.pages_to_scan"),
        text("[fixed]\nrun = 1\n", "fixed.run"),
        text('"" = 1\n', None),
        text('"a\\nb" = 1\n', None),
        text("classic = 5\n", "classic"),
        text("fixed = []\n", "fixed"),
        text("[[ksm]]\nsmart_scan = 1\n", "ksm"),
    ]


def _no_toml() -> list[Broken]:
    rubbish = random.Random(1).randbytes(4096)
    return [
        text("policy = \n", None),
        text("= 3\n", None),
        text("[classic\n", None),
        text('policy = "off\n', None),
        text('policy = "off"\npolicy = "off"\n', None),
        text("KSM_NPAGES_BOOST=300 # a shell fragment\n. /etc/other\n", None),
        text("fixed.pages_to_scan = 08\n", None),
        text("a = " + "[" * 5000 + "\n", None),
        text("\ufeff\ufeffpolicy = 1\n", None),
        raw("binary rubbish", rubbish),
        raw("zeros", bytes(4096)),
        raw("utf-16", 'policy = "off"\n'.encode("utf-16")),
        raw("latin-1", 'policy = "für"\n'.encode("latin-1")),
        raw("an ELF header", b"\x7fELF\x02\x01\x01" + bytes(64)),
        raw("a lone surrogate", b'policy = "\xed\xa0\x80"\n'),
    ]


def _no_file() -> list[Broken]:
    return [
        Broken("a folder", lambda path: path.mkdir(), None),
        Broken("a link to a folder", lambda path: path.symlink_to("/etc"), None),
        Broken("a link to itself", lambda path: path.symlink_to(path), None),
        Broken("a file that cannot be read", _unreadable, None),
        Broken("a socket", _bind, None),
    ]


def _unreadable(path: Path) -> None:
    """Root may read anything, except its own memory from address 0 on (EIO)."""
    if os.geteuid() == 0:
        path.symlink_to("/proc/self/mem")
    else:
        path.touch(mode=0)


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


BROKEN = [*_top_level(), *_tables(), *_unknown_keys(), *_no_toml(), *_no_file()]
EACH = pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)


def break_main_file(place: Workplace, broken: Broken) -> None:
    place.config.unlink(missing_ok=True)
    broken.make(place.config)


def check_refusal(returncode: int, stderr: str, file: Path, key: str | None) -> None:
    assert returncode == 2, stderr
    assert len(stderr.splitlines()) == 1, stderr
    assert stderr.rstrip("\n").isprintable()
    assert str(file) in stderr
    assert key is None or key in stderr


def run_in_process(*arguments: str) -> int:
    """ksmtuned's exit status, without the cost of a new process."""
    try:
        return int(main(list(arguments)))
    except SystemExit as end:
        return int(end.code or 0)


def test_there_are_at_least_a_hundred_of_them() -> None:
    assert len(BROKEN) >= 100
    assert len({broken.name for broken in BROKEN}) == len(BROKEN)


@EACH
def test_config_check_refuses_it(
    place: Workplace, capfd: pytest.CaptureFixture[str], broken: Broken
) -> None:
    break_main_file(place, broken)
    status = run_in_process(*place.options, "config", "check")
    check_refusal(status, capfd.readouterr().err, place.config, broken.key)


@EACH
def test_once_refuses_it_and_writes_nothing(
    place: Workplace, host: FakeHost, capfd: pytest.CaptureFixture[str], broken: Broken
) -> None:
    before = host.controls()
    break_main_file(place, broken)
    status = run_in_process(*place.options, "--once")
    check_refusal(status, capfd.readouterr().err, place.config, broken.key)
    assert host.controls() == before


@pytest.mark.parametrize("broken", BROKEN[::12], ids=lambda broken: broken.name)
def test_a_process_of_its_own_refuses_it_alike(place: Workplace, broken: Broken) -> None:
    break_main_file(place, broken)
    for arguments in (["config", "check"], ["--once"], ["run"]):
        result = place.call(*arguments)
        check_refusal(result.returncode, result.stderr, place.config, broken.key)


def test_a_broken_drop_in_is_named_not_the_main_file(place: Workplace) -> None:
    dropin = place.dropins / "50-broken.toml"
    dropin.write_text("[classic]\nthres_coef = 101\n")
    result = place.call("config", "check")
    check_refusal(result.returncode, result.stderr, dropin, "classic.thres_coef")
    assert str(place.config) not in result.stderr


def test_an_ordinary_user_is_told_what_he_may_not_read(place: Workplace) -> None:
    place.config.chmod(0o600)
    result = place.call_without_rights("config", "check")
    check_refusal(result.returncode, result.stderr, place.config, None)


def test_a_fifo_does_not_hold_up_the_check(place: Workplace) -> None:
    place.config.unlink()
    os.mkfifo(place.config)
    result = place.call("config", "check", timeout=10)
    check_refusal(result.returncode, result.stderr, place.config, None)


def test_the_probable_key_is_named(place: Workplace) -> None:
    place.configure("[classic]\nnpages_bost = 5\n")
    assert "npages_boost" in place.call("config", "check").stderr


def test_the_allowed_range_is_named(place: Workplace) -> None:
    place.configure("[classic]\nthres_coef = 101\n")
    assert "100" in place.call("config", "check").stderr.replace("101", "")
    place.configure('policy = "clasic"\n')
    stderr = place.call("config", "check").stderr
    assert all(name in stderr for name in ("classic", "fixed", "off"))


def test_a_running_daemon_goes_on_with_its_settings_through_all_of_them(
    place: Workplace, host: FakeHost, daemon: Daemon
) -> None:
    settings, controls = place.state()["settings"], host.controls()
    dropin = place.dropins / "50-broken.toml"
    for broken in BROKEN:
        broken.make(dropin)
        assert str(dropin) in daemon.tick(), broken.name
        assert place.state()["settings"] == settings, broken.name
        assert host.controls() == controls, broken.name
        _remove(dropin)
        assert str(dropin) not in daemon.tick(), broken.name
        assert host.controls() == controls, broken.name
    assert daemon.stop() == 0


def test_the_valid_part_of_a_broken_edit_is_not_taken(
    place: Workplace, host: FakeHost, daemon: Daemon
) -> None:
    (place.dropins / "10-good.toml").write_text("[fixed]\nsleep_millisecs = 99\n")
    broken = place.dropins / "50-broken.toml"
    broken.write_text("[fixed]\npages_to_scan = 999\n[classic]\nthres_coef = 101\n")
    assert str(broken) in daemon.tick()
    assert (host.knob("pages_to_scan"), host.knob("sleep_millisecs")) == ("500", "15")
    broken.unlink()
    daemon.tick()
    assert (host.knob("pages_to_scan"), host.knob("sleep_millisecs")) == ("500", "99")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()
