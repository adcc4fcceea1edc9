"""The guests as JSON text: the same as their values, made again only when something changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from snapshots import QUIET

from ksmtuned.guestlist import GuestTexts, guests_json
from ksmtuned.model import Details, Guest, KsmStat, Snapshot
from ksmtuned.rundir import RunDir

KSM = KsmStat(run=1, pages_shared=10, pages_sharing=90)


def guest(pid: int, merging: int, name: str = "vm") -> Guest:
    details = Details(merging_pages=merging, cgroup="/a", mergeable=True, share="on")
    return Guest(pid=pid, start_time=1, name=name, vmm="q", memory_bytes=5, details=details)


HOST = replace(QUIET, ksm=KSM, guests=(guest(1, 30), guest(2, 50)), others=(guest(3, 20),))


def parsed(texts: GuestTexts, now: Snapshot) -> object:
    return {key: json.loads(text) for key, text in texts.of(now).items()}


@pytest.mark.parametrize(
    "changed",
    [
        HOST,
        replace(HOST, guests=()),
        replace(HOST, others=()),
        replace(HOST, ksm=replace(KSM, pages_sharing=40)),  # other shares
        replace(HOST, guests=(replace(guest(1, 30), memory_bytes=6), guest(2, 50))),
        replace(HOST, guests=(guest(1, 31), guest(2, 50))),  # other details
        replace(HOST, guests=(replace(guest(1, 30, "new"), start_time=2), guest(2, 50))),
        replace(HOST, guests=(guest(1, 30, 'a"\\\n\udce9'), guest(2, 50))),
    ],
)
def test_the_text_says_what_the_values_say_also_after_a_change(changed: Snapshot) -> None:
    texts = GuestTexts()
    assert parsed(texts, HOST) == guests_json(HOST)
    if changed.guests and changed.guests[0].name != HOST.guests[0].name:
        texts = GuestTexts()  # a guest keeps its name for life
    assert parsed(texts, changed) == guests_json(changed)
    assert parsed(texts, HOST) == guests_json(HOST)


def test_a_file_may_be_written_in_parts(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path)
    rundir.write("state.json", {"a": 1}, {"guests": "[1,2]", "others": "[]"})
    assert rundir.read("state.json") == {"a": 1, "guests": [1, 2], "others": []}
    rundir.write("state.json", {}, {"guests": "[]"})
    assert rundir.read("state.json") == {"guests": []}
    rundir.write("state.json", {"a": {}})
    assert rundir.read("state.json") == {"a": {}}
