"""The old script's configuration, read without a shell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksmtuned.config import Config, Source, parse
from ksmtuned.config_import import import_file, translate
from ksmtuned.errors import ConfigError
from ksmtuned.settings import RootTable
from ksmtuned.shell import Assignment, Leftover, read_assignments

OLD = Path("/etc/ksmtuned.conf")
# What Debian delivers, with every key uncommented.
DEBIAN = """\
# Configuration file for ksmtuned.

# How long ksmtuned should sleep between tuning adjustments
KSM_MONITOR_INTERVAL=60

# Millisecond sleep between ksm scans for 16Gb server.
# Smaller servers sleep more, bigger sleep less.
KSM_SLEEP_MSEC=10

KSM_NPAGES_BOOST=300
KSM_NPAGES_DECAY=-50
KSM_NPAGES_MIN=64
KSM_NPAGES_MAX=1250

KSM_THRES_COEF=20
KSM_THRES_CONST=2048

# uncomment the following if you want ksmtuned debug info

LOGFILE=/var/log/ksmtuned
DEBUG=1
"""


def imported(script: str | bytes) -> tuple[RootTable, str]:
    """What the translation means, and its text."""
    text = translate(script.encode() if isinstance(script, str) else script, OLD)
    return loaded(text).settings, text


def loaded(text: str) -> Config:
    return parse([Source(OLD, text.encode())])


def values(script: str) -> dict[str, str | None]:
    """Each name's last value, as a shell would have it."""
    found = read_assignments(script)
    return {each.name: each.value for each in found if isinstance(each, Assignment)}


def leftovers(script: str) -> list[str]:
    return [each.text for each in read_assignments(script) if isinstance(each, Leftover)]


# The shell's side


@pytest.mark.parametrize(
    ("script", "value"),
    [
        ("A=5", "5"),
        ("  A=5  ", "5"),
        ("export A=5", "5"),
        ("readonly A=5; B=6", "5"),
        ("declare -i A=5", "5"),
        ("A=5 # why", "5"),
        ("A=5#6", "5#6"),
        ("A='5'", "5"),
        ('A="5"', "5"),
        ("A='5'\"6\"7", "567"),
        ("A=\\5", "5"),
        ('A="a\\"b\\$c\\`"', 'a"b$c`'),
        ("A='a\"b$c'", 'a"b$c'),
        ("A=a\\\nb", "ab"),
        ('A="a\nb"', "a\nb"),
        ("A=5\r\n", "5"),
        ("A=", ""),
        ("A=''", ""),
        ("A=5\nA=6", "6"),
        ("A=5;A=6;", "6"),
        ("A=5 B=6", "5"),
        ("A=5 && B=6", "5"),
        ("A=a$", "a$"),
        ("A=5\\", "5\\"),
        ("A=$B", None),
        ("A=${B:-5}", None),
        ("A=$(echo 5)", None),
        ("A=$(echo $(echo 5; echo 6))", None),
        ("A=`echo 5`", None),
        ("A=$((5 * 2))", None),
        ("A=$[5 * 2]", None),
        ('A="x $B"', None),
        ('A="$(date)"', None),
        ("A=(1 2)", None),
        ("A+=5", None),
        ("A=$'5'", None),
        ("A=5\nA=$B", None),
    ],
)
def test_an_assignment_has_the_value_that_a_shell_gives_it(script: str, value: str | None) -> None:
    assert values(script)["A"] == value


@pytest.mark.parametrize(
    "script",
    [
        "if true; then\n  A=5\nfi",
        "if true; then A=5; else A=6; fi",
        "for x in 1 2; do A=5; done",
        "while false; do\nA=5\ndone",
        "case $x in\n a) A=5;;\n *) A=6 ;;\nesac",
        "f() {\n A=5\n}",
        "f () { A=5; }",
        "function f {\n A=5\n}",
        "(A=5)",
        "{ A=5; }",
        "true && A=5",
        "true &&\n\n A=5",
        "true ||  # why\nA=5",
        "false || A=5",
        "A=5 | cat",
        "A=5 |& cat",
        "true |&\nA=5",
        "A=5 &",
        "A=5 true",
        "A = 5",
        "A =5",
        "env A=5",
        "echo A=5",
        "unset A",
        'export "A=5"',
        ": ${A:=5}",
        "A=5 > /tmp/x",
        "A[0]=5",
        "[ -z x ] && A=5",
        "cat <<END\nA=5\nEND",
        "X='\nA=5",
        "exit 0\nA=5",
        "# A=5",
    ],
)
def test_what_a_shell_does_not_plainly_do_is_not_taken_for_an_assignment(script: str) -> None:
    assert "A" not in values(script)


def test_after_a_block_assignments_count_again() -> None:
    script = "if x; then if y; then A=1; fi; fi\nf() { A=2; }\n(A=3)\ncase x in a) A=4;; esac\nA=5"
    assert values(script) == {"A": "5"}


def test_each_statement_that_was_not_understood_is_given_back() -> None:
    assert leftovers(". /etc/other\nA=5\n[ -f x ] || touch x") == [
        ". /etc/other",
        "[ -f x ]",
        "touch x",
    ]


def test_lines_are_counted_through_quotes_and_continuations() -> None:
    found = read_assignments("A='\n\n'\nB=\\\n1\n\n# x\nC=3")
    assert [(each.line, each.name) for each in found if isinstance(each, Assignment)] == [
        (1, "A"),
        (4, "B"),
        (8, "C"),
    ]


# Our side


def test_debian_s_file_gives_the_defaults() -> None:
    settings, text = imported(DEBIAN)
    assert settings.model_copy(update={"interval": None}) == RootTable(policy="classic")
    assert settings.interval == 60.0
    assert text.splitlines()[0] == 'policy = "classic"'


def test_debian_s_file_as_delivered_sets_only_the_policy() -> None:
    script = "\n".join(f"# {line}" for line in DEBIAN.splitlines())
    assert set(loaded(translate(script.encode(), OLD)).origins) == {"policy"}


def test_every_key_is_carried_over() -> None:
    settings, text = imported(
        "KSM_MONITOR_INTERVAL=2m\nKSM_SLEEP_MSEC=20\nKSM_NPAGES_BOOST=+301\nKSM_NPAGES_DECAY=-51\n"
        "KSM_NPAGES_MIN=' 65 '\nexport KSM_NPAGES_MAX=1251\nKSM_THRES_COEF=21\n"
        "KSM_THRES_CONST=2097152\nKSM_PS_METRIC=rsz\n"
    )
    assert "Not carried over" not in text
    assert settings.interval == 120.0
    assert settings.classic.model_dump() == {
        "npages_boost": 301,
        "npages_decay": -51,
        "npages_min": 65,
        "npages_max": 1251,
        "sleep_msec": 20,
        "thres_coef": 21,
        "thres_const": 2 * 2**30,
        "guest_memory": "rss",
        "free_memory": "ksmtuned",
    }


@pytest.mark.parametrize("script", ["", DEBIAN, "KSM_THRES_CONST=2048"])
def test_the_constant_of_two_mebibytes_is_pointed_out(script: str) -> None:
    assert (
        "# KSM_THRES_CONST=2048 meant 2 MiB: the script compares it with kB (2 GiB was probably "
        "meant); as it is, it takes effect only below 10 MiB of RAM"
    ) in imported(script)[1].splitlines()


@pytest.mark.parametrize(
    ("metric", "measure"), [("pss", "pss"), ("rss", "rss"), ("rsz", "rss"), ("'pss'", "pss")]
)
def test_proxmox_s_metric_becomes_guest_memory(metric: str, measure: str) -> None:
    assert imported(f"KSM_PS_METRIC={metric}")[0].classic.guest_memory == measure


def test_proxmox_s_own_defaults_hold_where_its_file_is_silent() -> None:
    settings, text = imported("# KSM_PS_METRIC=pss\n")
    assert (settings.classic.sleep_msec, settings.classic.guest_memory) == (100, "pss")
    assert "KSM_SLEEP_MSEC is 100 ms" in text
    assert imported("KSM_PS_METRIC=pss\nKSM_SLEEP_MSEC=10")[0].classic.sleep_msec == 10


def test_any_other_file_is_told_of_proxmox_s_defaults_and_keeps_its_own() -> None:
    settings, text = imported("")
    assert settings.classic.sleep_msec == 10
    assert "KSM_SLEEP_MSEC is 100 ms" in text


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("LOGFILE=/var/log/ksmtuned", "journal"),
        ("DEBUG=1", "always logged"),
        ("PIDFILE=/run/x", "systemd"),
        ("KSM_MAX_KERNEL_PAGES=0", "2.6.33"),
        ("START=yes", "systemctl"),
        ("FOO=1", "no such key"),
        ("KSM_NPAGES_MAX=$X", "only a shell can tell"),
        ("KSM_NPAGES_MAX=`nproc`", "only a shell can tell"),
        ("KSM_NPAGES_MAX=$((2 * 5))", "only a shell can tell"),
        ("KSM_NPAGES_MAX=5\nKSM_NPAGES_MAX=$X", "only a shell can tell"),
        ("KSM_NPAGES_MAX=lots", "not a plain whole number"),
        ("KSM_NPAGES_MAX=0x10", "not a plain whole number"),
        ("KSM_NPAGES_MAX=0100", "not a plain whole number"),
        ("KSM_NPAGES_MAX=1.5", "not a plain whole number"),
        ("KSM_NPAGES_MAX=" + "9" * 9999, "not a plain whole number"),
        ("KSM_NPAGES_MAX=99999999999", "0 to 4294967295 pages, not 99999999999"),
        ("KSM_NPAGES_DECAY=50", "-4294967295 to 0 pages, not 50"),
        ("KSM_SLEEP_MSEC=0", "1 to 4294967295 ms, not 0"),
        ("KSM_THRES_COEF=120", "0 to 100 percent, not 120"),
        ("KSM_THRES_CONST=-1", "must be a size"),
        ("KSM_THRES_CONST=99999999999999999", "must be a size"),
        ("KSM_MONITOR_INTERVAL=0", "0.1 s to 1 d"),
        ("KSM_MONITOR_INTERVAL=2d", "0.1 s to 1 d"),
        ("KSM_MONITOR_INTERVAL='1 2'", "not a plain number of seconds"),
        ("KSM_PS_METRIC=vsz", "only pss, rss and rsz"),
        ("KSM_NPAGES_MIN=2000\nKSM_NPAGES_MAX=1000", "npages_min (2000, the same file), not 1000"),
        ("KSM_NPAGES_MIN=2000", "npages_max (1250, built-in), not 2000"),
        (". /etc/sysconfig/x", "a shell would run this"),
        ("if x; then KSM_NPAGES_MAX=5; fi", "in some cases only"),
        ("KSM_NPAGES_MAX='5", "never closed"),
        ("cat <<X\nX", "here-document"),
        ("return\nKSM_NPAGES_MAX=5", "a shell stops here"),
        ("A='a\nb\x1b[2J'", r"a\nb\x1b[2J"),
        ("A=" + "x" * 9999, "xxx..."),
    ],
)
def test_what_cannot_be_carried_over_becomes_a_comment(script: str, words: str) -> None:
    settings, text = imported(script)
    remarks = text.partition("# Not carried over:")[2].partition("# Good to know:")[0]
    assert words in remarks
    assert settings.classic.npages_max == 1250


def test_an_empty_value_means_the_default_as_in_the_script() -> None:
    settings, text = imported("KSM_NPAGES_MAX=5000\nKSM_NPAGES_MAX=\n")
    assert settings.classic.npages_max == 1250
    assert "Not carried over" not in text


def test_a_value_set_in_a_block_does_not_replace_one_that_is_certain() -> None:
    script = "KSM_NPAGES_MAX=5000\nif x; then KSM_NPAGES_MAX=6000; fi"
    assert imported(script)[0].classic.npages_max == 5000


def test_nothing_is_executed(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    script = tmp_path / "ksmtuned.conf"
    script.write_text(f"touch {proof}\nA=$(touch {proof})\nB=`touch {proof}`\n: > {proof}\n")
    import_file(script)
    assert not proof.exists()


def test_a_file_of_rubbish_gets_a_hundred_remarks_and_a_count() -> None:
    text = imported("x\n" * 5000)[1]
    assert text.count("# line ") == 100
    assert "# and 4900 more" in text


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("missing", "No such file or directory"),
        ("folder", "is a directory, not a file"),
        ("fifo", "is not a regular file"),
        ("binary", "is not a text file, so not a configuration of ksmtuned"),
        ("huge", "is larger than 1 MiB, so hardly a configuration"),
    ],
)
def test_what_is_no_text_file_is_refused_in_one_line(
    tmp_path: Path, kind: str, problem: str
) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind != "missing":
        path.write_bytes(b"\x7fELF\0" if kind == "binary" else b"A=1\n" * 2**19)
    with pytest.raises(ConfigError) as caught:
        import_file(path)
    assert str(caught.value) == f"{path}: {problem}"


KEYS = ["KSM_NPAGES_MIN", "KSM_NPAGES_MAX", "KSM_THRES_CONST", "KSM_MONITOR_INTERVAL", "DEBUG", "A"]
SCRAPS = st.one_of(
    st.builds("{}={}\n".format, st.sampled_from(KEYS), st.integers() | st.text(max_size=8)),
    st.sampled_from([*"=\n\t ;&|(){}'\"`$\\#<", "$(", "${", "<<", "if ", "fi ", "case ", "esac "]),
    st.text(max_size=5),
)


@given(st.binary())
def test_whatever_the_bytes_the_result_is_a_configuration(content: bytes) -> None:
    assert imported(content)[0].policy == "classic"


@given(st.lists(SCRAPS, max_size=30).map("".join))
def test_whatever_the_script_the_result_is_a_configuration(script: str) -> None:
    content = script.encode(errors="surrogatepass")
    settings, text = imported(content)
    assert settings.policy == "classic"
    assert text.replace("\n", "").isprintable()
