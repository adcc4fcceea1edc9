"""A host to test against: proc and sysfs as plain files below one root on tmpfs."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fakeproc import PAGE_KB, RSS, START, smaps_rollup, stat_line, status

HOSTS = Path(__file__).parent / "hosts"
BOOT_ID = "0a9f9f0e-6c2b-4d53-8f0c-3a1f6f0a5d11"
KSMD_PID = 37
PF_KTHREAD = 0x00200000

CONTROLS = (
    "run",
    "pages_to_scan",
    "sleep_millisecs",
    "merge_across_nodes",
    "use_zero_pages",
    "max_page_sharing",
    "stable_node_chains_prune_millisecs",
    "smart_scan",
    "advisor_mode",
    "advisor_max_cpu",
    "advisor_min_pages_to_scan",
    "advisor_max_pages_to_scan",
    "advisor_target_scan_time",
)
COUNTERS = (
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "full_scans",
    "stable_node_chains",
    "stable_node_dups",
    "pages_scanned",
    "pages_skipped",
    "ksm_zero_pages",
    "general_profit",
)


def load_image(name: str) -> dict[str, str]:
    """The files that `tests/hosts/NAME.host` describes: path below the root -> content."""
    files: dict[str, str] = {}
    for line in (HOSTS / f"{name}.host").read_text().splitlines():
        path, _, content = line.partition(":")
        relative = path.removeprefix("/")
        files[relative] = files.get(relative, "") + content + "\n"
    return files


class FakeHost:
    """One host tree. What a test changes, it changes with these methods or with plain files."""

    def __init__(self, root: Path, image: str = "kernel-6.18") -> None:
        self.root = root
        self.ksm = root / "sys/kernel/mm/ksm"
        self._start_times = itertools.count(100_000)
        self._meminfo: dict[str, int] = {}
        for path, content in load_image(image).items():
            self.write(path, content)
        self._is_new = (self.ksm / "smart_scan").exists()
        self._read_meminfo()
        self._build_proc()

    # -- files ---------------------------------------------------------------------------------

    def write(self, path: str, content: str) -> Path:
        """Make one file below the root, with its folders."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        return target

    def knob(self, name: str) -> str:
        """What a KSM file holds, without its line end."""
        return (self.ksm / name).read_text().strip()

    def set_knobs(self, **values: int | str) -> None:
        """Write KSM files as somebody else would."""
        for name, value in values.items():
            (self.ksm / name).write_text(f"{value}\n")

    def controls(self) -> dict[str, str]:
        """Every control file that exists, and what it holds."""
        return {name: self.knob(name) for name in CONTROLS if (self.ksm / name).is_file()}

    def pace(self) -> tuple[str, str, str]:
        """run, pages_to_scan, sleep_millisecs."""
        return self.knob("run"), self.knob("pages_to_scan"), self.knob("sleep_millisecs")

    # -- memory --------------------------------------------------------------------------------

    def set_meminfo(self, **kb: int) -> None:
        """Change lines of meminfo, in kB; MemAvailable follows unless it is given."""
        self._meminfo.update(kb)
        if "MemAvailable" in self._meminfo and "MemAvailable" not in kb:
            available = sum(self._meminfo[k] for k in ("MemFree", "Buffers", "Cached"))
            self._meminfo["MemAvailable"] = min(available, self._meminfo["MemTotal"])
        lines = [f"{key + ':':<15} {value:>8} kB" for key, value in self._meminfo.items()]
        # HugePages_Total and its kin count pages.
        text = "\n".join(s.removesuffix(" kB") if s.startswith("HugePages_") else s for s in lines)
        self.write("proc/meminfo", text + "\n")

    def make_memory_short(self) -> None:
        """One percent of RAM is free."""
        total = self._meminfo["MemTotal"]
        self.set_meminfo(MemFree=total // 100, Buffers=0, Cached=0)

    def make_memory_plentiful(self) -> None:
        """Ninety percent of RAM are free."""
        total = self._meminfo["MemTotal"]
        self.set_meminfo(MemFree=total * 9 // 10, Buffers=0, Cached=0)

    @property
    def total_kb(self) -> int:
        return self._meminfo["MemTotal"]

    # -- processes -----------------------------------------------------------------------------

    def add_guest(
        self,
        pid: int,
        *,
        comm: str = "qemu-system-x86",
        rss_pages: int = 262_144,
        name: str = "",
        options: Sequence[str] = (),
    ) -> None:
        """A virtual machine's process, whose memory is mergeable."""
        program = "qemu-system-x86_64" if comm.startswith("qemu") else comm
        arguments = [
            f"/usr/bin/{program}",
            "-name",
            f"guest={name or pid},debug-threads=on",
            *options,
        ]
        self.add_process(pid, comm=comm, rss_pages=rss_pages, arguments=arguments)
        self.set_ksm_stat(pid, mergeable="yes")

    def add_process(
        self,
        pid: int,
        *,
        comm: str,
        rss_pages: int = 1000,
        arguments: list[str] | None = None,
    ) -> None:
        """A process as procfs shows it; a pid in use is taken over by a new process."""
        self.remove_process(pid)
        self._write_process(pid, comm, rss_pages, next(self._start_times), arguments or [comm])
        self.set_ksm_stat(pid)

    def add_kernel_thread(self, pid: int, *, comm: str) -> None:
        """A process without memory and without a command line."""
        self._write_process(pid, comm, 0, 23, [], flags=PF_KTHREAD, parent=2)
        if self._is_new:
            self.write(f"proc/{pid}/ksm_stat", "")

    def resize(self, pid: int, *, rss_pages: int) -> None:
        """The same process, using more or less memory."""
        folder = self.root / f"proc/{pid}"
        fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        arguments = (folder / "cmdline").read_text().split("\0")[:-1]
        comm = (folder / "comm").read_text().rstrip("\n")
        self._write_process(pid, comm, rss_pages, int(fields[START - 3]), arguments)

    def rename(self, pid: int, *, comm: str) -> None:
        """The same process after an exec: another name, the same start time."""
        folder = self.root / f"proc/{pid}"
        fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        rss_pages, start = int(fields[RSS - 3]), int(fields[START - 3])
        self._write_process(pid, comm, rss_pages, start, [f"/usr/bin/{comm}"])

    def merge(self, pid: int, *, pages: int, zero_pages: int = 0) -> None:
        """So many of a process's pages are merged, as its ksm_stat says."""
        lines = ["ksm_rmap_items 9", f"ksm_zero_pages {zero_pages}", f"ksm_merging_pages {pages}"]
        lines += ["ksm_process_profit -7", "ksm_merge_any: no", "ksm_mergeable: yes"]
        self.write(f"proc/{pid}/ksm_stat", "\n".join(lines) + "\n")
        self.write(f"proc/{pid}/ksm_merging_pages", f"{pages}\n")

    def limit(self, pid: int, *, room_bytes: int, above: int = 0) -> Path:
        """Give the process's cgroup, or one so many steps above, a limit. Returns its file."""
        cgroup = (self.root / f"proc/{pid}/cgroup").read_text().rpartition("::/")[2].strip()
        parts = cgroup.split("/")
        folder = "/".join(("sys/fs/cgroup", *parts[: len(parts) - above]))
        self.write(f"{folder}/memory.current", f"{2**30}\n")
        return self.write(f"{folder}/memory.max", f"{2**30 + room_bytes}\n")

    def remove_process(self, pid: int) -> None:
        """The process is gone."""
        shutil.rmtree(self.root / f"proc/{pid}", ignore_errors=True)

    def half_vanish(self, pid: int) -> None:
        """The process dies between the listing of proc and the reading of its files."""
        for file in (self.root / f"proc/{pid}").iterdir():
            file.unlink()

    # -- parts ---------------------------------------------------------------------------------

    def _read_meminfo(self) -> None:
        for line in (self.root / "proc/meminfo").read_text().splitlines():
            key, _, rest = line.partition(":")
            self._meminfo[key] = int(rest.split()[0])

    def _build_proc(self) -> None:
        self.write("proc/sys/kernel/random/boot_id", BOOT_ID + "\n")
        self.write("proc/stat", "cpu  100 0 100 10000 0 0 0 0 0 0\nbtime 1760000000\n")
        self.write("proc/uptime", "20000.00 39000.00\n")
        self.write("proc/vmstat", "nr_free_pages 1000\ncow_ksm 0\nksm_swpin_copy 0\n")
        idle = "avg10=0.00 avg60=0.00 avg300=0.00 total=0"
        self.write("proc/pressure/memory", f"some {idle}\nfull {idle}\n")
        self.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
        (self.root / "proc/self").symlink_to("1")
        self.add_process(1, comm="systemd", rss_pages=3000)
        self.add_kernel_thread(2, comm="kthreadd")
        self.add_kernel_thread(KSMD_PID, comm="ksmd")
        self.set_ksmd_cpu_ns(3_502_000_000)

    def set_ksmd_cpu_ns(self, cpu_ns: int) -> None:
        """The CPU time that ksmd has used, in schedstat and in stat alike."""
        self.write(f"proc/{KSMD_PID}/schedstat", f"{cpu_ns} 190800 2\n")
        ticks = cpu_ns * os.sysconf("SC_CLK_TCK") // 1_000_000_000
        line = stat_line(KSMD_PID, "ksmd", flags=PF_KTHREAD, parent=2, stime=ticks)
        self.write(f"proc/{KSMD_PID}/stat", line)

    def _write_process(
        self,
        pid: int,
        comm: str,
        rss_pages: int,
        start: int,
        arguments: list[str],
        *,
        flags: int = 0x00400000,
        parent: int = 1,
    ) -> None:
        assert len(comm.encode()) <= 15, f"the kernel would cut {comm!r}"
        is_thread = bool(flags & PF_KTHREAD)
        proc = f"proc/{pid}"
        scope = "/" if is_thread else f"/machine.slice/machine-{pid}.scope"
        line = stat_line(pid, comm, flags=flags, parent=parent, start=start, rss_pages=rss_pages)
        self.write(f"{proc}/stat", line)
        size = 0 if is_thread else rss_pages + 5000
        shared = min(rss_pages, 500)
        self.write(f"{proc}/statm", f"{size} {rss_pages} {shared} 5 0 {size // 2} 0\n")
        self.write(f"{proc}/comm", comm + "\n")
        self.write(f"{proc}/cmdline", "".join(a + "\0" for a in arguments))
        self.write(f"{proc}/status", status(pid, comm, parent, rss_pages, shared, is_thread))
        self.write(f"{proc}/cgroup", f"0::{scope}\n")
        self.write(f"{proc}/schedstat", "1000000 2000 30\n")
        if not is_thread:
            anon_kb = (rss_pages - shared) * PAGE_KB
            stat_text = f"anon {anon_kb * 1024}\nfile 0\nkernel 0\nshmem 0\n"
            self.write(f"sys/fs/cgroup{scope}/memory.stat", stat_text)
            self.write(f"{proc}/smaps_rollup", smaps_rollup(rss_pages, shared))

    def set_ksm_stat(self, pid: int, *, mergeable: str = "no", **figures: int) -> None:
        """What KSM does with a process, on a kernel that says so: merging_pages=, zero_pages=,
        rmap_items=, process_profit=."""
        if not self._is_new:
            return
        names = ("rmap_items", "zero_pages", "merging_pages", "process_profit")
        lines = [f"ksm_{name} {figures.get(name, 0)}" for name in names]
        lines += ["ksm_merge_any: no", f"ksm_mergeable: {mergeable}"]
        self.write(f"proc/{pid}/ksm_stat", "\n".join(lines) + "\n")
        self.write(f"proc/{pid}/ksm_merging_pages", f"{figures.get('merging_pages', 0)}\n")


@contextmanager
def folder_on_tmpfs() -> Iterator[Path]:
    """A folder that costs no disk and is gone afterwards."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="ksmtuned-test-", dir=shm))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
