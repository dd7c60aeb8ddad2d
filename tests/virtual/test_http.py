"""HTTP on the subscribers' socket: real sockets, a clock that jumps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from test_subscribers import Rig, serving
from trio.testing import MockClock

from hypermux.core.http import IDLE_S, REQUEST_S, HttpRequest, Reply
from hypermux.core.routes import Table
from hypermux.downstream.http import Routes

GET = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"


def routes() -> Routes:
    async def status(request: HttpRequest) -> Reply:
        await trio.lowlevel.checkpoint()
        return Reply.json({"who": request.who})

    async def slow(request: HttpRequest) -> Reply:
        await trio.sleep(3)
        return Reply.json({})

    async def broken(request: HttpRequest) -> Reply:
        await trio.lowlevel.checkpoint()
        raise ValueError("a secret")

    async def large(request: HttpRequest) -> Reply:
        await trio.lowlevel.checkpoint()
        return Reply(200, b"x" * 3_000_000)

    return (
        Table(
            {
                "/status": {"GET": status},
                "/slow": {"POST": slow},
                "/broken": {"GET": broken},
                "/large": {"GET": large},
            }
        ),
    )


async def answer(stream: trio.SocketStream) -> tuple[int, Any]:
    """Read one answer whose body is JSON."""
    held = b""
    while b"\r\n\r\n" not in held:
        data = await stream.receive_some(65536)
        assert data, held
        held += data
    head, _, body = held.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        body += await stream.receive_some(65536)
    return int(head.split()[1]), json.loads(body)


async def connect(rig: Rig, data: bytes = b"") -> trio.SocketStream:
    client = await rig.connect()
    await client.stream.send_all(data)
    return client.stream


async def test_many_requests_on_one_connection(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path, routes=routes()) as rig:
        stream = await connect(rig)
        for _ in range(3):
            await stream.send_all(GET)
            status, body = await answer(stream)
            assert status == 200
            assert body["who"] == f"uid {os.geteuid()} (pid {os.getpid()})"
            await trio.sleep(5)
        assert rig.server.statistics().active == 0  # no subscriber
        await stream.send_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        status, body = await answer(stream)
        assert status == 404
        assert "/status" in body["error"]
        await stream.send_all(b"DELETE /status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer(stream))[0] == 405
        await trio.sleep(IDLE_S + 1)
        assert await stream.receive_some() == b""


async def test_half_close(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path, routes=routes()) as rig:
        stream = await connect(rig, b"POST /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream.send_eof()
        assert (await answer(stream))[0] == 200
        assert await stream.receive_some() == b""


async def test_garbage_and_slowness(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path, routes=routes()) as rig:
        stream = await connect(rig, b"GET /\x00 HTTP/1.1\r\n\r\n" + b"x" * 20_000)
        assert (await answer(stream))[0] == 400
        assert await stream.receive_some() == b""
        begun = trio.current_time()
        stream = await connect(rig, b"GET /")
        assert (await answer(stream))[0] == 408
        assert trio.current_time() - begun == pytest.approx(REQUEST_S, abs=0.1)


@pytest.mark.internal_faults
async def test_a_fault_is_the_requests_alone(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, routes=routes()) as rig:
        stream = await connect(rig, b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
        status, body = await answer(stream)
        assert status == 500
        assert "secret" not in str(body)
        await stream.send_all(GET)
        assert (await answer(stream))[0] == 200
        assert "/broken failed" in caplog.text


async def test_a_peer_that_does_not_read_its_answer_is_closed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path, routes=routes(), stall_timeout_s=30.0) as rig:
        await connect(rig, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.sleep(31)
        assert rig.server.statistics().stalled == 1


async def test_a_full_house_still_answers(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path, routes=routes(), max_subscribers=2) as rig:
        for _ in range(2):
            client = await rig.connect("{}")
            await client.head()
        stream = await connect(rig, GET)
        assert (await answer(stream))[0] == 200
        refused = await rig.connect("{}")
        assert (await refused.head())["cause"] == "busy"
        assert rig.server.statistics().refused == 1


async def test_a_resting_connection_does_not_hold_up_the_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path, routes=routes()) as rig:
        resting = await connect(rig, GET)
        await answer(resting)
        busy = await connect(rig, b"POST /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.sleep(1)
        begun = trio.current_time()
        rig.journal.horizon.end()
        assert await resting.receive_some() == b""
        assert trio.current_time() == begun
        assert (await answer(busy))[0] == 200
        assert await busy.receive_some() == b""
