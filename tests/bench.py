"""What the daemon itself costs: run by `make bench`; prints figures beside their goals.

Usage: python tests/bench.py [--ticks N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon_under_test import Daemon
from fakehost import FakeHost, folder_on_tmpfs
from realksm import KSM, machine_lock
from workplace import Workbench, Workplace

DEFAULT = 'interval = "1 h"\n'  # the default policy, ticked by signal
GOAL_RSS_MIB = 36
GOALS_MS = {100: 1.0, 1000: 10.0}
WARM_UP_TICKS = 3


@dataclass(frozen=True)
class Cost:
    """What the process has used so far."""

    cpu_ns: int
    child_faults: int  # of children that were waited for: a fork cannot end without some
    children: int

    @staticmethod
    def of(pid: int) -> Cost:
        """Source: proc(5), /proc/PID/stat field 11 and task/*/schedstat, task/*/children."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        cpu_ns = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
        children = sum(len((task / "children").read_text().split()) for task in tasks)
        return Cost(cpu_ns=cpu_ns, child_faults=int(fields[11 - 3]), children=children)


def measure(place: Workbench, name: str, guests: int, ticks: int) -> None:
    """Start a daemon, let it settle, tick it by USR1, print what that cost."""
    with Daemon(place) as daemon:
        daemon.start()
        for _ in range(WARM_UP_TICKS):
            daemon.tick()
        seen = len(place.state()["guests"])
        before, forks_before = Cost.of(daemon.process.pid), _forks()
        for _ in range(ticks):
            daemon.tick()
        after, forks_after = Cost.of(daemon.process.pid), _forks()
        memory = _status_mib(daemon.process.pid)
        daemon.stop()
    cpu_ms = (after.cpu_ns - before.cpu_ns) / ticks / 1e6
    has_forked = after.child_faults > before.child_faults or after.children > before.children
    forks = f"yes, at most {forks_after - forks_before}" if has_forked else "none"
    print(f"\n{name}: {seen} of {guests} guests seen, {ticks} ticks")
    _print("CPU per tick", f"{cpu_ms:.2f} ms", f"at most {GOALS_MS[guests]:.0f} ms")
    _print("forks", forks, "none")
    _print("RSS", f"{memory['VmRSS']:.1f} MiB", f"at most {GOAL_RSS_MIB} MiB")
    _print("RSS, highest", f"{memory['VmHWM']:.1f} MiB", "")


def _print(what: str, found: str, goal: str) -> None:
    print(f"  {what:<14} {found:>14}" + (f"   goal: {goal}" if goal else ""))


def _status_mib(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {key: int(rest.split()[0]) / 1024 for key, rest in pairs}


def _forks() -> int:
    """Forks on the whole machine since boot: an upper bound for ours."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("processes "):
            return int(line.split()[1])
    return 0


def measure_fake_host(guests: int, ticks: int) -> None:
    """A host of plain files on tmpfs, opened for each reading."""
    with folder_on_tmpfs() as folder:
        host = FakeHost(folder / "host")
        host.make_memory_plentiful()
        for pid in range(10_000, 10_000 + guests):
            host.add_guest(pid, rss_pages=1000)
        place = Workplace(host, folder)
        place.configure(DEFAULT)
        place.dropins.mkdir()
        measure(place, "fake host on tmpfs", guests, ticks)


def measure_this_machine(guests: int, ticks: int) -> None:
    """Real procfs and sysfs, and processes that only look like guests."""
    name = f"this machine, {guests} guests"
    if os.geteuid() != 0 or not KSM.is_dir():
        print(f"\n{name}: skipped (needs root and a kernel with KSM)")
        return
    with folder_on_tmpfs() as folder, machine_lock(), sleepers(guests):
        place = Workbench(folder)
        place.configure(DEFAULT)
        place.dropins.mkdir()
        measure(place, "this machine", guests, ticks)


@contextmanager
def sleepers(count: int) -> Iterator[None]:
    """Processes whose comm is qemu-system-x86 and that do nothing."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        program = shutil.copy(shutil.which("sleep") or "/bin/sleep", f"{folder}/qemu-system-x86")
        for _ in range(count):
            process = subprocess.Popen([program, "infinity"], stdin=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=60, help="ticks to average over (60)")
    ticks = parser.parse_args().ticks
    for guests in GOALS_MS:
        measure_fake_host(guests, ticks)
        measure_this_machine(guests, ticks)


if __name__ == "__main__":
    main()
