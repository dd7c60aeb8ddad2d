"""The files that the emulator leaves: manifest, accept log, accounts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import tomli_w
import trio
from attrs import define, field

from hypermux.emulator.router import Account
from hypermux.model.errors import DiskFault

# A reader of a file sees a line this late at most.
FLUSH_S = 0.2
# Held lines beyond this are written at once: the file may be slower than the sockets.
HELD = 1024 * 1024


@define(eq=False)
class LineFile:
    """Appends lines to a file; an earlier run's lines stay in front."""

    path: Path
    _descriptor: int = field(init=False)
    _held: bytearray = field(factory=bytearray, repr=False)
    _problem: OSError | None = None

    def __attrs_post_init__(self) -> None:
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
        except OSError as problem:
            raise DiskFault(f"cannot write {self.path}: {problem.strerror}") from problem

    def write(self, lines: bytes) -> None:
        """Take whole lines; a failing disk shows in `run`."""
        self._held += lines
        if len(self._held) > HELD:
            self._flush()

    async def run(self) -> None:
        """Write what is held every FLUSH_S until cancelled. Raises DiskFault."""
        while True:
            self.flush()
            await trio.sleep(FLUSH_S)

    def flush(self) -> None:
        """Write what is held. Raises DiskFault."""
        self._flush()
        if self._problem is not None:
            raise DiskFault(f"cannot write {self.path}: {self._problem.strerror}")

    def close(self) -> None:
        """Write what is held and close. Raises DiskFault."""
        try:
            self.flush()
        finally:
            os.close(self._descriptor)

    def _flush(self) -> None:
        held, self._held = self._held, bytearray()
        view = memoryview(held)
        try:
            while view and self._problem is None:
                view = view[os.write(self._descriptor, view) :]
        except OSError as problem:
            self._problem = problem


def write_accounts(path: Path, accounts: Sequence[Account], url: str, ca: Path | None) -> None:
    """Write the accounts as a file for hypermux (mode 0600), in one step. Raises DiskFault."""
    tables = {}
    for account in accounts:
        table: dict[str, object] = {
            "access_key": account.access_key,
            "secret_key": account.secret_key.reveal(),
            "regions": list(account.regions),
            "endpoint": url,
        }
        if ca is not None:
            table["ca"] = str(ca)
        tables[account.name] = table
    replace(path, tomli_w.dumps({"accounts": tables}).encode())


def replace(path: Path, data: bytes) -> None:
    """Put a file (mode 0600) in place of another in one step. Raises DiskFault."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as problem:
        raise DiskFault(f"cannot write {path}: {problem.strerror}") from problem
