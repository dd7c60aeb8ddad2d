"""Stretches: whole lines that a reader is given as a place in their file, not as bytes.

Who catches up and chooses nothing needs no line looked at: the kernel can move the bytes from the
file to the socket by itself (sendfile). A stretch begins where the reader stands and ends where the
index says that a batch ends, or where the journal is shown up to; its last line is looked at, so
that an index that is wrong is found out before anything is sent.

Only files that are in the system as they are read can be sent so (`Plain`): not what is compressed,
and not the tests' disk.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from attrs import frozen

from hypermux.core.index import Index
from hypermux.core.lines import last_seq
from hypermux.downstream.horizon import Position
from hypermux.downstream.storage import Slice

# A late request waits until the peer has taken so much; what a unix socket takes at once is a
# little less, so that a larger one would save nothing. A single batch may be longer.
SIZE = 1024 * 1024
MOST = 4 * SIZE
# Below this a thread's way there and back costs more than copying.
LEAST = 64 * 1024
_TAIL = 4096


@runtime_checkable
class Plain(Protocol):
    """A slice whose bytes are those of a file of the system."""

    @property
    def plain_fd(self) -> int:
        """Its descriptor."""


@frozen
class Stretch:
    """Whole lines of a file that stays open until the reader goes on; `last_line` ends them."""

    file: Slice
    offset: int
    size: int
    seq: int
    last_line: bytes

    def read(self) -> bytes:
        """Return the bytes."""
        return self.file.read_at(self.offset, self.size)


def find(
    file: Slice, begin: Position, upto: Position, index: Index | None, end_seq: int | None
) -> Stretch | None:
    """Return a stretch from `begin` on, None when the lines are better read.

    `index` is that of the segment of `begin`, which ends before `end_seq` unless it is that of
    `upto`. Blocks; raises OSError. Where the file is not as the index says the lines are read.
    """
    near, far = begin.offset + SIZE, begin.offset + MOST
    if upto.segment == begin.segment and upto.offset <= near:
        seq, end = upto.seq, upto.offset
    elif index is None:
        return None
    else:
        # Only of a closed segment the index's own end holds still.
        closed = end_seq is not None and index.last_seq == end_seq - 1
        last = (index.last_seq, index.size) if closed and index.size <= far else None
        if last is not None and index.size <= near:
            found: tuple[int, int] | None = last
        else:
            found = index.end_within(begin.offset, near, far) or last
        if found is None:
            return None
        seq, end = found
    if seq > (upto.seq if end_seq is None else end_seq - 1):
        return None
    if end - begin.offset < LEAST:
        return None
    line = _last_line(file, begin.offset, end)
    try:
        if not line.endswith(b"\n") or last_seq(line) != seq:
            return None
    except ValueError:
        return None
    return Stretch(file, begin.offset, end - begin.offset, seq, line)


def _last_line(file: Slice, begin: int, end: int) -> bytes:
    size = _TAIL
    while True:
        start = max(begin, end - size)
        tail = file.read_at(start, end - start)
        cut = tail.rfind(b"\n", 0, -1) + 1
        if cut or start == begin:
            return tail[cut:] if len(tail) == end - start else b""
        size *= 16
