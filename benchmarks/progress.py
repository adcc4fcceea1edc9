"""What a run says while it goes on: one line that changes, or few lines in a log."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from benchmarks.figures import Sample
from ksmtuned.units import size

LOG_S = 30.0  # between two lines where nobody watches


class Progress:
    """Use it in a with statement: the line is ended with it."""

    def __init__(self, title: str, seconds: float) -> None:
        self._title, self._seconds = title, seconds
        self._is_watched = sys.stderr.isatty()
        self._next_s = 0.0
        self._line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end = "\n" if self._is_watched else f"{self._line}\n"
        print(end, end="", file=sys.stderr, flush=True)

    def show(self, sample: Sample) -> None:
        """Where the run is now."""
        self._line = (
            f"{self._title:<30} {sample.at_s:4.0f}/{self._seconds:.0f} s  "
            f"saved {size(sample.saving_bytes):>9}  ksmd {sample.ksmd_cpu_s:6.1f} CPU s  "
            f"{sample.pages_to_scan} pages / {sample.sleep_millisecs} ms, run {sample.run}"
        )
        if self._is_watched:
            print(f"\r\033[K{self._line}", end="", file=sys.stderr, flush=True)
        elif sample.at_s >= self._next_s:
            self._next_s += LOG_S
            print(self._line, file=sys.stderr, flush=True)
