"""A disk for tests. It knows what was synced and what was not, so that a test can cut the power."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from attrs import define, field

from hypermux.downstream.storage import Appender, Lock, Slice


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
    free_bytes: int = 1 << 40
    lives: int = 0
    files: dict[Path, _MemoryFile] = field(factory=dict)
    links: dict[Path, str] = field(factory=dict)
    _synced_links: dict[Path, str] = field(factory=dict, alias="synced_links")
    _removed: dict[Path, _MemoryFile] = field(factory=dict)
    _locked: dict[Path, bool] = field(factory=dict)
    _plan: dict[str, list[OSError | None]] = field(factory=dict)
    _refused: dict[str, int] = field(factory=dict)

    def fail(self, operation: str, code: int, *, after: int = 0) -> None:
        """Let the call of `operation` that follows `after` more fail once with errno `code`.

        Operations have the names of the methods of `Storage`, `Appender` and `Slice`;
        `Storage.write` is `write_file`.
        """
        plan = self._plan.setdefault(operation, [])
        plan.extend([None] * (after - len(plan)))
        plan.insert(after, OSError(code, os.strerror(code)))

    def refuse(self, operation: str, code: int) -> None:
        """Let every call of `operation` fail with errno `code`, until `take_again`."""
        self._refused[operation] = code

    def take_again(self) -> None:
        """Let no call fail any more."""
        self._refused.clear()
        self._plan.clear()

    def kill(self) -> None:
        """End the process that uses this disk: its files close, its locks go, nothing is lost."""
        self.lives += 1
        self._locked.clear()

    def crash(self, keep: int = 0) -> None:
        """Cut the power: of what was not synced only the first `keep` bytes of a file survive."""
        self.kill()
        named = {path: file for path, file in self.files.items() if file.named}
        self.files = {**self.files, **self._removed, **named}
        self._removed.clear()
        for path, file in list(self.files.items()):
            if not file.named:
                del self.files[path]
            del file.data[file.synced + keep :]
            file.synced = len(file.data)
        self.links = dict(self._synced_links)

    def _fail_if_planned(self, operation: str) -> None:
        code = self._refused.get(operation)
        if code is not None:
            raise OSError(code, os.strerror(code))
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
        within = f"{directory}/"  # text, which paths remember: comparing them takes far longer
        names = (str(path).removeprefix(within) for path in (*self.files, *self.links))
        return [name for name in names if "/" not in name]

    def read(self, path: Path) -> bytes:
        """See `Storage.read`."""
        self._fail_if_planned("read")
        return bytes(self._file(path).data)

    def write(self, path: Path, data: bytes) -> None:
        """See `Storage.write`."""
        self._fail_if_planned("write_file")
        self.files[path] = _MemoryFile(bytearray(data), len(data), True)

    def move(self, path: Path, target: Path) -> None:
        """See `Storage.move`; what was not synced of the file may still be lost."""
        self._fail_if_planned("move")
        file = self.files[target] = self.files.pop(path)
        file.named = True

    def truncate(self, path: Path, size: int) -> None:
        """See `Storage.truncate`."""
        self._fail_if_planned("truncate")
        file = self._file(path)
        del file.data[size:]
        file.synced = len(file.data)

    def rewrite(self, path: Path, start: int, end: int) -> None:
        """See `Storage.rewrite`."""
        self._fail_if_planned("rewrite")
        file = self._file(path)
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

    def remove(self, path: Path) -> None:
        """See `Storage.remove`."""
        self._fail_if_planned("remove")
        file = self.files.pop(path, None)
        if file is not None and file.named:
            self._removed.setdefault(path, file)

    def size(self, path: Path) -> int:
        """See `Storage.size`."""
        self._fail_if_planned("size")
        return len(self._file(path).data)

    def free(self, directory: Path) -> int:
        """See `Storage.free`."""
        self._fail_if_planned("free")
        return self.free_bytes

    def sync_names(self, directory: Path) -> None:
        """See `Storage.sync_names`."""
        self._fail_if_planned("sync_names")
        self._removed = {p: f for p, f in self._removed.items() if p.parent != directory}
        for path, file in self.files.items():
            if path.parent == directory:
                file.named = True
        self._synced_links = dict(self.links)
