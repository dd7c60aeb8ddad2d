"""The few things that the journal asks of a disk, and two answers: the disk, and a memory.

This is the seam for fault injection. Every call blocks and raises OSError as the system would;
`translated` turns that into a `DiskFault` in plain words, once, where a file is used.
`MemoryStorage` knows what was synced and what was not, so that a test can cut the power.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from attrs import define, field

from hypermux.model.errors import DiskFault

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

    def truncate(self, path: Path, size: int) -> None:
        """Cut the file to its first `size` bytes, synced."""

    def rewrite(self, path: Path, offset: int, data: bytes) -> None:
        """Write bytes over the same ones, synced.

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

    def sync_names(self, directory: Path) -> None:
        """Return when files created in and links made in the directory survive a power cut."""


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

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
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
        try:
            fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise
        return lock

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
            beside.unlink()  # on a full disk every failed start would leave another one
            raise
        finally:
            file.close()
        os.rename(beside, path)
        self.sync_names(path.parent)

    def truncate(self, path: Path, size: int) -> None:
        """See `Storage.truncate`."""
        file = _Descriptor(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        try:
            os.ftruncate(file.fd, size)
            os.fsync(file.fd)
        finally:
            file.close()

    def rewrite(self, path: Path, offset: int, data: bytes) -> None:
        """See `Storage.rewrite`."""
        file = _Descriptor(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        rest = memoryview(data)
        try:
            while rest:
                written = os.pwrite(file.fd, rest, offset)
                rest, offset = rest[written:], offset + written
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

    def sync_names(self, directory: Path) -> None:
        """See `Storage.sync_names`."""
        file = _Descriptor(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            os.fsync(file.fd)
        finally:
            file.close()


@define(eq=False)
class _MemoryFile:
    """Bytes, of which the first `synced` survive a power cut, if the name does."""

    data: bytearray = field(factory=bytearray)
    synced: int = 0
    named: bool = False


@define(eq=False)
class _MemoryHandle:
    """A file open in one life of the process; dead after a crash."""

    storage: MemoryStorage
    file: _MemoryFile
    life: int

    def _check(self) -> None:
        if self.life != self.storage.lives:
            raise OSError(errno.EBADF, "the process that opened this file is gone")

    def write(self, data: memoryview) -> int:
        self._check()
        self.storage._fail_if_planned("write")
        part = data[: self.storage.write_limit]
        self.file.data += part
        return len(part)

    def sync(self) -> None:
        self._check()
        self.storage._fail_if_planned("sync")
        self.storage.syncs += 1
        self.file.synced = len(self.file.data)

    def read_at(self, offset: int, size: int) -> bytes:
        self._check()
        self.storage._fail_if_planned("read_at")
        return bytes(self.file.data[offset : offset + size])

    def close(self) -> None:
        pass


@define(eq=False)
class _MemoryLock:
    storage: MemoryStorage
    path: Path
    life: int

    def close(self) -> None:
        if self.life == self.storage.lives:
            self.storage._locked.pop(self.path, None)


@define(eq=False)
class MemoryStorage:
    """A disk for tests: it can lose what was not synced, fail on order, and write in parts.

    `write_limit` is the most bytes one write takes; `syncs` counts syncs of appended files.
    """

    write_limit: int | None = None
    syncs: int = 0
    lives: int = 0
    files: dict[Path, _MemoryFile] = field(factory=dict)
    links: dict[Path, str] = field(factory=dict)
    _synced_links: dict[Path, str] = field(factory=dict)
    _locked: dict[Path, bool] = field(factory=dict)
    _plan: dict[str, list[OSError | None]] = field(factory=dict)

    def fail(self, operation: str, code: int, *, after: int = 0) -> None:
        """Let the call of `operation` that follows `after` more fail once with errno `code`.

        Operations have the names of the methods of `Storage`, `Appender` and `Slice`;
        `Storage.write` is `write_file`.
        """
        plan = self._plan.setdefault(operation, [])
        plan.extend([None] * (after - len(plan)))
        plan.insert(after, OSError(code, os.strerror(code)))

    def kill(self) -> None:
        """End the process that uses this disk: its files close, its locks go, nothing is lost."""
        self.lives += 1
        self._locked.clear()

    def crash(self, keep: int = 0) -> None:
        """Cut the power: of what was not synced only the first `keep` bytes of a file survive."""
        self.kill()
        for path, file in list(self.files.items()):
            if not file.named:
                del self.files[path]
            del file.data[file.synced + keep :]
            file.synced = len(file.data)
        self.links = dict(self._synced_links)

    def _fail_if_planned(self, operation: str) -> None:
        plan = self._plan.get(operation)
        if plan and (error := plan.pop(0)) is not None:
            raise error

    def _file(self, path: Path) -> _MemoryFile:
        if path in self.links:
            path = path.parent / self.links[path]
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None

    def prepare(self, directory: Path) -> None:
        """See `Storage.prepare`."""
        self._fail_if_planned("prepare")

    def lock(self, path: Path) -> Lock:
        """See `Storage.lock`."""
        self._fail_if_planned("lock")
        if path in self._locked:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        self._locked[path] = True
        return _MemoryLock(self, path, self.lives)

    def names(self, directory: Path) -> list[str]:
        """See `Storage.names`."""
        self._fail_if_planned("names")
        return [path.name for path in (*self.files, *self.links) if path.parent == directory]

    def read(self, path: Path) -> bytes:
        """See `Storage.read`."""
        self._fail_if_planned("read")
        return bytes(self._file(path).data)

    def write(self, path: Path, data: bytes) -> None:
        """See `Storage.write`."""
        self._fail_if_planned("write_file")
        self.files[path] = _MemoryFile(bytearray(data), len(data), True)

    def truncate(self, path: Path, size: int) -> None:
        """See `Storage.truncate`."""
        self._fail_if_planned("truncate")
        file = self._file(path)
        del file.data[size:]
        file.synced = len(file.data)

    def rewrite(self, path: Path, offset: int, data: bytes) -> None:
        """See `Storage.rewrite`."""
        self._fail_if_planned("rewrite")
        file = self._file(path)
        file.data[offset : offset + len(data)] = data
        file.synced = len(file.data)

    def link(self, path: Path, target: str) -> None:
        """See `Storage.link`."""
        self._fail_if_planned("link")
        self.links[path] = target

    def target(self, path: Path) -> str | None:
        """See `Storage.target`."""
        return self.links.get(path)

    def append(self, path: Path) -> Appender:
        """See `Storage.append`."""
        self._fail_if_planned("append")
        return _MemoryHandle(self, self.files.setdefault(path, _MemoryFile()), self.lives)

    def open(self, path: Path) -> Slice:
        """See `Storage.open`."""
        self._fail_if_planned("open")
        return _MemoryHandle(self, self._file(path), self.lives)

    def sync_names(self, directory: Path) -> None:
        """See `Storage.sync_names`."""
        self._fail_if_planned("sync_names")
        for path, file in self.files.items():
            if path.parent == directory:
                file.named = True
        self._synced_links = dict(self.links)
