"""Reading small files that people wrote, and seeing who else can read them."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from attrs import frozen


class Unreadable(ValueError):
    """A file that cannot be used; the message is a part of a sentence without the file's name."""


@frozen
class FileText:
    """A file's text and its permission bits, of the same open file."""

    text: str
    mode: int


def _open(path: str | Path) -> tuple[int, os.stat_result]:
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    except ValueError:  # a path that cannot be a file's name
        raise Unreadable("is not a file's path") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise Unreadable("is not a regular file")
    return fd, status


def examine(path: str | Path) -> int:
    """Return the permission bits of a file that can be read. Raises Unreadable."""
    fd, status = _open(path)
    os.close(fd)
    return stat.S_IMODE(status.st_mode)


def read(path: str | Path, *, limit: int) -> FileText:
    """Return a file's text, at most `limit` bytes of UTF-8. Raises Unreadable."""
    fd, status = _open(path)
    with open(fd, "rb") as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise Unreadable(f"is larger than {limit} bytes")
    try:
        # Some editors put a byte order mark in front.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"is not UTF-8 text: look at line {line}") from None
    return FileText(text, stat.S_IMODE(status.st_mode))


def shared(path: str | Path, mode: int) -> bool:
    """Say whether others than the owner can read a file with these permission bits.

    The service manager shows its credentials as group-readable because of the ACL that limits
    them to one user; those are private.
    """
    own = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if own.startswith("/") and Path(path).is_relative_to(own):
        return False
    return bool(mode & 0o044)


def private_command(path: str | Path) -> str:
    """Return what to type to keep a file from others."""
    return f"chmod 600 {shlex.quote(os.fspath(path))}"
