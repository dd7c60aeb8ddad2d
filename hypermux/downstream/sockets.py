"""The socket file: made so that only its owner can reach it, and never taken from a living one.

Everything happens under a lock on the directory, which the kernel gives back whatever becomes of
us: between finding a dead socket and taking its place nobody else can do the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import define

from hypermux.config.places import MAX_SOCKET_PATH, fits_a_socket
from hypermux.model.errors import ConfigurationFault, HypermuxError, Problem, Unreachable

# Connections that wait to be accepted: a restart brings all readers back at once.
BACKLOG = 1024
# One that starts or stops holds the directory for a millisecond; a stopped (SIGSTOP) one for ever.
LOCK_WAIT_S = 2.0


@define(eq=False)
class BoundSocket:
    """A listening, non-blocking socket at `path`, and the file's identity."""

    sock: socket.socket
    path: Path
    _identity: tuple[int, int]

    def close(self) -> None:
        """Stop listening; remove the file if it is still ours."""
        self.sock.close()
        # A dead file that stays behind does no harm: the next start takes its place.
        with contextlib.suppress(OSError, HypermuxError), _locked(self.path.parent):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def bind(path: Path, mode: int) -> BoundSocket:
    """Listen at `path` with permissions `mode`, in a directory that nobody else can write.

    Raises Unreachable when something living serves it, ConfigurationFault when the place will
    not do.
    """
    if not fits_a_socket(path):
        raise _fault(path, f"a socket's path has at most {MAX_SOCKET_PATH} bytes: shorten it")
    try:
        _prepare(path.parent)
        with _locked(path.parent):
            _clear(path)
            return _listen(path, mode)
    except OSError as exc:
        raise _fault(path, f"cannot make the socket: {exc.strerror or exc}") from exc


def _prepare(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    info = directory.stat()
    if not stat.S_ISDIR(info.st_mode):
        raise _fault(directory, "this is not a directory")
    if info.st_uid not in (os.geteuid(), 0):
        raise _fault(directory, "the directory belongs to another user: use one of your own")
    if info.st_mode & 0o022:
        if info.st_mode & stat.S_ISVTX or info.st_uid != os.geteuid():
            advice = f"use a directory below it, such as {directory / 'hypermux'}"
        else:
            advice = f"type: chmod go-w {directory}"
        raise _fault(directory, f"others can write this directory and replace the socket: {advice}")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline_s = time.monotonic() + LOCK_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise Unreachable(
                        f"another hypermux is starting or stopping in {directory}: try again"
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _clear(path: Path) -> None:
    """Remove a dead socket. Raises when the path is anything else than dead or free."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode):
        raise _fault(path, "this is there and not a socket: move it away, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its backlog is full: busy is not dead
        except PermissionError:
            raise _fault(path, "this socket belongs to another user") from None
    raise Unreachable(f"another hypermux serves {path}: stop it, or choose another socket path")


def _listen(path: Path, mode: int) -> BoundSocket:
    sock = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    try:
        sock.bind(os.fspath(path))
        # Before it listens nobody can connect, so there is no moment with wider permissions.
        path.chmod(mode)
        identity = _identity(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    assert identity is not None
    return BoundSocket(sock, path, identity)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def _fault(path: Path, message: str) -> HypermuxError:
    return ConfigurationFault([Problem(str(path), "socket.path", message)])
