"""The real daemon as a child process, with a service manager's socket to listen at."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from workplace import PATIENCE_S, Workbench, environment


class DaemonSilentError(AssertionError):
    """What was waited for did not come; the text holds what came instead."""


@dataclass(frozen=True)
class Notification:
    """One datagram to the service manager."""

    received_s: float  # monotonic
    fields: dict[str, str]

    @property
    def status(self) -> str | None:
        return self.fields.get("STATUS")


class Daemon:
    """`ksmtuned run`, started and spoken to as systemd does. Use it in a with statement."""

    def __init__(
        self,
        place: Workbench,
        *,
        options: list[str] | None = None,
        prefix: list[str] | None = None,
        verb: tuple[str, ...] = ("run",),
        **env: str,
    ) -> None:
        self.place = place
        self._heard: list[Notification] = []
        self._read = 0  # how many of them a test has waited for
        self._has_ended = False
        self._news = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        place.folder.mkdir(parents=True, exist_ok=True)
        address = place.folder / "notify.sock"
        address.unlink(missing_ok=True)
        self._socket.bind(str(address))
        self._stderr = place.folder / f"stderr-{time.monotonic_ns()}"
        with self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [
                    *(prefix or []),
                    *(sys.executable, "-m", "ksmtuned", *verb),
                    *(options if options is not None else place.options),
                ],
                env=environment(NOTIFY_SOCKET=str(address), **env),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._listener.join()
        self._socket.close()

    # -- speaking ------------------------------------------------------------------------------

    def start(self) -> Notification:
        """Wait until it is ready."""
        return self.wait_for("READY")

    def tick(self) -> str:
        """One tick at once; its STATUS=. Exactly one may come."""
        self.expect_silence()
        self.process.send_signal(signal.SIGUSR1)
        status = self.wait_for("STATUS").status
        assert status is not None
        return status

    def reload(self) -> list[Notification]:
        """HUP: everything from RELOADING=1 to READY=1."""
        self.expect_silence()
        first = self._read
        self.process.send_signal(signal.SIGHUP)
        self.wait_for("READY")
        return self._heard[first : self._read]

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End it with a signal; its exit status."""
        self.process.send_signal(signum)
        return self.wait()

    def kill(self) -> None:
        """kill -9: no restore, no farewell."""
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise DaemonSilentError(self._story("it does not end")) from None
        self._listener.join()
        return status

    # -- listening -----------------------------------------------------------------------------

    def wait_for(self, field: str, timeout: float = PATIENCE_S) -> Notification:
        """The next datagram that has this field."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                while self._read < len(self._heard):
                    self._read += 1
                    if field in self._heard[self._read - 1].fields:
                        return self._heard[self._read - 1]
                if self._has_ended:
                    raise DaemonSilentError(self._story(f"it ended before {field}="))
                if not self._news.wait(deadline - time.monotonic()):
                    raise DaemonSilentError(self._story(f"no {field}= came"))

    def expect_silence(self) -> None:
        """Nothing but pings has come that no test waited for."""
        with self._news:
            unread = [n.fields for n in self._heard[self._read :] if "WATCHDOG" not in n.fields]
            assert unread == [], f"came without being asked for: {unread}"

    @property
    def heard(self) -> list[Notification]:
        """Every datagram so far."""
        with self._news:
            return list(self._heard)

    @property
    def log(self) -> list[str]:
        """The lines on stderr so far."""
        return self._stderr.read_text().splitlines()

    def _listen(self) -> None:
        exit_fd = os.pidfd_open(self.process.pid)
        while True:
            ready, _, _ = select.select([self._socket.fileno(), exit_fd], [], [])
            if self._socket.fileno() not in ready:
                break
            self._receive()
        os.close(exit_fd)
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def _receive(self) -> None:
        text = self._socket.recv(65536).decode()
        fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        with self._news:
            self._heard.append(Notification(received_s=time.monotonic(), fields=fields))
            self._news.notify_all()

    def _story(self, what: str) -> str:
        said = "\n".join(f"  {n.fields}" for n in self._heard[-5:])
        log = "\n".join(f"  {line}" for line in self.log[-30:])
        return f"{what}; exit status {self.process.poll()}; it said\n{said}\nand logged\n{log}"


Launch = Callable[..., Daemon]
