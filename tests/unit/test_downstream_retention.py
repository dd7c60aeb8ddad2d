from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from hypermux.config.settings import JournalSettings, RetainSettings
from hypermux.core.recording import Encoder
from hypermux.core.segments import segment_name, sources_name
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage
from hypermux.downstream.reading import JournalReader
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DamagedData
from hypermux.model.records import Event

HERE = Path("/j")
SECOND = 10**9
SOURCE = SourceId("a", "r")


def settings(size: int = 1 << 30, age_s: float = 1e6, **changes: Any) -> JournalSettings:
    given: dict[str, Any] = {"segment_size": 500, "keep_free": 0, **changes}
    return JournalSettings(retain=RetainSettings(size, age_s), **given)


def begin(how: JournalSettings, storage: MemoryStorage | None = None) -> Journal:
    storage = storage or MemoryStorage()
    return Journal.open(HERE, storage, how, new_epoch=lambda: "e1", now_ns=1000)


def write(journal: Journal, count: int) -> None:
    """Commit batches of one record, the n-th received n seconds after 1970."""
    for seq in range(journal.next_seq, journal.next_seq + count):
        sources = journal.coverage.to_bytes() if journal.rotation_due else b""
        item, ns = Event(b'{"n":%d}' % seq, seq, "timeNano"), seq * SECOND
        line = Encoder().encode(seq, item, source=SOURCE, at_ns=ns, received_ns=ns, durable=seq - 1)
        journal.coverage.apply(SOURCE, item, ns)
        journal.commit(line, seq, seq, sources)


def firsts(storage: Any) -> list[int]:
    return sorted(int(p.name[:20]) for p in storage.files if p.suffix == ".ndjson")


def read_from(journal: Journal, after: int) -> list[dict[str, Any]]:
    reader = JournalReader(HERE, journal._storage, after=after, began_ns=journal.manifest.began_ns)
    data = b"".join(iter(lambda: reader.read(journal.position, 300), b""))
    return [json.loads(line) for line in data.splitlines()]


def test_a_segment_ends_by_age() -> None:
    journal = begin(settings(segment_size=1 << 20, segment_age_s=60.0))
    assert journal.tend(10**15) == []
    assert not journal.rotation_due  # one without records is never old
    write(journal, 3)
    for now_s, due in ((60, False), (61, True)):
        journal.tend(now_s * SECOND)
        assert journal.rotation_due == due
    write(journal, 1)
    assert not journal.rotation_due
    assert firsts(journal._storage) == [1, 4]
    # After a restart its age goes on from its first record.
    journal.close()
    again = begin(settings(segment_size=1 << 20, segment_age_s=60.0), journal._storage)  # type: ignore[arg-type]
    again.tend(64 * SECOND)
    assert again.rotation_due
    write(again, 1)
    assert firsts(again._storage) == [1, 4, 5]


def test_what_is_beyond_the_size_goes_and_the_open_segment_stays() -> None:
    journal = begin(settings(size=1200))
    storage: Any = journal._storage
    write(journal, 20)
    before = firsts(storage)
    assert journal.first_seq == 1
    assert journal.tend(30 * SECOND) == []
    after = firsts(storage)
    assert 1 < len(after) < len(before)
    assert after == before[-len(after) :]
    kept = sum(len(storage.files[HERE / segment_name(s)].data) for s in after)
    assert kept <= 1200
    assert (journal.first_seq, journal.oldest_ns) == (after[0], after[0] * SECOND)
    assert {int(p.name[:20]) for p in storage.files if p.suffix == ".sources"} == set(after)
    # It is the same journal after a restart, and nothing of what went comes back.
    journal.close()
    storage.crash()
    again = begin(settings(size=1), storage)
    assert (again.first_seq, again.oldest_ns) == (after[0], after[0] * SECOND)
    assert again.epoch_reason is None
    again.tend(30 * SECOND)
    assert firsts(storage) == after[-1:]
    assert again.first_seq == after[-1]


def test_what_is_older_goes() -> None:
    journal = begin(settings(age_s=20.0))
    write(journal, 20)
    closed = firsts(journal._storage)
    # A segment goes when its newest record is too old: that came before its successor's first.
    journal.tend((closed[2] + 20) * SECOND)
    assert firsts(journal._storage) == closed[1:]
    journal.tend((closed[2] + 20) * SECOND + 1)
    assert firsts(journal._storage) == closed[2:]
    journal.tend(10**6 * SECOND)
    assert firsts(journal._storage) == closed[-1:]


def test_room_is_made_by_the_oldest_and_the_lack_is_told() -> None:
    storage = MemoryStorage()
    journal = begin(settings(keep_free=1000), storage)
    write(journal, 20)
    before = firsts(storage)
    storage.free_bytes = 900
    told = journal.tend(100 * SECOND)
    after = firsts(storage)
    assert after == before[1:]
    assert told == [
        f"less than 1kB is free on the disk: records up to {after[0] - 1} were removed for room"
    ]
    # A file that is still read gives nothing back: not the whole journal goes for that at once.
    assert journal.tend(110 * SECOND) == []
    assert firsts(storage) == after
    storage.free_bytes = 0
    assert len(journal.tend(161 * SECOND)) == 1
    rest = firsts(storage)
    assert len(rest) < len(after)
    for n in range(3, 9):
        journal.tend(n * 100 * SECOND)
    assert firsts(storage) == before[-1:]
    assert journal.tend(10**3 * SECOND) == []
    storage.free_bytes = 1000
    assert journal.tend(10**3 * SECOND) == []
    storage.free_bytes = 999
    told = journal.tend(10**4 * SECOND)
    assert told == ["less than 1kB is free on the disk, and there is no old segment left to remove"]
    write(journal, 1)


def test_a_refusal_is_told_once_and_tried_again() -> None:
    storage = MemoryStorage()
    journal = begin(settings(size=1), storage)
    write(journal, 20)
    before = firsts(storage)
    storage.fail("remove", errno.EPERM)
    storage.fail("remove", errno.EPERM, after=1)
    told = journal.tend(SECOND)
    assert len(told) == 1
    assert "remove" in told[0]
    assert "permission is denied; old records stay for now" in told[0]
    assert journal.tend(SECOND) == []
    assert firsts(storage) == before
    journal.tend(SECOND)
    assert firsts(storage) == before[-1:]
    storage.fail("names", errno.EIO)
    assert len(journal.tend(SECOND)) == 1
    write(journal, 1)


def test_a_removal_that_a_power_cut_ends_leaves_no_hole() -> None:
    for step in range(40):
        storage = MemoryStorage()
        journal = begin(settings(size=1), storage)
        write(journal, 20)
        before = firsts(storage)
        operation = ("remove", "sync_names")[step % 2]
        storage.fail(operation, errno.EIO, after=step // 2)
        journal.tend(SECOND)
        storage.crash()
        storage._plan.clear()
        after = firsts(storage)
        assert after == before[-len(after) :]
        again = begin(settings(size=1), storage)
        assert again.coverage == journal.coverage
        assert [r["seq"] for r in read_from(again, after[0] - 1)] == list(range(after[0], 21))
        again.tend(SECOND)
        names = storage.names(HERE)
        assert sorted(n for n in names if n[0] == "0") == [
            segment_name(before[-1]),
            sources_name(before[-1]),
        ]


def test_what_a_start_reads_stays() -> None:
    storage = MemoryStorage()
    journal = begin(settings(size=1), storage)
    write(journal, 20)
    segments = firsts(storage)
    for first_seq in segments[-2:]:
        del storage.files[HERE / sources_name(first_seq)]
    journal.tend(SECOND)
    assert firsts(storage) == segments[-3:]
    storage.kill()
    assert begin(settings(), storage).coverage == journal.coverage


def gap_of(journal: Journal, after: int, from_: str) -> dict[str, Any]:
    first = journal.first_seq
    records = read_from(journal, after)
    assert [r["seq"] for r in records] == list(range(first - 1, journal.next_seq))
    gap = records[0]
    assert (gap["kind"], gap["cause"], gap["certainty"]) == ("gap", "retention", "proven")
    assert gap["lost"] == first - 1 - after
    assert gap["from"] == f"1970-01-01T00:00:{from_}Z"
    assert gap["to"] == gap["received"] == f"1970-01-01T00:00:{first:02}.000000000Z"
    return gap


def test_a_cursor_before_the_oldest_gets_a_gap_and_then_the_oldest() -> None:
    journal = begin(settings(size=1200))
    write(journal, 20)
    journal.tend(SECOND)
    first = journal.first_seq
    assert first > 3
    for after in (0, 1, first - 2):
        gap_of(journal, after, "00.000001000")  # when the journal began
    assert read_from(journal, first - 1)[0]["seq"] == first


def test_a_reader_that_is_overtaken_gets_a_gap_from_its_last_record() -> None:
    journal = begin(settings(size=1))
    storage: Any = journal._storage
    write(journal, 20)
    segments = firsts(storage)

    def finish(reader: JournalReader) -> list[dict[str, Any]]:
        data = b"".join(iter(lambda: reader.read(journal.position, 300), b""))
        return [json.loads(line) for line in data.splitlines()]

    readers = []
    for lines in (1, 2, 3):
        reader = JournalReader(HERE, storage, after=0)
        for _ in range(lines):
            assert reader.read(journal.position, 1).count(b"\n") == 1
        readers.append(reader)
    journal.tend(SECOND)
    assert firsts(storage) == segments[-1:]
    for reader in readers:
        last = reader.seq
        rest = finish(reader)
        gap = next(r for r in rest if r["kind"] == "gap")
        before = rest[: rest.index(gap)]
        known = [last, *(r["seq"] for r in before)]
        assert known == list(range(last, known[-1] + 1))
        assert gap["lost"] == segments[-1] - 1 - known[-1]
        assert gap["from"] == f"1970-01-01T00:00:{known[-1]:02}.000000000Z"
        assert [r["seq"] for r in rest[len(before) :]] == list(range(segments[-1] - 1, 21))


def test_a_hole_is_damage_and_no_retention() -> None:
    journal = begin(settings())
    storage: Any = journal._storage
    write(journal, 20)
    segments = firsts(storage)
    del storage.files[HERE / segment_name(segments[1])]
    reader = JournalReader(HERE, storage, after=segments[1])
    with pytest.raises(DamagedData, match="before"):
        reader.read(journal.position, 300)


@pytest.mark.parametrize("after", [0, 1])
def test_what_an_operator_removed_is_noticed(after: int) -> None:
    journal = begin(settings())
    storage: Any = journal._storage
    write(journal, 20)
    segments = firsts(storage)
    del storage.files[HERE / segment_name(segments[0])]
    assert read_from(journal, after)[0]["cause"] == "retention"
    assert journal.tend(SECOND) == []
    assert journal.first_seq == segments[1]
