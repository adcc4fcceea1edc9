"""Which news of KVM is worth a look: guests are, probes are not, a storm is worth a few."""

from __future__ import annotations

from ksmtuned.triggers.trial import PAUSE_S, TRIAL_S, Trial
from ksmtuned.triggers.uevent import News, Uevent

EPSILON_S = 0.001


class Kvm:
    """A clock, the threads that are alive, and the trial under test."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.threads: dict[int, int] = {}  # thread -> process
        self.probes: set[int] = set()
        self.trial = Trial(self.threads.get, self.probes.__contains__)
        self.looks: list[float] = []

    def create(self, thread: int, process: int | None = None) -> None:
        self.threads[thread] = thread if process is None else process
        self.trial.note(Uevent(News.CREATED, thread), self.now_s)

    def destroy(self, thread: int) -> None:
        self.threads.pop(thread, None)
        self.tell(News.DESTROYED, thread)

    def tell(self, news: News, thread: int | None = None) -> None:
        self.trial.note(Uevent(news, thread), self.now_s)

    def wait(self, seconds: float) -> None:
        """Sleep as the daemon does: no longer than the trial says."""
        end_s = self.now_s + seconds
        while True:
            if self.trial.take(self.now_s):
                self.looks.append(round(self.now_s - 100.0, 3))
            due_s = self.trial.due_s()
            if due_s is None or due_s > end_s:
                self.now_s = end_s
                return
            self.now_s = max(due_s, self.now_s + EPSILON_S)


def test_a_guest_is_looked_at_once_within_a_second_of_its_start() -> None:
    kvm = Kvm()
    kvm.create(1000)
    kvm.wait(10)
    assert kvm.looks == [TRIAL_S]


def test_ten_probes_in_a_row_wake_nobody() -> None:
    kvm = Kvm()
    for thread in range(1000, 1010):
        kvm.create(thread)
        kvm.wait(0.05)
        kvm.destroy(thread)
        kvm.wait(0.1)
    kvm.wait(10)
    assert kvm.looks == []


def test_a_probe_that_was_killed_before_we_looked_is_nothing() -> None:
    kvm = Kvm()
    kvm.tell(News.CREATED, 1000)  # gone already: no such thread
    kvm.wait(10)
    assert kvm.looks == []


def test_one_that_dies_without_a_word_within_the_trial_is_nothing() -> None:
    kvm = Kvm()
    kvm.create(1000)
    del kvm.threads[1000]
    kvm.wait(10)
    assert kvm.looks == []


def test_a_slow_probe_is_known_by_its_command_line_and_its_end_is_no_news() -> None:
    kvm = Kvm()
    kvm.create(1000)
    kvm.probes.add(1000)
    kvm.wait(5)
    kvm.destroy(1000)
    kvm.wait(5)
    assert kvm.looks == []


def test_a_thread_that_passed_to_another_process_is_no_guest() -> None:
    kvm = Kvm()
    kvm.create(1000, process=900)
    kvm.threads[1000] = 1000
    kvm.wait(5)
    assert kvm.looks == []


def test_while_on_trial_the_process_is_named_not_its_thread() -> None:
    kvm = Kvm()
    kvm.create(1003, process=1000)
    assert kvm.trial.on_trial() == {1000}
    kvm.wait(1)
    assert kvm.trial.on_trial() == set()


def test_the_end_of_a_guest_is_news_and_many_ends_are_one() -> None:
    kvm = Kvm()
    for thread in (1000, 1001, 1002):
        kvm.destroy(thread)  # from before our time
    kvm.wait(10)
    assert kvm.looks == [TRIAL_S]


def test_a_storm_of_guests_is_worth_a_look_now_and_then() -> None:
    kvm = Kvm()
    for thread in range(1000, 1200):
        kvm.create(thread)
        kvm.wait(0.02)
    kvm.wait(5)
    gaps = [b - a for a, b in zip(kvm.looks, kvm.looks[1:], strict=False)]
    assert min(gaps) >= PAUSE_S - EPSILON_S
    # And each guest is looked at within a second all the same.
    for number in range(200):
        born_s = number * 0.02
        assert any(born_s + TRIAL_S <= look + EPSILON_S <= born_s + 1 for look in kvm.looks)


def test_memory_that_is_plugged_in_many_blocks_is_one_piece_of_news() -> None:
    kvm = Kvm()
    for _ in range(32):
        kvm.tell(News.MEMORY)
        kvm.wait(0.01)
    kvm.wait(5)
    assert kvm.looks == [TRIAL_S]


def test_lost_news_is_worth_a_look_and_what_is_asked_for_comes_at_once() -> None:
    kvm = Kvm()
    kvm.tell(News.LOST)
    kvm.wait(5)
    assert kvm.looks == [TRIAL_S]
    kvm.trial.ask(kvm.now_s)
    kvm.wait(5)
    assert kvm.looks == [TRIAL_S, 5.0]
    kvm.trial.ask(kvm.now_s)
    kvm.wait(0.1)
    kvm.trial.ask(kvm.now_s)
    kvm.wait(5)
    assert kvm.looks == [TRIAL_S, 5.0, 10.0, 10.0 + PAUSE_S]
