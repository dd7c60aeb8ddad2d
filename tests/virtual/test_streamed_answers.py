"""Answers that come part by part, to peers that are slow, gone or in a hurry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from attrs import define, field
from test_http import GET, connect
from test_subscribers import serving
from trio.testing import MockClock

from hypermux.core.http import HttpRequest, Reply, Send, Streamed
from hypermux.core.routes import Table
from hypermux.downstream.http import Routes
from hypermux.downstream.peer import GONE_CHECK_S

STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"


@define(eq=False)
class Body:
    """A route whose body is `send_all`, and what became of it."""

    send_all: Callable[[Send], Awaitable[None]]
    begun: int = 0
    over: int = 0
    cancelled: int = 0
    ended: trio.Event = field(factory=trio.Event)

    async def run(self, send: Send) -> None:
        self.begun += 1
        try:
            await self.send_all(send)
        except trio.Cancelled:
            self.cancelled += 1
            raise

    def done(self) -> None:
        self.over += 1
        self.ended.set()

    async def wait(self) -> None:
        with trio.fail_after(100):
            await self.ended.wait()

    @property
    def routes(self) -> Routes:
        async def stream(_: HttpRequest) -> Streamed:
            await trio.lowlevel.checkpoint()
            return Streamed(200, "text/plain", (), self.run, self.done)

        async def status(_: HttpRequest) -> Reply:
            await trio.lowlevel.checkpoint()
            return Reply.json({})

        return (Table({"/stream": {"GET": stream}, "/status": {"GET": status}}),)


async def three(send: Send) -> None:
    for part in (b"one", b"", b"two", b"three"):
        await send(part)
        await trio.sleep(1)


async def silent(send: Send) -> None:
    await trio.sleep_forever()


async def endless(send: Send) -> None:
    while True:
        await send(b"x" * 100_000)


async def read_until(stream: trio.SocketStream, end: bytes) -> bytes:
    held = b""
    while not held.endswith(end):
        data = await stream.receive_some(65536)
        assert data, held
        held += data
    return held


async def rest(stream: trio.SocketStream) -> bytes:
    held = b""
    while data := await stream.receive_some(65536):
        held += data
    return held


async def test_parts_arrive_as_they_are_sent_and_the_connection_goes_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    body = Body(three)
    async with serving(tmp_path, routes=body.routes) as rig:
        stream = await connect(rig, STREAM)
        begun = trio.current_time()
        assert (await read_until(stream, b"3\r\none\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert trio.current_time() == begun
        assert await read_until(stream, b"0\r\n\r\n") == b"3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"
        assert body.over == 1
        await stream.send_all(GET)  # a connection whose stream ended takes another request
        assert (await read_until(stream, b"{}\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        await stream.send_all(STREAM)
        await read_until(stream, b"0\r\n\r\n")
        assert (body.begun, body.over, body.cancelled) == (2, 2, 0)


async def test_a_request_that_comes_meanwhile_is_answered_behind(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    body = Body(three)
    async with serving(tmp_path, routes=body.routes) as rig:
        stream = await connect(rig, STREAM + GET[:9])
        await read_until(stream, b"one\r\n")
        await stream.send_all(GET[9:] + STREAM)
        last = b"three\r\n0\r\n\r\n"
        sent = await read_until(stream, last)
        if sent.count(last) < 2:  # both may come at once
            sent += await read_until(stream, last)
        assert sent.index(b"three") < sent.index(b"{}\n") < sent.rindex(b"three")
        assert body.over == 2


async def test_http_1_0_reads_to_the_end(autojump_clock: MockClock, tmp_path: Path) -> None:
    body = Body(three)
    async with serving(tmp_path, routes=body.routes) as rig:
        stream = await connect(rig, STREAM.replace(b"1.1", b"1.0"))
        sent = await rest(stream)
        assert sent.partition(b"\r\n\r\n")[2] == b"onetwothree"


async def test_head_runs_no_body(autojump_clock: MockClock, tmp_path: Path) -> None:
    body = Body(silent)
    async with serving(tmp_path, routes=body.routes) as rig:
        stream = await connect(rig, STREAM.replace(b"GET", b"HEAD") + GET)
        sent = await read_until(stream, b"{}\n")
        assert sent.count(b"HTTP/1.1 200 OK") == 2
        assert (body.begun, body.over) == (0, 1)


async def test_a_peer_that_goes_while_nothing_is_sent_ends_it_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    body = Body(silent)
    async with serving(tmp_path, routes=body.routes) as rig:
        stream = await connect(rig, STREAM)
        await read_until(stream, b"\r\n\r\n")
        await trio.sleep(3600)
        assert body.over == 0
        gone = trio.current_time()
        await stream.aclose()
        await body.wait()
        assert trio.current_time() == gone
        assert body.cancelled == 1


async def test_half_closed_is_not_gone(autojump_clock: MockClock, tmp_path: Path) -> None:
    body = Body(silent)
    async with serving(tmp_path, routes=body.routes) as rig:
        stream = await connect(rig, STREAM)
        await stream.send_eof()
        await read_until(stream, b"\r\n\r\n")
        await trio.sleep(3600)
        assert body.over == 0
        gone = trio.current_time()
        await stream.aclose()
        await body.wait()
        assert trio.current_time() - gone <= GONE_CHECK_S
    body = Body(three)
    async with serving(tmp_path, routes=body.routes) as rig:
        stream = await connect(rig, STREAM)
        await stream.send_eof()
        assert (await rest(stream)).endswith(b"three\r\n0\r\n\r\n")


async def test_a_peer_that_reads_nothing_is_closed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    body = Body(endless)
    async with serving(tmp_path, routes=body.routes, stall_timeout_s=30.0) as rig:
        await connect(rig, STREAM)
        begun = trio.current_time()
        await body.wait()
        assert trio.current_time() - begun == pytest.approx(30, abs=1)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.server.statistics().stalled == 1


async def test_a_peer_that_only_talks_fills_no_memory(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    body = Body(silent)
    async with serving(tmp_path, routes=body.routes) as rig:
        stream = await connect(rig, STREAM)
        await read_until(stream, b"\r\n\r\n")
        with trio.move_on_after(60) as talking:
            await stream.send_all(b"x" * 10_000_000)
        assert talking.cancelled_caught  # nobody takes it
        assert body.over == 0
        gone = trio.current_time()
        await stream.aclose()
        await body.wait()
        assert trio.current_time() - gone <= GONE_CHECK_S


@pytest.mark.internal_faults
async def test_one_that_fails_midway_is_seen_to_be_cut(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(send: Send) -> None:
        await send(b"half")
        raise ValueError("a secret")

    body = Body(broken)
    async with serving(tmp_path, routes=body.routes) as rig:
        stream = await connect(rig, STREAM)
        assert (await rest(stream)).endswith(b"half\r\n")  # no last chunk
        assert body.over == 1
        assert "a streamed answer failed" in caplog.text
