"""The socket file: made so that only who may read can reach it, never taken from a living one.

Everything happens under a lock on the directory, which the kernel gives back whatever becomes of
us: between finding a dead socket and taking its place nobody else can do the same.

A directory made here is the owner's alone (0700). Where a group or others are to get at the socket
they have to pass the directory: it is opened for that (0750 and the group, or 0711) when nothing
else is in it that this would open too. Otherwise it is left alone, and the log says what to type.
Nothing here ever lets anybody write the directory: who can do that can replace the socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import define

from hypermux.config.places import MAX_SOCKET_PATH, fits_a_socket
from hypermux.model.errors import ConfigurationFault, HypermuxError, Problem, Unreachable

log = logging.getLogger("hypermux.subscribers")

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

    def __str__(self) -> str:
        return str(self.path)

    def permit(self, mode: int, gid: int | None) -> None:
        """Give the file other permissions and another group (None: the process's own).

        Raises ConfigurationFault; when the file is no longer ours there is nothing to do.
        """
        try:
            with _locked(self.path.parent):
                if _identity(self.path) == self._identity:
                    _permit(self.path, mode, gid)
                    _open_directory(self.path, mode, gid)
        except OSError as exc:
            raise _fault(self.path, f"cannot change the socket: {exc.strerror or exc}") from exc

    def close(self) -> None:
        """Stop listening; remove the file if it is still ours."""
        self.sock.close()
        # A dead file that stays behind does no harm: the next start takes its place.
        with contextlib.suppress(OSError, HypermuxError), _locked(self.path.parent):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def bind(path: Path, mode: int, gid: int | None = None) -> BoundSocket:
    """Listen at `path` with permissions `mode`, in a directory that nobody else can write.

    The file gets the group `gid`, or the process's own. Raises Unreachable when something living
    serves it, ConfigurationFault when the place will not do.
    """
    if not fits_a_socket(path):
        raise _fault(path, f"a socket's path has at most {MAX_SOCKET_PATH} bytes: shorten it")
    try:
        _prepare(path.parent)
        with _locked(path.parent):
            _clear(path)
            bound = _listen(path, mode, gid)
            _open_directory(path, mode, gid)
            return bound
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


def _listen(path: Path, mode: int, gid: int | None) -> BoundSocket:
    sock = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    try:
        sock.bind(os.fspath(path))
        # Before it listens nobody can connect, so there is no moment with wider permissions.
        _permit(path, mode, gid)
        identity = _identity(path)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    assert identity is not None
    return BoundSocket(sock, path, identity)


def _permit(path: Path, mode: int, gid: int | None) -> None:
    try:
        os.chown(path, -1, os.getegid() if gid is None else gid)
    except PermissionError:
        message = f"cannot give the socket to group {gid}: this process is no member of it"
        raise _fault(path, message, key="group") from None
    path.chmod(mode)


def _open_directory(path: Path, mode: int, gid: int | None) -> None:
    """Let whom the socket's mode lets in pass its directory, too."""
    directory = path.parent
    info = directory.stat()
    if mode & 0o006:
        wanted, needed = 0o711, 0o011
    elif gid is not None and mode & 0o060:
        wanted, needed = 0o750, 0o010 if info.st_gid == gid else 0o001
    else:
        return
    if info.st_mode & needed == needed:
        return
    group = gid if wanted == 0o750 else None
    if info.st_uid == os.geteuid() and os.listdir(directory) == [path.name]:
        if group is not None:
            os.chown(directory, -1, group)
        directory.chmod(stat.S_IMODE(info.st_mode) | wanted)
        return
    where = shlex.quote(str(directory))
    change = f"chmod go+x {where}"
    if group is not None:
        change = f"chgrp {group} {where}; chmod g+x {where}"
    log.warning(
        "who may read cannot pass %s, which holds more than the socket and is left as it is: "
        "type `%s`, or choose a directory for the socket alone",
        directory,
        change,
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def _fault(path: Path, message: str, key: str = "path") -> HypermuxError:
    return ConfigurationFault([Problem(str(path), f"socket.{key}", message)])
