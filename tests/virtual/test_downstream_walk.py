"""A reader's way: from the files when it is behind, from the shared newest batch when it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.config.settings import JournalSettings
from hypermux.core.coverage import Coverage
from hypermux.core.recording import Encoder
from hypermux.downstream.horizon import Horizon
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage
from hypermux.downstream.reading import JournalReader
from hypermux.downstream.walk import Walk
from hypermux.model.records import Checkpoint

T = TypeVar("T")
PLACE = Path("/journal")


class Bench:
    """A journal of tiny segments, its horizon, and a count of reads from files."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.journal = Journal.open(
            PLACE,
            self.storage,
            JournalSettings(segment_size=600),
            new_epoch=lambda: "e1",
            now_ns=1,
        )
        self.horizon = Horizon("e1", self.journal.position)
        self.reads = 0
        self.lines = b""

    def commit(self, count: int, *, shared: bool) -> None:
        first = self.journal.next_seq
        encoder = Encoder()
        data = b"".join(
            encoder.encode(seq, Checkpoint(seq), source=None, at_ns=seq, received_ns=seq)
            for seq in range(first, first + count)
        )
        position = self.journal.commit(data, first, first + count - 1, Coverage().to_bytes())
        self.horizon.publish(position, data if shared else None)
        self.lines += data

    def walk(self, after: int) -> Walk:
        def reader(seq: int) -> JournalReader:
            return JournalReader(PLACE, self.storage, after=seq, near=self.horizon.position)

        return Walk(self.horizon, reader, self.run, after)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        return function(*args)


async def test_who_has_all_but_the_newest_batch_reads_no_file() -> None:
    bench = Bench()
    walk = bench.walk(0)
    got = b""
    for _ in range(20):
        bench.commit(3, shared=True)
        got += await walk.read(bench.horizon.position)
    walk.close()
    assert got == bench.lines
    assert bench.reads == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("commit"), st.integers(1, 6), st.booleans()),
            st.tuples(st.just("read"), st.integers(0, 2), st.booleans()),
        ),
        max_size=40,
    )
)
def test_every_record_comes_once_whichever_way(steps: list[tuple[str, int, bool]]) -> None:
    async def main() -> None:
        bench = Bench()
        walks = [bench.walk(0) for _ in range(3)]
        got = [b"" for _ in walks]
        for what, number, shared in steps:
            if what == "commit":
                bench.commit(number, shared=shared)
            else:
                got[number] += await walks[number].read(bench.horizon.position)
        for n, walk in enumerate(walks):
            while block := await walk.read(bench.horizon.position):
                got[n] += block
            walk.close()
        assert got == [bench.lines] * 3

    trio.run(main)
