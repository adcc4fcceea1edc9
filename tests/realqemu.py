"""Real QEMU guests with equal memory, which run no code: cheap, and exactly alike."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from workplace import wait_until

PROGRAM = "qemu-system-x86_64"
FILLED_MIB = 32  # of each guest's RAM; the same content in every one
FILLED_PAGES = FILLED_MIB * 256


class Qemu:
    """One QEMU process, paused before its first instruction."""

    def __init__(self, name: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.name, self.process = name, process
        self.socket = folder / f"{name}.qmp"

    @property
    def pid(self) -> int:
        return self.process.pid

    def merged_pages(self) -> int:
        """Its pages that are mapped to a merged one."""
        return int(Path(f"/proc/{self.pid}/ksm_merging_pages").read_text())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def qemus(folder: Path, names: Sequence[str], *more: str) -> Iterator[list[Qemu]]:
    """Guests of 128 MiB with a QMP socket each, whose memory is filled; `more`: options of QEMU."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"live: no {PROGRAM} here (Debian: qemu-system-x86)")
    if not Path("/proc/self/ksm_merging_pages").exists():
        pytest.skip("live: this kernel does not tell what KSM holds of a process")
    image = folder / "image"
    if not image.exists():
        image.write_bytes(random.Random(4).randbytes(FILLED_MIB * 2**20))
    with ExitStack() as stack:
        guests = [_start(folder, name, image, more) for name in names]
        for guest in guests:
            stack.callback(guest.end)
        for guest in guests:
            wait_until(guest.socket.exists, f"{guest.name}'s socket")
            wait_until(lambda g=guest: _rss_mib(g.pid) > FILLED_MIB, f"{guest.name} filled")  # type: ignore[misc]  # mypy cannot infer a default's type
        yield guests


def _start(folder: Path, name: str, image: Path, more: Sequence[str]) -> Qemu:
    command = [
        *(PROGRAM, "-name", f"guest={name},debug-threads=on"),
        *("-accel", "tcg,tb-size=8", "-S", "-nodefaults", "-display", "none", "-m", "128"),
        *("-device", f"loader,file={image},addr=0x1000000,force-raw=on"),
        *("-qmp", f"unix:{folder / f'{name}.qmp'},server=on,wait=off"),
        *more,
    ]
    log = (folder / f"{name}.log").open("wb")
    with log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    time.sleep(0.01)
    return Qemu(name, folder, process)


def _rss_mib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0
