"""A closed segment, compressed: what its file is made of.

    a frame      zstd, of about 1 MiB of whole lines, with a checksum; independent of all others
    …
    the index    a skippable frame, which other programs pass over: one line with a checksum, which
                 has of each frame the first seq, the offset in the plain bytes and in the file;
                 then the line's length, as the last 16 bytes of the file

So a reader starts at any frame, and `zstd -dc` gives back the plain file. Level 1: of the journal's
lines, which are much alike, level 3 makes no less and takes ten times as long.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right

import msgspec
import zstandard
from attrs import define, field, frozen

from hypermux.core.recording import BadLine, seal, unseal

# What a reader that starts in the middle decompresses for nothing, at most: about a millisecond.
FRAME = 1 << 20
# The end of the file: where to find its index.
FOOTER = 16
LEVEL = 1

_FORMAT = 1
_SKIPPABLE = b"\x5e\x2a\x4d\x18"
_MAGIC = b"\x28\xb5\x2f\xfd"
_HEAD = 8
# A frame is FRAME and one line; the largest line is far below this.
_LARGEST = 1 << 30


@frozen
class Frame:
    """One frame: its first record, its place in the plain bytes and in the file, and its sizes."""

    seq: int
    offset: int
    size: int
    start: int
    end: int


class _Stored(msgspec.Struct):
    format: int
    first_seq: int
    last_seq: int
    size: int
    sum: int
    end: int
    frames: list[tuple[int, int, int]]


@define(eq=False)
class FrameIndex:
    """The index of a compressed segment: `size` plain bytes, whose CRC-32 is `crc`."""

    first_seq: int
    last_seq: int
    size: int
    crc: int
    frames: list[Frame]
    _offsets: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._offsets = [frame.offset for frame in self.frames]

    def at(self, offset: int) -> int | None:
        """Return the number of the frame that has the plain byte at `offset`, None at the end."""
        if not 0 <= offset < self.size:
            return None
        return bisect_right(self._offsets, offset) - 1

    def to_bytes(self) -> bytes:
        """Return the index as the end of the file."""
        frames = [(frame.seq, frame.offset, frame.start) for frame in self.frames]
        end = self.frames[-1].end if self.frames else 0
        stored = _Stored(_FORMAT, self.first_seq, self.last_seq, self.size, self.crc, end, frames)
        line = seal(msgspec.json.encode(stored)[:-1])
        body = line + b"%15d\n" % len(line)
        return _SKIPPABLE + len(body).to_bytes(4, "little") + body

    @classmethod
    def line_size(cls, footer: bytes) -> int:
        """Return how long the line before the file's last FOOTER bytes is. Raises BadLine."""
        text = footer[:-1].strip()
        if len(footer) != FOOTER or footer[-1:] != b"\n" or not text.isdigit():
            raise BadLine("the file does not end in a frame index")
        return int(text)

    @classmethod
    def parse(cls, line: bytes) -> FrameIndex:
        """Read the line. Raises BadLine."""
        try:
            stored = msgspec.json.decode(unseal(line) + b"}", type=_Stored)
        except msgspec.MsgspecError as exc:
            raise BadLine(str(exc)) from None
        if stored.format != _FORMAT:
            raise BadLine(f"format {stored.format} is not known")
        ends = [*((offset, start) for _, offset, start in stored.frames[1:])]
        ends.append((stored.size, stored.end))
        frames = [
            Frame(seq, offset, next_offset - offset, start, end)
            for (seq, offset, start), (next_offset, end) in zip(stored.frames, ends, strict=False)
        ]
        return cls(stored.first_seq, stored.last_seq, stored.size, stored.sum, frames)


@define(eq=False)
class Compressor:
    """Makes frames of whole lines: those from `first_seq` on, `left` of them."""

    first_seq: int
    left: int
    crc: int = 0
    _size: int = 0
    _written: int = 0
    _frames: list[Frame] = field(factory=list)
    _rest: bytes = b""
    _seq: int = field(init=False)
    _zstd: zstandard.ZstdCompressor = field(
        factory=lambda: zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    )

    def __attrs_post_init__(self) -> None:
        self._seq = self.first_seq

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the segment; return the frames that are full."""
        self._rest += data
        frames = []
        while self.left and len(self._rest) >= FRAME:
            end = self._rest.rfind(b"\n", 0, FRAME) + 1 or self._rest.find(b"\n", FRAME) + 1
            if not end:
                break  # a line that is longer than a frame
            frames.append(self._frame(end))
        return b"".join(frames)

    def finish(self) -> bytes:
        """Return the last frame and the index; there are no more bytes.

        Raises BadLine when there are not as many lines as there should be.
        """
        last = self._frame(self._rest.rfind(b"\n") + 1) if self.left else b""
        if self.left:
            raise BadLine(f"the file ends {self.left} records early")
        index = FrameIndex(self.first_seq, self._seq - 1, self._size, self.crc, self._frames)
        return last + index.to_bytes()

    def _frame(self, end: int) -> bytes:
        data, self._rest = self._rest[:end], self._rest[end:]
        count = data.count(b"\n")
        if count > self.left:
            # What follows is in the next segment.
            at = 0
            for _ in range(self.left):
                at = data.index(b"\n", at) + 1
            data, count, self._rest = data[:at], self.left, b""
        if not data:
            return b""
        packed = self._zstd.compress(data)
        start = self._written
        self._written += len(packed)
        frame = Frame(self._seq, self._size, len(data), start, self._written)
        self._frames.append(frame)
        self._seq += count
        self._size += len(data)
        self.left -= count
        self.crc = zlib.crc32(data, self.crc)
        return packed


def unpack(packed: bytes, size: int) -> bytes:
    """Return the plain bytes of a frame, `size` of them. Raises BadLine when it is not whole."""
    try:
        data: bytes = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_LARGEST)
    except (zstandard.ZstdError, MemoryError) as exc:
        raise BadLine(str(exc)) from None
    if len(data) != size:
        raise BadLine(f"it has {len(data)} bytes in place of {size}")
    return data


def salvage(data: bytes) -> list[bytes]:
    """Return the plain bytes of all frames in a file whose index does not read, in order."""
    found, at = [], data.find(_MAGIC)
    while at >= 0:
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        try:
            plain = unpacker.decompress(data[at:])
            if unpacker.eof:
                found.append(plain)
                at = len(data) - len(unpacker.unused_data) - 1
        except zstandard.ZstdError:
            pass
        at = data.find(_MAGIC, at + 1)
    return found
