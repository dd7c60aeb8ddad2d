"""The emulator as a process of its own, for live tests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from attrs import frozen

from hypermux.emulator import control


@frozen(eq=False)
class Emulator:
    """A running `hypermux emulate` and the files it works with, all in one directory."""

    process: subprocess.Popen[str]
    directory: Path
    url: str
    ca: Path | None

    @property
    def accounts_file(self) -> Path:
        return self.directory / "accounts.toml"

    @property
    def accounts(self) -> dict[str, dict[str, Any]]:
        return cast(
            "dict[str, dict[str, Any]]",
            tomllib.loads(self.accounts_file.read_text())["accounts"],
        )

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return what `manifest` or `accept.log` holds so far."""
        return [json.loads(line) for line in (self.directory / name).read_bytes().splitlines()]

    def call(self, op: str, **more: Any) -> dict[str, Any]:
        """Give an order; it has to succeed."""
        reply = control.call(self.directory / "control.sock", {"op": op, **more})
        assert reply["ok"], reply
        return reply

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        self.process.send_signal(how)
        return self.process.wait(20)


@contextmanager
def emulator(directory: Path, *options: str) -> Iterator[Emulator]:
    """Run the emulator with manifest, accept log and control socket in `directory`."""
    command = [
        *(sys.executable, "-m", "hypermux", "emulate"),
        *("--write-accounts", str(directory / "accounts.toml")),
        *("--manifest", str(directory / "manifest")),
        *("--accept-log", str(directory / "accept.log")),
        *("--control", str(directory / "control.sock")),
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["ready"] is True
            ca = Path(ready["ca"]) if ready["ca"] else None
            yield Emulator(process, directory, ready["url"], ca)
        finally:
            if process.poll() is None:
                process.kill()
