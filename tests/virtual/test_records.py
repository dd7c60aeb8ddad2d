"""The stream by HTTP: a client that speaks it, real sockets, a clock that jumps."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
from attrs import define, field
from test_subscribers import Rig, record, serving
from trio.testing import MockClock

from hypermux.core.query import FORMS, Format
from hypermux.core.routes import Table
from hypermux.downstream.records import RETRY_AFTER_S, Records


@asynccontextmanager
async def house(tmp_path: Path, **changes: Any) -> AsyncIterator[Rig]:
    async with serving(tmp_path, **changes) as rig:
        server = rig.server
        route = Records(server.published, server.subscribe, server.leave, lambda: 0)
        server.http.routes = (Table({"/records": {"GET": route}}),)
        yield rig


@define(eq=False)
class Answer:
    """An answer as it comes in. `ended`: whole, with its last chunk."""

    stream: trio.SocketStream
    connection: h11.Connection
    status: int = 0
    headers: dict[str, str] = field(factory=dict)
    held: bytes = b""
    ended: bool = False

    async def event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self.connection.next_event()) is h11.NEED_DATA:
            self.connection.receive_data(await self.stream.receive_some(65536))
        return event  # type: ignore[return-value]

    async def more(self) -> bool:
        event = await self.event()
        if isinstance(event, h11.Data):
            self.held += event.data
            return True
        self.ended = isinstance(event, h11.EndOfMessage)
        return False

    async def until(self, end: bytes) -> bytes:
        """Return the body up to `end`, which it includes."""
        while end not in self.held:
            assert await self.more(), self.held
        data, _, self.held = self.held.partition(end)
        return data + end

    async def line(self) -> bytes:
        return await self.until(b"\n")

    async def rest(self) -> bytes:
        while await self.more():
            pass
        data, self.held = self.held, b""
        return data


async def get(rig: Rig, query: str, method: str = "GET", **headers: str) -> Answer:
    client = await rig.connect()
    connection = h11.Connection(h11.CLIENT)
    lines = [("Host", "x"), *((name.replace("_", "-"), text) for name, text in headers.items())]
    request = h11.Request(method=method, target=f"/records?{query}", headers=lines)
    sent = (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    await client.stream.send_all(sent)
    answer = Answer(client.stream, connection)
    head = await answer.event()
    assert isinstance(head, h11.Response)
    answer.status = head.status_code
    answer.headers = {name.decode(): text.decode() for name, text in head.headers}
    return answer


async def error(answer: Answer) -> str:
    body = json.loads(await answer.rest())
    assert set(body) == {"error"}
    return str(body["error"])


async def test_lines_as_on_the_socket(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with house(tmp_path) as rig:
        rig.journal.grow(40, size=20_000)
        answer = await get(rig, "after=start&follow=false")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["cache-control"] == "no-store"
        begin = json.loads(await answer.line())
        assert begin == {"kind": "subscribed", "mode": "replay", "cursor": "ep:0"}
        lines = (await answer.rest()).splitlines(keepends=True)
        assert lines[:-1] == rig.journal.lines
        assert json.loads(lines[-1]) == {"kind": "end", "cursor": "ep:40"}
        assert answer.ended
        assert rig.server.statistics().active == 0


async def test_live_until_the_reader_goes(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with house(tmp_path) as rig:
        rig.journal.grow(3)
        answer = await get(rig, "")
        assert json.loads(await answer.line())["cursor"] == "ep:3"
        for _ in range(3):
            await trio.sleep(100)
            rig.journal.grow(1)
            assert await answer.line() == rig.journal.lines[-1]
        assert rig.server.statistics().active == 1
        await answer.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert rig.server.statistics().active == 0


async def test_server_sent_events_go_on_where_they_were_cut(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with house(tmp_path) as rig:
        rig.journal.grow(5)
        answer = await get(rig, "after=start", Accept="text/event-stream")
        assert answer.headers["content-type"] == "text/event-stream"
        place, seen = "", []
        await answer.until(b"\n\n")
        for _ in range(3):
            event = (await answer.until(b"\n\n")).decode()
            fields = dict(line.split(": ", 1) for line in event.strip().split("\n"))
            place = fields["id"]
            assert fields["event"] == "event"
            seen.append(fields["data"].encode() + b"\n")
        await answer.stream.aclose()
        answer = await get(rig, "after=start&format=sse&follow=false", Last_Event_ID=place)
        found = FORMS[Format.SSE].records(b"".join(rig.journal.lines[3:]), "ep")
        await answer.until(b"\n\n")
        assert (await answer.rest()).startswith(found + b"id: ep:5\nevent: end\n")
        assert seen == rig.journal.lines[:3]


async def test_a_silent_stream_of_events_tells_its_place(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with house(tmp_path) as rig:
        answer = await get(rig, "accounts=dev&after=start&format=sse")
        await answer.until(b"\n\n")
        begun = trio.current_time()
        rig.journal.grow(4)  # none of them is chosen
        assert await answer.until(b"\n\n") == b": nothing else up to here\nid: ep:4\n\n"
        assert trio.current_time() - begun == pytest.approx(15, abs=0.1)
        await trio.sleep(10)
        rig.journal.add(record(5, "dev"))  # a record puts the next one off
        await answer.until(b"\n\n")
        await trio.sleep(14)
        begun = trio.current_time()
        await answer.until(b"id: ep:5\n\n")
        assert trio.current_time() - begun == pytest.approx(1, abs=0.1)


async def test_lines_have_heartbeats_if_they_are_asked_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with house(tmp_path) as rig:
        rig.journal.grow(1)
        answer = await get(rig, "heartbeat=5s")
        await answer.line()
        begun = trio.current_time()
        assert json.loads(await answer.line()) == {"kind": "heartbeat", "cursor": "ep:1"}
        assert trio.current_time() - begun == pytest.approx(5, abs=0.1)


async def test_what_is_refused(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with house(tmp_path, max_subscribers=1) as rig:
        answer = await get(rig, "kind=gap")
        assert answer.status == 400
        assert "kinds" in await error(answer)
        answer = await get(rig, "after=other:3")
        assert answer.status == 409
        assert "epoch" in await error(answer)
        first = await get(rig, "")
        answer = await get(rig, "")
        assert answer.status == 503
        assert answer.headers["retry-after"] == str(RETRY_AFTER_S)
        assert "limit is 1" in await error(answer)
        await first.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await get(rig, "")).status == 200  # its place is free again


async def test_head_takes_no_place(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with house(tmp_path) as rig:
        answer = await get(rig, "after=start", method="HEAD")
        assert answer.status == 200
        assert await answer.rest() == b""
        assert rig.server.statistics().active == 0
        assert (await get(rig, "after=other:3", method="HEAD")).status == 409


@pytest.mark.parametrize("form", ["ndjson", "sse"])
async def test_a_journal_that_does_not_read_is_told_and_seen(
    autojump_clock: MockClock, tmp_path: Path, form: str
) -> None:
    async with house(tmp_path) as rig:
        rig.journal.grow(2)
        answer = await get(rig, f"after=start&format={form}")
        while b'"seq":2' not in await answer.line():
            pass
        rig.journal.broken = True
        rig.journal.grow(1)
        with pytest.raises(h11.RemoteProtocolError):  # no last chunk
            await answer.rest()
        assert b"the journal cannot be read" in answer.held
        assert rig.server.statistics().active == 0


async def test_the_end_of_the_journal_ends_it_with_all_that_there_is(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with house(tmp_path) as rig:
        answer = await get(rig, "after=start")
        await answer.line()
        rig.journal.grow(20, size=9000)
        rig.journal.horizon.end()
        assert await answer.rest() == b"".join(rig.journal.lines)  # and no `end`: none was asked
        assert answer.ended


async def test_a_reader_that_stops_is_closed(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with house(tmp_path, stall_timeout_s=30.0) as rig:
        rig.journal.grow(200, size=30_000)
        await get(rig, "after=start")
        await trio.sleep(31)
        statistics = rig.server.statistics()
        assert (statistics.active, statistics.stalled) == (0, 1)
