"""Real processes for live tests: each is started by its command line and ended by its pid."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from attrs import define

PROJECT = Path(__file__).parent.parent.parent
HYPERMUX = [sys.executable, "-m", "hypermux"]
VERIFY = PROJECT / "scripts" / "verify"

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """Return the first true value of `condition`, looked at often; fail with `what`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.01)
    return value


@contextmanager
def process(*command: str | Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command; at the end SIGTERM, and SIGKILL if that is not enough."""
    child = subprocess.Popen([str(part) for part in command], **options)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


@define
class Emulator:
    """A running emulator, its ready line and its files."""

    ready: dict[str, Any]
    accounts: Path
    manifest: Path
    accept_log: Path
    control: Path
    child: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it and wait: its files are complete then."""
        self.child.terminate()
        self.child.wait(30)


@contextmanager
def emulator(directory: Path, *arguments: str | Path) -> Iterator[Emulator]:
    """Start `hypermux emulate` with its files in `directory`."""
    directory.mkdir(exist_ok=True)
    accounts, manifest = directory / "emulated.toml", directory / "manifest"
    accept_log, control = directory / "accepts", directory / "control.sock"
    with (directory / "emulator.log").open("wb") as log:
        command = [
            *HYPERMUX,
            "emulate",
            *("--write-accounts", accounts, "--manifest", manifest),
            *("--accept-log", accept_log, "--control", control),
            *arguments,
        ]
        with process(*command, stdout=subprocess.PIPE, stderr=log) as child:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, (directory / "emulator.log").read_text()
            yield Emulator(json.loads(line), accounts, manifest, accept_log, control, child)


@define
class Place:
    """Where a service lives: its accounts file, state directory and socket."""

    config: Path
    state: Path
    socket: Path
    log: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every record of the journal, read from its files."""
        return [json.loads(line) for line in self.lines]

    @property
    def lines(self) -> list[bytes]:
        """Every whole line of the journal; the last may just be being written."""
        files = sorted((self.state / "journal").glob("[0-9]*.ndjson"))
        lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
        return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def place(directory: Path, include: Path | None, *more: str) -> Place:
    """Write an accounts file that includes `include`, with further lines."""
    config = directory / "accounts.toml"
    state = directory / "state"
    socket_path = directory / "run" / "s"
    head = [f'include = ["{include}"]'] if include is not None else []
    config.write_text(
        "\n".join(
            [*head, f'state_dir = "{state}"', *more, "[socket]", f'path = "{socket_path}"', ""]
        )
    )
    config.chmod(0o600)
    return Place(config, state, socket_path, directory / "service.log")


LIMITS = """\
[limits]
connect_rate = "200/s"
connect_burst = 5
per_account = { connect_rate = "200/s" }
per_endpoint = { connect_rate = "200/s" }
"""
FAST = f"""\
{LIMITS}
[connection]
backoff = {{ min = "50ms", max = "500ms" }}"""


@contextmanager
def service(place: Place, *before: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start `hypermux run`, behind `before` (strace), and wait for its socket."""
    with place.log.open("ab") as log:
        command = [*before, *HYPERMUX, "run", "-c", place.config, "--log-format", "human"]
        with process(*command, stderr=log, stdout=log) as child:

            def serving() -> bool:
                assert child.poll() is None, place.log.read_text()
                return accepts(place.socket)

            wait_until(serving, "the service's socket")
            yield child


def accepts(path: Path) -> bool:
    """Say whether something answers at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


@contextmanager
def subscriber(path: Path, request: dict[str, Any]) -> Iterator[socket.socket]:
    """Connect and send a request."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        connection.sendall(json.dumps(request).encode() + b"\n")
        yield connection


class Witness(threading.Thread):
    """A subscriber that reads on by cursor across kills, and remembers all it was shown."""

    def __init__(self, where: Place) -> None:
        super().__init__(daemon=True)
        self.where = where
        self.shown: list[bytes] = []
        self.cursor = "start"
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            try:
                self._read()
            except OSError:
                time.sleep(0.01)

    def _read(self) -> None:
        with (
            subscriber(self.where.socket, {"after": self.cursor}) as connection,
            connection.makefile("rb") as stream,
        ):
            first = json.loads(stream.readline() or b"{}")
            if "cursor" not in first:
                return
            epoch = first["cursor"].partition(":")[0]
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self.shown.append(line)
                self.cursor = f"{epoch}:{json.loads(line)['seq']}"


def verify(place: Place, emulated: Emulator, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `scripts/verify`."""
    return subprocess.run(
        [
            sys.executable,
            VERIFY,
            place.state,
            emulated.manifest,
            emulated.accept_log,
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )


def run(*arguments: str | Path, timeout: float = 60, **options: Any) -> Any:
    """Run a `hypermux` command to its end; return its CompletedProcess with text."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HYPER_", "DOCKER_"))}
    environment |= options.pop("env", {})
    return subprocess.run(
        [*HYPERMUX, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        **options,
    )


def end(child: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """Send a signal and return the exit code."""
    child.send_signal(number)
    return child.wait(60)
