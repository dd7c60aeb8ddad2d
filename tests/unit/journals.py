"""Journals on a real disk, for tests that look at their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypermux.config.settings import JournalSettings
from hypermux.core.recording import Encoder
from hypermux.downstream.journal import Journal
from hypermux.downstream.storage import DiskStorage
from hypermux.model.accounts import SourceId
from hypermux.model.records import Checkpoint, Event, StateChange

SECOND = 10**9
SOURCES = [SourceId("a", "r"), SourceId("b", "r")]


def open_journal(directory: Path, name: str = "e1", **how: Any) -> Journal:
    settings = JournalSettings(**{"segment_size": 4000, "keep_free": 0, **how})
    return Journal.open(directory, DiskStorage(), settings, new_epoch=lambda: name, now_ns=SECOND)


def write(journal: Journal, count: int) -> list[bytes]:
    """Commit batches of three records, the n-th record received n seconds after 1970.

    The first two are the sources' `up`; every tenth is a checkpoint, all others are events.
    """
    lines, encoder = [], Encoder()
    last = journal.next_seq + count - 1
    while (first := journal.next_seq) <= last:
        sources = journal.coverage.to_bytes() if journal.rotation_due else b""
        batch = []
        until = min(first + 3, last + 1)
        for seq in range(first, until):
            ns, source = seq * SECOND, SOURCES[seq % 2]
            item: Any = Event(b'{"n":%d}' % seq, ns, "timeNano")
            if seq <= 2:
                item = StateChange("up")
            elif seq % 10 == 0:
                item, source = Checkpoint(ns), None  # type: ignore[assignment]
            durable = journal.durable_seq if seq == first else None
            line = encoder.encode(
                seq, item, source=source, at_ns=ns, received_ns=ns, durable=durable
            )
            journal.coverage.apply(source, item, ns)
            batch.append(line)
        span = (first * SECOND, (until - 1) * SECOND)
        journal.commit(b"".join(batch), first, until - 1, sources, span=span)
        lines += batch
    return lines


def made(directory: Path, count: int, **how: Any) -> list[bytes]:
    """Return the lines of a journal that was closed."""
    journal = open_journal(directory, **how)
    lines = write(journal, count)
    journal.close()
    return lines


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("[0-9]*.ndjson"))


def flip(path: Path, offset: int) -> None:
    """Change one bit of a byte."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
