"""Under a service manager, which is the test: the sockets that it passes, what it is told; and what
whoever may read a socket may not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import end, place, process, service

from hypermux.downstream import activation

pytestmark = pytest.mark.live

# Puts the descriptors where the manager would, says whose they are, and becomes the service.
_LAUNCH = """
import fcntl, os, sys
moved = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 50) for n in sys.argv[1].split(",")]
for index, number in enumerate(moved):
    os.dup2(number, 3 + index)
    os.close(number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(moved)))
os.execv(sys.executable, [sys.executable, "-m", "hypermux", *sys.argv[2:]])
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a short path, whatever the test's name."""
    path = Path(tempfile.mkdtemp(prefix="hm-"))
    yield path
    shutil.rmtree(path)


@contextmanager
def launched(
    folder: Path, passed: list[socket.socket], **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service with sockets passed to it; its log goes to `folder`/service.log."""
    nowhere = f'[accounts.a]\nupstream = "docker"\nhosts = {{ x = "unix://{folder}/no" }}'
    config = place(folder, None, nowhere).config
    numbers = ",".join(str(sock.fileno()) for sock in passed)
    with (
        (folder / "service.log").open("wb") as log,
        process(
            *(sys.executable, "-c", _LAUNCH, numbers),
            *("run", "-c", config, "--log-format", "human"),
            stderr=log,
            pass_fds=[sock.fileno() for sock in passed],
            env=os.environ | environment,
        ) as child,
    ):
        yield child


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def first_line(reader: socket.socket) -> dict[str, str]:
    with reader.makefile("rb") as lines:
        line: dict[str, str] = json.loads(lines.readline())
        return line


def test_the_sockets_are_the_managers_and_it_is_told_how_we_fare(folder: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        listening(folder / "one") as one,
        listening(folder / "two") as two,
        socket.socket(socket.AF_UNIX) as early,
        socket.socket(socket.AF_UNIX) as late,
    ):
        manager.bind(str(folder / "notify"))
        manager.settimeout(30)
        early.settimeout(30)
        early.connect(str(folder / "one"))
        early.sendall(b"{}\n")

        def told() -> str:
            return manager.recv(4096).decode()

        def await_told(*wanted: str) -> None:
            left = list(wanted)
            while left:
                line = told()
                if left[0] in line:
                    left.pop(0)

        with launched(
            folder,
            [one, two],
            LISTEN_FDNAMES="hypermux.socket:more",
            NOTIFY_SOCKET=str(folder / "notify"),
            WATCHDOG_USEC="300000",
        ) as child:
            assert told() == "READY=1"
            # Who came before the service did was not refused.
            assert first_line(early)["kind"] == "subscribed"
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(folder / "two"))
                other.sendall(b"{}\n")
                assert first_line(other)["kind"] == "subscribed"
            await_told("WATCHDOG=1", "STATUS=sources: 1 ", "WATCHDOG=1", "WATCHDOG=1")
            child.send_signal(signal.SIGHUP)
            await_told("RELOADING=1\nMONOTONIC_USEC=", "READY=1")
            child.send_signal(signal.SIGTERM)
            await_told("STOPPING=1")
            assert child.wait(30) == 0
        assert (folder / "one").is_socket()
        assert (folder / "two").is_socket()
        assert not (folder / "run").exists()
        late.connect(str(folder / "one"))  # waits for the next run
        log = (folder / "service.log").read_text()
        assert f"readers are served at {folder}/one, passed by the service manager" in log
        assert "(hypermux.socket)" in log
        assert "(more)" in log
        assert "socket.path is not used" in log


def test_the_configured_path_may_be_the_passed_one(folder: Path) -> None:
    (folder / "run").mkdir()
    with listening(folder / "run" / "s") as passed, socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(30)
        reader.connect(str(folder / "run" / "s"))
        reader.sendall(b"{}\n")
        with launched(folder, [passed]) as child:
            assert first_line(reader)["kind"] == "subscribed"
            assert end(child) == 0
        assert (folder / "run" / "s").is_socket()
        assert "socket.path is not used" not in (folder / "service.log").read_text()


def test_what_readers_cannot_connect_to_is_refused(folder: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as deaf,
        launched(folder, [tcp, deaf], LISTEN_FDNAMES="web") as child,
    ):
        assert child.wait(30) == 78
        log = (folder / "service.log").read_text()
        assert "descriptor 3 (web): is not a unix socket that listens" in log
        assert "descriptor 4 (unknown): is not a unix socket that listens" in log
        assert "ListenStream=" in log


def test_what_is_meant_for_another_process_is_not_taken() -> None:
    environ = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert activation.take(environ, os.getpid()) == ()
    assert environ == {}
    assert activation.take({}, os.getpid()) == ()


_ASK = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
for method, path in (("GET", "/status"), ("POST", "/reload")):
    s.sendall(f"{method} {path} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
    print(s.recv(1 << 20).decode().split()[1])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_who_may_read_may_not_reload(folder: Path) -> None:
    folder.chmod(0o711)
    nowhere = f'[accounts.a]\nupstream = "docker"\nhosts = {{ x = "unix://{folder}/no" }}'
    here = place(folder, None, nowhere)
    here.config.write_text(here.config.read_text() + "allow_uids = [54321]\n")
    with service(here):
        for uid, answers in ((54321, "200\n403\n"), (0, "200\n200\n")):
            command = [sys.executable, "-S", "-c", _ASK, str(here.socket), str(uid)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            assert done.stdout == answers, done.stderr
