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
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress

from attrs import frozen

from hypermux.core.recording import BadLine, Parsed, parse_line

CURRENT = "current.ndjson"

# Places in a bad line where a record may begin; each costs a checksum, and an event can hold many.
_HIDDEN = 64

_NAME = re.compile(r"(\d{20})\.ndjson", re.ASCII)
_BESIDE = re.compile(r"(\d{20})\.(?:sources|index|[^.]+\.torn)", re.ASCII)


def segment_name(first_seq: int) -> str:
    """Return the name of the segment whose first record is `first_seq`."""
    return f"{first_seq:020}.ndjson"


def sources_name(first_seq: int) -> str:
    """Return the name of the coverage before that segment's first record."""
    return f"{first_seq:020}.sources"


def torn_name(seq: int, epoch: str) -> str:
    """Return the name for bytes cut off at `seq` when `epoch` began; no two cuts share one."""
    return f"{seq:020}.{epoch}.torn"


def first_seqs(names: list[str]) -> list[int]:
    """Return the first seq of every segment among the file names, in order."""
    matches = (_NAME.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match is not None)


def beside(name: str) -> int | None:
    """Return the seq in the name of a file that lies beside segments, None for any other file."""
    match = _BESIDE.fullmatch(name)
    return None if match is None else int(match[1])


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

    `durable` is D. `bad` is None when the whole of it is good; else it is `damaged`, or to be cut.
    """

    keep: int
    last_seq: int
    durable: int
    bad: Bad | None

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


def recover(data: bytes, first_seq: int, take: Callable[[Parsed], None]) -> Recovery:
    """Decide what the bytes of the last segment are worth.

    `take` gets every record to keep, in order; a BadLine from it counts as the line's.
    """
    offset, due, durable = 0, first_seq, first_seq - 1
    bad: Bad | None = None
    for number, line in enumerate(split_lines(data), 1):
        try:
            parsed = parse_line(line)
            if parsed.durable is not None and parsed.durable > durable:
                durable = parsed.durable
            if bad is None:
                _due(parsed, due)
                take(parsed)
                due += 1
        except BadLine as exc:
            bad = bad or Bad(number, offset, due, str(exc))
            durable = max(durable, _hidden_durable(line))
        offset += len(line)
    return Recovery(offset if bad is None else bad.offset, due - 1, durable, bad)


def recount(
    data: bytes, first_seq: int, end_seq: int, take: Callable[[Parsed], None]
) -> Bad | None:
    """Give `take` the records of a closed segment, those before `end_seq`; return what is bad.

    A closed segment was synced whole, so here every bad or missing line is damage. What lies
    behind the record before `end_seq` does not count: the next segment has it.
    """
    offset, due, number = 0, first_seq, 0
    for number, line in enumerate(split_lines(data), 1):
        if due == end_seq:
            return None
        try:
            parsed = parse_line(line)
            _due(parsed, due)
            take(parsed)
        except BadLine as exc:
            return Bad(number, offset, due, str(exc))
        due += 1
        offset += len(line)
    if due == end_seq:
        return None
    return Bad(number + 1, offset, due, f"the file ends before seq {end_seq - 1}")
