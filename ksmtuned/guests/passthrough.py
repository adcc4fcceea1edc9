"""The monitor of a guest of libvirt, which lets nobody else connect: commands go through libvirt.

libvirt-python is an extra. A command sent this way marks the guest as "tainted" in its log.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ksmtuned.errors import CannotShare, MonitorBroken, MonitorRefused, WrongPeer
from ksmtuned.host.files import Tree
from ksmtuned.units import duration, printable

_URI = "qemu:///system"
_LONGEST_REPLY = 2**20  # characters

T = TypeVar("T")


class LibvirtMonitor:
    """A conversation through libvirt's daemon.

    Errors: CannotShare (no libvirt-python, libvirt does not know the guest), WrongPeer,
    MonitorBroken.
    """

    def __init__(self, tree: Tree, guest: str, pid: int, uuid: str | None, limit_s: float) -> None:
        self._guest, self._limit_s = guest, limit_s
        self._libvirt, self._qemu = _libraries(guest)
        self._libvirt.registerErrorHandler(lambda *_: None, None)  # else it prints them
        if uuid is None:
            raise CannotShare(guest, "its command line has no -uuid to find it in libvirt by")
        self._domain = self._ask(lambda: self._find(uuid), limit_s, "not found by its UUID")
        name = str(self._ask(lambda: self._domain.name(), limit_s, "its name"))
        _check_pid(tree, guest, name, pid)

    def execute(
        self, command: str, arguments: Mapping[str, object], limit_s: float | None = None
    ) -> object:
        """The answer to one command. Errors: MonitorRefused, MonitorBroken."""
        words = {"execute": command} | ({"arguments": dict(arguments)} if arguments else {})
        text = json.dumps(words)
        raw = self._ask(
            lambda: self._qemu.qemuMonitorCommand(self._domain, text, 0),
            limit_s or self._limit_s,
            command,
        )
        try:
            if len(raw) > _LONGEST_REPLY:
                raise ValueError
            answer = json.loads(raw)
        except (TypeError, ValueError, RecursionError) as error:
            raise MonitorBroken(f"{printable(self._guest)}: libvirt's answer is no JSON") from error
        if isinstance(answer, dict) and "return" in answer:
            return answer["return"]
        reply = answer.get("error") if isinstance(answer, dict) else None
        why = str(reply.get("desc")) if isinstance(reply, dict) else "no reason given"
        raise MonitorRefused(printable(f"{self._guest}: QEMU refuses: {why[:300]}"))

    def close(self) -> None:
        """Nothing is held open: libvirt's daemon owns the monitor."""

    def _find(self, uuid: str) -> Any:
        return self._libvirt.open(_URI).lookupByUUIDString(uuid)

    def _ask(self, call: Callable[[], T], limit_s: float, what: str) -> T:
        """A call of libvirt's, which knows no time limit, in a thread that is left behind.

        Errors: MonitorBroken.
        """
        answers: list[T] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                answers.append(call())
            except self._libvirt.libvirtError as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(limit_s)
        if answers:
            return answers[0]
        why = f"libvirt: {errors[0]}" if errors else f"no answer within {duration(limit_s)}"
        raise MonitorBroken(printable(f"{self._guest}: {what}: {why}"))


def _libraries(guest: str) -> tuple[Any, Any]:
    """Errors: CannotShare."""
    try:
        import libvirt
        import libvirt_qemu
    except ImportError as error:
        raise CannotShare(
            guest,
            "libvirt keeps this guest's monitor to itself, and libvirt-python is not here to go "
            "through it; install it: pip install 'ksmtuned[libvirt]' (Debian: python3-libvirt)",
        ) from error
    return libvirt, libvirt_qemu


def _check_pid(tree: Tree, guest: str, name: str, pid: int) -> None:
    """The uuid came from a command line, which anybody may choose: is libvirt's guest of that
    uuid really this process? Errors: WrongPeer."""
    noted = b""
    if re.fullmatch(r"[^/\0]{1,250}", name) and name not in (".", ".."):
        noted = (tree.read(f"run/libvirt/qemu/{name}.pid") or b"").strip()
    if noted != str(pid).encode():
        raise WrongPeer(
            printable(
                f"{guest}: refused: it names a UUID of libvirt's, but libvirt's guest {name} is "
                f"process {noted.decode(errors='replace') or '?'}; nothing was changed"
            )
        )
