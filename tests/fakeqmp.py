"""A process that answers like QEMU's monitor, well or badly; its pid is a guest of a fake host."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fakehost import FakeHost

GREETING = {"QMP": {"version": {"qemu": {"major": 8, "minor": 2, "micro": 1}}, "capabilities": []}}
MERGED = 20_000  # pages: more than QEMU's firmware and video memory can make up
SOCKET = "/run/vm.qmp"  # as the guest sees it
RAM_BYTES = 2**30


class FakeQemu:
    """One guest: its process in the fake host's proc, and its own file system."""

    def __init__(self, host: FakeHost, folder: Path, process: subprocess.Popen[str]) -> None:
        self.host, self.folder, self.process = host, folder, process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def proc(self) -> Path:
        return self.host.root / f"proc/{self.pid}"

    def appear(self, *options: str, name: str = "vm", comm: str = "qemu-system-x86") -> None:
        """The process shows up in proc, with its command line and its root."""
        arguments = [f"/usr/bin/{comm}", "-name", f"guest={name}", *options]
        self.host.add_process(self.pid, comm=comm, arguments=arguments)
        (self.proc / "root").symlink_to(self.folder)
        (self.proc / "cwd").symlink_to(self.folder / "run")
        self.show_ksm(MERGED, "yes")
        (self.proc / "smaps").write_text(smaps([True] * 3))

    def show_ksm(self, merging: int, mergeable: str) -> None:
        """What the kernel tells of it."""
        (self.proc / "ksm_stat").write_text(ksm_stat(merging, mergeable))

    def sets(self) -> list[str]:
        """Every qom-set that it took, in order: "pc.ram False"."""
        log = self.folder / "sets"
        return log.read_text().splitlines() if log.exists() else []

    def has_heard(self) -> bool:
        """Was anything at all said to it?"""
        return (self.folder / "heard").exists()


def smaps(offered: Iterable[bool]) -> str:
    """A mapping of RAM_BYTES for each backend, with flag mg if it is offered to KSM."""
    flags = (f"rd wr mr mw me {'mg' if is_offered else 'nh'}" for is_offered in offered)
    size = f"Size:           {RAM_BYTES // 1024:>8} kB\nKernelPageSize:        4 kB\n"
    return "".join(f"7f00-7f01 rw-p 0 00:00 0\n{size}VmFlags: {words} \n" for words in flags)


def ksm_stat(merging: int, mergeable: str) -> str:
    """As 6.14 and later print it."""
    return (
        f"ksm_rmap_items {merging}\nksm_zero_pages 0\nksm_merging_pages {merging}\n"
        f"ksm_process_profit 0\nksm_merge_any: no\nksm_mergeable: {mergeable}\n"
    )


@contextmanager
def fake_qemu(
    host: FakeHost, folder: Path, behaviour: str = "normal", path: str = SOCKET
) -> Iterator[FakeQemu]:
    """A child process that serves a monitor; see _Server for its behaviours."""
    place = folder / path.lstrip("/")
    place.parent.mkdir(parents=True)
    command = [sys.executable, __file__, str(place), behaviour, str(host.root), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield FakeQemu(host, folder, process)
        finally:
            process.kill()


class _Server:
    """normal; deaf (flag without effect); and by name: what it does instead of answering well."""

    def __init__(self, behaviour: str, root: Path, folder: Path) -> None:
        self.behaviour, self.root, self.folder = behaviour, root, folder
        shared = behaviour == "shared"
        self.merge = {} if behaviour == "empty" else {"pc.ram": True, "mem1": True, "mem2": True}
        self.share = dict.fromkeys(self.merge, shared)

    def serve(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        self._send(connection, "SSH-2.0-nonsense" if self.behaviour == "garbage" else GREETING)
        # A command ends with its last bracket; no line end follows.
        while content := connection.recv(65536):
            (self.folder / "heard").touch()
            words = json.loads(content)
            if self.behaviour == "talkative" and words["execute"] != "qmp_capabilities":
                for number in range(2000):
                    self._send(
                        connection, {"event": "STOP", "data": {"n": number}, "timestamp": {}}
                    )
            answer = self._answer(words["execute"], words.get("arguments", {}))
            if answer is None:
                return
            self._send(connection, answer | {k: words[k] for k in ("id",) if k in words})

    def _send(self, connection: socket.socket, message: object) -> None:
        connection.sendall(json.dumps(message).encode() + b"\n")

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """None: hang up."""
        if command == "query-version":
            deaf = {"major": 9, "minor": 1, "micro": 0}
            numbers = deaf if self.behaviour == "deaf" else GREETING["QMP"]["version"]["qemu"]  # type: ignore[index]  # a table of tables
            return {"return": {"qemu": numbers, "package": ""}}
        if command == "qom-list":
            if self.behaviour == "huge":
                return {"return": "x" * 3 * 2**20}
            if self.behaviour == "countless":
                kind = "child<memory-backend-ram>"
                return {"return": [{"name": f"m{n}", "type": kind} for n in range(1000)]}
            if self.behaviour == "nonsense":
                return {"return": 17}
            listed = [{"name": "type", "type": "string"}, {"name": "obj0", "type": "child<rng>"}]
            kind = "child<memory-backend-ram>"
            return {"return": listed + [{"name": n, "type": kind} for n in self.merge]}
        if command in ("qom-get", "qom-set"):
            return self._property(command, arguments)
        return {"return": {}}

    def _property(self, command: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        name = arguments["path"].removeprefix("/objects/")
        if command == "qom-set":
            return self._set(name, arguments["value"])
        key = arguments["property"]
        if key == "size":
            return {"return": RAM_BYTES}
        return {"return": (self.merge if key == "merge" else self.share)[name]}

    def _set(self, name: str, value: bool) -> dict[str, Any] | None:
        if name == "mem2" and value is False:
            if self.behaviour == "refuses":
                return {"error": {"class": "GenericError", "desc": "no\x1b[31m such luck"}}
            if self.behaviour == "hangs up":
                return None
            if self.behaviour == "dies":
                shutil.rmtree(self._proc)
                sys.exit(0)
        with (self.folder / "sets").open("a") as log:
            log.write(f"{name} {value}\n")
        self.merge[name] = value
        if self.behaviour != "deaf":
            is_on = any(self.merge.values())
            stat = ksm_stat(MERGED if is_on else 0, "yes" if is_on else "no")
            (self._proc / "ksm_stat").write_text(stat)
            (self._proc / "smaps").write_text(smaps(self.merge.values()))
        return {"return": {}}

    @property
    def _proc(self) -> Path:
        return self.root / f"proc/{_own_pid()}"


def _own_pid() -> int:
    return int(Path("/proc/self").resolve().name)


def _main(arguments: Sequence[str]) -> None:
    place, behaviour, root, folder = arguments
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        print("ready", flush=True)
        _Server(behaviour, Path(root), Path(folder)).serve(listener)


if __name__ == "__main__":
    _main(sys.argv[1:])
