"""Private engines for live tests: a real dockerd or Podman of a test's own, ended by its pid."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from attrs import define, field

START_S = 60.0
STOP_S = 30.0
IMAGE = "docker.io/library/hypermux-test:1"
# Podman asks for more open files and processes than a machine may allow.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=START_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@define(eq=False)
class Engine:
    """A running engine: its socket, and the client that talks to it."""

    socket: Path
    client: Sequence[str]
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(factory=dict)
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def run(self, *arguments: str, data: bytes | None = None) -> str:
        """Run the engine's own client; return its output."""
        done = subprocess.run(
            [*self.client, *arguments], input=data or b"", capture_output=True, timeout=60
        )
        if done.returncode:
            raise AssertionError(f"{arguments}: {done.stderr.decode()}")
        return done.stdout.decode().strip()

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Make one request of the engine's API; return the body of its answer."""
        connection = _UnixConnection(self.socket)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        assert answer.status < 400, text
        return text

    def import_image(self) -> None:
        """Make IMAGE: one static busybox and nothing else."""
        self.run("import", "-", IMAGE, data=_busybox_tar())

    def volumes(self, prefix: str, count: int) -> list[str]:
        """Create volumes, each one event; return their names."""
        names = [f"{prefix}-{n:03}" for n in range(count)]
        for name in names:
            self.ask("POST", "/volumes/create", json.dumps({"Name": name}).encode())
        return names

    def start(self) -> None:
        """Start the engine and wait until it answers."""
        environment = {**os.environ, "HOME": str(self.log.parent), **self.environment}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self.command[0]} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the engine by its pid, and hard when it does not come to an end."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/_ping") == b"OK"
        except (OSError, http.client.HTTPException):
            return False


@contextlib.contextmanager
def running_dockerd(extra: Sequence[str] = ()) -> Iterator[Engine]:
    """Run a dockerd that touches nothing of the machine: no bridge, no iptables, own directories.

    Skips where there is none, or where it could not run; with CI=true that is a failure.
    """
    _need("dockerd", "docker", "busybox")
    with _directory() as home:
        command = [
            "dockerd",
            f"--host=unix://{home}/docker.sock",
            f"--data-root={home}/data",
            f"--exec-root={home}/exec",
            f"--pidfile={home}/pid",
            "--storage-driver=vfs",
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            *extra,
        ]
        client = ("docker", f"--host=unix://{home}/docker.sock")
        with _running(command, home, home / "docker.sock", client) as engine:
            yield engine


@contextlib.contextmanager
def running_podman() -> Iterator[Engine]:
    """Run Podman's API service likewise."""
    _need("podman", "busybox")
    with _directory() as home:
        # By default all Podmans of a user share one table of 2,048 locks in memory, of which each
        # volume takes one, and keeps it when its directory is just deleted.
        settings = home / "containers.conf"
        settings.write_text('[engine]\nlock_type = "file"\n')
        command = [
            "podman",
            f"--root={home}/root",
            f"--runroot={home}/run",
            f"--tmpdir={home}/tmp",
            "--storage-driver=vfs",
            "--events-backend=file",
            "--cgroup-manager=cgroupfs",
            "system",
            "service",
            "--time=0",
            f"unix://{home}/podman.sock",
        ]
        client = ("podman", f"--url=unix://{home}/podman.sock")
        environment = {"CONTAINERS_CONF": str(settings)}
        with _running(command, home, home / "podman.sock", client, environment) as engine:
            yield engine


def _need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    reason = f"not installed: {', '.join(missing)}" if missing else ""
    if not reason and os.geteuid() != 0:
        reason = "an engine of its own needs root"
    if reason:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    # Not pytest's own: unix socket paths must stay short.
    home = Path(tempfile.mkdtemp(prefix="hypermux-engine-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _running(
    command: Sequence[str],
    home: Path,
    path: Path,
    client: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Engine]:
    engine = Engine(path, client, command, home / "log", environment or {})
    try:
        engine.start()
        yield engine
    finally:
        engine.stop()


def _busybox_tar() -> bytes:
    busybox = shutil.which("busybox")
    assert busybox is not None
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.add(os.path.realpath(busybox), "bin/busybox")
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(link)
    return tar.getvalue()
