"""The files of a journal: their names, and what to keep of the last one after a stop.

A segment is named by the seq of its first record, so names sort as records do, and record n of
segment f has the seq f + n. Only the last segment is ever appended to; before a next one is begun
the last is synced whole.

Which part of the last segment is good follows from two facts. The first record of a batch says
up to which seq everything was synced before it was written; D is the largest such number in any
valid line. And a power cut can lose any page that was not synced, so good lines may follow a lost
one. Hence:

    the first bad line is due at seq n        then
    n <= D                                    it was synced and has changed since: damage
    n >  D                                    it was never promised to anyone: cut from there

A segment is read in blocks, and what comes before a mark (`core.index`) only has to have the bytes
it had: they were synced when the mark was made. So D is at least the mark's, and what it covers
cannot be torn, only damaged; then all is read, to say where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress

from attrs import define, field, frozen

from hypermux.core.recording import BadLine, Parsed, parse_line

CURRENT = "current.ndjson"

# Places in a bad line where a record may begin; each costs a checksum, and an event can hold many.
_HIDDEN = 64

_NAME = re.compile(r"(\d{20})\.ndjson(?:\.zst)?", re.ASCII)
_BESIDE = re.compile(
    r"(\d{20})\.(?:sources|index|[^.]+\.torn|(?:.+\.)?[^.]+\.damaged)"
    r"|\.(\d{20})\.ndjson(?:\.zst)?\.new",
    re.ASCII,
)


def segment_name(first_seq: int) -> str:
    """Return the name of the segment whose first record is `first_seq`."""
    return f"{first_seq:020}.ndjson"


def compressed_name(first_seq: int) -> str:
    """Return the name of that segment when it is compressed; see `core.compression`."""
    return f"{first_seq:020}.ndjson.zst"


def index_name(first_seq: int) -> str:
    """Return the name of that segment's index."""
    return f"{first_seq:020}.index"


def sources_name(first_seq: int) -> str:
    """Return the name of the coverage before that segment's first record."""
    return f"{first_seq:020}.sources"


def torn_name(seq: int, epoch: str) -> str:
    """Return the name for bytes cut off at `seq` when `epoch` began; no two cuts share one."""
    return f"{seq:020}.{epoch}.torn"


def damaged_name(seq: int, epoch: str) -> str:
    """Return the name for what the repair of `epoch` took out; `seq` is the first record lost."""
    return f"{seq:020}.{epoch}.damaged"


def first_seqs(names: list[str]) -> list[int]:
    """Return the first seq of every segment among the file names, in order."""
    matches = (_NAME.fullmatch(name) for name in names)
    return sorted({int(match[1]) for match in matches if match is not None})


def beside(name: str) -> int | None:
    """Return the seq in the name of a file that lies beside segments, None for any other file."""
    match = _BESIDE.fullmatch(name)
    return None if match is None else int(match[1] or match[2])


def split_lines(data: bytes) -> Iterator[bytes]:
    r"""Yield the lines of `data` with their `\n`; the last may lack it."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


@frozen
class Epoch:
    """A stretch of history that was never rewritten: its name, and the first seq written in it.

    A later epoch that begins at seq n makes every record from n on of the earlier ones void.
    """

    name: str
    first_seq: int


def line_end(data: bytes, count: int) -> int:
    """Return the offset behind the first `count` lines. Raises ValueError when there are fewer."""
    end = 0
    for _ in range(count):
        end = data.index(b"\n", end) + 1
    return end


@frozen
class Bad:
    """The first line that does not read back: number from 1, byte offset, the seq due there."""

    line: int
    offset: int
    seq: int
    reason: str


@frozen
class Recovery:
    """What to do with a segment: `keep` its first bytes, ending with record `last_seq`.

    `durable` is D, and `settled` the bytes that end with it, or with the last record before it that
    is kept. `bad` is None when the whole of it is good; else it is `damaged`, or to be cut.
    """

    keep: int
    last_seq: int
    durable: int
    bad: Bad | None
    settled: int

    @property
    def damaged(self) -> bool:
        """Whether bytes that were synced have changed: nothing may be appended then."""
        return self.bad is not None and self.bad.seq <= self.durable


def _due(parsed: Parsed, seq: int) -> None:
    if parsed.seq != seq:
        raise BadLine(f"it has seq {parsed.seq} in place of {seq}")


def _hidden_durable(line: bytes) -> int:
    """Return what a whole record inside a bad line says was synced; 0 when it holds none.

    When only the end of a line is harmed it swallows the next one, and with it D.
    """
    durable, start = 0, 0
    for _ in range(_HIDDEN):
        start = line.find(b'{"seq":', start + 1)
        if start < 0:
            break
        with suppress(BadLine):
            durable = max(durable, parse_line(line[start:]).durable or 0)
    return durable


@define(eq=False)
class Recoverer:
    """Decides what the bytes of the last segment are worth; feed it blocks of any size.

    `take` gets every record to keep, in order; a BadLine from it counts as the line's. Of what was
    read before, `offset` bytes end with record `seq`, `durable` is the last known to be synced.
    """

    first_seq: int
    take: Callable[[Parsed], None]
    _seq: int = field(alias="seq")
    _offset: int = field(default=0, alias="offset")
    _durable: int = field(default=0, alias="durable")
    _bad: Bad | None = field(init=False, default=None)
    _keep: int = field(init=False)
    # Where the records after `_settled_seq` end; `_settled` is where that one does.
    _ends: list[int] = field(init=False, factory=list)
    _settled_seq: int = field(init=False)
    _settled: int = field(init=False)
    _lines: Lines = field(init=False, factory=lambda: Lines())

    def __attrs_post_init__(self) -> None:
        self._durable = max(self._durable, self.first_seq - 1)
        self._keep = self._settled = self._offset
        self._settled_seq = self._seq

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        for line in self._lines.feed(data):
            self._line(line)

    def finish(self) -> Recovery:
        """Return the verdict; there are no more bytes."""
        if self._lines.rest:
            self._line(self._lines.rest)
        self._settle()
        return Recovery(self._keep, self._seq, self._durable, self._bad, self._settled)

    def _line(self, line: bytes) -> None:
        try:
            parsed = parse_line(line)
            if parsed.durable is not None and parsed.durable > self._durable:
                self._durable = parsed.durable
                self._settle()
            if self._bad is None:
                _due(parsed, self._seq + 1)
                self.take(parsed)
                self._seq += 1
                self._keep += len(line)
                self._ends.append(self._keep)
        except BadLine as exc:
            if self._bad is None:
                number = self._seq - self.first_seq + 2
                self._bad = Bad(number, self._offset, self._seq + 1, str(exc))
            self._durable = max(self._durable, _hidden_durable(line))
        self._offset += len(line)

    def _settle(self) -> None:
        """Forget the ends of what is synced, but for the last of them."""
        count = min(self._durable - self._settled_seq, len(self._ends))
        if count > 0:
            self._settled = self._ends[count - 1]
            self._settled_seq += count
            del self._ends[:count]


def recover(data: bytes, first_seq: int, take: Callable[[Parsed], None]) -> Recovery:
    """Decide what the bytes of the last segment are worth, at once; see `Recoverer`."""
    recoverer = Recoverer(first_seq, take, seq=first_seq - 1)
    recoverer.feed(data)
    return recoverer.finish()


@define(eq=False)
class Recounter:
    """Gives `take` the records of a closed segment, those before `end_seq`; feed it in blocks.

    A closed segment was synced whole, so here every bad or missing line is damage. What lies
    behind the record before `end_seq` does not count: the next segment has it.
    """

    first_seq: int
    end_seq: int
    take: Callable[[Parsed], None]
    bad: Bad | None = None
    _seq: int = field(init=False)
    _offset: int = field(init=False, default=0)
    _lines: Lines = field(init=False, factory=lambda: Lines())

    def __attrs_post_init__(self) -> None:
        self._seq = self.first_seq

    @property
    def done(self) -> bool:
        """Whether nothing more is needed."""
        return self.bad is not None or self._seq == self.end_seq

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        for line in self._lines.feed(data):
            if self.done:
                return
            self._line(line)

    def finish(self) -> Bad | None:
        """Return what is bad; there are no more bytes."""
        if self._lines.rest and not self.done:
            self._line(self._lines.rest)
        if self.done:
            return self.bad
        number = self._seq - self.first_seq + 1
        return Bad(number, self._offset, self._seq, f"the file ends before seq {self.end_seq - 1}")

    def _line(self, line: bytes) -> None:
        try:
            parsed = parse_line(line)
            _due(parsed, self._seq)
            self.take(parsed)
        except BadLine as exc:
            self.bad = Bad(self._seq - self.first_seq + 1, self._offset, self._seq, str(exc))
            return
        self._seq += 1
        self._offset += len(line)


@define(eq=False)
class Lines:
    """Cuts blocks into whole lines; `rest` is what has no end yet."""

    _pieces: list[bytes] = field(factory=list)

    @property
    def rest(self) -> bytes:
        """The bytes behind the last line end."""
        return b"".join(self._pieces)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that end in `data`."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._pieces.append(
                data
            )  # joined once: a line of a hundred blocks is no hundred copies
            return
        whole = b"".join((*self._pieces, data[:end]))
        self._pieces = [data[end:]] if end < len(data) else []
        yield from split_lines(whole)


def recount(
    data: bytes, first_seq: int, end_seq: int, take: Callable[[Parsed], None]
) -> Bad | None:
    """Give `take` the records of a closed segment, at once; see `Recounter`."""
    recounter = Recounter(first_seq, end_seq, take)
    recounter.feed(data)
    return recounter.finish()
