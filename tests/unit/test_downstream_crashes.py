"""The process or the power gone at every call that changes the disk, twice in a row."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import define

from hypermux.config.settings import JournalSettings
from hypermux.core.coverage import Coverage
from hypermux.core.recording import Encoder, parse_line
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage
from hypermux.downstream.reading import JournalReader, resolve_cursor
from hypermux.model.accounts import SourceId
from hypermux.model.records import Checkpoint, Cursor, Event, Gap, Item, StateChange

HERE = Path("/j")
SOURCES = (SourceId("a", "r"), SourceId("b", "r"), None)
# What becomes of unsynced data: killed (all kept), lost, kept to a point, or with a page missing.
FATES = ("killed", "lost", "prefix", "hole")


class Crash(BaseException):
    """The end of a life."""


@define(eq=False)
class CrashingStorage(MemoryStorage):
    """Ends the life before the call after `calls` more that change something."""

    calls: int | None = None

    def _fail_if_planned(self, operation: str) -> None:
        if operation in ("names", "read", "open", "read_at", "lock", "prepare"):
            return
        if self.calls == 0:
            raise Crash
        if self.calls is not None:
            self.calls -= 1

    def end(self, fate: str, rng: random.Random) -> None:
        if fate == "killed":
            self.kill()
            return
        if fate == "hole":
            for file in self.files.values():
                unsynced = len(file.data) - file.synced
                start = file.synced + rng.randint(0, unsynced)
                end = rng.randint(start, len(file.data))
                file.data[start:end] = bytes(end - start)
                file.synced = len(file.data)
        keep = rng.randint(0, 400) if fate == "prefix" else 0
        if fate == "prefix" and rng.random() < 0.5:
            self.sync_all_names()
        self.crash(keep)

    def sync_all_names(self) -> None:
        for file in self.files.values():
            file.named = True
        self._synced_links = dict(self.links)


def batch(journal: Journal, encoder: Encoder, rng: random.Random) -> list[bytes]:
    lines, durable = [], journal.durable_seq
    sources = journal.coverage.to_bytes() if journal.rotation_due else b""
    first_seq = journal.next_seq
    for seq in range(first_seq, first_seq + rng.randint(1, 4)):
        ns, source = rng.randrange(10**9), rng.choice(SOURCES)
        item: Item | Checkpoint = Checkpoint(ns)
        if source is not None:
            item = rng.choice(
                (
                    Event(b'{"n":%d}' % ns, ns, "timeNano"),
                    StateChange("up"),
                    StateChange("down", cause="eof", from_ns=ns),
                    Gap(ns - 9, ns, "eof", "possible"),
                )
            )
        lines.append(
            encoder.encode(
                *(seq, item),
                source=source,
                at_ns=ns,
                received_ns=ns,
                durable=durable if seq == first_seq else None,
            )
        )
        journal.coverage.apply(source, item, ns)
    last_seq = first_seq + len(lines) - 1
    journal.commit(b"".join(lines), first_seq, last_seq, sources, float(first_seq))
    return lines


@pytest.mark.parametrize("fsync", ["commit", "never", 2.0])
@pytest.mark.parametrize("fate", FATES)
def test_what_was_shown_stays_or_its_cursor_is_refused(
    fsync: Literal["commit", "never"] | float, fate: str
) -> None:
    how = JournalSettings(segment_size=600, fsync=fsync)
    for calls in range(45):
        rng, names = random.Random(calls), itertools.count(1)
        storage = CrashingStorage(write_limit=rng.choice((None, 60)))
        shown: list[tuple[Cursor, list[bytes]]] = []
        boots = 0
        for life, end in enumerate((fate, rng.choice(FATES), None)):
            storage.calls = None if end is None else calls if life == 0 else rng.randint(0, 20)
            try:
                journal = Journal.open(
                    *(HERE, storage, how),
                    new_epoch=lambda names=names: f"e{next(names)}",  # type: ignore[misc]
                    now_ns=0,
                    boot=f"b{boots}",
                )
                lines = read_all(journal, storage)
                check(journal, lines, shown, every=fsync != "never")
                encoder = Encoder()
                for _ in range(6):
                    shown.append((Cursor(journal.epoch, journal.position.seq), list(lines)))
                    lines += batch(journal, encoder, rng)
            except Crash:
                pass
            if end is not None:
                storage.end(end, rng)
                boots += end != "killed"


def read_all(journal: Journal, storage: MemoryStorage) -> list[bytes]:
    reader: Any = JournalReader(HERE, storage, after=0)
    data = b"".join(iter(lambda: reader.read(journal.position, 100), b""))
    return data.splitlines(keepends=True)


def check(
    journal: Journal, lines: list[bytes], shown: list[tuple[Cursor, list[bytes]]], *, every: bool
) -> None:
    parsed = [parse_line(line) for line in lines]
    assert [p.seq for p in parsed] == list(range(1, journal.next_seq))
    assert journal.durable_seq == journal.position.seq == len(lines)
    coverage = Coverage()
    for p in parsed:
        coverage.apply(p.source, p.item, p.at_ns)
    assert coverage == journal.coverage
    for cursor, seen in shown:
        found = resolve_cursor(cursor, journal.epochs, journal.next_seq)
        if every or isinstance(found, int):
            assert found == cursor.seq
            assert lines[:found] == seen[:found]
