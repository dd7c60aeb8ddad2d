"""A machine that writes, breaks and reads a journal at random, and knows what readers are to get.

A life of the process ends by a stop, a kill, a power cut, or a call to the disk that fails. Readers
begin anywhere, choose all or something, are given blocks or stretches, stop, and go on by cursor in
the same life or another. What each has got is, at all times:

    every record after its place, once, in order, byte for byte as it was committed
    or one `retention` gap that counts exactly those that are gone, when they are the oldest

and never one that is not shown. A cursor whose records were rewritten is told so first, and no
other is.

All sizes are small, so that a block holds two records, a stretch four and a segment a dozen.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from unittest import mock

import trio
from attrs import define, field
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypermux.config.settings import JournalSettings, RetainSettings
from hypermux.core import compression
from hypermux.core import index as index_module
from hypermux.core.recording import Encoder, parse_line
from hypermux.core.request import Request
from hypermux.core.segments import first_seqs, index_name
from hypermux.core.selection import Selection
from hypermux.downstream import stretches, walk
from hypermux.downstream.horizon import Horizon
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage, _MemoryHandle
from hypermux.downstream.reading import JournalReader, resolve_cursor
from hypermux.downstream.storage import Slice
from hypermux.downstream.stored import compress, is_plain
from hypermux.downstream.streaming import Published, Stream
from hypermux.downstream.stretches import Stretch
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DiskFault
from hypermux.model.records import Cursor, Event

T = TypeVar("T")

HERE = Path("/j")
SECOND = 10**9
ACCOUNTS = ("a", "b")
READERS = 6


class _PlainHandle(_MemoryHandle):
    """A handle that looks as if the kernel could send its file."""

    plain_fd = -1


class Disk(MemoryStorage):
    """A disk in memory whose files can be sent."""

    def open(self, path: Path) -> Slice:
        super().open(path)
        return _PlainHandle(self, self._file(path), self.lives)


async def passed_by() -> None:
    """Stand for a checkpoint where there is no event loop, which would be most of the time."""


def run(way: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
    """Run what never waits to its end."""
    try:
        way(*args).send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


async def direct(function: Callable[..., Any], *args: Any) -> Any:
    """Run a blocking call here."""
    return function(*args)


SMALL = (
    (walk, "BLOCK", 500),
    (stretches, "SIZE", 900),
    (stretches, "LEAST", 200),
    (stretches, "MOST", 3000),
    (stretches, "_TAIL", 64),
    (index_module, "BLOCK", 400),
    (compression, "FRAME", 700),
    (trio.lowlevel, "checkpoint", passed_by),
)


@define(eq=False)
class Reader:
    """What one reader has: its place, and the line that it saw there (None: it saw none)."""

    request: Request
    cursor: Cursor
    seen: bytes | None = None
    stream: Stream | None = None
    got: list[int] = field(factory=list)


class JournalReaders(RuleBasedStateMachine):
    """See the module. `met` counts what was met, over all runs."""

    met: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.patches = [mock.patch.object(*small) for small in SMALL]
        for patch in self.patches:
            patch.start()
        self.disk = Disk()
        self.names = itertools.count(1)
        self.boots = itertools.count(1)
        self.boot = "b0"
        self.lines: dict[int, bytes] = {}
        self.at_ns: dict[int, int] = {}
        self.readers: list[Reader] = []
        self.shown = 0
        self.encoder = Encoder()

    def teardown(self) -> None:
        for patch in self.patches:
            patch.stop()

    # Lives

    @initialize(
        fsync=st.sampled_from(["commit", "never", 3.0]), retain=st.sampled_from([4_000, 40_000])
    )
    def begin(self, fsync: Any, retain: int) -> None:
        self.settings = JournalSettings(
            fsync=fsync, segment_size=2_000, retain=RetainSettings(size=retain), keep_free=0
        )
        self.open()

    def open(self) -> None:
        self.journal = journal = Journal.open(
            HERE,
            self.disk,
            self.settings,
            new_epoch=lambda: f"e{next(self.names)}",
            now_ns=self.now_ns(),
            boot=self.boot,
        )
        self.horizon = horizon = Horizon(journal.epoch, journal.position)

        def since(at_ns: int) -> int:
            oldest_ns = journal.oldest_ns
            if journal.first_seq > 1 and (oldest_ns is None or at_ns < oldest_ns):
                return 0
            return journal.indexes.since(at_ns)

        self.published = Published(
            horizon,
            lambda after: JournalReader(
                HERE,
                self.disk,
                after=after,
                near=horizon.position,
                began_ns=journal.manifest.began_ns,
                indexes=journal.indexes,
            ),
            resolve=lambda cursor: resolve_cursor(cursor, journal.epochs, horizon.position.seq + 1),
            run_sync=direct,
            oldest=lambda: journal.first_seq - 1,
            since=since,
        )
        self.shown = horizon.position.seq
        self.lines = {seq: line for seq, line in self.lines.items() if seq <= self.shown}

    def end(self, how: str, keep: int) -> None:
        """End a life and begin another; what was shown is still there, or void and told so."""
        shown, promised = self.shown, how != "power" or self.settings.fsync != "never"
        self.disk._plan.clear()
        for reader in self.readers:
            self.leave(reader)
        self.met[f"a {how}"] += 1
        if how == "stop":
            self.journal.close()
        elif how == "kill":
            self.disk.kill()
        else:
            self.disk.crash(keep)
            self.boot = f"b{next(self.boots)}"
        self.open()
        if promised:
            assert self.shown >= shown, "what was shown is gone"

    @rule(how=st.sampled_from(["stop", "kill", "power"]), keep=st.sampled_from([0, 0, 30, 700]))
    def restart(self, how: str, keep: int) -> None:
        self.end(how, keep)

    # Writing

    def now_ns(self) -> int:
        return 1_000 * SECOND + (max(self.lines, default=0) + 1) * SECOND

    @rule(seed=st.integers(0, 2**32), batches=st.integers(1, 12), at_hand=st.booleans())
    def grow(self, seed: int, batches: int, at_hand: bool) -> None:
        rng = random.Random(seed)
        for _ in range(batches):
            self.append(rng.randint(1, 9), rng.randrange(2**32), at_hand)
        self.tend()

    @rule(count=st.integers(1, 9), seed=st.integers(0, 2**32), at_hand=st.booleans())
    def append(self, count: int, seed: int, at_hand: bool) -> None:
        rng, journal = random.Random(seed), self.journal
        first = journal.next_seq
        for seq in range(first, first + count):
            received_ns = (1_000 + seq) * SECOND
            self.at_ns[seq] = received_ns - rng.choice((0, 0, 3 * SECOND))
            raw = b'{"n":"%s"}' % (b"x" * rng.choice((1, 1, 1, 90, 400)))
            self.lines[seq] = self.encoder.encode(
                seq,
                Event(raw, self.at_ns[seq], "timeNano"),
                source=SourceId(rng.choice(ACCOUNTS), "r"),
                at_ns=self.at_ns[seq],
                received_ns=received_ns,
                durable=journal.durable_seq if seq == first else None,
            )
        data = b"".join(self.lines[seq] for seq in range(first, first + count))
        sources = journal.coverage.to_bytes() if journal.rotation_due else b""
        times = [self.at_ns[seq] for seq in range(first, first + count)]
        try:
            position = journal.commit(
                *(data, first, first + count - 1, sources, float(first)),
                (min(times), max(times)),
            )
        except DiskFault:
            self.met["a commit that fails"] += 1
            self.end(rng.choice(("kill", "power")), rng.choice((0, 50)))
            return
        self.show(position, data if at_hand else None, first)

    def show(self, position: Any, data: bytes | None, first: int) -> None:
        whole = self.horizon.position.seq == first - 1 and position.seq == self.journal.next_seq - 1
        self.met["a segment"] += position.segment != self.horizon.position.segment
        if position != self.horizon.position:
            self.horizon.publish(position, data if whole else None)
        self.shown = position.seq

    @rule()
    def sync(self) -> None:
        try:
            self.show(self.journal.sync(float(self.journal.next_seq)), None, 0)
        except DiskFault:
            self.end("power", 0)

    @rule(
        call=st.sampled_from(["write", "sync", "append", "write_file", "sync_names", "link"]),
        after=st.integers(0, 2),
    )
    def plan_a_fault(self, call: str, after: int) -> None:
        self.disk._plan.clear()  # one that was never reached
        self.disk.fail(call, errno.EIO, after=after)

    @rule()
    def tend(self) -> None:
        self.disk._plan.clear()
        self.journal.tend(self.now_ns())

    @rule()
    def compress(self) -> None:
        self.disk._plan.clear()
        closed = first_seqs(self.disk.names(HERE))
        for segment, end_seq in itertools.pairwise(closed):
            if is_plain(self.disk, HERE, segment) and segment % 2:
                compress(self.disk, HERE, segment, end_seq, lambda: None)
                self.met["a compressed segment"] += 1

    @rule(rng=st.randoms(use_true_random=False), lose=st.booleans())
    def lose_or_make_indexes(self, rng: Any, lose: bool) -> None:
        self.disk._plan.clear()
        indexes = self.journal.indexes
        if lose:
            closed = first_seqs(self.disk.names(HERE))[:-1]
            if closed:
                self.disk.remove(HERE / index_name(rng.choice(closed)))
            indexes._cached.clear()
            indexes._summaries.clear()
        else:
            for segment, end_seq in indexes.missing():
                indexes.rebuild(segment, end_seq, lambda: None)

    # Reading

    @precondition(lambda self: len(self.readers) < READERS)
    @rule(
        where=st.sampled_from(["start", "live", "cursor", "since"]),
        place=st.floats(0, 1),
        account=st.sampled_from([None, None, None, "a"]),
    )
    def come(self, where: str, place: float, account: str | None) -> None:
        seq = int(place * self.shown)
        after: Any = where if where in ("start", "live") else "start"
        if where == "cursor":
            after = Cursor(self.horizon.epoch, seq)
        since_ns = (1_000 + seq) * SECOND if where == "since" else None
        chosen = Selection(accounts=(account,) if account else (), since_ns=since_ns)
        reader = Reader(Request(after=after, selection=chosen), Cursor("", 0))
        reader.stream = stream = self.published.open()
        run(stream.ask, reader.request)
        begin = stream.seq
        if where == "live":
            assert begin == self.shown
        elif where == "cursor":
            assert begin == seq
        elif where == "start":
            assert begin == self.journal.first_seq - 1
        else:
            missed = [s for s in self.lines if s <= begin and self.at_ns[s] >= since_ns]  # type: ignore[operator]
            assert not missed, f"since passes {missed} over"
        reader.cursor = stream.cursor
        reader.seen = self.lines.get(begin)
        self.readers.append(reader)

    @precondition(lambda self: self.readers)
    @rule(
        which=st.integers(0, READERS), blocks=st.sampled_from([1, 1, 2, 99]), kernel=st.booleans()
    )
    def read(self, which: int, blocks: int, kernel: bool) -> None:
        reader = self.readers[which % len(self.readers)]
        if reader.stream is None and not self.resume(reader):
            return
        stream = reader.stream
        assert stream is not None
        self.disk._plan.clear()
        while blocks and stream.seq < self.shown:
            blocks -= 1
            before = stream.seq
            chosen = run(stream.next_piece if kernel else stream.next)
            assert chosen is not None
            self.met["a stretch" if isinstance(chosen, Stretch) else "a block"] += 1
            if isinstance(chosen, Stretch):
                assert chosen.seq == stream.seq
                chosen = chosen.read()
            self.take(reader, before, chosen)

    def take(self, reader: Reader, before: int, data: bytes) -> None:
        """Check what a reader that had all up to `before` has got since."""
        stream = reader.stream
        assert stream is not None
        assert before < stream.seq <= self.shown
        got = data.splitlines(keepends=True)
        if got and parse_line(got[0]).kind == "gap":
            gap = parse_line(got.pop(0))
            oldest = first_seqs(self.disk.names(HERE))[0]
            assert gap.seq + 1 == oldest, "a gap over what is still there"
            assert f'"lost":{gap.seq - before},'.encode() in gap.line
            self.met["a retention gap"] += 1
            before = gap.seq
        expected = (self.lines[seq] for seq in range(before + 1, stream.seq + 1))
        assert got == [line for line in expected if reader.request.selection.matches(line)]
        reader.cursor, reader.seen = stream.cursor, self.lines[stream.seq]

    @precondition(lambda self: self.readers)
    @rule(kernel=st.booleans())
    def all_read(self, kernel: bool) -> None:
        for which in reversed(range(len(self.readers))):
            self.read(which, 99, kernel)

    @precondition(lambda self: self.readers)
    @rule(seed=st.integers(0, 2**32), kernel=st.booleans())
    def live(self, seed: int, kernel: bool) -> None:
        """Let readers follow for a while: some of what comes they are handed."""
        rng = random.Random(seed)
        for _ in range(rng.randint(2, 6)):
            self.append(rng.randint(1, 4), rng.randrange(2**32), rng.random() < 0.7)
            for which in reversed(range(len(self.readers))):
                if rng.random() < 0.8:
                    self.read(which, 99, kernel)

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, READERS))
    def stop(self, which: int) -> None:
        self.leave(self.readers[which % len(self.readers)])

    def leave(self, reader: Reader) -> None:
        if reader.stream is not None:
            assert reader.stream.cursor == reader.cursor
            reader.stream.close()
            reader.stream = None

    def resume(self, reader: Reader) -> bool:
        """Go on by cursor; or go away, when that is refused, with good reason."""
        cursor, epochs = reader.cursor, self.journal.epochs
        stream = self.published.open()
        request = Request(after=cursor, selection=reader.request.selection)
        names = [epoch.name for epoch in epochs]
        later = epochs[names.index(cursor.epoch) + 1 :]
        void = min((epoch.first_seq for epoch in later), default=cursor.seq + 1)
        run(stream.ask, request)
        if void <= cursor.seq:
            assert request.selection.since_ns is not None or stream.seq == void - 1
            told = run(stream.next) or b""
            stream.close()
            if request.selection.everything:
                assert b'"cause":"rewritten"' in told
                assert told.startswith(b'{"seq":%d,' % (void - 1))
            self.readers.remove(reader)
            self.met["a cursor to what was rewritten"] += 1
            return False
        assert reader.request.selection.since_ns is not None or stream.seq == cursor.seq
        if reader.seen is not None and cursor.seq in self.lines:
            assert self.lines[cursor.seq] == reader.seen, "a cursor to what was rewritten is good"
        self.met["going on by cursor"] += 1
        self.met["going on in another epoch"] += cursor.epoch != stream.cursor.epoch
        reader.stream, reader.request = stream, request
        reader.cursor = stream.cursor
        return True

    @invariant()
    def nobody_is_ahead(self) -> None:
        for reader in self.readers:
            if reader.stream is not None:
                assert reader.stream.seq <= self.shown
