"""The few things that the journal asks of a disk, and the disk's answer to them.

This is the seam for fault injection. Every call blocks and raises OSError as the system would;
`translated` turns that into a `DiskFault` in plain words, once, where a file is used.
`downstream.memory` has the other answer: a disk for tests, which knows what was synced.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from attrs import define

from hypermux.model.errors import DiskFault

# What is read at once of a long file: large enough for the disk, small beside the rest of us.
BLOCK = 1 << 20
# Who only looks at a lock holds it for microseconds; half a second covers a busy machine.
LOOK_S = 0.5

_WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk reports an input/output error",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENOENT: "there is no such file",
    errno.EMFILE: "too many files are open",
    errno.EFBIG: "the file would be larger than allowed",
}


@contextmanager
def translated(path: Path, doing: str) -> Generator[None, None, None]:
    """Turn an OSError into a DiskFault that names the file and what was being done to it."""
    try:
        yield
    except OSError as exc:
        words = _WORDS.get(exc.errno or 0) or (exc.strerror or str(exc))
        raise DiskFault(f"cannot {doing} {path}: {words}") from exc


class Lock(Protocol):
    """Held until closed, or until the process ends."""

    def close(self) -> None:
        """Let go."""


class Appender(Protocol):
    """A file open for writing at its end."""

    def write(self, data: memoryview) -> int:
        """Write a part of `data`, at least one byte, and return how much."""

    def sync(self) -> None:
        """Return when all that was written will survive a power cut.

        After an error nothing is known of what was written; calling again proves nothing.
        """

    def close(self) -> None:
        """Close the file, without syncing it."""


class Slice(Protocol):
    """A file open for reading."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; none behind the end."""

    def close(self) -> None:
        """Close the file."""


class Storage(Protocol):
    """A place for files, private to their owner."""

    def prepare(self, directory: Path) -> None:
        """Create the directory, and its parents, unless it is there."""

    def lock(self, path: Path) -> Lock:
        """Hold the one lock at `path`. Raises BlockingIOError while another holds it."""

    def names(self, directory: Path) -> list[str]:
        """Return the names in the directory, in no order."""

    def read(self, path: Path) -> bytes:
        """Return the whole file."""

    def write(self, path: Path, data: bytes) -> None:
        """Put a whole file in place, synced, all or nothing, over any earlier one."""

    def move(self, path: Path, target: Path) -> None:
        """Put a file in the place of another in its directory, synced; readers keep the other."""

    def truncate(self, path: Path, size: int) -> None:
        """Cut the file to its first `size` bytes, synced."""

    def rewrite(self, path: Path, start: int, end: int) -> None:
        """Write the bytes from `start` to `end` over themselves, synced.

        After a sync that failed the kernel may take pages for written that are not on the disk,
        and reads them back from memory: only writing them again makes a later sync true.
        """

    def link(self, path: Path, target: str) -> None:
        """Make `path` a symbolic link to `target`, over any earlier one."""

    def target(self, path: Path) -> str | None:
        """Return where the link points, None when there is none."""

    def append(self, path: Path) -> Appender:
        """Open the file to append to it, and create it when there is none."""

    def open(self, path: Path) -> Slice:
        """Open the file to read from it."""

    def remove(self, path: Path) -> None:
        """Remove the file, if there is one."""

    def size(self, path: Path) -> int:
        """Return the file's size in bytes."""

    def free(self, directory: Path) -> int:
        """Return the bytes that we may still write on the directory's file system."""

    def sync_names(self, directory: Path) -> None:
        """Return when files created or removed and links made in the directory survive a power cut.

        Until then each of them may be as it was before.
        """


def read_blocks(storage: Storage, path: Path, start: int = 0) -> Generator[bytes, None, None]:
    """Yield the file from `start` on in blocks. Raises OSError."""
    file = storage.open(path)
    try:
        while data := file.read_at(start, BLOCK):
            yield data
            start += len(data)
    finally:
        file.close()


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the lock at `path`; one that may not be looked at is not held.

    Looking takes a moment of the lock, shared: `DiskStorage.lock` waits for longer than that.
    """
    try:
        file = _Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    try:
        fcntl.flock(file.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        file.close()
    return False


def which_file(path: Path) -> tuple[int, ...]:
    """Return what no copy of the file has: its number, and when it was last changed in any way.

    The latter cannot be set, so that a new file with an old one's number is told from it, too; a
    change of its owner makes it another. Raises OSError.
    """
    found = path.stat()
    return found.st_ino, found.st_ctime_ns


def settle(path: Path) -> None:
    """Return when what the file has is on the disk, written by whomever. Raises OSError."""
    file = _Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        file.sync()
    finally:
        file.close()


def write_all(file: Appender, data: bytes) -> None:
    """Write all of `data`, however small the parts that are taken."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@define(eq=False)
class _Descriptor:
    fd: int

    def write(self, data: memoryview) -> int:
        return os.write(self.fd, data)

    def sync(self) -> None:
        os.fdatasync(self.fd)

    @property
    def plain_fd(self) -> int:
        return self.fd

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            with suppress(OSError):  # it tells nothing that a sync did not, or would
                os.close(fd)

    def __del__(self) -> None:
        self.close()


class DiskStorage:
    """Files of the system, 0600 in directories 0700."""

    def prepare(self, directory: Path) -> None:
        """See `Storage.prepare`."""
        missing = [p for p in (directory, *directory.parents) if not p.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            self.sync_names(path.parent)

    def lock(self, path: Path) -> Lock:
        """See `Storage.lock`; flock(2), so the system lets go when the process ends."""
        lock = _Descriptor(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        deadline_s = time.monotonic() + LOOK_S
        try:
            while True:
                try:
                    fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return lock
                except BlockingIOError:
                    if time.monotonic() >= deadline_s:
                        raise
                    time.sleep(0.01)
        except BaseException:
            lock.close()
            raise

    def names(self, directory: Path) -> list[str]:
        """See `Storage.names`."""
        return os.listdir(directory)

    def read(self, path: Path) -> bytes:
        """See `Storage.read`."""
        return path.read_bytes()

    def write(self, path: Path, data: bytes) -> None:
        """See `Storage.write`; a file beside it is renamed over it."""
        beside = path.with_name(f".{path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        file = _Descriptor(os.open(beside, flags, 0o600))
        try:
            write_all(file, data)
            os.fsync(file.fd)
        except OSError:
            with suppress(OSError):  # on a full disk it would stay for good
                beside.unlink()
            raise
        finally:
            file.close()
        os.rename(beside, path)
        self.sync_names(path.parent)

    def move(self, path: Path, target: Path) -> None:
        """See `Storage.move`."""
        os.rename(path, target)
        self.sync_names(target.parent)

    def truncate(self, path: Path, size: int) -> None:
        """See `Storage.truncate`."""
        file = _Descriptor(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        try:
            os.ftruncate(file.fd, size)
            os.fsync(file.fd)
        finally:
            file.close()

    def rewrite(self, path: Path, start: int, end: int) -> None:
        """See `Storage.rewrite`."""
        file = _Descriptor(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        try:
            while start < end:
                data = file.read_at(start, min(BLOCK, end - start))
                if not data:
                    break
                start += os.pwrite(file.fd, data, start)
            os.fsync(file.fd)
        finally:
            file.close()

    def link(self, path: Path, target: str) -> None:
        """See `Storage.link`."""
        beside = path.with_name(f".{path.name}.new")
        beside.unlink(missing_ok=True)
        os.symlink(target, beside)
        os.rename(beside, path)

    def target(self, path: Path) -> str | None:
        """See `Storage.target`."""
        return os.readlink(path) if path.is_symlink() else None

    def append(self, path: Path) -> Appender:
        """See `Storage.append`."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return _Descriptor(os.open(path, flags, 0o600))

    def open(self, path: Path) -> Slice:
        """See `Storage.open`."""
        return _Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def remove(self, path: Path) -> None:
        """See `Storage.remove`."""
        path.unlink(missing_ok=True)

    def size(self, path: Path) -> int:
        """See `Storage.size`."""
        return path.stat().st_size

    def free(self, directory: Path) -> int:
        """See `Storage.free`; what is kept for root does not count."""
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize

    def sync_names(self, directory: Path) -> None:
        """See `Storage.sync_names`."""
        file = _Descriptor(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            os.fsync(file.fd)
        finally:
            file.close()
