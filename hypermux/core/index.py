"""Where in a segment records lie: an entry for about every 64 KiB, never in the middle of a batch.

An entry has the seq and the offset where its block begins, and the least and largest `at` in it:
times are not monotone in seq, so a search by time asks for the first block that holds anything as
late as that.

As a file (`<seq>.index`) it is lines with checksums like records:

    the head       what it covers: first and last seq, bytes, their CRC-32, least and largest `at`
    the blocks     [seq, offset, least, largest] of each
    a coverage     while the segment is written to: what was true behind the last record covered

The last makes it a mark from which a start goes on: what it covers had been synced when it was
written, so the bytes need only be the same, which their checksum says at the speed of the disk. It
can be rebuilt from the segment, and one that does not fit is as good as none.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterator

import msgspec
from attrs import define, field, frozen

from hypermux.core.recording import BadLine, seal, unseal

# As much as one read of a reader: a search costs one such read more than the answer.
BLOCK = 64 * 1024
# No time at all: what is not known may hold any.
NEVER_NS, FOREVER_NS = -(1 << 63), (1 << 63) - 1

_FORMAT = 1


class _Head(msgspec.Struct):
    format: int
    first_seq: int
    last_seq: int
    size: int
    sum: int
    least: int
    largest: int


class _Blocks(msgspec.Struct):
    blocks: list[tuple[int, int, int, int]]


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_blocks = msgspec.json.Decoder(_Blocks).decode


@frozen
class Summary:
    """What a segment's index covers. Times are nanoseconds since 1970."""

    first_seq: int
    last_seq: int
    size: int
    largest_ns: int

    @classmethod
    def from_bytes(cls, data: bytes) -> Summary:
        """Read it from the beginning of the file. Raises BadLine."""
        head = _head(data)
        return cls(head.first_seq, head.last_seq, head.size, head.largest)


@define(eq=False)
class Index:
    """The index of the first `size` bytes of a segment, which end with record `last_seq`.

    One thread adds; others may ask meanwhile.
    """

    first_seq: int
    last_seq: int
    size: int = 0
    crc: int = 0
    _seqs: list[int] = field(factory=list)
    _offsets: list[int] = field(factory=list)
    _least: list[int] = field(factory=list)
    _largest: list[int] = field(factory=list)

    @classmethod
    def empty(cls, first_seq: int) -> Index:
        """Return the index of a segment without records."""
        return cls(first_seq, first_seq - 1)

    def add(self, data: bytes, last_seq: int, least_ns: int, largest_ns: int) -> None:
        """Take in the next whole lines, whose last record is `last_seq`."""
        if not self._seqs or self.size - self._offsets[-1] >= BLOCK:
            self._offsets.append(self.size)
            self._least.append(least_ns)
            self._largest.append(largest_ns)
            self._seqs.append(self.last_seq + 1)  # last: whoever finds it finds the others
        else:
            self._least[-1] = min(self._least[-1], least_ns)
            self._largest[-1] = max(self._largest[-1], largest_ns)
        self.size += len(data)
        self.crc = zlib.crc32(data, self.crc)
        self.last_seq = last_seq

    def block_of(self, seq: int) -> tuple[int, int]:
        """Return the seq and offset where the block begins that holds `seq`, or the last one."""
        at = bisect_right(self._seqs, seq) - 1
        return (self.first_seq, 0) if at < 0 else (self._seqs[at], self._offsets[at])

    def end_within(self, begin: int, near: int, far: int) -> tuple[int, int] | None:
        """Return the seq and offset where a block ends that does so behind `begin`.

        The last one up to `near`, or else the first one up to `far`; None when there is neither.
        """
        offsets = self._offsets
        at = bisect_right(offsets, near, hi=len(self._seqs)) - 1
        if at < 0 or offsets[at] <= begin:
            at += 1
        if at >= len(self._seqs) or not begin < offsets[at] <= far:
            return None
        return self._seqs[at] - 1, offsets[at]

    def since(self, at_ns: int) -> int | None:
        """Return the first seq of the first block with an `at` of `at_ns` or later."""
        for seq, largest in zip(self._seqs, self._largest, strict=False):
            if largest >= at_ns:
                return seq
        return None

    def blocks(self) -> list[tuple[int, int, int, int]]:
        """Return of each block its first seq, its offset, its least and its largest `at`."""
        return list(zip(self._seqs, self._offsets, self._least, self._largest, strict=True))

    @property
    def largest_ns(self) -> int:
        """The largest `at` of any record; NEVER_NS without records."""
        return max(self._largest, default=NEVER_NS)

    def to_bytes(self, coverage: bytes = b"") -> bytes:
        """Return the file; `coverage`, a line, is what was true behind `last_seq`."""
        least = min(self._least, default=FOREVER_NS)
        head = _Head(
            _FORMAT, self.first_seq, self.last_seq, self.size, self.crc, least, self.largest_ns
        )
        lines = (head, _Blocks(self.blocks()))
        return b"".join(seal(msgspec.json.encode(line)[:-1]) for line in lines) + coverage

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[Index, bytes]:
        """Read what `to_bytes` made; return the coverage line, too. Raises BadLine."""
        lines = iter(_lines(data))
        head = _head(next(lines, b""))
        try:
            blocks = _decode_blocks(unseal(next(lines, b"")) + b"}").blocks
        except msgspec.MsgspecError as exc:
            raise BadLine(str(exc)) from None
        seqs, offsets, least, largest = (
            map(list, zip(*blocks, strict=True)) if blocks else ([],) * 4
        )
        index = cls(head.first_seq, head.last_seq, head.size, head.sum)
        index._seqs, index._offsets, index._least, index._largest = (
            list(seqs), list(offsets), list(least), list(largest),
        )  # fmt: skip
        return index, next(lines, b"")


def _lines(data: bytes) -> Iterator[bytes]:
    yield from data.splitlines(keepends=True)


def _head(data: bytes) -> _Head:
    try:
        head = _decode_head(unseal(data[: data.find(b"\n") + 1]) + b"}")
    except msgspec.MsgspecError as exc:
        raise BadLine(str(exc)) from None
    if head.format != _FORMAT:
        raise BadLine(f"format {head.format} is not known")
    return head
