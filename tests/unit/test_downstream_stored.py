from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard
from journals import flip, made, open_journal, segments, write

from hypermux.config.settings import RetainSettings
from hypermux.core.compression import FRAME, Compressor
from hypermux.core.recording import BadLine
from hypermux.core.segments import compressed_name, first_seqs, index_name, segment_name
from hypermux.downstream.checking import Check
from hypermux.downstream.indexes import Indexes
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage
from hypermux.downstream.onlooker import Onlooker
from hypermux.downstream.reading import JournalReader
from hypermux.downstream.repair import Repair
from hypermux.downstream.storage import DiskStorage
from hypermux.downstream.stored import Frames, compress, open_segment, readable_blocks
from hypermux.downstream.upkeep import _compress, _plain
from hypermux.model.errors import DamagedData


def no_rest() -> None:
    """Go on at once."""


def squeeze(directory: Path, *which: int) -> list[int]:
    """Compress closed segments, all or those at these places; return their first seqs."""
    seqs = first_seqs([path.name for path in directory.iterdir()])
    pairs = list(itertools.pairwise(seqs))
    chosen = [pairs[at] for at in which] if which else pairs
    for seq, end in chosen:
        compress(DiskStorage(), directory, seq, end, no_rest)
    return [seq for seq, _ in chosen]


def everything(journal: Journal, after: int = 0, size: int = 300, shared: bool = True) -> bytes:
    reader = JournalReader(
        journal.directory,
        DiskStorage(),
        after=after,
        indexes=journal.indexes if shared else None,
    )
    data = b"".join(iter(lambda: reader.read(journal.position, size), b""))
    reader.close()
    return data


def check(directory: Path) -> Any:
    onlooker = Onlooker.open(directory, DiskStorage(), told_seq=None, locked=False)
    return onlooker, Check(onlooker).run()


@pytest.mark.parametrize("which", [(), (0,), (1, 3), (0, 1, 2)])
def test_a_mixed_journal_replays_byte_for_byte(tmp_path: Path, which: tuple[int, ...]) -> None:
    lines = made(tmp_path, 150)
    done = squeeze(tmp_path, *which)
    names = {path.name for path in tmp_path.iterdir()}
    for seq in done:
        assert compressed_name(seq) in names
        assert segment_name(seq) not in names
    journal = open_journal(tmp_path)
    assert everything(journal) == b"".join(lines)
    for after in (0, 1, 23, 24, 25, 60, 100, 149, 150):
        for shared in (True, False):
            assert everything(journal, after, 5000, shared) == b"".join(lines[after:])
    for at in (1, 30, 77, 140):
        found = journal.indexes.since(at * 10**9)
        assert found < at
        assert found >= at - 26
    for path in tmp_path.glob("*.index"):
        path.unlink()
    again = Indexes(tmp_path, DiskStorage(), journal.indexes.open)
    for seq, end in again.missing():
        again.rebuild(seq, end, no_rest)
    assert not again.missing()
    lines += write(journal, 30)
    journal.close()
    _, report = check(tmp_path)
    assert report.sound
    assert report.records == 180
    listed = Onlooker.open(tmp_path, DiskStorage(), told_seq=None, locked=False).list()
    assert [info.first_seq for info in listed if info.compressed] == done
    # Anybody's zstd gives back the plain file: it passes our index over.
    packed = (tmp_path / compressed_name(done[0])).read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as plain:
        assert plain.read() == b"".join(lines[done[0] - 1 : done[0] + 23])


def test_frames_are_a_mebibyte_of_whole_lines_and_read_from_anywhere(tmp_path: Path) -> None:
    rng = random.Random(1)
    lines = [rng.randbytes(rng.choice((10, 300, 2000))).hex().encode() + b"\n" for _ in range(3000)]
    lines[1500] = b"x" * (3 * FRAME) + b"\n"  # comes alone with those before it
    data = b"".join(lines)
    (tmp_path / segment_name(5)).write_bytes(data + b"void, for the next segment has it\n")
    compress(DiskStorage(), tmp_path, 5, 3005, no_rest)
    assert len(list(tmp_path.iterdir())) == 1
    file: Any = open_segment(DiskStorage(), tmp_path, 5, Frames(2))
    assert file.index.size == len(data)
    assert len(file.index.frames) >= 5
    for frame in file.index.frames:
        whole = file.read_at(frame.offset, frame.size)
        assert whole.endswith(b"\n")
        assert whole.startswith(lines[frame.seq - 5])
        assert frame.size <= FRAME or len(whole.splitlines()) == 1 or frame.size > 3 * FRAME
    for _ in range(200):
        offset, size = rng.randrange(len(data) + 10), rng.choice((1, 100, 70_000, 3 << 20))
        assert file.read_at(offset, size) == data[offset : offset + size]
    assert len(file.frames._kept) == 2
    file.close()


def test_too_few_lines_are_not_compressed(tmp_path: Path) -> None:
    compressor = Compressor(1, 5)
    compressor.feed(b"a\nb\n")
    with pytest.raises(BadLine, match="3 records early"):
        compressor.finish()
    made(tmp_path, 100)
    path = segments(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-100])
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(DamagedData, match="not compressed"):
        squeeze(tmp_path, 0)
    assert {p.name for p in tmp_path.iterdir()} == before


def test_a_reader_that_has_the_plain_file_open_goes_on(tmp_path: Path) -> None:
    lines = made(tmp_path, 100)
    journal = open_journal(tmp_path)
    reader = JournalReader(tmp_path, DiskStorage(), after=0, indexes=journal.indexes)
    data = reader.read(journal.position, 500)
    squeeze(tmp_path)
    data += b"".join(iter(lambda: reader.read(journal.position, 500), b""))
    assert data == b"".join(lines)
    reader.close()
    journal.close()


def test_the_plain_file_wins_and_is_compressed_again(tmp_path: Path) -> None:
    lines = made(tmp_path, 100)
    first = segments(tmp_path)[0]
    plain = first.read_bytes()
    squeeze(tmp_path, 0)
    first.write_bytes(plain)
    (tmp_path / compressed_name(1)).write_bytes(b"half a frame")
    journal = open_journal(tmp_path)
    assert everything(journal) == b"".join(lines)
    pairs = _plain(journal.indexes)
    assert pairs[0][0] == 1
    for seq, end in pairs:
        _compress(journal.indexes, seq, end)
    assert _plain(journal.indexes) == []
    assert everything(journal) == b"".join(lines)
    journal.close()


def test_a_harmed_frame_is_named_and_its_records_are_told(tmp_path: Path) -> None:
    lines = made(tmp_path, 100)
    squeeze(tmp_path, 1)
    path = next(tmp_path.glob("*.zst"))
    first_seq, whole = int(path.name[:20]), path.read_bytes()
    flip(path, 60)
    journal = open_journal(tmp_path)  # a start has no use for it
    with pytest.raises(DamagedData, match=r"ndjson\.zst: frame 1 at byte 0 \(records 25 to 48\)"):
        everything(journal)
    journal.close()
    onlooker, report = check(tmp_path)
    assert [(s.name, d.first_seq, d.last_seq) for s, d in report.damages] == [(path.name, 25, 48)]
    assert "frame 1 at byte 0" in report.damages[0][1].reason
    work = Repair(tmp_path, DiskStorage(), report, onlooker.manifest, "e2", 10**15)
    assert "24 lost records" in work.plan()[-1]
    work.run()
    assert not path.exists()
    assert check(tmp_path)[1].sound
    journal = open_journal(tmp_path)
    after = everything(journal).splitlines(keepends=True)
    assert after[:24] + after[48:100] == lines[:24] + lines[48:]
    assert all(b'"cause":"damage"' in line for line in after[24:48])
    journal.close()
    # Without its frame index all frames can still be found.
    segment_path = tmp_path / segment_name(first_seq)
    segment_path.unlink()
    for ending in (20, len(whole) - whole.rindex(b'{"format"') - 5):
        path.write_bytes(whole)
        flip(path, len(whole) - ending)
        told: list[str] = []
        read = b"".join(readable_blocks(DiskStorage(), tmp_path, first_seq, told.append))
        assert read == b"".join(lines[24:48])
        assert told == ["its frame index does not read"]
    onlooker, report = check(tmp_path)
    assert [fault.name for fault in report.faults] == [path.name]
    Repair(tmp_path, DiskStorage(), report, onlooker.manifest, "e3", 10**15).run()
    assert check(tmp_path)[1].sound
    assert segment_path.read_bytes() == b"".join(lines[24:48])


def test_a_compressed_segment_that_became_the_last_is_written_to_as_a_plain_one(
    tmp_path: Path,
) -> None:
    lines = made(tmp_path, 100)
    squeeze(tmp_path)
    segments(tmp_path)[-1].unlink()
    last = max(first_seqs([path.name for path in tmp_path.iterdir()]))
    kept = max(int(p.name[:20]) for p in tmp_path.glob("*.sources")) - 1
    onlooker, report = check(tmp_path)
    assert onlooker.position.seq == kept
    assert not report.damages
    journal = open_journal(tmp_path, "e2")
    assert journal.next_seq == kept + 1
    assert journal.epoch == "e2"
    assert "taken away" in str(journal.epoch_reason)
    assert not (tmp_path / compressed_name(last)).exists()
    assert everything(journal) == b"".join(lines[:kept])
    lines = lines[:kept] + write(journal, 10)
    assert everything(journal) == b"".join(lines)
    journal.close()


def test_retention_counts_and_removes_what_is_stored(tmp_path: Path) -> None:
    made(tmp_path, 300)
    squeeze(tmp_path)
    stored = sum(p.stat().st_size for p in tmp_path.glob("*.ndjson*") if not p.is_symlink())
    journal = open_journal(tmp_path, retain=RetainSettings(stored + 10, 1e9))
    journal.tend(10**9)
    assert journal.first_seq == 1  # plain, it would be far beyond
    journal.close()
    journal = open_journal(tmp_path, retain=RetainSettings(stored - 10, 1e9))
    journal.tend(10**9)
    assert journal.first_seq == 25
    assert not (tmp_path / compressed_name(1)).exists()
    assert not (tmp_path / index_name(1)).exists()
    assert journal.oldest_ns == 25 * 10**9
    journal.close()


class End(BaseException):
    pass


class Cut(MemoryStorage):
    """Ends the process before the n-th call that changes something."""

    left: int | None = None

    def _fail_if_planned(self, operation: str) -> None:
        if operation in ("write", "sync", "append", "move", "remove", "sync_names"):
            if self.left == 0:
                raise End
            if self.left is not None:
                self.left -= 1
        super()._fail_if_planned(operation)


@pytest.mark.parametrize("power", [False, True])
def test_cut_short_anywhere_nothing_is_missing(tmp_path: Path, power: bool) -> None:
    lines = made(tmp_path, 60)
    for calls in range(30):
        storage = Cut()
        for path in tmp_path.iterdir():
            if not path.is_symlink():
                storage.write(path, path.read_bytes())
        storage.left = calls
        done = False
        try:
            compress(storage, tmp_path, 1, 25, no_rest)
            done = True
        except End:
            pass
        storage.left = None
        if power:
            storage.crash()
        else:
            storage.kill()
        seqs = first_seqs(storage.names(tmp_path))
        assert seqs[0] == 1
        file = open_segment(storage, tmp_path, 1)
        assert file.read_at(0, 1 << 20) == b"".join(lines[:24])
        if tmp_path / segment_name(1) in storage.files:
            compress(storage, tmp_path, 1, 25, no_rest)
            assert tmp_path / segment_name(1) not in storage.files
            again = open_segment(storage, tmp_path, 1)
            assert again.read_at(0, 1 << 20) == b"".join(lines[:24])
        assert not any(p.name.endswith(".new") for p in storage.files)
        if done:
            assert calls >= 6
            return
    pytest.fail("it never came to its end")
