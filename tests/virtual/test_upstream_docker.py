"""The Docker transport over memory streams: scripted engines."""

from __future__ import annotations

import math
import random

import pytest
import trio
import trio.testing
from attrs import evolve
from transports import Heard, PairDialer, Server

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core.filters import Filters
from hypermux.model.accounts import Endpoint, Proxy, SourceId
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream.diverting import READ_SIZE
from hypermux.upstream.docker import stream_docker
from hypermux.upstream.transport import Opened

SOURCE = Source(SourceId("ci", "build1"), "docker", Endpoint.parse("unix:///run/docker.sock"))
SETTINGS = ConnectionSettings(max_message_size=2000)
HEAD = (
    b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n"
    b"Date: Thu, 13 Oct 2016 16:22:54 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"
)
EVENTS = [b'{"Type":"volume","Action":"create","n":%d,"s":"}{"}' % n for n in range(40)]


async def run(server: Server, heard: Heard | None = None, *, source: Source = SOURCE) -> Failure:
    async with trio.open_nursery() as nursery:
        dialer = PairDialer(nursery, server)
        try:
            await stream_docker(source, dialer=dialer, listener=heard or Heard(), settings=SETTINGS)
        except ConnectionFailed as failed:
            with pytest.raises(trio.ClosedResourceError):
                await dialer.dialed[0].send_all(b"x")
            nursery.cancel_scope.cancel()
            return failed.failure
    raise AssertionError("the transport came to no end")


def engine(pieces: list[bytes], requests: list[bytes] | None = None) -> Server:
    """An engine that answers with `pieces`, a moment apart, and hangs up."""

    async def serve(stream: trio.abc.Stream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        if requests is not None:
            requests.append(request)
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()

    return serve


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def cut(data: bytes, rng: random.Random, longest: int) -> list[bytes]:
    pieces = []
    while data:
        size = rng.randint(1, longest)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("longest", [1, 7, 60, 5000])
@pytest.mark.parametrize("between", [b"\n", b"\n\x1e", b""])
async def test_chunks_and_reads_cut_anywhere(
    autojump_clock: trio.testing.MockClock, longest: int, between: bytes
) -> None:
    rng = random.Random(longest)
    body = b"".join(event + between for event in EVENTS)
    chunks = b"".join(chunk(piece) for piece in cut(body, rng, 150))
    heard = Heard()
    pieces = cut(HEAD + chunks + b"0\r\n\r\n", rng, longest)
    failure = await run(engine(pieces), heard)
    assert heard.messages == EVENTS
    assert heard.log[0] == "opened"
    assert heard.openings == [Opened(1_476_375_774 * 10**9, "off")]
    assert failure.kind is FailureKind.EOF
    assert failure.detail == "the engine ended the stream"


async def test_one_read_is_one_delivery(autojump_clock: trio.testing.MockClock) -> None:
    heard = Heard()
    await run(engine([HEAD + b"".join(chunk(event + b"\n") for event in EVENTS)]), heard)
    assert heard.messages == EVENTS
    assert heard.log.count("received") == 1


async def test_an_emptied_socket_is_told_without_messages_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    body = EVENTS[0] + b"\n" + b'{"long":"' + bytes(READ_SIZE).replace(b"\0", b"x")
    heard = Heard()
    await run(engine([HEAD + chunk(body)]), heard)
    assert heard.mores == [True, False, False]  # the last: what the end left unfinished
    assert heard.log.count("received") == 3
    assert heard.messages[:1] == EVENTS[:1]


async def test_an_end_without_the_zero_chunk(autojump_clock: trio.testing.MockClock) -> None:
    heard = Heard()
    failure = await run(engine([HEAD, chunk(EVENTS[0] + b"\n"), chunk(EVENTS[1])[:20]]), heard)
    assert failure.kind is FailureKind.EOF
    assert "middle of the stream" in failure.detail
    assert heard.messages[0] == EVENTS[0]
    assert len(heard.messages) == 2  # half an event is shown, as what could not be parsed
    assert EVENTS[1].startswith(heard.messages[1])


async def test_http10_ends_by_closing(autojump_clock: trio.testing.MockClock) -> None:
    heard = Heard()
    failure = await run(engine([b"HTTP/1.0 200 OK\r\n\r\n", EVENTS[0] + b"\n"]), heard)
    assert heard.messages == EVENTS[:1]
    assert failure.kind is FailureKind.EOF


async def test_a_broken_chunk(autojump_clock: trio.testing.MockClock) -> None:
    heard = Heard()
    for pieces in ([HEAD + chunk(EVENTS[0]) + b"zzz\r\n"], [HEAD, chunk(EVENTS[0]), b"zzz\r\n"]):
        failure = await run(engine(pieces), heard)
        assert failure.kind is FailureKind.PROTOCOL
    assert heard.messages == EVENTS[:1] * 2


async def test_the_request(autojump_clock: trio.testing.MockClock) -> None:
    requests: list[bytes] = []
    await run(engine([HEAD], requests))
    filtered = evolve(
        SOURCE,
        endpoint=Endpoint.parse("tcp://10.0.0.7:2376"),
        filters=Filters.parse_flags(["type=container", "label=a b=c&d"]),
    )
    await run(engine([HEAD], requests), source=filtered)
    behind = evolve(SOURCE, endpoint=Endpoint.parse("http://proxy:80/docker/"))
    await run(engine([HEAD], requests), source=behind)
    first, second, third = requests
    assert first.startswith(b"GET /events HTTP/1.1\r\nHost: docker\r\n")
    assert second.startswith(
        b"GET /events?filters=%7B%22label%22%3A%7B%22a%20b%3Dc%5Cu0026d%22%3Atrue%7D%2C"
        b"%22type%22%3A%7B%22container%22%3Atrue%7D%7D HTTP/1.1\r\nHost: 10.0.0.7:2376\r\n"
    )
    assert third.startswith(b"GET /docker/events HTTP/1.1\r\nHost: proxy\r\n")


@pytest.mark.parametrize(
    ("answer", "kind", "code", "says"),
    [
        (
            b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 28\r\n\r\n"
            b'{"message":"bad filter \x1b[1m"}',
            FailureKind.HTTP,
            500,
            "500 Internal Server Error",
        ),
        (
            b'HTTP/1.1 500 X\r\nContent-Length: 32\r\n\r\n{"message":"invalid filter \'x\'"}\n',
            FailureKind.HTTP,
            500,
            "invalid filter 'x'",
        ),
        (
            b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
            FailureKind.HTTP,
            400,
            "wants TLS on this port",
        ),
        (b"HTTP/1.1 404 Not Found\r\n\r\n<html>", FailureKind.HTTP, 404, "404 Not Found"),
        (b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n", FailureKind.PROTOCOL, None, "speaks TLS"),
        (b"-ERR unknown command\r\n\r\n", FailureKind.PROTOCOL, None, "(it begins '-ER"),
        (b"", FailureKind.EOF, None, "without an answer"),
        (b"HTTP/1.1 20", FailureKind.EOF, None, "without an answer"),
    ],
)
async def test_answers_that_are_no_stream(
    autojump_clock: trio.testing.MockClock,
    answer: bytes,
    kind: FailureKind,
    code: int | None,
    says: str,
) -> None:
    for pieces in ([answer], [answer[i : i + 3] for i in range(0, len(answer), 3)]):
        heard = Heard()
        failure = await run(engine(pieces), heard)
        assert (failure.kind, failure.code) == (kind, code)
        assert says in failure.detail
        assert "\x1b" not in failure.detail
        assert heard.log == []


async def test_a_mute_engine_times_out(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    failure = await run(serve)
    assert failure.kind is FailureKind.TIMEOUT
    assert trio.current_time() == pytest.approx(10)


@pytest.mark.parametrize("body", [b"", b'{"mess'])
async def test_a_refusal_whose_body_outlasts_the_deadline_is_one(
    autojump_clock: trio.testing.MockClock, body: bytes
) -> None:
    async def slow(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await trio.sleep(9)
        await stream.send_all(
            b"HTTP/1.1 429 No\r\nRetry-After: 120\r\nContent-Length: 100\r\n\r\n" + body
        )
        await trio.sleep_forever()

    failure = await run(slow)
    assert trio.current_time() == pytest.approx(10)
    assert (failure.kind, failure.code) == (FailureKind.HTTP, 429)
    assert failure.retry_after_s == 120.0
    assert (failure.body or "") == body.decode()


async def test_an_early_hint_is_skipped_and_quiet_is_no_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD)
        await trio.sleep(80_000)
        await stream.send_all(chunk(EVENTS[0]))
        await stream.aclose()

    heard = Heard()
    failure = await run(serve, heard)
    assert heard.messages == EVENTS[:1]
    assert failure.kind is FailureKind.EOF


async def test_an_oversize_message_does_not_end_the_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    heard = Heard()
    large = b'{"x":"' + b"y" * 5000 + b'"}\n'
    await run(engine([HEAD + chunk(large) + chunk(EVENTS[0] + b"\n")]), heard)
    assert len(heard.messages) == 2
    assert heard.messages[1] == EVENTS[0]


async def test_cancelling_closes(autojump_clock: trio.testing.MockClock) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(HEAD)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        dialer = PairDialer(nursery, serve)
        with trio.move_on_after(3):
            await stream_docker(SOURCE, dialer=dialer, listener=Heard(), settings=SETTINGS)
        with pytest.raises(trio.ClosedResourceError):
            await dialer.dialed[0].receive_some()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("url", "proxy", "opens", "dead_s"),
    [
        ("unix:///run/docker.sock", None, True, None),
        ("tcp://10.0.0.7:2376", None, True, 30.0),
        ("ssh://10.0.0.7", None, True, 30.0),
        ("tcp://10.0.0.7:2376", "http://proxy:3128", True, math.inf),
        ("tcp://10.0.0.7:2376", None, False, None),
    ],
)
async def test_a_far_engine_that_is_parted_with_may_have_been_dead(
    autojump_clock: trio.testing.MockClock,
    url: str,
    proxy: str | None,
    opens: bool,
    dead_s: float | None,
) -> None:
    async def serve(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        if opens:
            await stream.send_all(HEAD)
        await trio.sleep_forever()

    by = None if proxy is None else Proxy.parse(proxy)
    source = evolve(SOURCE, endpoint=evolve(Endpoint.parse(url), proxy=by))
    heard = Heard()
    async with trio.open_nursery() as nursery:
        dialer = PairDialer(nursery, serve)
        with trio.move_on_after(3):
            await stream_docker(source, dialer=dialer, listener=heard, settings=SETTINGS)
        nursery.cancel_scope.cancel()
    assert heard.dead_s == dead_s
