"""Memory backends: what is asked of QEMU, and in which time."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from ksmtuned.errors import MonitorBroken, MonitorRefused
from ksmtuned.guests.backends import Backend, NotAllSet, backends, set_merge, version


class Tardy:
    """A monitor that takes its time for each answer, and gives up when told."""

    def __init__(self, answer_s: float = 0.0, refuses: str = "") -> None:
        self.answer_s, self.refuses = answer_s, refuses
        self.merge: dict[object, object] = {}

    def execute(
        self, command: str, arguments: Mapping[str, object], limit_s: float | None = None
    ) -> object:
        if limit_s is not None and limit_s < self.answer_s:
            raise MonitorBroken("too late")
        time.sleep(self.answer_s)
        if command == "qom-get":
            return self.merge[arguments["path"]]
        if arguments["path"] == self.refuses:
            raise MonitorRefused("no")
        self.merge[arguments["path"]] = arguments["value"]
        return {}


def some(*names: str) -> list[Backend]:
    return [Backend(path=n, size_bytes=1, merge=True, is_shared=False) for n in names]


def test_all_answers_together_have_to_come_in_time() -> None:
    started_s = time.monotonic()
    with pytest.raises(NotAllSet, match="merge is off on 0, 1"):
        set_merge(Tardy(0.05), some(*map(str, range(100))), False, 0.25)
    assert time.monotonic() - started_s < 1


def test_the_first_refusal_changes_nothing() -> None:
    with pytest.raises(NotAllSet, match="nothing was changed"):
        set_merge(Tardy(refuses="a"), some("a", "b"), False, 1)


class Answers:
    """A monitor that has one answer for everything."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def execute(
        self,
        command: str,  # noqa: ARG002  # the form of every monitor
        arguments: Mapping[str, object],  # noqa: ARG002
        limit_s: float | None = None,  # noqa: ARG002
    ) -> object:
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [None, 5, "text", [], {}, {"qemu": []}, {"qemu": {"major": True, "minor": -1, "micro": 2**80}}],
)
def test_answers_of_another_form_are_no_answers(answer: object) -> None:
    with pytest.raises(MonitorBroken):
        version(Answers(answer))
    if answer != []:
        with pytest.raises(MonitorBroken):
            backends(Answers(answer))


@pytest.mark.parametrize(
    "entry", ["text", None, {"name": "x" * 300, "type": "child<memory-backend-ram>"}]
)
def test_objects_of_another_form_are_none(entry: object) -> None:
    with pytest.raises(MonitorBroken):
        backends(Answers([entry]))
