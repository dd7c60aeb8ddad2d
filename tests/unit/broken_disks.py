"""Every way a disk can fail the journal: an error at any call, the power gone after any call.

`scripts/crashes [STATES]` goes through so many crash states or more (100,000), and says how many
there were and how long it took.

How a call fails: it did nothing, or all of it ("late": the error came behind the deed), once, for
some calls, or for ever. Writes are taken in parts, so one fails in the middle of a batch, too.

A crash state is what the disk may hold when the power goes between two calls that change it:

    the unsynced end of a file    lost, whole, cut at any sector of 512 bytes, or with any of its
                                  pages of 4 KiB missing (zeros), whatever their order
    a name not synced             there or not; a removal not synced undone or not
    what a failed sync covered    gone, even if a later sync of the file, or of the directory,
                                  said otherwise; only what was made again counts

When the process alone ends, the kernel may still have forgotten what a failed sync covered.

What has to hold then: all that was shown is there byte for byte (1), numbers are contiguous and a
cursor goes on where it was (2), the journal takes records again, and its files tell the same to
one who reads them in a row (11). Under "never" a power cut may take what was not synced: then
what is left is a beginning of what was shown, in a new epoch.
"""

from __future__ import annotations

import errno
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from attrs import define, field, frozen

from hypermux.config.settings import JournalSettings
from hypermux.core.coverage import Coverage
from hypermux.core.recording import Encoder, parse_line
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage, _MemoryFile
from hypermux.downstream.reading import JournalReader, resolve_cursor
from hypermux.downstream.storage import Appender
from hypermux.downstream.writing import ShownIsGone
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DiskFault
from hypermux.model.records import Cursor, Event, StateChange

HERE = Path("/j")
SECTOR, PAGE = 512, 4096
SOURCE = SourceId("a", "r")
CHANGING = frozenset(
    ("write", "sync", "write_file", "truncate", "rewrite", "link", "append", "remove", "sync_names")
)
CODES = (errno.ENOSPC, errno.EIO)
Mode = Literal["commit", "never"] | float
MODES: tuple[Mode, ...] = ("commit", "never", 5.0)
BATCHES = 10


@frozen
class Trouble:
    """Which calls fail: `count` from number `at` on. `late`: behind the deed."""

    at: int
    code: int = errno.EIO
    count: float = 1
    late: bool = False


@define(eq=False)
class BrokenDisk(MemoryStorage):
    """Counts the calls that change something; `before` each of them, and some of them fail."""

    before: Callable[[], None] | None = None
    calls: int = 0
    trouble: Trouble | None = None
    # What a failed sync left: the file, and the bytes that the kernel holds for clean.
    dropped: list[tuple[_MemoryFile, int, int]] = field(factory=list)
    # Files and links whose names a failed sync was for.
    doubtful: set[int] = field(factory=set)
    doubtful_links: set[Path] = field(factory=set)
    # Files that were renamed over others, which come back when the name is lost.
    replaced: dict[Path, _MemoryFile | None] = field(factory=dict)

    def _fail_if_planned(self, operation: str) -> None:
        if operation not in CHANGING:
            return
        if self.before is not None:
            self.before()
        number, trouble = self.calls, self.trouble
        self.calls += 1
        if trouble is None or not trouble.at <= number < trouble.at + trouble.count:
            return
        if not trouble.late:
            self._fail(operation)

    def _fail(self, operation: str) -> None:
        assert self.trouble is not None
        if operation == "sync":
            for file in self.files.values():
                if file.synced < len(file.data):
                    self.dropped.append((file, file.synced, len(file.data)))
        if operation == "sync_names":
            self.doubtful |= {id(file) for file in self.files.values() if not file.named}
            self.doubtful_links |= {
                path for path, to in self.links.items() if self._synced_links.get(path) != to
            }
        raise OSError(self.trouble.code, "broken")

    def _behind(self, operation: str) -> None:
        """Fail a call that has done what it does."""
        trouble = self.trouble
        if trouble is None or not trouble.late:
            return
        if trouble.at <= self.calls - 1 < trouble.at + trouble.count:
            raise OSError(trouble.code, f"broken behind {operation}")

    def write(self, path: Path, data: bytes) -> None:
        old = self.files.get(path)
        super().write(path, data)
        self.replaced.pop(path, None)
        try:
            self._behind("write_file")
        except OSError:
            self.files[path].named = False
            self.replaced[path] = old if old is not None and old.named else self._removed.get(path)
            raise

    def truncate(self, path: Path, size: int) -> None:
        super().truncate(path, size)
        self._behind("truncate")

    def rewrite(self, path: Path, start: int, end: int) -> None:
        super().rewrite(path, start, end)
        file = self._file(path)
        kept = []
        for other, since, until in self.dropped:
            if other is file and start <= since and until <= end:
                continue
            kept.append((other, since, min(until, start) if other is file else until))
        self.dropped = kept
        self._behind("rewrite")

    def link(self, path: Path, target: str) -> None:
        super().link(path, target)
        self.doubtful_links.discard(path)
        self._behind("link")

    def append(self, path: Path) -> Appender:
        super().append(path)
        self._behind("append")
        return _Handle(self, self.files[path], self.lives)

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._behind("remove")

    def sync_names(self, directory: Path) -> None:
        unsure = [f for f in self.files.values() if not f.named and id(f) in self.doubtful]
        links = {p: self._synced_links.get(p) for p in self.doubtful_links}
        super().sync_names(directory)
        for file in unsure:
            file.named = False
        for path, target in links.items():
            if target is None:
                self._synced_links.pop(path, None)
            else:
                self._synced_links[path] = target
        for path in [p for p in self.replaced if self.files[p].named]:
            del self.replaced[path]
        self._behind("sync_names")

    def forget(self) -> None:
        """Lose what the kernel held for clean and had not written."""
        for file, start, end in self.dropped:
            end = min(end, len(file.data))
            if start < end:
                file.data[start:end] = bytes(end - start)

    def states(self, rng: random.Random, most: int) -> Iterator[MemoryStorage]:
        """Yield up to about `most` disks as they may be after a power cut now."""
        ends = {p: list(self._ends(f)) for p, f in self.files.items()}
        unsynced = [p for p, f in self.files.items() if not f.named]
        names: list[tuple[bool, ...]] = list(itertools.product((True, False), repeat=len(unsynced)))
        total = len(names) * 4
        for each in ends.values():
            total *= len(each)
        keep = min(1.0, most / total)
        for there, links, undone in itertools.product(
            names, (self.links, self._synced_links), (False, True)
        ):
            gone = {p for p, kept in zip(unsynced, there, strict=True) if not kept}
            for contents in itertools.product(*ends.values()):
                if keep < 1 and rng.random() >= keep:
                    continue
                before = dict(self._removed) if undone else {}
                data = {path: bytes(file.data) for path, file in before.items()}
                for path, found in zip(ends, contents, strict=True):
                    if path not in gone:
                        data[path] = found
                    elif path in self.replaced:
                        old = self.replaced[path]
                        data.pop(path, None)
                        if old is not None:
                            data[path] = bytes(old.data)
                files = {p: _MemoryFile(bytearray(d), len(d), True) for p, d in data.items()}
                yield MemoryStorage(files=files, links=dict(links), synced_links=dict(links))

    def _ends(self, file: _MemoryFile) -> Iterator[bytes]:
        """Yield what may be left of a file."""
        data, synced = bytearray(file.data), file.synced
        size = len(data)
        for other, start, end in self.dropped:
            if other is file and start < min(end, size):
                data[start : min(end, size)] = bytes(min(end, size) - start)
        yield bytes(data[:synced])
        if synced == size:
            return
        first = (synced // SECTOR + 1) * SECTOR
        for cut in range(first, size, SECTOR):
            yield bytes(data[:cut])
        pages = list(range(synced // PAGE * PAGE, size, PAGE))
        for kept in itertools.product((True, False), repeat=len(pages)):
            torn = bytearray(data)
            for page, there in zip(pages, kept, strict=True):
                if not there:
                    start, end = max(page, synced), min(page + PAGE, size)
                    torn[start:end] = bytes(end - start)
            yield bytes(torn)


@define(eq=False)
class _Handle:
    """A file of a BrokenDisk that is written to."""

    disk: BrokenDisk
    file: _MemoryFile
    life: int

    def write(self, data: memoryview) -> int:
        self._alive()
        self.disk._fail_if_planned("write")
        part = data[: self.disk.write_limit]
        self.file.data += part
        self.disk._behind("write")
        return len(part)

    def sync(self) -> None:
        self._alive()
        self.disk._fail_if_planned("sync")
        self.file.synced = len(self.file.data)
        self.disk._behind("sync")

    def close(self) -> None:
        pass

    def _alive(self) -> None:
        if self.life != self.disk.lives:
            raise OSError(errno.EBADF, "the process that opened this file is gone")


@define(eq=False)
class Life:
    """One journal on a disk, and what its readers were shown."""

    disk: MemoryStorage
    rng: random.Random
    journal: Journal
    lines: list[bytes] = field(factory=list)

    @classmethod
    def begin(
        cls, disk: MemoryStorage, how: JournalSettings, rng: random.Random, boot: str = "b"
    ) -> Life:
        name = f"e{rng.getrandbits(32):08x}"
        journal = Journal.open(HERE, disk, how, new_epoch=lambda: name, now_ns=0, boot=boot)
        life = cls(disk, rng, journal)
        life.lines = life.read()
        return life

    def read(self) -> list[bytes]:
        """Return what a reader gets."""
        reader = JournalReader(HERE, self.disk, after=0, indexes=self.journal.indexes)
        data = b"".join(iter(lambda: reader.read(self.journal.position, 900), b""))
        return data.splitlines(keepends=True)

    def read_files(self) -> list[bytes]:
        """Return what the files hold, in a row."""
        names = sorted(p for p in self.disk.files if p.suffix == ".ndjson")
        data = b"".join(bytes(self.disk.files[path].data) for path in names)
        return data.splitlines(keepends=True)

    def batch(self, tries: int = 0) -> None:
        """Commit a few records; after a fault try again so often. Raises DiskFault."""
        journal, rng = self.journal, self.rng
        sources = journal.coverage.to_bytes() if journal.rotation_due else b""
        first_seq, lines = journal.next_seq, []
        for seq in range(first_seq, first_seq + rng.randint(1, 3)):
            ns = rng.randrange(10**9)
            raw = b'{"x":"%b"}' % (b"y" * rng.choice((5, 300, 1500)))
            item = StateChange("up") if seq % 7 == 0 else Event(raw, ns, "timeNano")
            durable = journal.durable_seq if seq == first_seq else None
            lines.append(
                Encoder().encode(
                    seq, item, source=SOURCE, at_ns=ns, received_ns=ns, durable=durable
                )
            )
            journal.coverage.apply(SOURCE, item, ns)
        self.lines += lines
        last_seq = first_seq + len(lines) - 1
        self._until_it_works(
            tries, journal.commit, b"".join(lines), first_seq, last_seq, sources, float(first_seq)
        )

    def sync(self, tries: int = 0) -> None:
        """Sync; after a fault try again so often. Raises DiskFault."""
        self._until_it_works(tries, self.journal.sync)

    def _until_it_works(self, tries: int, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except DiskFault:
            for attempt in range(tries + 1):
                try:
                    self.journal.retry(float(self.journal.next_seq))
                    return
                except ShownIsGone:
                    raise
                except DiskFault:
                    if attempt == tries:
                        raise

    @property
    def shown(self) -> tuple[Cursor, list[bytes]]:
        """A reader's place, and what was shown up to there."""
        seq = self.journal.position.seq
        return Cursor(self.journal.epoch, seq), self.lines[:seq]

    def check(self, cursor: Cursor, shown: list[bytes], *, whole: bool = True) -> None:
        """Raise AssertionError unless what was `shown` under `cursor` is here.

        Not `whole`: or else the beginning of it, in another epoch.
        """
        self.journal.sync()
        lines = self.read()
        parsed = [parse_line(line) for line in lines]
        assert [p.seq for p in parsed] == list(range(1, self.journal.next_seq))
        if cursor.epoch:
            found = resolve_cursor(cursor, self.journal.epochs, self.journal.next_seq)
            if whole or isinstance(found, int):
                assert found == cursor.seq, found
                assert lines[: len(shown)] == shown
            else:
                assert self.journal.epoch != cursor.epoch
        assert self.read_files() == lines
        coverage = Coverage()
        for p in parsed:
            coverage.apply(p.source, p.item, p.at_ns)
        assert coverage == self.journal.coverage


def settings(fsync: Mode) -> JournalSettings:
    return JournalSettings(fsync=fsync, segment_size=9000)


def crash_everywhere(seed: int, fsync: Mode, most: int, trouble: Trouble | None = None) -> int:
    """Run a life of some batches; cut the power before each of its calls. Return the states."""
    rng, chance, count = random.Random(seed), random.Random(seed), 0
    disk = BrokenDisk(write_limit=rng.choice((None, 1000)), trouble=trouble)
    life: Life | None = None
    never = fsync == "never"

    def probe() -> None:
        nonlocal count
        cursor, shown = (Cursor("", 0), []) if life is None else life.shown
        for state in disk.states(chance, most):
            count += 1
            after = Life.begin(state, settings(fsync), random.Random(count), "another boot")
            # What was never shown may be left, too: it is what was written.
            kept = len(after.lines)
            assert life is None or after.lines == life.lines[:kept]
            assert never or kept >= len(shown)
            if never and life is not None:
                assert after.journal.epoch != cursor.epoch
            after.check(cursor, shown, whole=not never)
            after.batch()
            after.check(cursor, shown[:kept], whole=not never)

    disk.before = probe
    try:
        life = Life.begin(disk, settings(fsync), rng)
    except DiskFault:
        return count
    for _ in range(BATCHES):
        life.batch(tries=9)
    life.sync(tries=9)
    assert life.read() == life.lines == life.read_files()
    return count


def fail_everywhere(
    fsync: Mode, code: int, *, count: float, late: bool, forgetful: bool, step: int = 1
) -> int:
    """Let each call fail, so many from it on; return how many calls there were.

    `forgetful`: with the process the kernel's memory of what a sync failed to write ends.
    """
    for number in itertools.count(0, step):
        rng = random.Random(number)
        disk = BrokenDisk(write_limit=1000, trouble=Trouble(number, code, count, late))
        life: Life | None = None
        cursor, shown = Cursor("", 0), list[bytes]()
        failed = False
        try:
            life = Life.begin(disk, settings(fsync), rng)
            for _ in range(BATCHES):
                life.batch(tries=3)
            life.sync(tries=3)
        except DiskFault:
            failed = True
        if life is not None:
            cursor, shown = life.shown
            assert life.read() == shown
            assert failed == (count > 4 and disk.calls > number)
            if not failed:
                assert shown == life.lines == life.read_files()
        whole = True
        if forgetful:
            # A sync that failed under "never" was of what had been shown.
            whole = not (fsync == "never" and failed)
            disk.forget()
        disk.trouble = None
        disk.kill()
        after = Life.begin(disk, settings(fsync), rng)
        kept = len(after.lines)
        after.check(cursor, shown, whole=whole)
        after.batch()
        after.check(cursor, shown[:kept], whole=whole)
        if disk.calls < number:
            return number
    raise AssertionError


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    start, count, faults = time.monotonic(), 0, 0
    for fsync, code, length, late, forgetful in itertools.product(
        MODES, CODES, (1, 3, float("inf")), (False, True), (False, True)
    ):
        faults += fail_everywhere(fsync, code, count=length, late=late, forgetful=forgetful)
    print(f"{faults} failing calls in {time.monotonic() - start:.0f} s", flush=True)
    for seed in itertools.count(1):
        for fsync in MODES:
            count += crash_everywhere(seed, fsync, 40)
            trouble = Trouble(seed * 3 % 80, CODES[seed % 2], 1 + seed % 5, seed % 3 == 0)
            count += crash_everywhere(seed, fsync, 40, trouble)
        if count >= wanted:
            break
    print(f"{count} crash states in {time.monotonic() - start:.0f} s: every promise kept")


if __name__ == "__main__":
    main()
