"""Fixtures: a fake host, a workplace on it, daemons that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from daemon_under_test import Daemon
from debian import DebianScript
from fakehost import FakeHost, folder_on_tmpfs
from realksm import RealKsm, borrowed
from workplace import FIXED, Workplace


@pytest.fixture(autouse=True)
def _own_processes() -> Iterator[None]:
    """An inventory points psutil at its host for good; the next test means this machine."""
    yield
    psutil.PROCFS_PATH = "/proc"


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder on tmpfs."""
    with folder_on_tmpfs() as path:
        yield path


@pytest.fixture
def place(folder: Path) -> Workplace:
    """A host with kernel 6.18 and memory in plenty, and the policy `fixed`."""
    host = FakeHost(folder / "host")
    host.make_memory_plentiful()
    place = Workplace(host, folder)
    place.dropins.mkdir()
    place.run_dir.mkdir()
    place.configure(FIXED)
    return place


@pytest.fixture
def host(place: Workplace) -> FakeHost:
    """The workplace's host."""
    return place.host


@pytest.fixture
def launch(place: Workplace) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons; `launch()` waits for none of them to be ready."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Daemon(place, **options))


@pytest.fixture
def daemon(launch: Callable[..., Daemon]) -> Daemon:
    """A daemon that is ready."""
    started = launch()
    started.start()
    return started


@pytest.fixture
def real_ksm() -> Iterator[RealKsm]:
    """This machine's KSM, alone and idle; given back as it was found."""
    with borrowed() as ksm:
        yield ksm


@pytest.fixture(scope="module")
def debian() -> Iterator[DebianScript]:
    """One process for all tests: a new host is one line on its stdin."""
    with folder_on_tmpfs() as folder, DebianScript(folder) as script:
        yield script
