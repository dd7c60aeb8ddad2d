"""HTTP over TCP: real sockets on loopback, a clock that jumps."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from test_http import answer
from test_streamed_answers import STREAM, Body, endless, read_until, rest, silent
from test_subscribers import FakeJournal
from trio.testing import MockClock

from hypermux.config.settings import HttpSettings, SocketSettings
from hypermux.core.http import MAX_HEAD, REQUEST_S
from hypermux.downstream.web import WebListener
from hypermux.model.accounts import Secret
from hypermux.model.errors import ConfigurationFault, Unreachable

GET = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"
STREAM = STREAM.replace(b"Host: x", b"Host: 127.0.0.1")
LIMITS = SocketSettings(Path("/nowhere"))


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


@define(eq=False)
class Port:
    """A listener, and whom it was told of."""

    listener: WebListener
    journal: FakeJournal
    stalled: list[bool] = field(factory=list)
    clients: list[trio.SocketStream] = field(factory=list)

    async def connect(self, data: bytes = b"") -> trio.SocketStream:
        settings = self.listener.settings
        stream = await trio.open_tcp_stream(settings.host, settings.port)
        self.clients.append(stream)
        await stream.send_all(data)
        return stream


@asynccontextmanager
async def listening(
    body: Body | None = None, host: str = "127.0.0.1", token: str | None = None, **limits: Any
) -> AsyncIterator[Port]:
    journal, name = FakeJournal(), f"[{host}]" if ":" in host else host
    settings = HttpSettings(f"{name}:{free_port(host)}", token and Secret(token))  # type: ignore[arg-type]
    stalled: list[bool] = []
    listener = WebListener(
        settings,
        evolve(LIMITS, **limits),
        journal.horizon,
        (body or Body(silent)).routes,
        lambda: stalled.append(True),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda *, task_status: listener.run(task_status=task_status))
        port = Port(listener, journal, stalled)
        try:
            yield port
        finally:
            for client in port.clients:
                with trio.CancelScope(shield=True):
                    await client.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_asked_and_answered(autojump_clock: MockClock, host: str) -> None:
    try:
        free_port(host)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip("no IPv6 here")
        raise
    async with listening(host=host) as port:
        stream = await port.connect(GET + GET)
        assert (await read_until(stream, b"{}\n")).startswith(b"HTTP/1.1 200 OK")
        evil = await port.connect(GET.replace(b"localhost", b"evil.example.com"))
        assert (await answer(evil))[0] == 421


async def test_the_token_is_looked_at_with_every_request(autojump_clock: MockClock) -> None:
    token = "correct-horse-battery"
    with_it = GET[:-2] + f"Authorization: Bearer {token}\r\n\r\n".encode()
    async with listening(token=token) as port:
        stream = await port.connect(GET)
        assert (await answer(stream))[0] == 401
        await stream.send_all(with_it)
        assert (await answer(stream))[0] == 200
        renewed = evolve(port.listener.settings, token=Secret("another-one-than-before"))
        port.listener.change(renewed, LIMITS)
        await stream.send_all(with_it)
        assert (await answer(stream))[0] == 401


async def test_a_port_in_use_is_said(autojump_clock: MockClock) -> None:
    async with listening() as port:
        other = WebListener(port.listener.settings, LIMITS, port.journal.horizon, ())
        with pytest.raises(Unreachable, match=r"something else listens at 127\.0\.0\.1:"):
            await other.run()
    elsewhere = WebListener(HttpSettings("192.0.2.1:80"), LIMITS, FakeJournal().horizon, ())
    with pytest.raises(ConfigurationFault, match=r"http\.listen"):
        await elsewhere.run()


async def test_who_says_nothing_or_not_enough_is_closed(autojump_clock: MockClock) -> None:
    async with listening() as port:
        begun = trio.current_time()
        mute = await port.connect()
        assert await rest(mute) == b""
        assert trio.current_time() - begun == pytest.approx(REQUEST_S, abs=0.2)
        slow = await port.connect(GET[:20])
        begun = trio.current_time()
        with trio.move_on_after(60):
            for byte in b"X-Slow: " + b"a" * 100:
                await trio.sleep(1)
                await slow.send_all(bytes([byte]))
                if trio.current_time() - begun > REQUEST_S:
                    break
        assert (await rest(slow)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (GET[:-2] + b"X: " + b"a" * (2 * MAX_HEAD), 431),
        (GET[:-2] + b"X: y\r\n" * 5000, 431),
        (b"POST /status HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
         b"\r\nzz\r\n", 400),
        (b"POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 405),
        (b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400),  # TLS
        (b"POST /reload HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)  # fmt: skip
async def test_hostile_input_gets_one_answer(
    autojump_clock: MockClock, data: bytes, status: int
) -> None:
    async with listening() as port:
        stream = await port.connect(data)
        assert (await answer(stream))[0] == status
        again = await port.connect(GET)
        assert (await answer(again))[0] == 200


async def test_a_half_close_ends_a_stream(autojump_clock: MockClock) -> None:
    body = Body(silent)
    async with listening(body) as port:
        stream = await port.connect(STREAM)
        await read_until(stream, b"\r\n\r\n")
        await trio.sleep(3600)
        assert body.over == 0
        await stream.send_eof()
        await body.wait()


async def test_a_peer_that_reads_nothing_is_closed_and_counted(autojump_clock: MockClock) -> None:
    body = Body(endless)
    async with listening(body, stall_timeout_s=30.0) as port:
        await port.connect(STREAM)
        begun = trio.current_time()
        await body.wait()
        assert 30 <= trio.current_time() - begun < 95
        await trio.testing.wait_all_tasks_blocked()
        assert port.stalled == [True]


async def test_no_more_connections_than_readers_may_be(autojump_clock: MockClock) -> None:
    async with listening(max_subscribers=2) as port:
        kept = [await port.connect(GET) for _ in range(2)]
        for stream in kept:
            assert (await answer(stream))[0] == 200
        assert (await rest(await port.connect(GET))).startswith(b"HTTP/1.1 503 ")
        await kept[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await answer(await port.connect(GET)))[0] == 200


async def test_it_ends_with_the_journal(autojump_clock: MockClock) -> None:
    async with listening() as port:
        resting, mute = await port.connect(GET), await port.connect()
        await answer(resting)
        begun = trio.current_time()
        port.journal.horizon.end()
        assert await rest(resting) == await rest(mute) == b""
        assert trio.current_time() == begun
