from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.recording import Encoder, parse_line
from hypermux.core.segments import Epoch, segment_name
from hypermux.downstream.horizon import Position
from hypermux.downstream.memory import MemoryStorage
from hypermux.downstream.reading import JournalReader, Rewritten, locate, resolve_cursor
from hypermux.model.errors import DamagedData, DiskFault
from hypermux.model.records import Checkpoint, Cursor, Gap

HERE = Path("/j")
# Records need no meaning here: lines, and a name that says which number is the first.
SIZES = {1: [5, 9, 1, 7], 5: [30], 6: [4, 4, 200, 4]}


def line(seq: int, size: int) -> bytes:
    return (b"%d " % seq).ljust(size + 4, b"x") + b"\n"


def journal() -> tuple[MemoryStorage, list[bytes], list[Position]]:
    """Return a disk, its lines, and the position after each of them (the first: before all)."""
    storage, lines, positions = MemoryStorage(), [], [Position(1, 0, 0)]
    for first_seq, sizes in SIZES.items():
        data = b""
        for seq, size in enumerate(sizes, first_seq):
            lines.append(line(seq, size))
            data += lines[-1]
            positions.append(Position(first_seq, len(data), seq))
        storage.write(HERE / segment_name(first_seq), data)
    return storage, lines, positions


def drain(reader: JournalReader, upto: Position, max_bytes: int) -> bytes:
    return b"".join(iter(lambda: reader.read(upto, max_bytes), b""))


@given(
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300)), max_size=6),
    st.booleans(),
)
@settings(max_examples=150)
def test_a_reader_gets_each_record_after_its_place_once_and_none_beyond(
    after: int, steps: list[tuple[int, int]], near: bool
) -> None:
    storage, lines, positions = journal()
    reader = JournalReader(HERE, storage, after=after, near=positions[after] if near else None)
    seen, end = b"", after
    for upto, max_bytes in steps:
        end = max(end, upto)
        block = reader.read(positions[end], max_bytes)
        assert len(block) <= max_bytes or block.count(b"\n") == 1
        seen += block
        assert seen == b"".join(lines[after : reader.seq])
        assert reader.seq <= end
    seen += drain(reader, positions[end], 64)
    assert seen == b"".join(lines[after:end])
    assert reader.read(positions[end]) == b""
    reader.close()


def test_locate() -> None:
    storage, lines, positions = journal()
    for seq in range(1, 10):
        segment, offset = locate(HERE, storage, seq)
        data = storage.read(HERE / segment_name(segment))
        assert data[offset:].startswith(lines[seq - 1])
    assert locate(HERE, storage, 10) == (6, positions[9].offset)
    with pytest.raises(DamagedData, match="ends 1 records before 11"):
        locate(HERE, storage, 11)
    del storage.files[HERE / segment_name(1)]
    with pytest.raises(DamagedData, match="no segment in /j holds record 4"):
        locate(HERE, storage, 4)


def test_locate_crosses_blocks() -> None:
    storage = MemoryStorage()
    lines = [line(seq, 700) for seq in range(1, 1001)]
    storage.write(HERE / segment_name(1), b"".join(lines))
    for seq in (1, 2, 184, 185, 186, 187, 500, 1000, 1001):
        assert locate(HERE, storage, seq) == (1, len(b"".join(lines[: seq - 1])))


def test_lines_behind_the_successors_first_do_not_count() -> None:
    storage, lines, positions = journal()
    storage.files[HERE / segment_name(1)].data += line(5, 3) + line(6, 3) + b"half"
    for max_bytes in (20, 10_000):
        reader = JournalReader(HERE, storage, after=0)
        assert drain(reader, positions[9], max_bytes) == b"".join(lines)


def test_what_is_missing_is_said() -> None:
    storage, lines, positions = journal()
    del storage.files[HERE / segment_name(1)].data[-1:]
    reader = JournalReader(HERE, storage, after=0)
    assert reader.read(positions[9]) == b"".join(lines[:3])
    with pytest.raises(DamagedData, match=r"0001\.ndjson: at byte 30 record 4 is missing"):
        reader.read(positions[9])
    storage, lines, positions = journal()
    del storage.files[HERE / segment_name(6)].data[-1:]
    reader = JournalReader(HERE, storage, after=5)
    assert drain(reader, positions[8], 1000) == b"".join(lines[5:8])
    with pytest.raises(DamagedData, match="record 9 is missing"):
        reader.read(positions[9])


def test_a_gap_between_segments_is_noticed() -> None:
    storage, _, positions = journal()
    del storage.files[HERE / segment_name(5)]
    reader = JournalReader(HERE, storage, after=0)
    assert reader.read(positions[9])
    with pytest.raises(DamagedData, match="record 5 is missing"):
        reader.read(positions[9])


def test_a_disk_that_will_not_read() -> None:
    storage, _, positions = journal()
    storage.fail("read_at", errno.EIO)
    reader = JournalReader(HERE, storage, after=0, near=positions[0])
    with pytest.raises(DiskFault, match=r"cannot read .*input/output error"):
        reader.read(positions[1])


EPOCHS = (Epoch("aa", 1), Epoch("bb", 100), Epoch("cc", 50), Epoch("dd", 80))


@pytest.mark.parametrize(
    ("cursor", "found"),
    [
        ("dd:120", 120),
        ("dd:121", "ahead of this journal, whose last record is 120"),
        ("dd:10", 10),
        ("dd:9", 9),
        ("dd:0", 0),
        ("cc:79", 79),
        ("cc:80", "records from 80 on were rewritten after this cursor's epoch: go on after dd:79"),
        ("bb:49", 49),
        ("bb:99", "records from 50 on were rewritten"),
        ("aa:49", 49),
        ("aa:50", "go on after dd:49"),
        ("aa:9999", "rewritten"),
        ("ee:50", "an epoch that this journal never had"),
    ],
)
def test_cursors(cursor: str, found: int | str) -> None:
    result = resolve_cursor(Cursor.parse(cursor), EPOCHS, 121)
    if isinstance(found, int):
        assert result == found
    else:
        assert isinstance(result, Rewritten if "rewritten" in str(result) else str)
        assert found in str(result)


@pytest.mark.parametrize(
    ("cursor", "after", "count"),
    [("cc:80", 79, 1), ("cc:119", 79, 40), ("bb:99", 49, 50), ("aa:50", 49, 1)],
)
def test_a_cursor_whose_records_were_cut_off(cursor: str, after: int, count: int) -> None:
    """It goes on where the first of them is written again, and is told how many it has in vain."""
    found = resolve_cursor(Cursor.parse(cursor), EPOCHS, 121)
    assert found == Rewritten(after, count, "dd")
    assert isinstance(found, Rewritten)
    around = b"".join(
        Encoder().encode(seq, Checkpoint(0), source=None, at_ns=seq, received_ns=seq)
        for seq in (after, after + 1, after + 2)
    )
    told = parse_line(found.line(around, now_ns=7))
    assert (told.seq, told.source) == (after, None)
    assert told.item == Gap(after, after + 1, "rewritten", "proven", count)
    nothing = parse_line(found.line(b"", now_ns=7))
    assert nothing.item == Gap(7, 7, "rewritten", "proven", count)


def test_the_cursor_before_the_first_record() -> None:
    assert resolve_cursor(Cursor("aa", 0), EPOCHS[:1], 1) == 0
