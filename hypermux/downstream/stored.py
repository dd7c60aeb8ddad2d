"""A segment as it is stored: plain, or compressed once it is closed. Readers see plain bytes.

When both files are there the plain one counts. It is removed when the compressed one is on the
disk; who has it open reads on, and who looks for it then finds the other.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Generator
from pathlib import Path

from attrs import define, field

from hypermux.core.compression import FOOTER, Compressor, FrameIndex, salvage, unpack
from hypermux.core.recording import BadLine
from hypermux.core.segments import compressed_name, segment_name
from hypermux.downstream.storage import BLOCK, Slice, Storage, translated, write_all
from hypermux.model.errors import DamagedData

# Frames that all readers together keep unpacked: a thousand readers each in its own frame unpack
# one for each read, which costs them a millisecond, and us no memory.
SHARED = 16


@define(eq=False)
class Frames:
    """Unpacked frames, shared by readers of the same journal, from any thread."""

    most: int = 1
    _kept: dict[tuple[int, int], bytes] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def get(self, segment: int, number: int) -> bytes | None:
        """Return a frame that was kept."""
        return self._kept.get((segment, number))

    def keep(self, segment: int, number: int, data: bytes) -> None:
        """Keep a frame, and forget the oldest."""
        with self._lock:
            while len(self._kept) >= self.most:
                del self._kept[next(iter(self._kept))]
            self._kept[segment, number] = data


@define(eq=False)
class _Unpacked:
    """A compressed segment open for reading, by plain offsets."""

    path: Path
    segment: int
    file: Slice
    index: FrameIndex
    frames: Frames

    def read_at(self, offset: int, size: int) -> bytes:
        """See `Slice.read_at`. Raises DamagedData for a frame that does not unpack."""
        pieces = []
        while size > 0 and (number := self.index.at(offset)) is not None:
            data = self._frame(number)
            begin = offset - self.index.frames[number].offset
            piece = data[begin : begin + size]
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _frame(self, number: int) -> bytes:
        data = self.frames.get(self.segment, number)
        if data is None:
            frame = self.index.frames[number]
            packed = self.file.read_at(frame.start, frame.end - frame.start)
            try:
                data = unpack(packed, frame.size)
            except BadLine as exc:
                raise DamagedData(
                    f"{self.path}: {_damage(self.index, number)}: {exc}. Restore the file from a "
                    "copy, or run `hypermux journal repair`"
                ) from None
            self.frames.keep(self.segment, number, data)
        return data

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _damage(index: FrameIndex, number: int) -> str:
    frame = index.frames[number]
    last = index.frames[number + 1].seq - 1 if number + 1 < len(index.frames) else index.last_seq
    return (
        f"frame {number + 1} at byte {frame.start} (records {frame.seq} to {last}) does not unpack"
    )


def is_plain(storage: Storage, directory: Path, first_seq: int) -> bool:
    """Tell whether a segment is there as it was written. Raises OSError."""
    try:
        storage.size(directory / segment_name(first_seq))
    except FileNotFoundError:
        return False
    return True


def segment_path(storage: Storage, directory: Path, first_seq: int) -> Path:
    """Return the file that a segment is in. Raises OSError."""
    plain = is_plain(storage, directory, first_seq)
    return directory / (segment_name(first_seq) if plain else compressed_name(first_seq))


def stored_size(storage: Storage, directory: Path, first_seq: int) -> int:
    """Return the bytes that a segment takes on the disk. Raises OSError."""
    return storage.size(segment_path(storage, directory, first_seq))


def plain_size(storage: Storage, directory: Path, first_seq: int) -> int:
    """Return the plain bytes of a segment. Raises OSError, DamagedData."""
    if is_plain(storage, directory, first_seq):
        return storage.size(directory / segment_name(first_seq))
    path = directory / compressed_name(first_seq)
    file = storage.open(path)
    try:
        return _read_index(storage, path, file).size
    finally:
        file.close()


def open_segment(
    storage: Storage, directory: Path, first_seq: int, frames: Frames | None = None
) -> Slice:
    """Open a segment to read its plain bytes; `frames` are shared by who passes the same.

    Raises OSError, DamagedData when the index of a compressed one does not read.
    """
    try:
        return storage.open(directory / segment_name(first_seq))
    except FileNotFoundError as exc:
        missing = exc
    path = directory / compressed_name(first_seq)
    try:
        file = storage.open(path)
    except FileNotFoundError:
        raise missing from None
    try:
        index = _read_index(storage, path, file)
    except BaseException:
        file.close()
        raise
    return _Unpacked(path, first_seq, file, index, frames or Frames())


def _read_index(storage: Storage, path: Path, file: Slice) -> FrameIndex:
    size = storage.size(path)
    try:
        length = FrameIndex.line_size(file.read_at(max(0, size - FOOTER), FOOTER))
        return FrameIndex.parse(file.read_at(max(0, size - FOOTER - length), length))
    except BadLine as exc:
        raise DamagedData(
            f"{path}: its frame index does not read: {exc}. Restore the file from a copy, or run "
            "`hypermux journal repair`"
        ) from None


def segment_blocks(
    storage: Storage, directory: Path, first_seq: int, start: int = 0
) -> Generator[bytes, None, None]:
    """Yield a segment's plain bytes from `start` on in blocks. Raises OSError, DamagedData."""
    file = open_segment(storage, directory, first_seq)
    try:
        while data := file.read_at(start, BLOCK):
            yield data
            start += len(data)
    finally:
        file.close()


def readable_blocks(
    storage: Storage, directory: Path, first_seq: int, told: Callable[[str], None]
) -> Generator[bytes, None, None]:
    """Yield what reads of a segment; `told` of each frame that is left out. Raises OSError."""
    try:
        file = open_segment(storage, directory, first_seq)
    except DamagedData:
        told("its frame index does not read")
        yield from salvage(storage.read(directory / compressed_name(first_seq)))
        return
    try:
        if isinstance(file, _Unpacked):
            for number, frame in enumerate(file.index.frames):
                try:
                    yield file.read_at(frame.offset, frame.size)
                except DamagedData:
                    told(_damage(file.index, number))
            return
        start = 0
        while data := file.read_at(start, BLOCK):
            yield data
            start += len(data)
    finally:
        file.close()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def compress(
    storage: Storage, directory: Path, first_seq: int, end_seq: int, rest: Callable[[], None]
) -> None:
    """Put a compressed segment in the place of a closed one, whose next begins at `end_seq`.

    `rest` is called after each MiB. Cut short anywhere, it is simply done again: until the plain
    file is removed that is the one that counts. Raises OSError, DamagedData, and nothing is changed
    then.
    """
    plain, target = directory / segment_name(first_seq), directory / compressed_name(first_seq)
    beside, crc = _beside(target), 0
    storage.remove(beside)
    compressor = Compressor(first_seq, end_seq - first_seq)
    source = storage.open(plain)
    try:
        file, start = storage.append(beside), 0
        try:
            while compressor.left and (data := source.read_at(start, BLOCK)):
                start += len(data)
                write_all(file, compressor.feed(data))
                rest()
            write_all(file, compressor.finish())
            file.sync()
        finally:
            file.close()
        # What cannot be read back must not take the place of what can.
        copy = _open_packed(storage, beside, first_seq)
        try:
            start = 0
            while data := copy.read_at(start, BLOCK):
                start += len(data)
                crc = zlib.crc32(data, crc)
                rest()
        finally:
            copy.close()
        if crc != compressor.crc:
            raise DamagedData(f"{beside} does not read back")
        if is_plain(storage, directory, first_seq):  # else it was removed, being too old
            storage.move(beside, target)
            storage.remove(plain)
            storage.sync_names(directory)
    except BadLine as exc:
        raise DamagedData(f"{plain}: {exc}; it is not compressed") from None
    finally:
        source.close()
        storage.remove(beside)


def _open_packed(storage: Storage, path: Path, first_seq: int) -> Slice:
    file = storage.open(path)
    return _Unpacked(path, first_seq, file, _read_index(storage, path, file), Frames())


def restore(storage: Storage, directory: Path, first_seq: int) -> None:
    """Put the plain segment in the place of a compressed one. Raises OSError, DamagedData."""
    plain = directory / segment_name(first_seq)
    beside = _beside(plain)
    with translated(plain, "write anew"):
        storage.remove(beside)
        file = storage.append(beside)
        try:
            for data in segment_blocks(storage, directory, first_seq):
                write_all(file, data)
            file.sync()
        finally:
            file.close()
        storage.move(beside, plain)
        storage.remove(directory / compressed_name(first_seq))
        storage.sync_names(directory)
