"""Where a ksmtuned under test works: a host, a configuration, a RUN_DIR; and how it is called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakehost import FakeHost

PATIENCE_S = 20.0  # no answer after this long is no answer
NOBODY = 65534
REPOSITORY = Path(__file__).parent.parent

FIXED = """\
policy = "fixed"
interval = "1 h"
[fixed]
pages_to_scan = 500
sleep_millisecs = 15
"""
CLASSIC = """\
policy = "classic"
interval = "1 h"
"""


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Poll for what nobody announces."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        time.sleep(0.01)


def environment(**extra: str) -> dict[str, str]:
    """Our environment without what a service manager, or a journal, would have put there."""
    foreign = (
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "JOURNAL_STREAM",
        "INVOCATION_ID",
    )
    kept = {key: value for key, value in os.environ.items() if key not in foreign}
    path = [str(REPOSITORY), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path), **extra}


class Workbench:
    """What ksmtuned needs beside a host: main file, drop-ins, RUN_DIR, all in one folder."""

    def __init__(self, folder: Path, root: Path = Path("/")) -> None:
        self.folder, self.root = folder, root

    @property
    def config(self) -> Path:
        return self.folder / "ksmtuned.toml"

    @property
    def dropins(self) -> Path:
        return self.folder / "dropins"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def options(self) -> list[str]:
        """The options that keep ksmtuned inside this workplace."""
        return [
            *("--root", str(self.root)),
            *("--config", str(self.config)),
            *("--config-dir", str(self.dropins)),
            *("--run-dir", str(self.run_dir)),
        ]

    @property
    def originals(self) -> Path:
        return self.run_dir / "original.json"

    def configure(self, text: str) -> None:
        """Replace the main file the way editors do: a new file under the old name."""
        fresh = self.folder / "ksmtuned.toml~"
        fresh.write_text(text)
        fresh.replace(self.config)

    def state(self) -> dict[str, Any]:
        """What state.json says."""
        found: dict[str, Any] = json.loads((self.run_dir / "state.json").read_text())
        return found

    def call(
        self, *arguments: str, timeout: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """`ksmtuned OPTIONS ARGUMENTS` as a person would type it, to its end."""
        return run_ksmtuned(*self.options, *arguments, timeout=timeout)

    def call_without_rights(
        self, *arguments: str, below: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same by somebody who may write nothing `below` a folder (unless told: anywhere
        here), and read only what all may read.

        Root without CAP_DAC_OVERRIDE in a tree that is not his: another user might not even
        reach this interpreter.
        """
        setpriv = shutil.which("setpriv")
        if os.geteuid() != 0 or setpriv is None:
            pytest.skip("needs root and setpriv, to give rights up")
        self.folder.chmod(0o755)
        for path in ((below or self.folder), *(below or self.folder).rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        prefix = [setpriv, "--bounding-set=-dac_override,-dac_read_search"]
        return run_ksmtuned(*self.options, *arguments, prefix=prefix)


class Workplace(Workbench):
    """The same with a fake host."""

    def __init__(self, host: FakeHost, folder: Path) -> None:
        super().__init__(folder, host.root)
        self.host = host

    def call_read_only(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ksmtuned ARGUMENTS` where KSM's folder is mounted read-only."""
        return run_ksmtuned(*self.options, *arguments, prefix=read_only(self.host.ksm))


def read_only(folder: Path) -> list[str]:
    """A command's prefix: a mount namespace where the folder is read-only. Skips without root."""
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(folder)]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace for this test here: {probe.stderr.strip()}")
    return prefix


def run_ksmtuned(
    *arguments: str, timeout: float = PATIENCE_S, prefix: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`ksmtuned ARGUMENTS` to its end."""
    return subprocess.run(
        [*(prefix or []), sys.executable, "-m", "ksmtuned", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
