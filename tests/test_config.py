"""The configuration: where it is found, how files make one whole, and how it is refused."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksmtuned.commands import config as command
from ksmtuned.config import FOLDERS, MAIN, Config, Locations, Source, load, parse, read_sources
from ksmtuned.config_text import toml
from ksmtuned.errors import ConfigError, ExitStatus, UsageError
from ksmtuned.settings import RootTable, keys

FILE = Path("/etc/ksmtuned.toml")


@pytest.fixture
def places(tmp_path: Path) -> Locations:
    """A main file (absent) and three folders (empty), as on a host."""
    folders = tuple(tmp_path / name for name in ("usr", "run", "etc"))
    for folder in folders:
        folder.mkdir()
    return Locations(main=tmp_path / "main.toml", main_required=False, folders=folders)


def parsed(text: str) -> RootTable:
    return parse([Source(FILE, text.encode())]).settings


def refused(content: bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse([Source(FILE, content)])
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(f"{FILE}: ")
    assert len(text) < 400
    assert caught.value.exit_status == ExitStatus.USAGE
    return caught.value


# Values


def test_without_a_file_everything_is_built_in(places: Locations) -> None:
    config = load(places)
    assert config == Config(settings=RootTable(), origins={}, sources=())
    assert config.settings.policy == "adaptive"
    assert config.settings.interval is None
    assert config.settings.classic.thres_const == 2 * 2**20
    assert config.settings.ksm.max_page_sharing is None
    assert "qemu-system-*" in config.settings.guests.comm


def test_every_key_can_be_set() -> None:
    settings = parsed(
        """
        policy = "fixed"
        profile = "desktop"
        interval = "1.5 min"
        on_stop = "keep"
        on_foreign_write = "reassert"
        [classic]
        npages_boost = 0
        npages_decay = -4294967295
        npages_min = 1
        npages_max = 4294967295
        sleep_msec = 1
        thres_coef = 100
        thres_const = "1.5 GiB"
        guest_memory = "cgroup"
        free_memory = "available"
        [fixed]
        pages_to_scan = 4294967295
        sleep_millisecs = 0
        [ksm]
        use_zero_pages = true
        smart_scan = false
        merge_across_nodes = 0
        max_page_sharing = 2147483647
        stable_node_chains_prune_millisecs = 4294967295
        [guests]
        comm = ["my vmm", "qemu*"]
        """
    )
    assert settings.interval == 90.0
    assert settings.classic.thres_const == 3 * 2**29
    assert (settings.ksm.use_zero_pages, settings.ksm.smart_scan) == (1, 0)
    assert type(settings.ksm.use_zero_pages) is int
    assert settings.guests.comm == ("my vmm", "qemu*")
    assert settings.on_foreign_write == "reassert"


@pytest.mark.parametrize(("text", "seconds"), [("100 ms", 0.1), ("0.1 s", 0.1), ("24 h", 86400.0)])
def test_the_ends_of_the_interval_s_range_are_allowed(text: str, seconds: float) -> None:
    assert parsed(f'interval = "{text}"').interval == seconds


def test_an_empty_list_of_patterns_means_no_guests() -> None:
    assert parsed("guests.comm = []").guests.comm == ()


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert parse([Source(FILE, b'\xef\xbb\xbfpolicy = "off"')]).settings.policy == "off"


def test_settings_cannot_be_changed() -> None:
    config = parse([Source(FILE, b"")])
    with pytest.raises(ValueError, match="frozen"):
        config.settings.policy = "off"  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError):
        config.origins["policy"] = FILE  # type: ignore[index]


# Places


def test_the_system_s_places_are_the_default() -> None:
    assert Locations.of(None, ()) == Locations(main=MAIN, main_required=False, folders=FOLDERS)
    assert [str(folder) for folder in FOLDERS] == [
        "/usr/lib/ksmtuned.toml.d",
        "/run/ksmtuned.toml.d",
        "/etc/ksmtuned.toml.d",
    ]


def test_options_replace_the_main_file_and_the_folders() -> None:
    where = Locations.of(Path("x.toml"), [Path("a"), Path("b")])
    assert where == Locations(
        main=Path("x.toml"), main_required=True, folders=(Path("a"), Path("b"))
    )
    assert Locations.of(Path("x.toml"), ()).folders == FOLDERS


def test_a_main_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    where = Locations.of(tmp_path / "none.toml", [tmp_path])
    with pytest.raises(ConfigError, match=r"none\.toml: No such file or directory$"):
        load(where)


def test_a_folder_that_is_missing_is_empty(places: Locations) -> None:
    for folder in places.folders:
        folder.rmdir()
    assert read_sources(places) == ()


# Precedence

PLACES = ("main", "usr", "run", "etc")


def fill(places: Locations, names: dict[str, str], key: str = "fixed.pages_to_scan") -> None:
    """Set the key in several places, each to its own number in PLACES."""
    for place, name in names.items():
        path = places.main if place == "main" else places.main.parent / place / name
        path.write_text(f"{key} = {PLACES.index(place)}\n")


@pytest.mark.parametrize("lower", range(4))
@pytest.mark.parametrize("higher", range(4))
def test_of_two_places_the_higher_one_wins_under_the_same_name(
    places: Locations, lower: int, higher: int
) -> None:
    fill(places, {PLACES[lower]: "10-x.toml", PLACES[higher]: "10-x.toml"})
    config = load(places)
    winner = max(lower, higher)
    path = places.main if winner == 0 else places.folders[winner - 1] / "10-x.toml"
    assert config.settings.fixed.pages_to_scan == winner
    assert config.origins == {"fixed.pages_to_scan": path}


@pytest.mark.parametrize("first", ["usr", "run", "etc"])
@pytest.mark.parametrize("second", ["usr", "run", "etc"])
def test_of_two_drop_ins_the_later_name_wins_whatever_the_folder(
    places: Locations, first: str, second: str
) -> None:
    fill(places, {first: "10-x.toml"})
    fill(places, {second: "20-x.toml"}, key="policy = 'off'\nfixed.pages_to_scan")
    config = load(places)
    assert config.settings.fixed.pages_to_scan == PLACES.index(second)
    assert config.origins["policy"].name == "20-x.toml"


@pytest.mark.parametrize("empty", ["", " \n\t\r\n", None])
def test_an_empty_file_disables_the_name_in_lower_folders(
    places: Locations, empty: str | None
) -> None:
    usr, run, etc = places.folders
    (usr / "10-x.toml").write_text("not even valid")
    (run / "20-y.toml").write_text("policy = 'off'")
    if empty is None:
        (etc / "10-x.toml").symlink_to("/dev/null")
    else:
        (etc / "10-x.toml").write_text(empty)
    config = load(places)
    assert [source.path for source in config.sources] == [run / "20-y.toml"]


def test_only_names_that_end_in_toml_and_do_not_begin_with_a_dot_count(places: Locations) -> None:
    for name in ("a.toml~", ".a.toml", "a.conf", "a.toml.bak", "toml", ".toml"):
        (places.folders[2] / name).write_text("rubbish")
    assert load(places).sources == ()


def test_tables_merge_key_by_key_and_lists_replace(places: Locations) -> None:
    places.main.write_text("[classic]\nnpages_min = 1\nnpages_max = 2\n[guests]\ncomm = ['a']")
    later = places.folders[0] / "10.toml"
    later.write_text("[classic]\nnpages_max = 3\n[guests]\ncomm = ['b', 'c']")
    config = load(places)
    assert (config.settings.classic.npages_min, config.settings.classic.npages_max) == (1, 3)
    assert config.settings.guests.comm == ("b", "c")
    assert config.origins == {
        "classic.npages_min": places.main,
        "classic.npages_max": later,
        "guests.comm": later,
    }


# Change


def test_what_was_read_differs_exactly_when_the_content_does(places: Locations) -> None:
    places.main.write_text("policy = 'off'")
    before = read_sources(places)
    assert read_sources(places) == before
    stamp = places.main.stat()
    places.main.write_text("policy = 'fixed'"[:14])
    os.utime(places.main, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert read_sources(places) != before
    places.main.write_text("policy = 'off'")
    assert read_sources(places) == before


def test_a_drop_in_that_comes_or_goes_is_a_change(places: Locations) -> None:
    before = read_sources(places)
    drop_in = places.folders[1] / "a.toml"
    drop_in.write_text("x")
    assert read_sources(places) != before
    drop_in.unlink()
    assert read_sources(places) == before


# Things that are no readable files


def make_directory(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_terminal_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_large(path: Path) -> None:
    path.write_bytes(b"#" * (2**20 + 1))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (make_directory, "is a directory, not a file"),
        (make_fifo, "is not a regular file"),
        (make_socket, "No such device or address"),
        (make_dangling_link, "No such file or directory"),
        (make_loop, "Too many levels of symbolic links"),
        (make_terminal_link, "is not a regular file"),
        (make_large, "is larger than 1 MiB, so hardly a configuration"),
    ],
)
@pytest.mark.parametrize("as_drop_in", [False, True])
def test_what_is_no_readable_file_is_an_error_that_names_it(
    places: Locations, make: Callable[[Path], None], problem: str, as_drop_in: bool
) -> None:
    path = places.folders[0] / "a.toml" if as_drop_in else places.main
    where = Locations(main=places.main, main_required=not as_drop_in, folders=places.folders)
    make(path)
    if as_drop_in:
        places.main.write_text("")
    assert Source(path, error=problem) in read_sources(where)
    with pytest.raises(ConfigError) as caught:
        load(where)
    assert str(caught.value) == f"{path}: {problem}"


def test_a_file_without_permission_is_an_error_that_names_it(places: Locations) -> None:
    places.main.write_text("")
    places.main.chmod(0)
    we_are_root = os.geteuid() == 0
    if we_are_root:
        os.seteuid(65534)
    try:
        (source, *_) = read_sources(places)
    finally:
        if we_are_root:
            os.seteuid(0)
    assert source == Source(places.main, error="Permission denied")


def test_a_file_in_place_of_a_folder_is_an_error_that_names_it(places: Locations) -> None:
    places.folders[1].rmdir()
    places.folders[1].write_text("")
    with pytest.raises(ConfigError, match=r"run: Not a directory$"):
        load(places)


def test_dev_null_as_main_file_is_empty(tmp_path: Path) -> None:
    where = Locations.of(Path("/dev/null"), [tmp_path])
    assert load(where).settings == RootTable()


def test_a_name_with_control_characters_is_escaped_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "a\n\x1b[2J\udcff.toml").write_text("x = 1")
    with pytest.raises(ConfigError) as caught:
        load(Locations.of(None, [tmp_path]))
    assert str(caught.value) == rf"{tmp_path}/a\n\x1b[2J\udcff.toml: x: unknown key"


def test_of_two_bad_files_the_first_one_is_named(places: Locations) -> None:
    (places.folders[2] / "10.toml").write_text("x = 1")
    (places.folders[0] / "20.toml").write_text("y = 1")
    with pytest.raises(ConfigError, match=r"10\.toml: x: unknown key$"):
        load(places)


# What a bad file is told: (its text, the key that is named, words that the problem has)

BROKEN: list[tuple[str, str | None, str]] = [
    # no TOML
    ("policy", None, "end of document: "),
    ("policy =", None, "end of document: Invalid value"),
    ("policy = classic", None, "line 1, column 10: "),
    ("\n\n  = 3", None, "line 3, column 3: "),
    ("policy = 'off' interval = '1 s'", None, "line 1, column 16: "),
    ("policy = 'off'\npolicy = 'off'", None, "Cannot overwrite a value"),
    ("[ksm]\n[ksm]", None, "Cannot declare"),
    ("policy = 'off\n'", None, "line 1"),
    ('policy = "off', None, "end of document: Unterminated string"),
    ("policy = '''off", None, "end of document: "),
    ("[classic\nnpages_min = 1", None, "line 1"),
    ("a = [1, 2", None, "Unclosed array"),
    ("a = {b = 1", None, "Unclosed inline table"),
    ("a = 2020-13-45", None, "line 1, column"),
    ('a = "\\q"', None, "line 1"),
    ('a = "\\ud800"', None, "line 1"),
    ("a = 1_", None, "line 1"),
    ("a = 01", None, "line 1"),
    ("a = 1\r2", None, "line 1"),
    ("KSM_NPAGES_MAX=1250\nexport DEBUG=1", None, "line 2"),
    ("<?xml version='1.0'?>", None, "line 1"),
    ("{}", None, "line 1"),
    ("a = " + "9" * 5000, None, "Exceeds the limit"),
    ("a = " + "[" * 100_000, None, "nested too deeply"),
    ("a = " + "{a=" * 100_000, None, "nested too deeply"),
    # unknown keys
    ("[classic]\nnpages_mim = 5", "classic.npages_mim", "unknown key; did you mean npages_min?"),
    ("classic.npage_max = 5", "classic.npage_max", "unknown key; did you mean npages_max?"),
    ("classic.NPAGES-MIN = 5", "classic.NPAGES-MIN", "did you mean npages_min?"),
    ("[ksm]\nsmartscan = 1", "ksm.smartscan", "did you mean smart_scan?"),
    ("[ksm]\nrun = 1", "ksm.run", "unknown key"),
    ("[ksm]\npages_to_scan = 1", "ksm.pages_to_scan", "did you mean pages_to_scan in [fixed]?"),
    ("[fixed]\nsleep_millisec = 1", "fixed.sleep_millisec", "did you mean sleep_millisecs?"),
    ("npages_min = 1", "npages_min", "did you mean npages_min in [classic]?"),
    ("KSM_NPAGES_MAX = 1", "KSM_NPAGES_MAX", "did you mean npages_max in [classic]?"),
    ("[guests]\npolicy = 'off'", "guests.policy", "policy at the top, above the first table"),
    ("[guests]\ninterval = '1 s'", "guests.interval", "interval at the top, above the first table"),
    ("polcy = 'off'", "polcy", "did you mean policy?"),
    ("intervall = '1 s'", "intervall", "did you mean interval?"),
    ("xyzzy = 1", "xyzzy", "unknown key"),
    ("'' = 1", None, "unknown key"),
    ("[clasic]\nnpages_min = 1", "clasic", "unknown table; did you mean classic?"),
    ("[guest]\ncomm = []", "guest", "unknown table; did you mean guests?"),
    ("[adaptiv]\nmax_cpu = 30", "adaptiv", "unknown table; did you mean adaptive?"),
    ("[adviser]\nmax_cpu = 30", "adviser", "unknown table; did you mean advisor?"),
    ("[a.b.c]\nd = 1", "a", "unknown table"),
    ("'a\\nb' = 1", "a\\nb", "unknown key"),
    ('"a\\nb" = 1', "a\nb", r"a\nb: unknown key"),
    ('"\\u001b[2J" = 1', "\x1b[2J", r"\x1b[2J: unknown key"),
    ("x" * 5000 + " = 1", "x" * 37 + "...", "unknown key"),
    ("'classic.npages_min' = 1", "classic.npages_min", "unknown key; did you mean npages_min in"),
    ("[fixed.classic]\nx = 1", "fixed.classic", "unknown table"),
    ("a = 1\nb = 2\nc = 3", "a", "unknown key (and 2 more)"),
    ("policy = 1\nprofile = 2", "policy", "not 1 (and 1 more)"),
    # choices
    ("policy = 'clasic'", "policy", 'classic, fixed or off, not "clasic"'),
    ("policy = 'adaptiv'", "policy", 'must be adaptive, advisor, classic, fixed or off, not "ada'),
    ("policy = 'adviser'", "policy", "must be adaptive, advisor, classic, fixed or off"),
    ("policy = 'Classic'", "policy", "must be adaptive, advisor, classic, fixed or off"),
    ("policy = ''", "policy", 'not ""'),
    ("policy = 0", "policy", "not 0"),
    ("policy = true", "policy", "not true"),
    ("policy = ['off']", "policy", "not a list of 1"),
    ("policy = {off = true}", "policy", "not a table"),
    ("policy = 1979-05-27", "policy", "not 1979-05-27"),
    ("policy = 07:32:00", "policy", "not 07:32:00"),
    ("policy = '" + "x" * 9999 + "'", "policy", 'not "xxxxxxxxxx'),
    ('policy = "a\\nb\\u001b"', "policy", r'not "a\nb\x1b"'),
    ("profile = 'prod'", "profile", "must be production, test or desktop"),
    ("on_stop = 'leave'", "on_stop", "must be restore, keep, stop or unmerge"),
    ("on_stop = false", "on_stop", "must be restore, keep, stop or unmerge, not false"),
    ("on_foreign_write = 'fight'", "on_foreign_write", "must be respect or reassert"),
    ("classic.guest_memory = 'vsz'", "classic.guest_memory", "must be rss, cgroup, pss or none"),
    ("classic.free_memory = 'free'", "classic.free_memory", "must be ksmtuned or available"),
    # times
    ("interval = 60", "interval", 'must be a time, 0.1 s to 1 d, not 60: write "60 s"'),
    ("interval = 0.5", "interval", 'write "60 s"'),
    ("interval = -1", "interval", 'write "60 s"'),
    ("interval = nan", "interval", 'not nan: write "60 s"'),
    ("interval = inf", "interval", 'not inf: write "60 s"'),
    ("interval = true", "interval", 'not true: write "60 s"'),
    ("interval = []", "interval", 'not a list of 0: write "60 s"'),
    ("interval = '60'", "interval", "write a number with one of ms, s, min, h, d"),
    ("interval = '60 sec'", "interval", "write a number with one of ms, s, min, h, d"),
    ("interval = 'nan s'", "interval", "write a number with one of"),
    ("interval = 'inf s'", "interval", "write a number with one of"),
    ("interval = '-60 s'", "interval", "write a number with one of"),
    ("interval = '1 min 30 s'", "interval", "write a number with one of"),
    ("interval = ''", "interval", "write a number with one of"),
    ("interval = '0 s'", "interval", 'must be a time, 0.1 s to 1 d, not "0 s"'),
    ("interval = '99 ms'", "interval", "must be a time, 0.1 s to 1 d"),
    ("interval = '25 h'", "interval", "must be a time, 0.1 s to 1 d"),
    ("interval = '1e3 s'", "interval", "write a number with one of"),
    # sizes
    ("classic.thres_const = 2048", "classic.thres_const", 'with its unit, like "2 MiB"'),
    ("classic.thres_const = 2.5", "classic.thres_const", "must be a size, 0 B to 4096 TiB"),
    ("classic.thres_const = nan", "classic.thres_const", "not nan"),
    ("classic.thres_const = '2048'", "classic.thres_const", "one of B, KiB, MiB, GiB, TiB"),
    ("classic.thres_const = '2 MB'", "classic.thres_const", "one of B, KiB, MiB, GiB, TiB"),
    ("classic.thres_const = '-2 MiB'", "classic.thres_const", "one of B, KiB"),
    ("classic.thres_const = '4097 TiB'", "classic.thres_const", 'not "4097 TiB"'),
    # whole numbers
    (
        "classic.npages_min = -5",
        "classic.npages_min",
        "must be a whole number, 0 to 4294967295 pages, not -5",
    ),
    ("classic.npages_min = '64'", "classic.npages_min", 'not "64"'),
    ("classic.npages_min = 64.0", "classic.npages_min", "not 64.0"),
    ("classic.npages_min = nan", "classic.npages_min", "not nan"),
    ("classic.npages_min = -inf", "classic.npages_min", "not -inf"),
    ("classic.npages_min = true", "classic.npages_min", "not true"),
    ("classic.npages_min = 4294967296", "classic.npages_min", "not 4294967296"),
    ("classic.npages_min = 0x" + "f" * 9999, "classic.npages_min", "not a number far beyond that"),
    ("classic.npages_min = {x = 1}", "classic.npages_min", "not a table"),
    ("classic.npages_boost = -1", "classic.npages_boost", "0 to 4294967295 pages, not -1"),
    ("classic.npages_decay = 50", "classic.npages_decay", "-4294967295 to 0 pages, not 50"),
    ("classic.npages_decay = -4294967296", "classic.npages_decay", "-4294967295 to 0 pages"),
    ("classic.sleep_msec = 0", "classic.sleep_msec", "1 to 4294967295 ms, not 0"),
    ("classic.sleep_msec = '10 ms'", "classic.sleep_msec", 'not "10 ms"'),
    ("classic.thres_coef = 101", "classic.thres_coef", "0 to 100 percent, not 101"),
    ("classic.thres_coef = 0.2", "classic.thres_coef", "0 to 100 percent, not 0.2"),
    ("fixed.pages_to_scan = 4294967296", "fixed.pages_to_scan", "0 to 4294967295 pages"),
    ("fixed.sleep_millisecs = -1", "fixed.sleep_millisecs", "0 to 4294967295 ms, not -1"),
    ("ksm.max_page_sharing = 1", "ksm.max_page_sharing", "2 to 2147483647 pages, not 1"),
    ("ksm.max_page_sharing = 2147483648", "ksm.max_page_sharing", "2 to 2147483647 pages"),
    (
        "ksm.stable_node_chains_prune_millisecs = -1",
        "ksm.stable_node_chains_prune_millisecs",
        "0 to 4294967295 ms",
    ),
    ("ksm.smart_scan = 2", "ksm.smart_scan", "must be 0 or 1, not 2"),
    ("ksm.smart_scan = 'yes'", "ksm.smart_scan", 'must be 0 or 1, not "yes"'),
    ("ksm.use_zero_pages = 1.0", "ksm.use_zero_pages", "must be 0 or 1, not 1.0"),
    ("ksm.merge_across_nodes = -1", "ksm.merge_across_nodes", "must be 0 or 1, not -1"),
    # lists
    ("guests.comm = 'qemu'", "guests.comm", 'must be a list of glob patterns, 256 at most, not "q'),
    ("guests.comm = [1]", "guests.comm", "not [1]"),
    ("guests.comm = ['a', ['b']]", "guests.comm", "not [a list of 1]"),
    ("guests.comm = ['']", "guests.comm", 'not [""]: write at least one character'),
    ('guests.comm = ["a\\u0007"]', "guests.comm", r'not ["a\x07"]'),
    ("guests.comm = {a = 1}", "guests.comm", "not a table"),
    (f"guests.comm = {['a'] * 257}", "guests.comm", "not a list of 257"),
    ("guests.comm = [nan, true]", "guests.comm", "not [nan]"),
    # tables
    ("classic = 3", "classic", "must be a table, [classic], not 3"),
    ("ksm = []", "ksm", "must be a table, [ksm], not a list of 0"),
    ("[[fixed]]\npages_to_scan = 1", "fixed", "must be a table, [fixed], not a list of 1"),
    ("guests = 'qemu'", "guests", 'must be a table, [guests], not "qemu"'),
    ("[classic.npages_min]\nx = 1", "classic.npages_min", "not a table"),
    ("[policy]\nname = 'off'", "policy", "not a table"),
    # between two keys
    (
        "classic.npages_min = 1251",
        "classic.npages_min",
        "must be at most npages_max (1250, built-in), not 1251",
    ),
    ("classic.npages_max = 63", "classic.npages_max", "at least npages_min (64, built-in), not 63"),
    ("classic = {npages_min = 9, npages_max = 8}", "classic.npages_max", "npages_min (9, /etc"),
]


def test_there_are_a_hundred_ways_to_break_a_file() -> None:
    assert len(BROKEN) >= 100


@pytest.mark.parametrize(("text", "key", "words"), BROKEN, ids=[case[0][:40] for case in BROKEN])
def test_a_broken_file_is_told_in_one_line_with_file_and_key(
    text: str, key: str | None, words: str
) -> None:
    error = refused(text.encode())
    assert (error.key or None) == key
    assert words in str(error)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"policy = '\xe4'", b"\x7fELF\x02\x01\x01", bytes(range(256)), b"\0" * 4096],
)
def test_binary_rubbish_is_told_in_one_line(content: bytes) -> None:
    assert refused(content).key is None


def test_a_byte_that_is_not_utf_8_is_told_with_its_place() -> None:
    assert str(refused(b"# gr\xfc\xdfe")) == f"{FILE}: is not UTF-8 text: byte 0xfc at offset 4"


def test_limits_that_only_two_files_together_break_name_the_later_file(places: Locations) -> None:
    places.main.write_text("classic.npages_max = 100")
    (places.folders[0] / "a.toml").write_text("classic.npages_min = 200")
    with pytest.raises(ConfigError) as caught:
        load(places)
    assert str(caught.value) == (
        f"{places.folders[0]}/a.toml: classic.npages_min: "
        f"must be at most npages_max (100, {places.main}), not 200"
    )


def test_limits_that_one_file_breaks_and_another_mends_are_fine(places: Locations) -> None:
    places.main.write_text("classic.npages_min = 2000")
    (places.folders[0] / "a.toml").write_text("classic.npages_max = 3000")
    assert load(places).settings.classic.npages_min == 2000


NAMES = [key.name for key in keys()] + ["classic", "fixed", "ksm", "guests", "x"]
SCRAPS = st.one_of(
    st.sampled_from([*NAMES, "=", " = ", ".", "[", "]", "{", "}", ",", "\n", "'", '"', "#", "nan"]),
    st.sampled_from(["1", "-5", '"60 s"', "'off'", "true", "1e400", "0x" + "f" * 5000, "9" * 5000]),
    st.text(max_size=5),
)


def is_taken_or_refused_in_one_line(content: bytes) -> None:
    try:
        classic = parse([Source(FILE, content)]).settings.classic
    except ConfigError as refusal:
        told = str(refusal)
    else:
        told = str(FILE)
        assert classic.npages_min <= classic.npages_max
    assert told.isprintable()
    assert told.startswith(str(FILE))


@given(st.binary())
def test_any_bytes_are_taken_or_refused_in_one_line(content: bytes) -> None:
    is_taken_or_refused_in_one_line(content)


@given(st.lists(SCRAPS, max_size=40).map("".join))
def test_any_scraps_of_toml_are_taken_or_refused_in_one_line(text: str) -> None:
    is_taken_or_refused_in_one_line(text.encode(errors="surrogatepass"))


@given(
    st.sampled_from([key.dotted for key in keys()]),
    st.one_of(
        st.integers().map(str),
        st.floats().map(str),
        st.booleans().map(lambda value: str(value).lower()),
        st.lists(st.sampled_from(["1", "'a'", "''", "[]", "nan"])).map(
            lambda x: f"[{','.join(x)}]"
        ),
        st.dates().map(str),
    ),
)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(key: str, value: str) -> None:
    is_taken_or_refused_in_one_line(f"{key} = {value}".encode())


# The command

Runner = Callable[..., tuple[int, str]]


@pytest.fixture
def ksmtuned_config(places: Locations, capfdbinary: pytest.CaptureFixture[bytes]) -> Runner:
    """Runs `ksmtuned config`, gives its exit status and output."""

    def run(*words: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        args = parser.parse_args(words)
        args.config, args.config_dir = places.main, list(places.folders)
        status = command.run(args)
        return status, capfdbinary.readouterr().out.decode()

    return run


def test_show_prints_every_key_as_toml_that_means_the_same(
    places: Locations, ksmtuned_config: Runner
) -> None:
    places.main.write_text(
        'interval = "0.3 s"\nclassic.thres_const = "1234567 B"\nguests.comm = ["a\\"\\\\ä"]\n'
    )
    (places.folders[2] / "x.toml").write_text("ksm.smart_scan = true\nclassic.npages_min = 65")
    status, shown = ksmtuned_config("show")
    assert status == ExitStatus.DONE
    assert parse([Source(FILE, shown.encode())]).settings == load(places).settings
    for key in keys():
        assert f"\n{key.name} = " in f"\n{shown}" or f"\n# {key.name}: " in f"\n{shown}"


def test_show_names_the_file_of_each_key(places: Locations, ksmtuned_config: Runner) -> None:
    places.main.write_text('policy = "off"')
    drop_in = places.folders[2] / "x\n.toml"
    drop_in.write_text("ksm.smart_scan = true")
    lines = ksmtuned_config("show")[1].splitlines()
    ends = {line.split()[0]: line.split("  # ")[-1] for line in lines if " = " in line}
    assert ends["policy"] == str(places.main)
    assert ends["smart_scan"] == rf"{places.folders[2]}/x\n.toml"
    assert ends["npages_min"] == "built-in"
    assert any(li.startswith("# use_zero_pages: left alone ") for li in lines)


@given(st.floats(0.1, 86400), st.integers(0, 2**52))
def test_amounts_are_shown_so_that_they_read_back_exactly(seconds: float, amount: int) -> None:
    by_name = {key.dotted: key for key in keys()}
    time = toml(by_name["interval"], seconds)
    size = toml(by_name["classic.thres_const"], amount)
    settings = parsed(f"interval = {time}\nclassic.thres_const = {size}")
    assert (settings.interval, settings.classic.thres_const) == (seconds, amount)


def test_check_says_which_files_were_read(places: Locations, ksmtuned_config: Runner) -> None:
    places.main.write_text("")
    (places.folders[1] / "b.toml").write_text("policy = 'off'")
    assert ksmtuned_config("check") == (
        ExitStatus.DONE,
        f"Valid: {places.main}, {places.folders[1]}/b.toml\n",
    )


def test_check_raises_what_is_wrong(places: Locations, ksmtuned_config: Runner) -> None:
    places.main.write_text("x = 1")
    with pytest.raises(ConfigError, match="x: unknown key"):
        ksmtuned_config("check")


@pytest.mark.parametrize("words", [["import"], ["show", "x"], ["check", "x"]])
def test_a_file_is_for_import_alone(words: list[str], ksmtuned_config: Runner) -> None:
    with pytest.raises(UsageError, match=r"ksmtuned config"):
        ksmtuned_config(*words)


def test_import_prints_toml(tmp_path: Path, ksmtuned_config: Runner) -> None:
    old = tmp_path / "ksmtuned.conf"
    old.write_bytes(b"KSM_NPAGES_MAX=2000 # gr\xc3\xbc\xc3\x9fe\nWHAT=\xc3\xa4")
    status, text = ksmtuned_config("import", str(old))
    assert status == ExitStatus.DONE
    assert parsed(text).classic.npages_max == 2000
    assert "WHAT=ä" in text
