"""The Engine's API in virtual time: where events begin, when they end, who has a place."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from test_http import connect
from test_streamed_answers import read_until
from test_subscribers import Rig, record, serving
from trio.testing import MockClock

from hypermux.core.subscription import Refusal
from hypermux.downstream import engine
from hypermux.downstream.engine import Engine
from hypermux.downstream.peer import GONE_CHECK_S

SECOND = engine._SECOND
# The fake journal's record n is of second n after 1970; it is second 1000 when a test begins.
START_NS = 1000 * SECOND


@define(eq=False)
class Events:
    """The events of a stream, from its chunks."""

    stream: trio.SocketStream
    held: bytes = b""

    async def more(self) -> bool:
        data = await self.stream.receive_some(65536)
        self.held += data
        return bool(data)

    async def head(self) -> bytes:
        while b"\r\n\r\n" not in self.held:
            assert await self.more(), self.held
        head, _, self.held = self.held.partition(b"\r\n\r\n")
        return head

    async def next(self) -> int | None:
        """Return the second of the next event, None after the last chunk."""
        while self.held.count(b"\r\n") < 2:
            if not await self.more():
                assert not self.held
                raise EOFError
        size, body, self.held = self.held.split(b"\r\n", 2)
        assert int(size, 16) == len(body)
        return int(json.loads(body)["time"]) if body else None

    async def rest(self) -> list[int]:
        found = []
        while (second := await self.next()) is not None:
            found.append(second)
        return found


@define(eq=False)
class World:
    """A served engine; `settling` is what asks whether all is shown, until it is let through."""

    rig: Rig
    settling: list[int] = field(factory=list)
    let_through: trio.Event = field(factory=trio.Event)
    places: int = 1

    async def settle(self, moment_ns: int) -> None:
        self.settling.append(moment_ns)
        await self.let_through.wait()

    def subscribe(self, who: str) -> Refusal | None:
        if not self.places:
            return Refusal("busy", "there are 0 places")
        self.places -= 1
        return None

    def leave(self) -> None:
        self.places += 1

    async def ask(self, query: str = "", path: str = "/v1.51/events") -> Events:
        events = Events(await connect(self.rig))
        await events.stream.send_all(f"GET {path}?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await events.head()).startswith(b"HTTP/1.1 200")
        return events

    async def answer(self, query: str) -> list[int]:
        """Return the seconds of the events of a stream that ends."""
        return await (await self.ask(query)).rest()


@asynccontextmanager
async def world(tmp_path: Path, *, settled: bool = True) -> AsyncIterator[World]:
    async with serving(tmp_path) as rig:
        published = rig.server.published
        published.since = lambda at_ns: max(0, at_ns // SECOND - 1)
        found = World(rig)
        if settled:
            found.let_through.set()

        def now_ns() -> int:
            return START_NS + int(trio.current_time() * SECOND)

        rig.server.http.routes = (Engine(published, found, now_ns, found.settle).table,)
        yield found


async def test_without_a_time_it_is_live(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.rig.journal.grow(5)
        events = await w.ask()
        assert w.places == 0
        await trio.sleep(3600)
        w.rig.journal.grow(2)
        assert [await events.next(), await events.next()] == [6, 7]
        await events.stream.aclose()
        await trio.sleep(GONE_CHECK_S + 1)
        assert w.places == 1


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("until=0", range(1, 301)),
        ("since=0&until=0", range(1, 301)),
        ("until=5", range(1, 6)),
        ("since=100&until=102.5", range(100, 103)),
        ("since=100.5&until=102", range(101, 103)),
        ("since=-1&until=3", range(1, 4)),
        ("since=1000&until=1000", []),
    ],
)
async def test_an_end_that_has_passed(
    autojump_clock: MockClock, tmp_path: Path, query: str, found: Any
) -> None:
    async with world(tmp_path) as w:
        w.rig.journal.grow(300)
        await trio.sleep(1)
        begun = trio.current_time()
        assert await w.answer(query) == list(found)
        assert trio.current_time() == begun
        assert w.places == 1


async def test_what_comes_late_and_from_clocks_ahead(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """An event stands in the journal by our clock; it is chosen by its own."""
    async with world(tmp_path) as w:
        journal = w.rig.journal
        journal.grow(300)
        # Of an outage's end: 100 s old. And 50 s before `since`, of a clock 55 s ahead.
        early = record(150).replace(b'"seq":150', b'"seq":301')
        ahead = record(255).replace(b'"seq":255', b'"seq":200')
        journal.add(early)
        journal.lines[199] = ahead
        assert await w.answer("since=250&until=255") == [255, *range(250, 256)]
        assert await w.answer("since=149&until=150") == [149, 150, 150]


async def test_an_end_waits_for_what_was_received(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, settled=False) as w:
        w.rig.journal.grow(998)
        events = await w.ask("since=998&until=1000")
        await trio.sleep(1)
        assert w.settling == [START_NS + engine.ON_ITS_WAY_NS]
        w.rig.journal.grow(1)
        w.let_through.set()
        assert await events.rest() == [998, 999]


async def test_an_end_does_not_wait_for_ever(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, settled=False) as w:
        w.rig.journal.grow(3)
        begun = trio.current_time()
        events = await w.ask("since=3&until=1000")
        assert await events.next() == 3
        with pytest.raises(EOFError):  # and no last chunk: it may lack something
            await events.next()
        took = trio.current_time() - begun
        assert took == pytest.approx(engine.SETTLE_S + engine.ON_ITS_WAY_NS / SECOND, abs=0.01)
    assert "may be incomplete" in caplog.text


async def test_an_end_in_the_future(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.rig.journal.grow(1002)
        events = await w.ask("since=1001&until=1010")
        await trio.sleep(5)
        w.rig.journal.grow(2)
        begun = trio.current_time()
        assert await events.rest() == [1001, 1002, 1003, 1004]
        assert trio.current_time() - begun == pytest.approx(5, abs=0.5)
        assert w.settling == [1010 * SECOND + engine.ON_ITS_WAY_NS]


async def test_it_ends_with_the_journal(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.rig.journal.grow(2)
        live = await w.ask("since=1")
        w.places += 1
        timed = await w.ask("since=1&until=99999")
        w.rig.journal.horizon.end()
        assert await live.rest() == await timed.rest() == [1, 2]
        assert w.places == 2


async def test_no_place(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.ask()
        stream = await connect(w.rig, b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        sent = await read_until(stream, b"}\n")
        assert sent.startswith(b"HTTP/1.1 503 ")
        assert sent.endswith(b'\r\n\r\n{"message":"there are 0 places"}\n')


async def test_a_journal_that_does_not_read(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.rig.journal.grow(2)
        w.rig.journal.broken = True
        events = await w.ask("since=1")
        with pytest.raises(EOFError):  # its end is not that of the events
            await events.next()
        await trio.testing.wait_all_tasks_blocked()
        assert w.places == 1


async def test_head_is_only_for_the_ping(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for path, status in (("/_ping", b"200"), ("/events", b"404"), ("/v1.51/version", b"404")):
            stream = await connect(w.rig, f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)
        assert w.places == 1


def test_a_route_is_read_only() -> None:
    table = Engine(None, None, None, None).table  # type: ignore[arg-type]
    methods = {method for route in table.routes.values() for method in route}
    assert methods == {"GET", "HEAD"}
