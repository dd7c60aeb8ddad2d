"""What of a segment reads back, and what does not: for looking at a journal, and for mending it.

A start only has to know whether it may append; here all damage is found, each with the records it
took. Lines are read on behind bad ones, and the seq of the next good one says what is missing:

    a line that reads, with the seq due       good
    one with a later seq, below the end       good; those between are lost, with the bad bytes
    anything else                             bad bytes, up to the next good line

A line whose end is harmed swallows the next one; a record that stands whole at its end is found.
In the segment that is written to, what was never known to be synced is no damage: from the first
bad line behind `durable` on it is a tail, which a start cuts off (see `core.segments`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import define, field, frozen

from hypermux.core.recording import BadLine, Parsed, parse_line
from hypermux.core.segments import Lines

# Where the end of a segment is not known, a line that claims to come later than this is none of
# its own: a hundred segments of the default size hold no more.
_FURTHEST = 20_000_000
# Places in a bad line where a record may begin; each costs a checksum.
_HIDDEN = 64


@frozen
class Damage:
    """Bytes of a segment that are no records, and the records that are missing there.

    `line` counts from 1; the bytes from `offset` to `end` are bad. `first_seq` to `last_seq` are
    missing: none, when the latter is smaller; none of the bytes are bad, when lines were cut out.
    `from_ns` and `to_ns` are when the records before and after came, None when there are none.
    """

    line: int
    offset: int
    end: int
    first_seq: int
    last_seq: int
    reason: str
    from_ns: int | None = None
    to_ns: int | None = None

    @property
    def lost(self) -> int:
        """How many records are missing."""
        return max(0, self.last_seq - self.first_seq + 1)


@frozen
class Inspected:
    """What a segment came to: `last_seq` is its last good record, which ends at byte `end`.

    `tail` is where what was never known to be synced stops to read back, None when it reads to the
    end. `durable` is the last record known to be synced.
    """

    last_seq: int
    end: int
    damages: tuple[Damage, ...]
    durable: int
    tail: int | None
    reason: str = ""


@define(eq=False)
class Inspector:
    """Reads a segment of records from `first_seq` on; feed it blocks of any size.

    `end_seq` is the next segment's first seq, None for the last one; `durable` is what is known to
    be synced of that. `take` gets each good record with the byte where it begins. `between` is
    called instead with damage, when the good record behind it is there. `came_ns` is when the last
    good record so far came: at first that of the segment before.
    """

    first_seq: int
    end_seq: int | None
    durable: int
    take: Callable[[Parsed, int], None]
    between: Callable[[Damage], None] = lambda _: None
    came_ns: int | None = None
    _due: int = field(init=False)
    _line: int = field(init=False, default=0)
    _offset: int = field(init=False, default=0)
    _good_end: int = field(init=False, default=0)
    _bad: tuple[int, int, str] | None = field(init=False, default=None)
    _damages: list[Damage] = field(init=False, factory=list)
    _lines: Lines = field(init=False, factory=lambda: Lines())

    def __attrs_post_init__(self) -> None:
        self._due = self.first_seq
        self.durable = max(self.durable, self.first_seq - 1)

    @property
    def done(self) -> bool:
        """Whether nothing more of the file counts: the next segment has what follows."""
        return self._due == self.end_seq

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        for line in self._lines.feed(data):
            if self.done:
                return
            self._one(line)

    def finish(self) -> Inspected:
        """Return the verdict; there are no more bytes."""
        if not self.done and (rest := self._lines.rest):
            self._one(rest)
        due = self._due
        bad, self._bad = self._bad, None
        tail, reason = None, ""
        if self.end_seq is not None:
            if due < self.end_seq:
                words = f"the file ends before record {self.end_seq - 1}"
                line, offset, why = bad or (self._line + 1, self._offset, words)
                lost = (due, self.end_seq - 1)
                self._close(Damage(line, offset, self._offset, *lost, why, self.came_ns))
        elif bad is not None or due <= self.durable:
            words = f"records up to {self.durable} had been synced, and the file ends before"
            line, offset, why = bad or (self._line + 1, self._offset, words)
            if due <= self.durable:
                lost = (due, self.durable)
                self._close(Damage(line, offset, self._offset, *lost, why, self.came_ns))
            else:
                tail, reason = offset, why
        return self._verdict(tail, reason)

    def _verdict(self, tail: int | None, reason: str) -> Inspected:
        damages, last_seq, end = self._damages, self._due - 1, self._good_end
        if self.end_seq is None:
            for at, damage in enumerate(damages):
                if damage.first_seq > self.durable:
                    # Good lines behind a lost page, none of them promised to anyone.
                    tail, reason = damage.offset, damage.reason
                    damages, last_seq, end = damages[:at], damage.first_seq - 1, damage.offset
                    break
        return Inspected(last_seq, end, tuple(damages), self.durable, tail, reason)

    def _one(self, line: bytes) -> None:
        self._line += 1
        start, reason = 0, ""
        try:
            parsed = parse_line(line)
        except BadLine as exc:
            reason = str(exc)
            found = self._hidden(line)
            if found is None:
                self._spoil(reason)
                self._offset += len(line)
                return
            start, parsed = found
            self._spoil(reason)
        if not self._ours(parsed.seq):
            self._spoil(f"it has seq {parsed.seq} in place of {self._due}")
            self._offset += len(line)
            return
        if parsed.durable is not None and parsed.durable < parsed.seq:
            self.durable = max(self.durable, parsed.durable)
        offset = self._offset + start
        if self._bad is not None or parsed.seq != self._due:
            words = f"it has seq {parsed.seq} in place of {self._due}"
            number, begin, why = self._bad or (self._line, offset, words)
            self._bad = None
            damage = Damage(
                number,
                begin,
                offset,
                self._due,
                parsed.seq - 1,
                why,
                self.came_ns,
                parsed.received_ns,
            )
            self._close(damage)
        self.take(parsed, offset)
        self._due = parsed.seq + 1
        self.came_ns = parsed.received_ns
        self._offset += len(line)
        self._good_end = self._offset

    def _ours(self, seq: int) -> bool:
        end = self._due + _FURTHEST if self.end_seq is None else self.end_seq
        return self._due <= seq < end

    def _hidden(self, line: bytes) -> tuple[int, Parsed] | None:
        for start in _starts(line):
            try:
                parsed = parse_line(line[start:])
            except BadLine:
                continue
            if self._ours(parsed.seq):
                return start, parsed
        return None

    def _spoil(self, reason: str) -> None:
        if self._bad is None:
            self._bad = (self._line, self._offset, reason)

    def _close(self, damage: Damage) -> None:
        self._damages.append(damage)
        self.between(damage)


def _starts(line: bytes) -> Iterator[int]:
    start = 0
    for _ in range(_HIDDEN):
        start = line.find(b'{"seq":', start + 1)
        if start < 0:
            return
        yield start
