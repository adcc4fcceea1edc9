"""QEMU's monitor over its own socket: one command at a time, each within its time.

The library is asyncio's, and loads it; only what speaks with a guest may import this module.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, TypeVar

from qemu.qmp import (
    ConnectError,
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
    QMPError,
    StateError,
)
from qemu.qmp.error import ProtocolError

from ksmtuned.errors import MonitorBroken, MonitorRefused
from ksmtuned.units import duration, printable

ANSWER_S = 10.0  # a healthy QEMU answers within milliseconds; a host that swaps, within seconds
LONGEST_REPLY_BYTES = 2**20  # qom-list of 1000 objects takes 60 KiB
_FAREWELL_S = 1.0

# What the library lets through of what its reader met. The next to last two come from a hostile
# JSON, the last one from a hang-up at the moment when the connection stands.
_READERS = (QMPError, EOFError, OSError, ValueError, RecursionError, AssertionError)

T = TypeVar("T")


class _Client(QMPClient):
    """Reads no reply that is longer than it may be, and keeps no events."""

    _limit = LONGEST_REPLY_BYTES  # its name before qemu.qmp 0.0.4

    def __init__(self) -> None:
        super().__init__()
        self.readbuflen = LONGEST_REPLY_BYTES
        self.events.event_filter = lambda _: False  # else a talkative guest fills our memory


class QmpMonitor:
    """A conversation on a connected socket, which is closed at the end. Use it in a with statement.

    limit_s: for each answer. Errors, of every call: MonitorBroken.
    """

    def __init__(self, guest: str, connection: socket.socket, limit_s: float = ANSWER_S) -> None:
        self._guest, self._limit_s = guest, limit_s
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)  # what it says, we say
        self._runner = asyncio.Runner()
        self._client = _Client()
        connection.setblocking(False)
        try:
            self._await(self._client.connect(connection), limit_s, "no greeting")
        except MonitorBroken:
            self.close()
            connection.close()
            raise

    def __enter__(self) -> QmpMonitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def execute(
        self, command: str, arguments: Mapping[str, object], limit_s: float | None = None
    ) -> object:
        """The answer to one command. Errors: MonitorRefused, MonitorBroken."""
        answer = self._client.execute(command, dict(arguments))
        return self._await(answer, limit_s or self._limit_s, f"no answer to {command}")

    def close(self) -> None:
        """End the conversation; whatever the other side does, we are done."""
        try:
            self._await(self._client.disconnect(), _FAREWELL_S, "no farewell")
        except MonitorBroken:
            pass
        finally:
            self._runner.close()

    def _await(self, work: Coroutine[Any, Any, T], limit_s: float, missing: str) -> T:
        try:
            return self._runner.run(asyncio.wait_for(work, limit_s))
        except TimeoutError as error:
            raise self._broken(
                f"{missing} within {duration(limit_s)}: it hangs, or somebody else speaks with it"
            ) from error
        except ExecuteError as error:
            raise MonitorRefused(
                printable(f"{self._guest}: QEMU refuses: {str(error)[:300]}")
            ) from error
        except ConnectError as error:
            raise self._broken(_why(error.exc)) from error
        except (ExecInterruptedError, StateError) as error:
            raise self._broken(self._last_words()) from error
        except _READERS as error:
            raise self._broken(_why(error)) from error

    def _last_words(self) -> str:
        """Why the library gave the connection up: it tells at the disconnect only."""
        try:
            self._runner.run(asyncio.wait_for(self._client.disconnect(), _FAREWELL_S))
        except TimeoutError:
            return "it hangs"
        except _READERS as error:
            return _why(error)
        return "it hung up"

    def _broken(self, why: str) -> MonitorBroken:
        return MonitorBroken(printable(f"{self._guest}: its monitor: {why}"))


def _why(error: BaseException) -> str:
    """What went wrong, for people."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, EOFError | BrokenPipeError | ConnectionError):
            return "it hung up"
        if isinstance(chain, ValueError) and "limit" in str(chain):
            return f"it sent a line of more than {LONGEST_REPLY_BYTES // 2**20} MiB"
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, AssertionError):
        return "it hung up"
    if isinstance(error, ProtocolError | ValueError | RecursionError):
        return f"it does not speak QMP ({type(error).__name__})"
    return str(error) or type(error).__name__
