"""The conversation with a monitor: each answer in its time, none too long, no end unnoticed."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from ksmtuned.errors import MonitorBroken, MonitorRefused
from ksmtuned.guests.qmp import LONGEST_REPLY_BYTES, QmpMonitor

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\n'
LIMIT_S = 0.3

Talk = Callable[[socket.socket], None]


@contextmanager
def other_side(talk: Talk) -> Iterator[socket.socket]:
    """A connected socket; a thread talks at its other end, then hangs up."""
    ours, theirs = socket.socketpair()

    def work() -> None:
        with theirs, suppress(OSError):
            talk(theirs)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with ours:
            yield ours
    finally:
        thread.join()


def answering(line: Callable[[str], bytes]) -> Talk:
    """Greets, negotiates, and answers the next command with a line; then waits for our end."""

    def talk(theirs: socket.socket) -> None:
        greet(theirs)
        command = json.loads(theirs.recv(65536))
        theirs.sendall(line(command["id"]))
        theirs.recv(65536)

    return talk


def greet(theirs: socket.socket) -> None:
    theirs.sendall(GREETING)
    theirs.recv(65536)
    theirs.sendall(b'{"return": {}}\n')


def ask(talk: Talk) -> object:
    with other_side(talk) as ours, QmpMonitor("vm", ours, LIMIT_S) as monitor:
        return monitor.execute("query-version", {})


def test_an_answer_comes_back() -> None:
    talk = answering(lambda i: json.dumps({"return": [1, {"a": None}], "id": i}).encode() + b"\n")
    assert ask(talk) == [1, {"a": None}]


def test_an_error_is_a_refusal_with_its_words() -> None:
    error = {"class": "GenericError", "desc": "no such thing\x07"}
    with pytest.raises(MonitorRefused, match=r"no such thing\\x07"):
        ask(answering(lambda i: json.dumps({"error": error, "id": i}).encode() + b"\n"))


def silent(theirs: socket.socket) -> None:
    theirs.recv(1)


def silent_after_greeting(theirs: socket.socket) -> None:
    greet(theirs)
    while theirs.recv(65536):
        pass


@pytest.mark.parametrize("talk", [silent, silent_after_greeting])
def test_silence_ends_at_its_limit(talk: Talk) -> None:
    started_s = time.monotonic()
    with pytest.raises(MonitorBroken, match=r"within 0\.3 s"):
        ask(talk)
    assert time.monotonic() - started_s < 3


def chattering(theirs: socket.socket) -> None:
    """Events for ever, and no answer."""
    greet(theirs)
    while True:
        theirs.sendall(b'{"event": "STOP", "data": {}}\n' * 100)


def test_a_flood_of_events_ends_at_the_limit() -> None:
    started_s = time.monotonic()
    with pytest.raises(MonitorBroken, match=r"within 0\.3 s"):
        ask(chattering)
    assert time.monotonic() - started_s < 5


def endless(theirs: socket.socket) -> None:
    theirs.sendall(b'{"QMP": "' + b"x" * (LONGEST_REPLY_BYTES + 100_000))
    theirs.recv(1)


@pytest.mark.parametrize(
    "talk", [endless, answering(lambda _: b"x" * (LONGEST_REPLY_BYTES + 100_000) + b"\n")]
)
def test_a_line_that_is_too_long_is_not_read_to_its_end(talk: Talk) -> None:
    with pytest.raises(MonitorBroken, match="more than 1 MiB"):
        ask(talk)


@pytest.mark.parametrize(
    "talk",
    [
        lambda _: None,
        greet,
        lambda theirs: theirs.sendall(b'{"QMP": {"vers'),
        answering(lambda _: b""),
        answering(lambda _: b'{"return": {}, "id'),
    ],
)
def test_a_hang_up_is_told(talk: Talk) -> None:
    with pytest.raises(MonitorBroken):
        ask(talk)


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 400 Bad Request\n",
        b"[1, 2]\n",
        b"\xff\xfe\n",
        b'{"QMP": 5}\n',
        b"[" * 100_000 + b"\n",
        b'{"return": ' + b"9" * 5000 + b"}\n",
        b"\n",
    ],
)
def test_garbage_is_told_at_the_greeting_and_after_it(line: bytes) -> None:
    with pytest.raises(MonitorBroken):
        ask(lambda theirs: theirs.sendall(line))
    with pytest.raises(MonitorBroken):
        ask(answering(lambda _: line))


@pytest.mark.parametrize("reply", [{}, {"return": {}, "id": "else"}, {"error": "no"}])
def test_an_answer_to_nothing_is_no_answer(reply: dict[str, object]) -> None:
    with pytest.raises(MonitorBroken):
        ask(answering(lambda i: json.dumps({"id": i} | reply).encode() + b"\n"))


def test_a_text_of_the_other_side_is_escaped() -> None:
    error = {"class": "GenericError", "desc": "\x1b]0;title\x07\n"}
    with pytest.raises(MonitorRefused) as caught:
        ask(answering(lambda i: json.dumps({"error": error, "id": i}).encode() + b"\n"))
    assert str(caught.value).isprintable()


def test_the_library_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MonitorBroken):
        ask(answering(lambda _: b"[]\n"))
    assert capfd.readouterr() == ("", "")
