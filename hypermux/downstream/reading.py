"""Reading the journal from a cursor, up to where it may be shown.

Any number of readers, each with its own files and its own place; none of them holds anything but
its place. Lines are handed on as they are, and counted, which is all it takes to know a seq: a
segment's name is the seq of its first line, and no seq is left out.

What was removed before a reader got it is told by one line in its place: a gap with the cause
`retention` and the seq of the last removed record, so that a cursor taken from it is right. The
line is in no file; the gap begins with the reader's last record, or else with the journal. So it
is with what a reader has and a start has cut off (`Rewritten`): a gap with that cause stands before
the first record that has taken its place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from attrs import define, field, frozen

from hypermux.core.recording import BadLine, Encoder, parse_line
from hypermux.core.segments import Epoch, first_seqs, line_end, segment_name
from hypermux.downstream import stretches
from hypermux.downstream.horizon import Position
from hypermux.downstream.indexes import Indexes
from hypermux.downstream.retention import first_received_ns
from hypermux.downstream.storage import Slice, Storage, translated
from hypermux.downstream.stored import open_segment
from hypermux.downstream.stretches import Plain, Stretch
from hypermux.model.errors import DamagedData, DiskFault
from hypermux.model.records import Cursor, Gap

# What a reader holds in memory: a thousand readers of this size are 64 MiB. It is what a unix
# socket takes well at once; reads over 128 KiB cost three times as much per byte. A longer record
# comes alone, whole.
BLOCK = 64 * 1024
_SCAN = 128 * 1024


@define(eq=False)
class JournalReader:
    """A place in the journal, just behind record `after`; 0 is before the first one ever.

    Making one costs nothing; `read` and `close` block. `near` is a position known to be good: a
    reader that starts exactly there need not search. `began_ns` is a time before which the
    journal has nothing. The caller checks a cursor from outside with `resolve_cursor` first.
    """

    directory: Path
    storage: Storage
    _seq: int = field(alias="after", kw_only=True)
    _near: Position | None = field(default=None, alias="near", kw_only=True)
    _began_ns: int = field(default=0, alias="began_ns", kw_only=True)
    _indexes: Indexes | None = field(default=None, alias="indexes", kw_only=True)
    _last_line: bytes = field(init=False, default=b"")
    _segment: int = field(init=False, default=0)
    _offset: int = field(init=False, default=0)
    _file: Slice | None = field(init=False, default=None)
    _end_seq: int | None = field(init=False, default=None)

    @property
    def seq(self) -> int:
        """The last record that was handed out, or the one to begin after."""
        return self._seq

    def read(self, upto: Position, max_bytes: int = BLOCK) -> bytes:
        """Return the next whole lines up to `upto`, empty when there are none.

        More than `max_bytes` only when one line is longer. `upto` must not go back between calls.
        Raises DamagedData when the files do not hold what they should, DiskFault.
        """
        while self._seq < upto.seq:
            file = self._file or self._start()
            if file is None:
                if gap := self._pass_removed():
                    return gap
                continue
            if self._segment == upto.segment:
                data = self._lines(file, max_bytes, upto.offset)
                if not data:
                    raise self._missing(upto.seq)
                self._advance(data)
                at_end = self._offset == upto.offset
                self._seq = upto.seq if at_end else self._seq + data.count(b"\n")
                return data
            end_seq = self._end_seq or self._find_end()
            if end_seq is None:
                self.close()
                if gap := self._pass_removed():
                    return gap
                continue
            left = end_seq - 1 - self._seq
            if left > 0:
                data = self._lines(file, max_bytes, None)
                count = data.count(b"\n")
                if not count:
                    raise self._missing(end_seq - 1)
                if count > left:
                    # The next segment holds these again: what is behind them here is void.
                    data, count = data[: line_end(data, left)], left
                self._advance(data)
                self._seq += count
                return data
            self.close()
            self._near = Position(end_seq, 0, self._seq)
        return b""

    def piece(self, upto: Position, max_bytes: int = BLOCK) -> bytes | Stretch:
        """Return what `read` does, or where that is possible more, as a stretch of the file.

        A stretch is good until the next call. Raises as `read` does.
        """
        stretch = self._stretch(upto) if self._seq < upto.seq else None
        if stretch is None:
            return self.read(upto, max_bytes)
        self._seq, self._last_line = stretch.seq, stretch.last_line
        self._offset += stretch.size
        return stretch

    def _stretch(self, upto: Position) -> Stretch | None:
        file, end_seq = self._file, self._end_seq
        if not isinstance(file, Plain) or (end_seq is None and self._segment != upto.segment):
            return None  # `read` opens files, and looks for their ends
        index = None
        if self._indexes is not None:
            index = self._indexes.of(self._segment, end_seq or 0)
        begin = Position(self._segment, self._offset, self._seq)
        with translated(self._path, "read"):
            return stretches.find(file, begin, upto, index, end_seq)

    def _advance(self, data: bytes) -> None:
        self._offset += len(data)
        self._last_line = data[data.rfind(b"\n", 0, -1) + 1 :]

    def skip(self, to: Position) -> None:
        """Go on from `to`; the caller has what lies before it from elsewhere."""
        if self._file is not None and self._segment == to.segment:
            self._offset, self._seq = to.offset, to.seq
        else:
            self.close()
            self._seq, self._near = to.seq, to

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start(self) -> Slice | None:
        """Open the file of the next record; return None when the record is no longer kept."""
        near, self._near = self._near, None
        if near is not None and near.seq == self._seq:
            # Its segment may be gone just when all of it had been read: the next is looked for.
            with suppress(DiskFault):
                return self._enter(near.segment, near.offset)
        try:
            return self._enter(*locate(self.directory, self.storage, self._seq + 1, self._indexes))
        except (DamagedData, DiskFault):
            # Not there is one thing, removed is another: then all that is older has gone, too.
            if self._oldest() <= self._seq + 1:
                raise
            return None

    def _oldest(self) -> int:
        with translated(self.directory, "list"):
            segments = first_seqs(self.storage.names(self.directory))
        return segments[0] if segments else 0

    def _pass_removed(self) -> bytes:
        """Go on with the oldest record; return the line for those before it, empty for none."""
        oldest = self._oldest()
        if oldest == self._seq + 1:
            self._near = Position(oldest, 0, self._seq)
            return b""
        with translated(self.directory / segment_name(oldest), "read"):
            to_ns = first_received_ns(self.storage, self.directory, oldest)
        from_ns = self._began_ns
        if self._last_line:
            with suppress(BadLine):
                from_ns = parse_line(self._last_line).received_ns
        to_ns = max(from_ns, from_ns if to_ns is None else to_ns)
        gap = Gap(from_ns, to_ns, "retention", "proven", oldest - 1 - self._seq)
        line = Encoder().encode(oldest - 1, gap, source=None, at_ns=to_ns, received_ns=to_ns)
        self._seq, self._near = oldest - 1, Position(oldest, 0, oldest - 1)
        return line

    def _enter(self, segment: int, offset: int) -> Slice:
        self.close()
        self._segment, self._offset, self._end_seq = segment, offset, None
        with translated(self._path, "open"):
            self._file = file = open_segment(
                self.storage,
                self.directory,
                segment,
                None if self._indexes is None else self._indexes.frames,
            )
        return file

    @property
    def _path(self) -> Path:
        return self.directory / segment_name(self._segment)

    def _find_end(self) -> int | None:
        """Return the first seq of the next segment; there is one, or this would be the last.

        None when ours was removed: where it ends can no longer be known.
        """
        with translated(self.directory, "list"):
            segments = first_seqs(self.storage.names(self.directory))
        later = [first_seq for first_seq in segments if first_seq > self._segment]
        if not later:
            raise DamagedData(f"the segments after {self._path} are gone")
        self._end_seq = later[0] if self._segment in segments else None
        if self._end_seq is None and later != segments:
            raise DamagedData(f"{self._path} is gone, but not what is older")
        return self._end_seq

    def _lines(self, file: Slice, size: int, limit: int | None) -> bytes:
        """Return whole lines from the present offset, at least one; none at the end."""
        first = True
        while True:
            wanted = size if limit is None else min(size, limit - self._offset)
            with translated(self._path, "read"):
                data = file.read_at(self._offset, wanted)
            end = (data.rfind(b"\n") if first else data.find(b"\n")) + 1
            if end or len(data) < wanted or wanted < size:
                return data[:end]
            first = False
            size *= 2

    def _missing(self, seq: int) -> DamagedData:
        return DamagedData(
            f"{self._path}: at byte {self._offset} record {self._seq + 1} is missing (and up to "
            f"{seq}); restore the file from a copy, or read on after {seq}"
        )


def locate(
    directory: Path, storage: Storage, seq: int, indexes: Indexes | None = None
) -> tuple[int, int]:
    """Return the segment and byte offset where record `seq` begins, or will begin.

    Counts lines: of a block where there is an index, else of a segment. Raises DamagedData when
    the record is not there, DiskFault.
    """
    with translated(directory, "list"):
        segments = first_seqs(storage.names(directory))
    at = bisect_right(segments, seq) - 1
    if at < 0:
        raise DamagedData(f"no segment in {directory} holds record {seq}")
    segment = segments[at]
    index = None
    if indexes is not None:
        index = indexes.of(segment, segments[at + 1] if at + 1 < len(segments) else 0)
    start, offset = (segment, 0) if index is None else index.block_of(seq)
    path = directory / segment_name(segment)
    frames = None if indexes is None else indexes.frames
    left = seq - start
    with translated(path, "read"):
        file = open_segment(storage, directory, segment, frames)
        try:
            while left:
                data = file.read_at(offset, _SCAN)
                if not data:
                    raise DamagedData(f"{path} ends {left} records before {seq}")
                count = data.count(b"\n")
                if count >= left:
                    return segment, offset + line_end(data, left)
                left -= count
                offset += len(data)
        finally:
            file.close()
    return segment, offset


@frozen
class Rewritten:
    """A cursor of which a start has cut off records: its reader goes on after `after`.

    `count` is how many records it has that are not what the journal has under their numbers;
    `epoch` is the one to go on in.
    """

    after: int
    count: int
    epoch: str

    def __str__(self) -> str:
        return (
            f"records from {self.after + 1} on were rewritten after this cursor's epoch: "
            f"go on after {self.epoch}:{self.after}"
        )

    def line(self, around: bytes, now_ns: int) -> bytes:
        """Return the gap that tells the reader, for the place of record `after`.

        `around` are the lines from that record on: the gap is from it to the next one.
        """
        came = []
        for line in around.splitlines(keepends=True)[:2]:
            with suppress(BadLine):
                came.append(parse_line(line).received_ns)
        from_ns, to_ns = min(came, default=now_ns), max(came, default=now_ns)
        gap = Gap(from_ns, to_ns, "rewritten", "proven", self.count)
        return Encoder().encode(self.after, gap, source=None, at_ns=to_ns, received_ns=to_ns)


def resolve_cursor(cursor: Cursor, epochs: Sequence[Epoch], next_seq: int) -> int | Rewritten | str:
    """Return the seq after which a reader with `cursor` goes on, or why it cannot.

    `next_seq` is the record after the last shown. That the next ones may have been removed is a
    matter for the reader, which tells it in their place.
    """
    index = next((i for i, epoch in enumerate(epochs) if epoch.name == cursor.epoch), None)
    if index is None:
        return 'the cursor is of an epoch that this journal never had: begin with "start" or "live"'
    void = min((epoch.first_seq for epoch in epochs[index + 1 :]), default=None)
    if void is not None and cursor.seq >= void:
        return Rewritten(void - 1, cursor.seq - void + 1, epochs[-1].name)
    if cursor.seq >= next_seq:
        return f"the cursor is ahead of this journal, whose last record is {next_seq - 1}"
    return cursor.seq
