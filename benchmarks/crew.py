"""The guests of one run: real processes with real memory, told when to do what."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.kernel import ContestError
from benchmarks.scenarios import Event, Guest, Scenario

SOURCE = Path(__file__).with_name("guest.c")


def build(folder: Path, *, is_disguised: bool) -> Path:
    """The guests' program. is_disguised: nobody takes it for a guest by its name.

    Errors: ContestError.
    """
    program = folder / ("guest" if is_disguised else "qemu-system-x86_64")
    try:
        subprocess.run(["cc", "-O2", "-o", str(program), str(SOURCE)], check=True)
    except FileNotFoundError as error:
        raise ContestError("cc: no such program; install a C compiler (gcc, libc6-dev)") from error
    except subprocess.CalledProcessError as error:
        raise ContestError(f"{SOURCE}: cc could not compile it") from error
    return program


class Crew:
    """Use it in a with statement: no guest outlives it."""

    def __init__(self, program: Path, scenario: Scenario) -> None:
        self._program = program
        self._guests = scenario.guests
        self._processes: dict[int, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            _reap(process)

    def do(self, event: Event) -> None:
        """Errors: ContestError, if the guest is gone."""
        if not event.command:
            self._processes[event.guest] = self._start(event.guest, self._guests[event.guest])
        elif event.command == "quit":
            process = self._processes.pop(event.guest)
            process.kill()
            _reap(process)
        else:
            self._tell(event)

    def check(self) -> None:
        """Errors: ContestError, if a guest has ended by itself."""
        for number, process in self._processes.items():
            if process.poll() is not None:
                raise ContestError(
                    f"guest {number + 1} ended with status {process.returncode} "
                    "(-9: killed, perhaps for want of memory)"
                )

    def _start(self, number: int, guest: Guest) -> subprocess.Popen[str]:
        words = [str(self._program)]
        if self._program.name != "guest":
            words += ["-enable-kvm", "-name", f"guest=contest-{number + 1}"]
        kinds = (guest.common_pct, guest.zero_pct, guest.volatile_pct, guest.rewrites_per_s)
        return subprocess.Popen(
            [*words, str(number + 1), *map(str, kinds)],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the contest, which stops things in order
        )

    def _tell(self, event: Event) -> None:
        pipe = self._processes[event.guest].stdin
        if pipe is None:
            raise ContestError("a guest without stdin")
        try:
            pipe.write(f"{event.command}\n")
            pipe.flush()
        except BrokenPipeError as error:
            raise ContestError(f"guest {event.guest + 1} is gone") from error


def _reap(process: subprocess.Popen[str]) -> None:
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
