"""What cannot be read, comes too fast or is not ours to trust ends neither a tick nor a command."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from daemon_under_test import Daemon, Launch
from fakehost import CONTROLS, COUNTERS, FakeHost
from fakeproc import PAGE_KB
from workplace import CLASSIC, FIXED, NOBODY, Workplace, environment, run_ksmtuned

from ksmtuned.triggers.signals import WATCHED, Signals
from ksmtuned.triggers.uevent import Uevents

NETLINK_KOBJECT_UEVENT = 15  # linux/netlink.h
KERNEL_GROUP = 1
PIPE_BYTES = 65536
SYSTEMD_TAKES_BYTES = 4096  # src/core/manager.c, NOTIFY_BUFFER_MAX


def classic(measure: str, interval: str = "1 h") -> str:
    """The policy `classic` with a measure of guest memory."""
    return f'{CLASSIC.replace("1 h", interval)}[classic]\nguest_memory = "{measure}"\n'


def replace_by_folder(file: Path) -> None:
    """To be read it must be opened, which works, and read, which fails: EISDIR."""
    file.unlink()
    file.mkdir()


@pytest.fixture
def without_rights() -> list[str]:
    """A command's prefix: root who may read and write only what the modes allow."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("needs root and setpriv, to give rights up")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]


# -- events and signals ------------------------------------------------------------------------


@pytest.fixture
def overrun() -> Iterator[Uevents]:
    """The kernel's news, of which more came than fits (ENOBUFS)."""
    try:
        uevents = Uevents()
        sender = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
    except (OSError, ImportError) as error:
        pytest.skip(f"no kernel events here: {error}")
    with sender, socket.socket(fileno=os.dup(uevents.fileno())) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least there is
        try:
            for _ in range(100):
                # Everybody ignores it, because it is not the kernel's: libudev looks at the sender.
                sender.sendto(b"change@/devices/x\0ACTION=change\0", (0, KERNEL_GROUP))
        except OSError as error:
            pytest.skip(f"may not speak to the kernel's group: {error}")
        if not ready(uevents) & select.POLLERR:
            pytest.skip("the socket could not be overrun")
        yield uevents


def ready(uevents: Uevents) -> int:
    """What poll(2) says of it now."""
    poll = select.poll()
    poll.register(uevents, select.POLLIN)
    return dict(poll.poll(0)).get(uevents.fileno(), 0)


def test_lost_kernel_events_count_as_news_and_are_no_error(overrun: Uevents) -> None:
    assert overrun.take()


def test_lost_kernel_events_are_told_once(overrun: Uevents) -> None:
    """Else the daemon's poll returns at once for ever: a whole core."""
    overrun.take()
    for _ in range(100):  # what did fit
        overrun.take()
    assert ready(overrun) == 0
    assert not overrun.take()


@pytest.fixture
def signals() -> Iterator[Signals]:
    """The process's signals, given back afterwards."""
    handlers = {number: signal.getsignal(number) for number in WATCHED}
    wakeup_fd = signal.set_wakeup_fd(-1)
    try:
        yield Signals()
    finally:
        signal.set_wakeup_fd(wakeup_fd)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_term_behind_more_signals_than_the_pipe_holds_is_not_lost(signals: Signals) -> None:
    for _ in range(PIPE_BYTES + 100):
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    came = set(signals.take())
    for _ in range(PIPE_BYTES // 4096 + 1):
        came |= signals.take()
    assert came == {signal.SIGUSR1, signal.SIGTERM}


def test_a_term_in_a_flood_of_usr1_stops_the_daemon(daemon: Daemon, host: FakeHost) -> None:
    for _ in range(20_000):
        daemon.process.send_signal(signal.SIGUSR1)
    assert daemon.stop() == 0
    assert host.pace() == ("0", "100", "20")


# -- guests ------------------------------------------------------------------------------------


MEASURES = {
    "pss": "proc/4000/smaps_rollup",
    "cgroup": "sys/fs/cgroup/machine.slice/machine-4000.scope/memory.stat",
}


@pytest.mark.parametrize(("measure", "file"), MEASURES.items())
def test_a_guest_that_cannot_be_measured_counts_by_rss_and_is_told(
    place: Workplace, host: FakeHost, launch: Launch, measure: str, file: str
) -> None:
    place.configure(classic(measure))
    host.make_memory_short()
    host.add_guest(4000, rss_pages=1000)
    host.add_guest(4001, rss_pages=host.total_kb // PAGE_KB // 2)
    replace_by_folder(host.root / file)
    daemon = launch()
    assert file in (daemon.start().status or "")
    memory = {g["pid"]: g["memory_bytes"] for g in place.state()["guests"]}
    assert memory[4000] == 1000 * PAGE_KB * 1024
    assert host.knob("run") == "1"
    for _ in range(3):
        assert file in daemon.tick()
    assert len([line for line in daemon.log if file in line]) == 1


@pytest.mark.parametrize(("measure", "file"), MEASURES.items())
def test_a_guest_that_becomes_unmeasurable_is_told_until_it_is_measured_again(
    place: Workplace, host: FakeHost, launch: Launch, measure: str, file: str
) -> None:
    place.configure(classic(measure))
    host.add_guest(4000, rss_pages=1000)
    daemon = launch()
    assert file not in (daemon.start().status or "")
    (measured,) = place.state()["guests"]
    content = (host.root / file).read_text()
    replace_by_folder(host.root / file)
    assert file in daemon.tick()
    (host.root / file).rmdir()
    host.write(file, content)
    assert file not in daemon.tick()
    assert place.state()["guests"] == [measured]


@pytest.mark.parametrize(("measure", "file"), MEASURES.items())
def test_a_guest_whose_memory_we_may_not_read_hides_no_other(
    place: Workplace,
    host: FakeHost,
    launch: Launch,
    without_rights: list[str],
    measure: str,
    file: str,
) -> None:
    place.configure(classic(measure))
    host.make_memory_short()
    host.add_guest(4000, rss_pages=1000)
    host.add_guest(4001, rss_pages=host.total_kb // PAGE_KB // 2)
    os.chown(host.root / file, NOBODY, NOBODY)
    (host.root / file).chmod(0o400)
    daemon = launch(prefix=without_rights)
    status = daemon.start().status or ""
    assert file in status
    assert "Permission denied" in status
    assert [g["pid"] for g in place.state()["guests"]] == [4000, 4001]
    assert host.knob("run") == "1"


def test_the_watchdog_is_fed_while_many_guests_are_measured_slowly(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    # As slow as a guest's page tables: a file that takes milliseconds to search.
    slow = host.write("slow", "\n" * 262_000)
    for pid in range(4000, 4400):
        host.add_guest(pid, rss_pages=1000)
        (host.root / f"proc/{pid}/smaps_rollup").unlink()
        (host.root / f"proc/{pid}/smaps_rollup").hardlink_to(slow)
    place.configure(classic("pss"))
    daemon = launch(WATCHDOG_USEC="600000")
    pings = [daemon.start()]
    daemon.process.send_signal(signal.SIGUSR1)
    done = daemon.wait_for("STATUS")
    began_s = pings[0].received_s
    took_s = done.received_s - began_s
    pings += [n for n in daemon.heard if "WATCHDOG" in n.fields and n.received_s > began_s]
    pings = sorted([*pings, done], key=lambda n: n.received_s)
    if took_s < 1.0:
        pytest.skip(f"this machine is too fast: the tick took {took_s:.2f} s")
    assert max(b.received_s - a.received_s for a, b in pairwise(pings)) < 0.6


# -- RUN_DIR -----------------------------------------------------------------------------------


def put_in_place(path: Path, kind: str) -> None:
    """Something else than our file."""
    if kind == "folder":
        path.mkdir()
        (path / "x").touch()
    elif kind == "link":
        path.symlink_to(path.parent.parent / "ksmtuned.toml")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\xff\0rubbish")


KINDS = ["folder", "link", "dangling link", "pipe", "rubbish"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_daemon_sets_aside_what_is_in_place_of_the_first_values(
    place: Workplace, host: FakeHost, launch: Launch, kind: str
) -> None:
    put_in_place(place.originals, kind)
    config = place.config.read_text()
    daemon = launch()
    daemon.start()
    assert host.pace() == ("1", "500", "15")
    assert len([line for line in daemon.log if "kept as" in line]) == 1
    assert daemon.stop() == 0
    assert host.pace() == ("0", "100", "20")
    assert place.config.read_text() == config


@pytest.mark.parametrize("verb", ["--once", "restore"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_command_refuses_what_is_in_place_of_the_first_values(
    place: Workplace, host: FakeHost, kind: str, verb: str
) -> None:
    put_in_place(place.originals, kind)
    before = host.controls()
    result = place.call(verb)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert str(place.originals) in result.stderr
    assert host.controls() == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_place_of_the_state_is_replaced_or_told(
    place: Workplace, host: FakeHost, launch: Launch, kind: str
) -> None:
    put_in_place(place.run_dir / "state.json", kind)
    config = place.config.read_text()
    result = place.call("status")
    assert (result.returncode, result.stderr) == (0, "")
    assert "not readable" in result.stdout
    daemon = launch()
    status = daemon.start().status or ""
    assert ("state.json" in status) == (kind == "folder")
    assert daemon.stop() == (1 if kind == "folder" else 0)
    assert host.pace() == ("0", "100", "20")
    assert place.config.read_text() == config


def test_a_folder_in_place_of_a_draft_is_told_and_nothing_is_written(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    before = host.controls()
    (place.run_dir / ".original.json.new").mkdir()
    daemon = launch()
    assert "original.json" in (daemon.start().status or "")
    assert host.controls() == before
    (place.run_dir / ".original.json.new").rmdir()
    daemon.tick()
    assert host.pace() == ("1", "500", "15")


STATES = {
    "not a number": '{"time": NaN}',
    "infinity": '{"time": Infinity}',
    "a number that becomes infinity": '{"time": 1e999, "errors": [-1e999]}',
    "a huge time": '{"time": ' + "9" * 400 + "}",
    "a longer number than Python reads": '{"time": ' + "9" * 5000 + "}",
    "a negative time": '{"time": -1e300}',
    "a list": "[]",
    "nothing": "",
    "a surrogate": '{"time": 1, "reason": "\\ud800\\u001b[31m", "errors": ["a\\nb", "\\ud800"]}',
    "nested deep": '{"reason": ' + "[" * 500 + "]" * 500 + "}",
    "nested too deep": '{"reason": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "wrong types": '{"policy": {"a": 1}, "errors": 5, "time": true, "reason": []}',
    "rubbish": "\x00\x1b[31m",
    "cut short": '{"time": 1',
}


@pytest.mark.parametrize("content", STATES.values(), ids=STATES)
def test_status_survives_any_state_file(place: Workplace, content: str) -> None:
    (place.run_dir / "state.json").write_text(content)
    result = place.call("status")
    assert (result.returncode, result.stderr) == (0, "")
    assert all(line.isprintable() for line in result.stdout.splitlines())
    assert "decided" in result.stdout


@pytest.mark.parametrize("content", STATES.values(), ids=STATES)
def test_status_in_json_is_json_whatever_the_state_file_holds(
    place: Workplace, content: str
) -> None:
    def no_json(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    (place.run_dir / "state.json").write_text(content)
    result = place.call("status", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout, parse_constant=no_json)["schema"] == 1


# -- what the daemon says ----------------------------------------------------------------------


def test_the_status_is_never_stale_after_usr1(
    place: Workplace, host: FakeHost, launch: Launch
) -> None:
    place.configure(CLASSIC.replace("1 h", "1 s"))
    host.make_memory_short()  # and no guest: with plenty, the text is the same at each tick
    daemon = launch()
    assert "is below" in (daemon.start().status or "")
    host.make_memory_plentiful()
    while "is below" in (daemon.wait_for("STATUS").status or ""):
        pass  # by the timer; it has told the plenty now
    host.make_memory_short()
    daemon.process.send_signal(signal.SIGUSR1)
    while "is below" not in (daemon.wait_for("STATUS").status or ""):
        pass
    host.make_memory_plentiful()
    while "is below" in (daemon.wait_for("STATUS").status or ""):
        pass  # by the timer: the same text as it sent last, but not as was sent last


def test_the_status_stays_short_with_every_file_garbled(folder: Path) -> None:
    root = folder / ("\U0001f600" * 60) / ("\U0001f600" * 60)
    place = Workplace(FakeHost(root), folder)
    place.dropins.mkdir()
    place.configure(FIXED)
    for name in {*CONTROLS, *COUNTERS} - {"run"}:
        place.host.set_knobs(**{name: "\U0001f600\x01" * 60})
    with Daemon(place) as daemon:
        daemon.start()
        place.configure(FIXED + "\U0001f600" * 3000)
        daemon.tick()
        daemon.stop()
    said = ["\n".join(f"{k}={v}" for k, v in n.fields.items()).encode() for n in daemon.heard]
    assert max(map(len, said)) < SYSTEMD_TAKES_BYTES


# -- commands ----------------------------------------------------------------------------------


def test_restore_and_status_look_past_processes_that_cannot_be_read(
    place: Workplace, host: FakeHost, without_rights: list[str]
) -> None:
    before = host.controls()
    place.call("--once")
    host.add_process(3, comm="ksmd")  # before the real one
    host.write("proc/3/stat", "rubbish")
    host.add_process(4, comm="x")
    replace_by_folder(host.root / "proc/4/comm")
    host.add_process(5, comm="x")
    os.chown(host.root / "proc/5", NOBODY, NOBODY)
    (host.root / "proc/5").chmod(0o700)
    status = run_ksmtuned("status", *place.options, prefix=without_rights)
    assert (status.returncode, status.stderr) == (0, "")
    assert "of CPU by ksmd" in status.stdout
    result = run_ksmtuned("restore", *place.options, prefix=without_rights)
    assert (result.returncode, result.stderr) == (0, "")
    assert host.controls() == before


@pytest.mark.parametrize("hidepid", ["1", "2", "4"])
@pytest.mark.parametrize("arguments", [["status"], ["--once"]], ids=" ".join)
def test_a_proc_that_hides_processes_is_no_error(
    place: Workplace, host: FakeHost, hidepid: str, arguments: list[str]
) -> None:
    shutil.rmtree(host.root / "proc")
    (host.root / "proc").mkdir()
    script = f'mount -t proc -o hidepid={hidepid} proc "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    prefix += [str(host.root / "proc"), "setpriv", f"--reuid={NOBODY}", "--clear-groups"]
    rights = "+dac_override,+dac_read_search"  # but not sys_ptrace, which hidepid asks for
    prefix += [f"--inh-caps={rights}", f"--ambient-caps={rights}"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no such mount here: {probe.stderr.strip()}")
    result = run_ksmtuned(*arguments, *place.options, prefix=prefix)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["config", "show"]])
def test_a_full_device_is_one_line_and_exit_1(place: Workplace, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "ksmtuned", *arguments, *place.options],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines() == ["ksmtuned: cannot print: No space left on device"]


@pytest.mark.parametrize("verb", ["status", "--once", "restore", "run"])
@pytest.mark.parametrize("closed", [".", "host", "host/sys", "host/sys/kernel/mm/ksm"])
def test_a_root_that_may_not_be_searched_is_exit_4(
    place: Workplace, without_rights: list[str], closed: str, verb: str
) -> None:
    folder = place.folder / closed
    os.chown(folder, NOBODY, NOBODY)
    folder.chmod(0o700)
    options = ["--root", str(place.root), "--config-dir", "/nonexistent"]
    options += ["--run-dir", "/nonexistent"]
    result = run_ksmtuned(verb, *options, prefix=without_rights)
    assert result.returncode == 4, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Permission denied" in result.stderr
