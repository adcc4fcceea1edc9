"""The classic law as a pure function against the script that it was taken from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from debian import TWO_TIB_KB, DebianScript, Law, Pace
from hypothesis import given, settings
from hypothesis import strategies as st

from ksmtuned.model import Guest, KsmStat, Meminfo, Snapshot
from ksmtuned.policies.classic import Classic


@dataclass(frozen=True, slots=True)
class Story:
    """A host and what happens on it: (free, committed) in kB, step by step."""

    law: Law
    total_kb: int
    steps: list[tuple[int, int]]


@st.composite
def laws(draw: st.DrawFn) -> Law:
    npages_min = draw(st.integers(0, 3000))
    return Law(
        boost=draw(st.integers(0, 5000)),
        decay=draw(st.integers(-5000, 0)),
        npages_min=npages_min,
        npages_max=npages_min + draw(st.integers(0, 20_000)),
        sleep_msec=draw(st.integers(1, 3000)),
        thres_coef=draw(st.integers(0, 100)),
        thres_const_kb=draw(st.sampled_from((0, 2048)) | st.integers(0, 2**24)),
    )


@st.composite
def stories(draw: st.DrawFn) -> Story:
    law = draw(st.just(Law()) | laws())
    total = draw(st.integers(4096, TWO_TIB_KB - 1))
    threshold = law.threshold_kb(total)
    near = st.integers(-4, 4)
    free = st.integers(0, total) | near.map(lambda d: min(total, max(0, threshold + d)))
    committed = st.integers(0, 2 * total) | near.map(lambda d: max(0, total - threshold + d))
    steps = draw(st.lists(st.tuples(free, committed), min_size=1, max_size=12))
    return Story(law, total, steps)


@settings(max_examples=120, deadline=None, print_blob=True)
@given(story=stories())
def test_the_law_as_a_function_decides_like_debians_script(
    debian: DebianScript, story: Story
) -> None:
    law = _classic(story.law)
    pace, past = Pace(0, 100, 20), law.start()
    debian.start(story.law, _three_lines(story.total_kb, 0), pace)
    for free_kb, committed_kb in story.steps:
        told = debian.step(_three_lines(story.total_kb, free_kb), committed_kb)
        now = _snapshot(story.total_kb, free_kb, committed_kb)
        decision, past = law.decide(now, past)
        wanted = {name: int(value) for name, value in decision.settings.wanted().items()}
        pace = replace(pace, **wanted)
        assert pace == told, decision.reason


def _classic(law: Law) -> Classic:
    return Classic(
        npages_boost=law.boost,
        npages_decay=law.decay,
        npages_min=law.npages_min,
        npages_max=law.npages_max,
        sleep_msec=law.sleep_msec,
        thres_coef=law.thres_coef,
        thres_const=law.thres_const_kb * 1024,
    )


def _three_lines(total_kb: int, free_kb: int) -> str:
    """Free memory, spread over the lines that the script adds up."""
    third = free_kb // 3
    return (
        f"MemTotal:       {total_kb:>8} kB\nMemFree:        {third:>8} kB\n"
        f"Buffers:        {third:>8} kB\nCached:         {free_kb - 2 * third:>8} kB\n"
    )


def _snapshot(total_kb: int, free_kb: int, committed_kb: int) -> Snapshot:
    guest = Guest(
        pid=4000, start_time=1, name="one", vmm="qemu-kvm", memory_bytes=committed_kb * 1024
    )
    third = free_kb // 3
    meminfo = Meminfo(
        total_bytes=total_kb * 1024,
        free_bytes=third * 1024,
        buffers_bytes=third * 1024,
        cached_bytes=(free_kb - 2 * third) * 1024,
    )
    return Snapshot(time=0.0, monotonic_s=0.0, ksm=KsmStat(run=0), meminfo=meminfo, guests=(guest,))
