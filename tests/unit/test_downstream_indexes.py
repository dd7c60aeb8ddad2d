from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hypermux.config.settings import JournalSettings
from hypermux.core.recording import Encoder, parse_line
from hypermux.core.segments import index_name, segment_name
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage
from hypermux.downstream.reading import JournalReader, locate
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DamagedData
from hypermux.model.records import Event

HERE = Path("/j")
SOURCE = SourceId("a", "r")
MINUTE = 60 * 10**9
# When each record came, and how far its `at` lies behind: not monotone in seq.
AT = [n * 10 * MINUTE - (n * 7 % 5) * 12 * 10**9 for n in range(1, 41)]


def journal_of(storage: MemoryStorage) -> Journal:
    journal = Journal.open(
        HERE, storage, JournalSettings(segment_size=900), new_epoch=lambda: "e1", now_ns=0
    )
    for seq, at_ns in enumerate(AT, 1):
        sources = journal.coverage.to_bytes() if journal.rotation_due else b""
        item = Event(b'{"n":%d}' % seq, at_ns, "timeNano")
        line = Encoder().encode(
            seq, item, source=SOURCE, at_ns=at_ns, received_ns=seq * 10 * MINUTE, durable=seq - 1
        )
        journal.coverage.apply(SOURCE, item, at_ns)
        journal.commit(line, seq, seq, sources, 0.0, (at_ns, at_ns))
    return journal


def firsts(storage: MemoryStorage) -> list[int]:
    return sorted(int(p.name[:20]) for p in storage.files if p.suffix == ".ndjson")


@pytest.mark.parametrize("harm", ["none", "missing", "bad", "every other"])
def test_times_and_seqs_are_found_with_and_without_indexes(harm: str) -> None:
    storage = MemoryStorage()
    journal = journal_of(storage)
    segments = firsts(storage)
    assert len(segments) > 5
    for first_seq in segments[:-1][:: 2 if harm == "every other" else 1]:
        path = HERE / index_name(first_seq)
        assert path in storage.files
        if harm == "bad":
            storage.files[path].data[20] ^= 1
        elif harm != "none":
            del storage.files[path]
    for at_ns in (0, 1, *AT, AT[-1] + 1):
        after = journal.indexes.since(at_ns)
        wanted = [seq for seq, at in enumerate(AT, 1) if at >= at_ns]
        assert all(seq > after for seq in wanted)
        # No more than a segment and those that lie within a minute are read for nothing.
        before = (wanted[0] if wanted else len(AT) + 1) - 1 - after
        assert before <= 2 * max(b - a for a, b in pairwise(segments))
    for seq in range(1, 42):
        found = locate(HERE, storage, seq, journal.indexes)
        assert found == locate(HERE, storage, seq)
    reader = JournalReader(HERE, storage, after=17, indexes=journal.indexes)
    data = b"".join(iter(lambda: reader.read(journal.position, 300), b""))
    seqs = [parse_line(line).seq for line in data.splitlines(keepends=True)]
    assert seqs == list(range(18, 41))
    # What is missing is made again, the same.
    missing = journal.indexes.missing()
    assert bool(missing) == (harm != "none")
    for segment, end_seq in missing:
        journal.indexes.rebuild(segment, end_seq, lambda: None)
    assert journal.indexes.missing() == []
    whole = MemoryStorage()
    journal_of(whole)
    for first_seq in segments[:-1]:
        path = HERE / index_name(first_seq)
        assert storage.files[path].data == whole.files[path].data


def test_a_damaged_segment_gets_no_index() -> None:
    storage = MemoryStorage()
    journal: Any = journal_of(storage)
    del storage.files[HERE / index_name(1)]
    storage.files[HERE / segment_name(1)].data[9] ^= 1
    ((segment, end_seq),) = journal.indexes.missing()
    with pytest.raises(DamagedData, match="line 1 at byte 0"):
        journal.indexes.rebuild(segment, end_seq, lambda: None)
