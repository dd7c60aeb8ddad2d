"""The WebSocket transport over memory streams: a real library server, or scripted bytes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import random
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
from attrs import define, evolve
from transports import Heard, PairDialer, Server

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core import signing
from hypermux.core.filters import Filters
from hypermux.core.splitting import KEPT_OF_OVERSIZE
from hypermux.model.accounts import Credential, Endpoint, Secret, SourceId, Tls
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream.diverting import READ_SIZE
from hypermux.upstream.transport import Opened
from hypermux.upstream.websocket import stream_websocket

CREDENTIAL = Credential("AK", Secret("canary-secret"))
SOURCE = Source(
    SourceId("prod", "us-west-1"),
    "hyper",
    Endpoint.parse("wss://us-west-1.hyper.sh:443/events/ws"),
    filters=Filters.parse_flags(["event=start", "label=a=b c"]),
)
SETTINGS = ConnectionSettings(max_message_size=5000)
NOW = 1_476_375_774.0


async def run(
    server: Server,
    heard: Heard | None = None,
    *,
    source: Source = SOURCE,
    settings: ConnectionSettings = SETTINGS,
    seed: int = 1,
) -> Failure:
    """Stream from `server` until the transport ends; return why."""
    async with trio.open_nursery() as nursery:
        dialer = PairDialer(nursery, server)
        try:
            await stream_websocket(
                source,
                CREDENTIAL,
                dialer=dialer,
                listener=heard or Heard(),
                settings=settings,
                now_utc_s=lambda: NOW,
                rng=random.Random(seed),
            )
        except ConnectionFailed as failed:
            with pytest.raises(trio.ClosedResourceError):  # the transport closed its stream
                await dialer.dialed[0].send_all(b"x")
            nursery.cancel_scope.cancel()
            return failed.failure
    raise AssertionError("the transport came to no end")


def library_server(
    talk: Callable[[trio_websocket.WebSocketConnection, trio.abc.Stream], Awaitable[None]],
    requests: list[Any] | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> Server:
    """A server by the library; `talk` may also write raw frames to its stream."""

    async def serve(stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(
                nursery,
                stream,
            )
            if requests is not None:
                requests.append(request)
            websocket = await request.accept(extra_headers=headers)
            await talk(websocket, stream)
            nursery.cancel_scope.cancel()

    return serve


def script_server(answer: Callable[[bytes], list[bytes]], *, pause_s: float = 0.1) -> Server:
    """A server of bare bytes: reads the request, sends the pieces, waits for the end."""

    async def serve(stream: trio.abc.Stream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        for piece in answer(request):
            await stream.send_all(piece)
            await trio.sleep(pause_s)
        await stream.aclose()

    return serve


def accepted(request: bytes, extra: bytes = b"") -> bytes:
    key = next(
        line.split(b": ", 1)[1]
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key")
    )
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n" + extra + b"\r\n"
    )


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True) -> bytes:
    assert len(payload) < 65536
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size)
    return bytes([fin << 7 | opcode]) + length + payload


async def test_events_in_order_then_close(autojump_clock: trio.testing.MockClock) -> None:
    sent = [b'{"n":%d}' % n for n in range(500)]

    async def talk(websocket: trio_websocket.WebSocketConnection, stream: trio.abc.Stream) -> None:
        for message in sent:
            await websocket.send_message(message.decode())
        await websocket.aclose(1001, "going \x1b[31mdown")

    heard = Heard()
    failure = await run(library_server(talk), heard)
    assert heard.messages == sent
    assert heard.log[:2] == ["opened", "heard"]
    assert failure.kind is FailureKind.CLOSE
    assert failure.code == 1001
    assert "\x1b" not in failure.detail
    assert "going" in failure.detail


async def test_whole_and_fragmented_and_binary_frames_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream_bytes = b"".join(
        (
            frame(b"1"),
            frame(b"2a", fin=False),
            frame(b"ping", 9),
            frame(b"2b", 0, fin=False),
            frame(b"2c", 0),
            frame(b"3"),
            frame(b"4", 2),
            frame(b"5a", 2, fin=False) + frame(b"5b", 0),
            frame(b"\xff6"),
            frame(b"7"),
        )
    )
    expected = [b"1", b"2a2b2c", b"3", b"4", b"5a5b", b"\xff6", b"7"]
    for step in (1, 5, 1000):
        pongs: list[bytes] = []

        async def serve(
            stream: trio.abc.Stream, step: int = step, pongs: list[bytes] = pongs
        ) -> None:
            request = await stream.receive_some()
            await stream.send_all(accepted(bytes(request)))
            for at in range(0, len(stream_bytes), step):
                await stream.send_all(stream_bytes[at : at + step])
                await trio.sleep(0.001)
            pongs.append(bytes(await stream.receive_some()))
            await stream.aclose()

        heard = Heard()
        failure = await run(serve, heard)
        assert heard.messages == expected
        assert failure.kind is FailureKind.EOF
        assert pongs[0][:2] == b"\x8a\x84"  # the library answered the ping, masked


async def test_an_emptied_socket_is_told_without_messages_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    event = frame(b"x" * 4092)  # 4096 bytes
    pong = frame(b"", 10)
    heard = Heard()
    await run(
        script_server(lambda request: [accepted(request), event * (READ_SIZE // 4096) + pong]),
        heard,
    )
    assert len(heard.messages) == READ_SIZE // 4096
    assert heard.mores == [True, False]


async def test_frames_behind_the_101_and_a_head_in_pieces(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def answer(request: bytes) -> list[bytes]:
        head = accepted(request, b"Date: Thu, 13 Oct 2016 16:22:54 GMT\r\n")
        whole = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + head + frame(b"a") + frame(b"b")
        return [whole[at : at + 7] for at in range(0, len(whole), 7)]

    for join in (False, True):
        heard = Heard()
        failure = await run(
            script_server(lambda r, j=join: [b"".join(answer(r))] if j else answer(r)),  # type: ignore[misc]
            heard,
        )
        assert heard.messages == [b"a", b"b"]
        assert heard.openings == [Opened(int(NOW) * 10**9, "verified")]
        assert failure.kind is FailureKind.EOF


async def test_the_request_is_signed_as_sent(autojump_clock: trio.testing.MockClock) -> None:
    requests: list[trio_websocket.WebSocketRequest] = []

    async def talk(websocket: trio_websocket.WebSocketConnection, stream: trio.abc.Stream) -> None:
        await websocket.aclose()

    await run(library_server(talk, requests))
    path, _, query = requests[0].path.partition("?")
    headers = dict(requests[0].headers)
    assert path == "/events/ws"
    assert "+" not in query
    assert " " not in query
    signed = signing.sign(
        method="GET",
        host="us-west-1.hyper.sh:443",
        path=path,
        raw_query=query,
        credential=CREDENTIAL,
        region="us-west-1",
        now_utc_s=NOW,
    )
    for name, value in signed.headers:
        assert headers[name.lower().encode()] == value.encode()


async def test_legacy_region(autojump_clock: trio.testing.MockClock) -> None:
    requests: list[trio_websocket.WebSocketRequest] = []

    async def talk(websocket: trio_websocket.WebSocketConnection, stream: trio.abc.Stream) -> None:
        await websocket.aclose()

    endpoint = Endpoint.parse("wss://eu-central-1.hyper.sh:443/events/ws")
    source = evolve(SOURCE, id=SourceId("prod", "eu-central-1"), endpoint=endpoint)
    legacy = evolve(source, region_signing="legacy")
    for signer, scope in ((source, b"/eu-central-1/"), (legacy, b"/us-west-1/")):
        await run(library_server(talk, requests), source=signer)
        assert scope in dict(requests[-1].headers)[b"authorization"]


@pytest.mark.parametrize("seed", range(5))
async def test_a_deaf_server_is_silent_in_time(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        request = await stream.receive_some()
        await stream.send_all(accepted(bytes(request)))
        await trio.sleep_forever()

    began = trio.current_time()
    failure = await run(serve, seed=seed)
    took = trio.current_time() - began
    assert failure.kind is FailureKind.SILENT
    assert 15 * 0.9 + 10 <= took <= 15 * 1.1 + 10


async def test_pongs_or_any_bytes_keep_it_alive(autojump_clock: trio.testing.MockClock) -> None:
    async def pongs(websocket: trio_websocket.WebSocketConnection, stream: trio.abc.Stream) -> None:
        await trio.sleep(3600)
        await websocket.aclose(1000)

    async def bytes_only(stream: trio.abc.Stream) -> None:
        request = await stream.receive_some()
        await stream.send_all(accepted(bytes(request)))
        for _ in range(600):
            await trio.sleep(6)
            await stream.send_all(frame(b"{}")[:2])
            await trio.lowlevel.checkpoint()
            await stream.send_all(frame(b"{}")[2:])
        await stream.send_all(frame(struct.pack("!H", 1000), 8))
        await trio.sleep_forever()

    for server in (library_server(pongs), bytes_only):
        began = trio.current_time()
        failure = await run(server)
        assert failure.kind is FailureKind.CLOSE
        assert trio.current_time() - began == pytest.approx(3600)


@pytest.mark.parametrize("code", [1000, 1008, 1011, 1012, 1013, 4001])
async def test_close_codes(autojump_clock: trio.testing.MockClock, code: int) -> None:
    replies: list[bytes] = []

    async def serve(stream: trio.abc.Stream) -> None:
        request = await stream.receive_some()
        await stream.send_all(accepted(bytes(request)))
        await stream.send_all(frame(b"last") + frame(struct.pack("!H", code) + b"why", 8))
        while data := await stream.receive_some():
            replies.append(bytes(data))

    heard = Heard()
    failure = await run(serve, heard)
    assert (failure.kind, failure.code) == (FailureKind.CLOSE, code)
    assert "(why)" in failure.detail
    assert heard.messages == [b"last"]
    assert len(replies) == 1  # answered once, by the library


@pytest.mark.parametrize(
    ("bad", "kind", "goodbye"),
    [
        (b"\x81\x7f" + b"\xff" * 8, FailureKind.PROTOCOL, 1002),
        (b"\x81\x85mask12345", FailureKind.PROTOCOL, 1002),
        (b"HTTP/1.1 200 OK\r\n\r\n", FailureKind.PROTOCOL, 1002),
    ],
)
async def test_bad_frames_end_it_after_the_good_ones(
    autojump_clock: trio.testing.MockClock, bad: bytes, kind: FailureKind, goodbye: int
) -> None:
    replies: list[bytes] = []

    async def serve(stream: trio.abc.Stream) -> None:
        request = await stream.receive_some()
        await stream.send_all(accepted(bytes(request)) + frame(b"x" * 5000) + bad)
        while data := await stream.receive_some():
            replies.append(bytes(data))

    heard = Heard()
    failure = await run(serve, heard)
    assert failure.kind is kind
    assert heard.messages == [b"x" * 5000]
    assert unmask(b"".join(replies)) == (8, struct.pack("!H", goodbye))


async def test_an_oversize_message_does_not_end_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    large = b"".join(frame(b"y" * 4000, 0 if n else 1, fin=n == 9) for n in range(10))
    data = frame(b"x" * 5001) + frame(b"a") + large + frame(b"b")
    heard = Heard()
    failure = await run(
        script_server(lambda r: [accepted(r), data[:3000], data[3000:30_000], data[30_000:]]), heard
    )
    assert heard.messages == [b"x" * 5000, b"a", b"y" * KEPT_OF_OVERSIZE, b"b"]
    assert [getattr(m, "size", None) for m in heard.messages] == [5001, None, 40_000, None]
    assert failure.kind is FailureKind.EOF


def unmask(data: bytes) -> tuple[int, bytes]:
    """Return opcode and payload of the one masked short frame in `data`."""
    size = data[1] & 0x7F
    assert data[1] & 0x80
    assert len(data) == size + 6
    return data[0] & 0x0F, bytes(b ^ data[2 + i % 4] for i, b in enumerate(data[6:]))


async def test_a_refusal_with_body_and_date(autojump_clock: trio.testing.MockClock) -> None:
    body = b'{"message":"signature \\u001b[31mexpired"}'
    refusal = (
        b"HTTP/1.1 401 Unauthorized\r\nDate: Thu, 13 Oct 2016 16:22:54 GMT\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    ) + body
    for pieces in ([refusal], [refusal[i : i + 5] for i in range(0, len(refusal), 5)]):
        heard = Heard()
        failure = await run(script_server(lambda _, p=pieces: p, pause_s=0.01), heard)  # type: ignore[misc]
        assert (failure.kind, failure.code) == (FailureKind.HTTP, 401)
        assert failure.date_ns == int(NOW) * 10**9
        assert failure.body == body.decode()
        assert failure.detail.startswith("the server answered 401 Unauthorized: signature ")
        assert "\x1b" not in failure.detail
        assert heard.log == []
    plain = evolve(SOURCE, endpoint=Endpoint.parse("ws://lab:8080/events/ws"))
    unverified = evolve(SOURCE, tls=Tls(verify=False))
    for source in (plain, unverified):
        failure = await run(script_server(lambda _: [refusal]), source=source)
        assert failure.date_ns is None  # not to be believed


async def test_retry_after(autojump_clock: trio.testing.MockClock) -> None:
    for value, seconds in (
        (b"120", 120.0),
        (b"Thu, 13 Oct 2016 16:23:54 GMT", 60.0),
        (b"soon", None),
    ):
        refusal = (
            b"HTTP/1.1 429 Too Many Requests\r\nDate: Thu, 13 Oct 2016 16:22:54 GMT\r\n"
            b"Retry-After: %s\r\nContent-Length: 0\r\n\r\n" % value
        )
        failure = await run(script_server(lambda _, r=refusal: [r]))  # type: ignore[misc]
        assert (failure.code, failure.retry_after_s) == (429, seconds)


async def test_an_endless_refusal_is_cut(autojump_clock: trio.testing.MockClock) -> None:
    async def endless(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"400\r\n" + b"x" * 1024 + b"\r\n")
                await trio.sleep(0.01)

    async def stuck(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nabc")
        await trio.sleep_forever()

    failure = await run(endless)
    assert failure.code == 500
    assert len(failure.body or "") == 4096
    failure = await run(stuck)
    assert (failure.code, failure.body) == (503, "abc")


@pytest.mark.parametrize("body", [b"", b'{"mess'])
async def test_a_refusal_whose_body_outlasts_the_deadline_is_one(
    autojump_clock: trio.testing.MockClock, body: bytes
) -> None:
    async def slow(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await trio.sleep(9)
        await stream.send_all(
            b"HTTP/1.1 429 No\r\nDate: Thu, 13 Oct 2016 16:22:54 GMT\r\nRetry-After: 120\r\n"
            b"Content-Length: 100\r\n\r\n" + body
        )
        await trio.sleep_forever()

    began = trio.current_time()
    failure = await run(slow)
    assert trio.current_time() - began == pytest.approx(10)
    assert (failure.kind, failure.code) == (FailureKind.HTTP, 429)
    assert (failure.retry_after_s, failure.date_ns) == (120.0, int(NOW) * 10**9)
    assert (failure.body or "") == body.decode()


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], FailureKind.PROTOCOL, "SSH-2.0"),
        ([b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n"], FailureKind.PROTOCOL, "TLS"),
        ([b"x" * 70_000], FailureKind.PROTOCOL, "HTTP"),
        ([], FailureKind.EOF, "without an answer"),
        ([b"HTTP/1.1 101 Switch"], FailureKind.EOF, "without an answer"),
        (
            [b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"],
            FailureKind.PROTOCOL,
            "accept token",
        ),
        (
            [b"HTTP/1.1 101 X\r\nUpgrade: \xff\r\nConnection: \xffUpgrade\r\n\r\n"],
            FailureKind.PROTOCOL,
            "101 is not acceptable",
        ),
    ],
)
async def test_no_handshake(
    autojump_clock: trio.testing.MockClock, answer: list[bytes], kind: FailureKind, says: str
) -> None:
    heard = Heard()
    failure = await run(script_server(lambda _: answer), heard)
    assert failure.kind is kind
    assert failure.detail.startswith("handshake: ")
    assert says in failure.detail
    assert heard.log == []


async def test_ordinary_answers_are_no_websocket(autojump_clock: trio.testing.MockClock) -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>"
    failure = await run(script_server(lambda _: [page]))
    assert (failure.kind, failure.code) == (FailureKind.HTTP, 200)
    tls = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
    failure = await run(script_server(lambda _: [tls]))
    assert (failure.kind, failure.code) == (FailureKind.HTTP, 400)
    assert "wants TLS" in failure.detail


async def test_a_mute_server_times_out(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    began = trio.current_time()
    failure = await run(serve)
    assert failure.kind is FailureKind.TIMEOUT
    assert trio.current_time() - began == pytest.approx(10)


async def test_cancelling_says_goodbye(autojump_clock: trio.testing.MockClock) -> None:
    ends: list[object] = []

    async def talk(websocket: trio_websocket.WebSocketConnection, stream: trio.abc.Stream) -> None:
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await websocket.get_message()
        ends.append(closed.value.reason and closed.value.reason.code)

    heard = Heard()
    async with trio.open_nursery() as nursery:
        dialer = PairDialer(nursery, library_server(talk))
        with trio.move_on_after(5) as scope:
            await stream_websocket(
                SOURCE,
                CREDENTIAL,
                dialer=dialer,
                listener=heard,
                settings=SETTINGS,
                now_utc_s=lambda: NOW,
                rng=random.Random(1),
            )
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(5)
        with pytest.raises(trio.ClosedResourceError):
            await dialer.dialed[0].receive_some()
    assert ends == [1000]
    assert "unanswered" not in heard.log


@pytest.mark.parametrize("answers", [True, False])
async def test_a_goodbye_when_we_stop_tells_whether_the_server_was_there(
    autojump_clock: trio.testing.MockClock, answers: bool
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.send_all(accepted(bytes(await stream.receive_some())))
        while unmask(bytes(await stream.receive_some()))[0] != 8:
            await stream.send_all(frame(b"", 10))
        if not answers:
            await trio.sleep_forever()
        await trio.sleep(0.2)
        await stream.send_all(frame(b'{"on":"its way"}') + frame(struct.pack("!H", 1000), 8))

    heard = Heard()
    async with trio.open_nursery() as nursery:
        dialer = PairDialer(nursery, serve)
        with trio.move_on_after(50) as scope:
            await stream_websocket(
                SOURCE,
                CREDENTIAL,
                dialer=dialer,
                listener=heard,
                settings=SETTINGS,
                now_utc_s=lambda: NOW,
                rng=random.Random(1),
            )
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(50.2 if answers else 51)
        nursery.cancel_scope.cancel()
    assert heard.messages == ([b'{"on":"its way"}'] if answers else [])
    assert ("unanswered" in heard.log) is not answers


async def test_a_stall_of_our_own_is_not_the_servers(mock_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        request = await stream.receive_some()
        await stream.send_all(accepted(bytes(request)))
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        dialer = PairDialer(nursery, serve)
        heard = Heard()
        transport = partial(
            stream_websocket,
            SOURCE,
            CREDENTIAL,
            dialer=dialer,
            listener=heard,
            settings=SETTINGS,
            now_utc_s=lambda: NOW,
            rng=random.Random(1),
        )
        nursery.start_soon(transport)
        for _ in range(20):  # the order of tasks within a tick is random
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(17)
            await trio.testing.wait_all_tasks_blocked()  # the ping is sent
            # Stopped for a minute; the pong has long been there when the deadline is looked at.
            mock_clock.jump(60)
            ours = dialer.dialed[0]
            assert isinstance(ours, trio.StapledStream)
            ours.receive_stream.put_data(frame(b"", 10))
        await trio.testing.wait_all_tasks_blocked()
        assert heard.log.count("heard") == 20
        mock_clock.autojump_threshold = 0  # our goodbye is not answered
        nursery.cancel_scope.cancel()


@define(eq=False)
class Clogged(trio.abc.Stream):
    """A stream that takes no more bytes after the request."""

    inner: trio.abc.Stream
    sent: int = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.sent:
            await trio.sleep_forever()
        self.sent += 1
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


@define(eq=False)
class CloggedDialer(PairDialer):
    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        return Clogged(await super().dial(endpoint, tls))


async def test_a_peer_that_does_not_read_delays_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        request = await stream.receive_some()
        await stream.send_all(accepted(bytes(request)))
        await trio.sleep_forever()

    for patience_s, ends_at in ((5.0, 6.0), (100.0, 26.5)):
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(patience_s):
                with pytest.raises(ConnectionFailed, match="did not answer a ping"):
                    await stream_websocket(
                        SOURCE,
                        CREDENTIAL,
                        dialer=CloggedDialer(nursery, serve),
                        listener=Heard(),
                        settings=SETTINGS,
                        now_utc_s=lambda: NOW,
                        rng=random.Random(1),
                    )
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began <= ends_at


async def test_no_secret_is_told(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    failure = await run(script_server(lambda _: [b"garbage\r\n\r\n"]))
    assert "canary" not in caplog.text + repr(failure)


async def test_unfit_access_key(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with pytest.raises(ConnectionFailed) as failed:
            await stream_websocket(
                SOURCE,
                Credential("A\nK", Secret("s")),
                dialer=PairDialer(nursery, serve),
                listener=Heard(),
                settings=SETTINGS,
                now_utc_s=lambda: NOW,
                rng=random.Random(1),
            )
        assert failed.value.failure.kind is FailureKind.CREDENTIAL
        nursery.cancel_scope.cancel()
