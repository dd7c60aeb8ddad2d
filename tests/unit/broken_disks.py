"""Every way a disk can fail the journal: an error at any call, the power gone after any call.

`scripts/crashes [STATES]` goes through so many crash states or more (100,000),
and says how many there were and how long it took.

A crash state is what the disk may hold when the power goes between two calls that change it:

    the unsynced end of a file    lost, whole, cut at any sector of 512 bytes, or with any of its
                                  pages of 4 KiB missing (zeros), whatever their order
    a name not synced             there or not; a removal not synced undone or not
    what a failed sync covered    gone, even if a later sync of the file said otherwise

What has to hold then: all that was shown is there byte for byte (1), numbers are contiguous and a
cursor goes on where it was (2), and the journal takes records again (11).
"""

from __future__ import annotations

import errno
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from attrs import define, field

from hypermux.config.settings import JournalSettings
from hypermux.core.coverage import Coverage
from hypermux.core.recording import Encoder, parse_line
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage, _MemoryFile
from hypermux.downstream.reading import JournalReader, resolve_cursor
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


@define(eq=False)
class BrokenDisk(MemoryStorage):
    """Counts the calls that change something; one of them, or all from it on, can fail."""

    before: Callable[[], None] | None = None
    calls: int = 0
    fail_at: int | None = None
    code: int = errno.EIO
    for_ever: bool = False
    # What a failed sync left: the file, and the bytes that the kernel holds for clean.
    dropped: list[tuple[_MemoryFile, int, int]] = field(factory=list)

    def _fail_if_planned(self, operation: str) -> None:
        if operation not in CHANGING:
            return
        if self.before is not None:
            self.before()
        number, at = self.calls, self.fail_at
        self.calls += 1
        if at is None or number < at or (number > at and not self.for_ever):
            return
        if operation == "sync":
            for file in self.files.values():
                if file.synced < len(file.data):
                    self.dropped.append((file, file.synced, len(file.data)))
        raise OSError(self.code, "broken")

    def states(self, rng: random.Random, most: int) -> Iterator[MemoryStorage]:
        """Yield up to about `most` disks as they may be after a power cut now."""
        ends = [list(self._ends(f)) for f in self.files.values()]
        unsynced = [p for p, f in self.files.items() if not f.named]
        names: list[tuple[bool, ...]] = list(itertools.product((True, False), repeat=len(unsynced)))
        total = len(names) * 4
        for each in ends:
            total *= len(each)
        keep = min(1.0, most / total)
        links, removals = (self.links, self._synced_links), (False, True)
        for there, link, undone in itertools.product(names, links, removals):
            for contents in itertools.product(*ends):
                if keep < 1 and rng.random() >= keep:
                    continue
                files = dict(self._removed) if undone else {}
                gone = {p for p, kept in zip(unsynced, there, strict=True) if not kept}
                for path, data in zip(self.files, contents, strict=True):
                    if path not in gone:
                        files[path] = _MemoryFile(bytearray(data), len(data), True)
                yield MemoryStorage(
                    files={p: _MemoryFile(bytearray(f.data), len(f.data), True)
                           for p, f in files.items()},
                    links=dict(link), synced_links=dict(link),
                )  # fmt: skip

    def _ends(self, file: _MemoryFile) -> Iterator[bytes]:
        """Yield what may be left of a file."""
        data = bytearray(file.data)
        for other, start, end in self.dropped:
            if other is file:
                data[start:end] = bytes(end - start)
        synced, size = file.synced, len(data)
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
class Life:
    """One journal on a disk, and what its readers were shown."""

    disk: MemoryStorage
    how: JournalSettings
    rng: random.Random
    journal: Journal
    lines: list[bytes] = field(factory=list)

    @classmethod
    def begin(cls, disk: MemoryStorage, how: JournalSettings, rng: random.Random) -> Life:
        name = f"e{rng.getrandbits(32):08x}"
        journal = Journal.open(HERE, disk, how, new_epoch=lambda: name, now_ns=0, boot="b")
        life = cls(disk, how, rng, journal)
        life.lines = life.read()
        return life

    def read(self) -> list[bytes]:
        reader = JournalReader(HERE, self.disk, after=0, indexes=self.journal.indexes)
        data = b"".join(iter(lambda: reader.read(self.journal.position, 900), b""))
        return data.splitlines(keepends=True)

    def batch(self, tries: int = 0) -> None:
        """Commit a few records; after a fault try again so often. Raises DiskFault."""
        journal, rng = self.journal, self.rng
        sources = journal.coverage.to_bytes() if journal.rotation_due else b""
        first_seq, lines = journal.next_seq, []
        for seq in range(first_seq, first_seq + rng.randint(1, 3)):
            ns = rng.randrange(10**9)
            item = StateChange("up") if seq % 7 == 0 else Event(
                b'{"x":"%b"}' % (b"y" * rng.choice((5, 300, 1500))), ns, "timeNano"
            )  # fmt: skip
            durable = journal.durable_seq if seq == first_seq else None
            lines.append(
                Encoder().encode(
                    seq, item, source=SOURCE, at_ns=ns, received_ns=ns, durable=durable
                )
            )
            journal.coverage.apply(SOURCE, item, ns)
        self.lines += lines
        last_seq = first_seq + len(lines) - 1
        try:
            journal.commit(b"".join(lines), first_seq, last_seq, sources, float(first_seq))
        except DiskFault:
            for attempt in range(tries + 1):
                try:
                    journal.retry()
                    return
                except DiskFault:
                    if attempt == tries:
                        raise

    @property
    def shown(self) -> tuple[Cursor, list[bytes]]:
        seq = self.journal.position.seq
        return Cursor(self.journal.epoch, seq), self.lines[:seq]

    def check(self, cursor: Cursor, shown: list[bytes]) -> None:
        """Raise AssertionError unless what was `shown` under `cursor` is here."""
        self.journal.sync()
        lines = self.read()
        parsed = [parse_line(line) for line in lines]
        assert [p.seq for p in parsed] == list(range(1, self.journal.next_seq))
        if cursor.epoch:
            found = resolve_cursor(cursor, self.journal.epochs, self.journal.next_seq)
            assert found == cursor.seq, found
        assert lines[: len(shown)] == shown
        coverage = Coverage()
        for p in parsed:
            coverage.apply(p.source, p.item, p.at_ns)
        assert coverage == self.journal.coverage


def settings(fsync: Mode) -> JournalSettings:
    return JournalSettings(fsync=fsync, segment_size=9000)


def crash_everywhere(
    seed: int, fsync: Mode, most: int, *, fail_at: int | None = None, code: int = errno.EIO
) -> int:
    """Run a life of some batches; cut the power before each of its calls. Return the states."""
    rng, chance, count = random.Random(seed), random.Random(seed), 0
    disk = BrokenDisk(write_limit=rng.choice((None, 1000)), fail_at=fail_at, code=code)
    life: Life | None = None

    def probe() -> None:
        nonlocal count
        cursor, shown = (Cursor("", 0), []) if life is None else life.shown
        for state in disk.states(chance, most):
            count += 1
            after = Life.begin(state, life.how if life else settings(fsync), random.Random(count))
            after.check(cursor, shown)
            after.batch()
            after.check(cursor, shown)

    life = None
    disk.before = probe
    try:
        life = Life.begin(disk, settings(fsync), rng)
    except DiskFault:
        return count
    for _ in range(10):
        life.batch(tries=9)
    return count


def fail_everywhere(fsync: Mode, code: int, *, for_ever: bool, step: int = 1) -> int:
    """Let each call fail, once or from it on; return how many there were."""
    for number in itertools.count(0, step):
        rng = random.Random(number)
        disk = BrokenDisk(write_limit=1000, fail_at=number, code=code, for_ever=for_ever)
        life: Life | None = None
        cursor, shown = Cursor("", 0), list[bytes]()
        failed = False
        try:
            life = Life.begin(disk, settings(fsync), rng)
            for _ in range(10):
                life.batch(tries=2)
        except DiskFault:
            failed = True
        if life is not None:
            cursor, shown = life.shown
            assert life.read() == shown
            assert for_ever or not failed
        # "never" survives the end of the process and promises nothing for the power's.
        for state in disk.states(rng, 3) if fsync != "never" else ():
            Life.begin(state, settings(fsync), rng).check(cursor, shown)
        disk.fail_at = None
        disk.kill()
        after = Life.begin(disk, settings(fsync), rng)
        after.check(cursor, shown)
        after.batch()
        after.check(cursor, shown)
        if disk.calls < number:
            return number
    raise AssertionError


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    start, count, faults = time.monotonic(), 0, 0
    modes: tuple[Mode, ...] = ("commit", 5.0)
    for fsync, code, for_ever in itertools.product((*modes, "never"), CODES, (False, True)):
        faults += fail_everywhere(fsync, code, for_ever=for_ever)
    print(f"{faults} failing calls in {time.monotonic() - start:.0f} s", flush=True)
    for seed in itertools.count(1):
        for fsync in modes:
            count += crash_everywhere(seed, fsync, 60)
            count += crash_everywhere(seed, fsync, 30, fail_at=seed * 3 % 80, code=CODES[seed % 2])
        if count >= wanted:
            break
    print(f"{count} crash states in {time.monotonic() - start:.0f} s: every promise kept")


if __name__ == "__main__":
    main()
