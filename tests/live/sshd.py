"""A private ssh server for live tests: own keys, own port, as the user who runs the tests.

`ssh` on the PATH becomes the real one with a configuration of the test's own: what a user has in
~/.ssh/config comes from there.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field

START_S = 20.0


@define(eq=False)
class Sshd:
    """A running server, known as the host `build1` to the client's configuration."""

    home: Path
    port: int
    process: subprocess.Popen[bytes] = field(init=False)

    def authorize(self, options: str = "") -> None:
        """Let the client's key in, with options such as a forced command."""
        key = (self.home / "id.pub").read_text()
        (self.home / "authorized_keys").write_text(f"{options} {key}".lstrip())

    def know_host_key(self, key: str = "host") -> None:
        """Have the client know this host by a key."""
        words = (self.home / f"{key}.pub").read_text().split()
        line = f"[127.0.0.1]:{self.port} {words[0]} {words[1]}\n"
        (self.home / "known_hosts").write_text(line)

    def configure(self, *extra: str) -> None:
        """Write the client's configuration."""
        lines = [
            "Host build1",
            *extra,
            "HostName 127.0.0.1",
            f"Port {self.port}",
            f"User {getpass.getuser()}",
            f"IdentityFile {self.home}/id",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            "PasswordAuthentication no",
            f"UserKnownHostsFile {self.home}/known_hosts",
            "GlobalKnownHostsFile /dev/null",
        ]
        (self.home / "config").write_text("\n".join(lines) + "\n")

    def reset(self) -> None:
        """Make all as a client expects it."""
        self.authorize()
        self.know_host_key()
        self.configure()

    def sessions(self) -> list[int]:
        """Return the pids of the processes that serve connections, commands included."""
        return descendants(self.process.pid)

    @contextlib.contextmanager
    def standing_still(self, *pids: int) -> Iterator[None]:
        """Stop processes (the server when none is named), as a dead host would be."""
        stopped = pids or (self.process.pid,)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def descendants(pid: int) -> list[int]:
    """Return the pids of a process's children, theirs and so on."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


@contextlib.contextmanager
def running_sshd(home: Path) -> Iterator[Sshd]:
    """Run a server on loopback; skips where there is none, with CI=true that is a failure."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    client = shutil.which("ssh")
    if program is None or client is None:
        reason = "not installed: openssh-server, openssh-client"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    if os.geteuid() == 0:
        # Where it locks itself in before login; a package makes it only when the service starts.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    home.chmod(0o700)
    for name in ("host", "other", "id", "stranger"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)],
            check=True,
            stdin=subprocess.DEVNULL,
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Sshd(home, free.getsockname()[1])
    (home / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {server.port}\nHostKey {home}/host\n"
        f"AuthorizedKeysFile {home}/authorized_keys\nPidFile none\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitUserEnvironment yes\n"
        # The directory of a test lies in /tmp, which everybody can write to.
        "StrictModes no\n"
    )
    (home / "bin").mkdir()
    (home / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {client} -F {home}/config "$@"\n')
    (home / "bin" / "ssh").chmod(0o755)
    server.reset()
    with (home / "log").open("wb") as log:
        server.process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(home / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_S
        while not _listens(server.port):
            if server.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"sshd did not start:\n{(home / 'log').read_text()[-4000:]}")
            time.sleep(0.02)
        yield server
    finally:
        left = server.sessions()
        server.process.terminate()
        server.process.wait()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
