"""One reader's stream of chosen records, without a socket."""

from __future__ import annotations

import json
import random

import pytest
import trio
from test_subscribers import SECOND, FakeJournal, direct, record
from trio.testing import MockClock

from hypermux.core.request import Request
from hypermux.core.selection import Selection
from hypermux.downstream.reading import Rewritten
from hypermux.downstream.streaming import Published, Stream, StreamRefused
from hypermux.model.records import Cursor


def published(journal: FakeJournal) -> Published:
    return Published(journal.horizon, journal.reader, journal.resolve, direct)


async def collect(stream: Stream) -> bytes:
    found = b""
    while (chosen := await stream.next()) is not None:
        found += chosen
    return found


async def test_from_the_start_to_what_is_there_now() -> None:
    journal = FakeJournal()
    journal.grow(40, size=20_000)
    stream = published(journal).open()
    assert stream.seq == 40
    await stream.ask(Request(after="start", follow=False))
    journal.grow(1)
    assert await collect(stream) == b"".join(journal.lines[:40])
    assert stream.complete
    assert stream.cursor == Cursor("ep", 40)
    stream.close()
    assert journal.open == 0


async def test_the_cursor_is_behind_what_was_chosen_and_what_was_not() -> None:
    journal = FakeJournal()
    journal.add(*(record(seq, "prod" if seq % 5 else "dev") for seq in range(1, 13)))
    stream = published(journal).open()
    await stream.ask(Request(after="start", selection=Selection(accounts=("dev",)), limit=2))
    assert await collect(stream) == journal.lines[4] + journal.lines[9]
    assert (stream.seq, stream.complete) == (10, True)
    await stream.ask(
        Request(after=Cursor("ep", 10), selection=Selection(accounts=("dev",)), follow=False)
    )
    assert await stream.next() == b""
    assert await stream.next() is None
    assert stream.seq == 12
    stream.close()


async def test_cancelled_anywhere_it_passes_nothing_over(autojump_clock: MockClock) -> None:
    journal, rng = FakeJournal(), random.Random(5)
    journal.grow(30, size=30_000)
    stream = published(journal).open()
    await stream.ask(Request(after="start"))
    found = b""
    async with trio.open_nursery() as nursery:

        async def grow() -> None:
            for _ in range(50):
                await trio.sleep(rng.random())
                journal.grow(1)
            journal.horizon.end()

        nursery.start_soon(grow)
        while True:
            chosen: bytes | None = b""
            with trio.move_on_after(rng.choice([0, 0.3])):
                chosen = await stream.next()
            if chosen is None:
                break
            found += chosen
            await trio.sleep(0.01)
    assert found == b"".join(journal.lines)
    assert not stream.complete  # it was asked to go on for ever
    stream.close()


async def test_what_is_refused_leaves_it_where_it_was() -> None:
    journal = FakeJournal()
    journal.grow(2)
    stream = published(journal).open()
    with pytest.raises(StreamRefused) as refused:
        await stream.ask(Request(after=Cursor("other", 1)))
    assert refused.value.refusal.cause == "cursor"
    journal.grow(1)
    assert await stream.next() == journal.lines[2]
    journal.broken = True
    journal.grow(1)
    with pytest.raises(StreamRefused) as refused:
        await stream.next()
    assert refused.value.refusal.cause == "fault"
    stream.close()


async def test_since_begins_at_a_time_or_at_a_cursor_whichever_is_later() -> None:
    journal = FakeJournal()
    journal.grow(9)
    shown = published(journal)
    shown.since = lambda at_ns: at_ns // SECOND - 1
    stream = shown.open()
    for after, first in (("start", 4), (Cursor("ep", 6), 7), (Cursor("ep", 2), 4)):
        selection = Selection(since_ns=4 * SECOND)
        await stream.ask(Request(after=after, selection=selection, follow=False))  # type: ignore[arg-type]
        assert await collect(stream) == b"".join(journal.lines[first - 1 :])
    stream.close()
    assert not shown.streams


async def test_a_quiet_stream_has_heartbeats(autojump_clock: MockClock) -> None:
    journal = FakeJournal()
    stream = published(journal).open()
    await stream.ask(
        Request(after="start", selection=Selection(accounts=("dev",)), heartbeat_s=10.0)
    )
    told: list[tuple[float, int]] = []
    async with trio.open_nursery() as nursery:

        async def grow() -> None:
            for seq in range(1, 6):
                await trio.sleep(6)
                journal.add(record(seq, "dev" if seq == 3 else "prod"))
            await trio.sleep(6)
            journal.horizon.end()

        nursery.start_soon(grow)
        while (chosen := await stream.next()) is not None:
            if stream.beat():
                assert not chosen
                told.append((trio.current_time(), stream.seq))
    # Records at 6, 12, 18 (chosen), 24 and 30 s: what was not chosen does not count as life.
    assert told == [(10, 1), (28, 4)]
    stream.close()


async def test_a_long_way_without_anything_chosen_has_heartbeats(
    autojump_clock: MockClock,
) -> None:
    journal = FakeJournal()
    journal.grow(30, size=20_000)
    journal.at_read = lambda _: autojump_clock.jump(4)
    stream = published(journal).open()
    await stream.ask(
        Request(after="start", follow=False, selection=Selection(accounts=("x",)), heartbeat_s=10.0)
    )
    beats = []
    while await stream.next() is not None:
        if stream.beat():
            beats.append(stream.seq)
    assert beats == [9, 18, 27]
    stream.close()


@pytest.mark.parametrize("kinds", [(), ("event",), ("gap",)])
async def test_a_reader_whose_records_were_cut_off_is_told_first(kinds: tuple[str, ...]) -> None:
    journal = FakeJournal()
    journal.grow(8)
    found = Published(
        journal.horizon, journal.reader, lambda cursor: Rewritten(5, 12, "ep"), direct
    )
    stream = found.open()
    selection = Selection(kinds=kinds)
    await stream.ask(Request(after=Cursor("old", 17), selection=selection, follow=False))
    assert stream.cursor == Cursor("ep", 5)
    told = await stream.next()
    assert told is not None
    if "event" in kinds:
        assert told == b""
    else:
        assert json.loads(told)["cause"] == "rewritten"
        assert (json.loads(told)["seq"], json.loads(told)["lost"]) == (5, 12)
    assert stream.cursor == Cursor("ep", 5)
    assert await collect(stream) == (b"" if kinds == ("gap",) else b"".join(journal.lines[5:]))
    await stream.ask(Request(after="start", follow=False))  # and no other
    assert await collect(stream) == b"".join(journal.lines)
    stream.close()
    assert journal.open == 0
