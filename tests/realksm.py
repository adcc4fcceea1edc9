"""This machine's own KSM: borrowed where that can hurt nobody, and given back."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fakehost import CONTROLS
from workplace import wait_until

KSM = Path("/sys/kernel/mm/ksm")
LOCK = Path("/tmp/ksm-live.lock")  # one live run at a time on a machine
LOCK_PATIENCE_S = 300.0

# Maps memory, offers it to KSM and fills it: page n of every such process holds the same, no two
# pages of one process do. Ends when its stdin is closed.
_TENANT = """
import mmap, sys
PAGE = mmap.PAGESIZE
pages, is_full = int(sys.argv[1]), sys.argv[2] == "full"
memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
memory.madvise(mmap.MADV_MERGEABLE)
for n in range(pages):
    content = (n + 1).to_bytes(8, "little") * (PAGE // 8 if is_full else 1)
    memory[n * PAGE : n * PAGE + len(content)] = content
print("ready", flush=True)
sys.stdin.read()
"""


class RealKsm:
    """The folder in sysfs, and processes with mergeable memory."""

    def read(self, name: str) -> str:
        return (KSM / name).read_text().strip()

    def number(self, name: str) -> int:
        return int(self.read(name))

    def write(self, name: str, value: int | str) -> None:
        (KSM / name).write_text(f"{value}\n")

    def controls(self) -> dict[str, str]:
        """Every control of this kernel."""
        return {name: self.read(name) for name in CONTROLS if (KSM / name).exists()}

    @contextmanager
    def tenants(self, count: int, *, pages: int, is_full: bool = True) -> Iterator[list[int]]:
        """Processes with that many mergeable pages each, filled and waiting; their pids.

        is_full: write whole pages; else only their first bytes (quicker for gigabytes).
        """
        command = [sys.executable, "-c", _TENANT, str(pages), "full" if is_full else "thin"]
        pipe = subprocess.PIPE
        processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            yield [process.pid for process in processes]
        finally:
            for process in processes:
                process.communicate()

    def merge(self, pages_sharing: int) -> None:
        """Let ksmd run until that much is merged, then stop it."""
        before = {name: self.read(name) for name in ("pages_to_scan", "sleep_millisecs")}
        self.write("pages_to_scan", 5000)
        self.write("sleep_millisecs", 1)
        self.write("run", 1)
        wait_until(lambda: self.number("pages_sharing") >= pages_sharing, "pages merged", 50)
        self.write("run", 0)
        for name, value in before.items():
            self.write(name, value)


@contextmanager
def limited(pids: list[int], most_bytes: int) -> Iterator[Path]:
    """What these processes take from now on is charged to a cgroup with that limit; its file."""
    for mount, limit in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        folder = mount / f"ksmtuned-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if not (folder / limit).exists():
                continue
            (folder / limit).write_text(f"{most_bytes}\n")
            before = [_cgroup_of(pid, mount) for pid in pids]
            for pid in pids:
                (folder / "cgroup.procs").write_text(f"{pid}\n")
            try:
                yield folder / limit
            finally:
                for pid, home in zip(pids, before, strict=True):
                    with suppress(ProcessLookupError):
                        (home / "cgroup.procs").write_text(f"{pid}\n")
            return
        finally:
            _remove_cgroup(folder)
    pytest.skip("live: no cgroup with a memory limit can be made here")


def _cgroup_of(pid: int, mount: Path) -> Path:
    controller = "memory" if mount.name == "memory" else ""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return mount / path.lstrip("/")
    raise AssertionError(f"pid {pid} is in no cgroup below {mount}")


def _remove_cgroup(folder: Path) -> None:
    def is_gone() -> bool:
        with suppress(OSError):  # busy for a moment after its last process
            folder.rmdir()
        return not folder.exists()

    wait_until(is_gone, f"{folder} removed", 10)


def ksmd_cpu_ns() -> int:
    """CPU time of this machine's ksmd."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        if comm.read_text() == "ksmd\n":
            return int((comm.parent / "schedstat").read_text().split()[0])
    pytest.skip("live: ksmd is not visible here")


@contextmanager
def borrowed() -> Iterator[RealKsm]:
    """The real KSM, if it is idle; every control is given back, and nothing stays merged."""
    _skip_unless_usable()
    with machine_lock():
        _skip_unless_idle()
        ksm = RealKsm()
        before = ksm.controls()
        try:
            yield ksm
        finally:
            # A daemon that was killed may leave children whose writes still wait for ksmd.
            wait_until(_is_lease_free, "the last writer gone", 60)
            _give_back(ksm, before)


def _skip_unless_usable() -> None:
    if os.geteuid() != 0:
        pytest.skip("live: only root may write to KSM")
    if not KSM.is_dir():
        pytest.skip("live: this kernel has no KSM")
    if os.statvfs(KSM).f_flag & os.ST_RDONLY:
        pytest.skip("live: sysfs is read-only here")


@contextmanager
def machine_lock() -> Iterator[None]:
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    deadline = time.monotonic() + LOCK_PATIENCE_S
    try:
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                pytest.skip(f"live: somebody else holds {LOCK}")
            time.sleep(0.1)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _skip_unless_idle() -> None:
    ksm = RealKsm()
    if ksm.number("run") & 3 or ksm.number("pages_shared"):
        pytest.skip("live: KSM is in use here (run or pages_shared is not 0)")
    if not _is_lease_free():
        pytest.skip("live: a ksmtuned runs here")


def _is_lease_free() -> bool:
    """Does no ksmtuned, and no child of one, hold this machine's KSM?"""
    fd = os.open(KSM, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _try_lock(fd)
    finally:
        os.close(fd)


def _give_back(ksm: RealKsm, before: dict[str, str]) -> None:
    ksm.write("run", 0)  # waits for the batch under way, which may merge still
    if ksm.number("pages_shared"):
        ksm.write("run", 2)
        ksm.write("run", 0)
    # The advisor's mode first: changing it changes pages_to_scan.
    for name in sorted(before, key=lambda name: name != "advisor_mode"):
        if ksm.read(name) != before[name]:
            ksm.write(name, _chosen(before[name]))
    assert ksm.controls() == before


def _chosen(text: str) -> str:
    """The word in brackets of "[none] scan-time"; other values as they are."""
    return text.partition("[")[2].partition("]")[0] if "[" in text else text
