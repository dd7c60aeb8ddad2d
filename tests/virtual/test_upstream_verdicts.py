"""What comes over the wire, through the real transports and the table, to its verdict."""

from __future__ import annotations

import base64
import hashlib
import random
import struct

import pytest
import trio
import trio.testing
from attrs import evolve
from transports import Heard, PairDialer, Server

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core.lifecycle import Lifecycle, Pause, State
from hypermux.core.verdicts import Judgement, Verdict, judge
from hypermux.model.accounts import Credential, Endpoint, Secret, SourceId, Tls
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import answers
from hypermux.upstream.docker import stream_docker
from hypermux.upstream.websocket import stream_websocket

HYPER = Source(SourceId("prod", "us"), "hyper", Endpoint.parse("wss://router.test:443/events/ws"))
DOCKER = Source(SourceId("ci", "build1"), "docker", Endpoint.parse("tcp://10.0.0.7:2375"))
SETTINGS = ConnectionSettings(max_message_size=1024)
NOW = 1_476_375_774
DATE = b"Date: Thu, 13 Oct 2016 16:22:54 GMT\r\n"


async def end(source: Source, server: Server, heard: Heard) -> Failure:
    """Return how the transport of `source` ends at this server."""
    async with trio.open_nursery() as nursery:
        dialer = PairDialer(nursery, server)
        try:
            if source.upstream == "docker":
                await stream_docker(source, dialer=dialer, listener=heard, settings=SETTINGS)
            await stream_websocket(
                source,
                Credential("AK", Secret("canary-secret")),
                dialer=dialer,
                listener=heard,
                settings=SETTINGS,
                now_utc_s=lambda: float(NOW),
                rng=random.Random(1),
            )
        except ConnectionFailed as failed:
            nursery.cancel_scope.cancel()
            return failed.failure
    raise AssertionError("the transport came to no end")


async def judged(source: Source, server: Server, heard: Heard | None = None) -> Judgement:
    heard = heard or Heard()
    failure = await end(source, server, heard)
    assert "canary" not in repr(failure)
    secure = source.endpoint.secure and source.tls.verify
    now_ns = NOW * 1_000_000_000
    return judge(failure, secure=secure, now_utc_ns=now_ns, opened=bool(heard.openings))


def answering(*pieces: bytes, accept: bool = False) -> Server:
    """Read the request, send the pieces, hang up; `accept`: a 101 first."""

    async def serve(stream: trio.abc.Stream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        for piece in (accepted(request), *pieces) if accept else pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()

    return serve


def accepted(request: bytes) -> bytes:
    lines = dict(line.lower().split(b": ", 1) for line in request.split(b"\r\n") if b": " in line)
    keys = [
        line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
    ]
    assert b"sec-websocket-key" in lines
    key = keys[0].split(b": ", 1)[1]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n" + DATE + b"\r\n"
    )


def close(code: int | None, reason: bytes = b"") -> bytes:
    payload = b"" if code is None else struct.pack("!H", code) + reason
    return bytes([0x88, len(payload)]) + payload


def refusal(status: int, *headers: bytes, body: bytes = b"") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (status, lines, len(body), body)


RETRY, DENIED = Verdict.RETRY, Verdict.DENIED
THROTTLED, MISCONFIGURED = Verdict.THROTTLED, Verdict.MISCONFIGURED


@pytest.mark.parametrize("source", [HYPER, DOCKER], ids=["hyper", "docker"])
@pytest.mark.parametrize(
    ("status", "verdict", "cause", "says"),
    [
        (200, MISCONFIGURED, "misconfigured", "no event stream"),
        (204, MISCONFIGURED, "misconfigured", "no event stream"),
        (301, MISCONFIGURED, "misconfigured", "points elsewhere"),
        (400, MISCONFIGURED, "misconfigured", "rejects the request"),
        (401, DENIED, "denied", "refuses the credentials"),
        (403, DENIED, "denied", "forbids this"),
        (404, MISCONFIGURED, "misconfigured", "no such path"),
        (407, MISCONFIGURED, "misconfigured", "a proxy on the way"),
        (408, RETRY, "refused", "gave up waiting"),
        (418, MISCONFIGURED, "misconfigured", "rejects the request"),
        (421, RETRY, "refused", "wrong place"),
        (425, RETRY, "refused", "again"),
        (426, MISCONFIGURED, "misconfigured", "another protocol"),
        (429, THROTTLED, "throttled", "fewer connections"),
        (500, RETRY, "refused", "the server fails"),
        (502, RETRY, "refused", "gateway"),
        (503, RETRY, "refused", "not available"),
        (504, RETRY, "refused", "gateway"),
        (599, RETRY, "refused", "the server fails"),
    ],
)
async def test_statuses(
    autojump_clock: trio.testing.MockClock,
    source: Source,
    status: int,
    verdict: Verdict,
    cause: str,
    says: str,
) -> None:
    if source is DOCKER and status == 200:
        return  # what was asked for
    body = b'{"message":"because \\u001b[31mof this"}'
    judgement = await judged(source, answering(refusal(status, DATE[:-2], body=body)))
    assert (judgement.verdict, judgement.cause) == (verdict, cause)
    assert says in judgement.reason
    assert f"answered {status}" in judgement.reason
    assert status == 204 or "because \\x1b[31mof this" in judgement.reason
    assert judgement.offset_ns is None


@pytest.mark.parametrize(
    ("code", "verdict", "cause", "says"),
    [
        (1000, RETRY, "closed", "ended the stream"),
        (1001, RETRY, "closed", "goes away"),
        (1002, RETRY, "closed", "broke the protocol"),
        (1003, RETRY, "closed", "cannot take"),
        (1004, RETRY, "closed", "means nothing"),
        (None, RETRY, "closed", "without a reason"),
        (1006, RETRY, "closed", "means nothing"),
        (1007, RETRY, "closed", "malformed"),
        (1008, DENIED, "denied", "policy"),
        (1009, RETRY, "closed", "too large"),
        (1010, RETRY, "closed", "extension"),
        (1011, RETRY, "closed", "the server fails"),
        (1012, RETRY, "closed", "restarts"),
        (1013, THROTTLED, "throttled", "come back later"),
        (1014, RETRY, "closed", "gateway"),
        (1015, RETRY, "closed", "means nothing"),
        (2999, RETRY, "closed", "means nothing"),
        (3000, DENIED, "denied", "refuses the credentials"),
        (3003, DENIED, "denied", "forbids this"),
        (3008, RETRY, "closed", "waited too long"),
        (3999, RETRY, "closed", "framework"),
        (4000, RETRY, "closed", "a code of its own"),
        (4999, RETRY, "closed", "a code of its own"),
        (0, RETRY, "closed", "means nothing"),
        (65535, RETRY, "closed", "means nothing"),
    ],
)
async def test_close_codes(
    autojump_clock: trio.testing.MockClock,
    code: int | None,
    verdict: Verdict,
    cause: str,
    says: str,
) -> None:
    reason = b"" if code is None else b"why \x1b[31mthis"
    judgement = await judged(HYPER, answering(close(code, reason), accept=True))
    assert (judgement.verdict, judgement.cause) == (verdict, cause)
    assert says in judgement.reason
    assert str(1005 if code is None else code) in judgement.reason
    assert code is None or "(why \\x1b[31mthis)" in judgement.reason
    assert (judgement.away_s is not None) == (code in (1012, 1013))


BROKEN = b"\x81\x85mask12345"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("source", "server", "verdict", "cause", "says"),
    [
        (HYPER, answering(accept=True), RETRY, "dropped", "without a close frame"),
        (HYPER, answering(BROKEN, accept=True), RETRY, "garbage", "masked"),
        (HYPER, answering(b"\x88\x01x", accept=True), RETRY, "garbage", "half a code"),
        (HYPER, answering(b"SSH-2.0-x\r\n\r\n"), MISCONFIGURED, "garbage", "'SSH-2.0-x"),
        (
            HYPER,
            answering(b"\x15\x03\x03\x00\x02\x02\x46\r\n\r\n"),
            MISCONFIGURED,
            "garbage",
            "it speaks TLS",
        ),
        (HYPER, answering(), RETRY, "dropped", "without an answer"),
        (DOCKER, answering(), RETRY, "dropped", "without an answer"),
        (DOCKER, answering(HEAD), RETRY, "dropped", "middle of the stream"),
        (DOCKER, answering(HEAD, b"zz\r\n"), RETRY, "garbage", "not chunked"),
        (DOCKER, answering(b"-ERR\r\n\r\n"), MISCONFIGURED, "garbage", "'-ERR"),
        (
            DOCKER,
            answering(
                b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
            ),
            MISCONFIGURED,
            "misconfigured",
            "wants TLS on this port",
        ),
    ],
)
async def test_other_ends(
    autojump_clock: trio.testing.MockClock,
    source: Source,
    server: Server,
    verdict: Verdict,
    cause: str,
    says: str,
) -> None:
    judgement = await judged(source, server)
    assert (judgement.verdict, judgement.cause) == (verdict, cause)
    assert says in judgement.reason


async def test_a_message_too_large_for_us_ends_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    heard = Heard()
    large = b"\x81\x7e" + struct.pack("!H", 2000) + b"x" * 2000
    server = answering(large + b"\x81\x02{}" + close(1009, b"yours?"), accept=True)
    judgement = await judged(HYPER, server, heard)
    assert [getattr(message, "size", None) for message in heard.messages] == [2000, None]
    assert (judgement.verdict, judgement.cause) == (RETRY, "closed")


async def test_silence(autojump_clock: trio.testing.MockClock) -> None:
    async def mute(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async def deaf(stream: trio.abc.Stream) -> None:
        await stream.send_all(accepted(bytes(await stream.receive_some())))
        await trio.sleep_forever()

    for source, server, cause in ((HYPER, mute, "timeout"), (DOCKER, mute, "timeout"),
                                  (HYPER, deaf, "silent")):  # fmt: skip
        judgement = await judged(source, server)
        assert (judgement.verdict, judgement.cause) == (RETRY, cause)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (b"https://login.test/events/ws", "to https://login.test/events/ws:"),
        (b"/new/events?token=abc&x=1", "to /new/events?…:"),
        (b"https://a.test/\x9b31m\xff", "to https://a.test/\\x9b31mÿ:"),
        (b"https://a.test/" + b"a" * 1000, "to https://a.test/aaa"),
    ],
)
async def test_a_redirect_says_where_it_points_and_is_not_followed(
    autojump_clock: trio.testing.MockClock, location: bytes, shown: str
) -> None:
    for source in (HYPER, DOCKER):
        for status in (301, 302, 303, 307, 308):
            heard = Heard()
            dials = 0

            async def server(
                stream: trio.abc.Stream, status: int = status, location: bytes = location
            ) -> None:
                nonlocal dials
                dials += 1
                await answering(refusal(status, b"Location: " + location))(stream)

            judgement = await judged(source, server, heard)
            assert (judgement.verdict, dials) == (MISCONFIGURED, 1)
            assert shown in judgement.reason
            assert "abc" not in judgement.reason
            assert len(judgement.reason) < 500


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"120", 120.0),
        (b" 120 ", 120.0),
        (b"99999999999999999999999999", 3600.0),
        (b"Thu, 13 Oct 2016 16:23:54 GMT", 60.0),
        (b"Thu, 13 Oct 2016 16:21:54 GMT", 0.0),
        (b"Thu, 13 Oct 9999 16:21:54 GMT", 3600.0),
        (b"-5", None),
        (b"1.5", None),
        (b"1e9", None),
        (b"soon", None),
        (b"", None),
        ("٣".encode(), None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured_to_an_hour_and_never_trusted_further(
    autojump_clock: trio.testing.MockClock, status: int, value: bytes, seconds: float | None
) -> None:
    server = answering(refusal(status, DATE[:-2], b"Retry-After: " + value))
    failure = await end(HYPER, server, Heard())
    life = Lifecycle(min_s=0.5, max_s=60.0, reset_after_s=60.0, rng=random.Random(1))
    life.dialing(0.0)
    judgement = judge(failure, secure=True, now_utc_ns=NOW * 1_000_000_000)
    pause = life.failed(judgement, 0.0, retry_after_s=failure.retry_after_s)
    least = seconds or 0.0
    assert least + 0.5 <= pause.delay_s <= least + 1.0
    assert pause.state is (State.THROTTLED if status == 429 else State.BACKING_OFF)


async def test_a_date_without_the_servers_clock_is_for_ours_to_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failure = await end(
        HYPER, answering(refusal(429, b"Retry-After: Thu, 13 Oct 2016 16:23:54 GMT")), Heard()
    )
    assert failure.retry_after_s is None
    assert failure.retry_at_ns == (NOW + 60) * 1_000_000_000


@pytest.mark.parametrize("minutes", [4, 24 * 60, -4, -24 * 60])
async def test_a_401_over_verified_tls_tells_the_time(
    autojump_clock: trio.testing.MockClock, minutes: int
) -> None:
    failure = await end(HYPER, answering(refusal(401, DATE[:-2])), Heard())
    now_ns = (NOW - minutes * 60) * 1_000_000_000
    judgement = judge(failure, secure=True, now_utc_ns=now_ns)
    assert (judgement.verdict, judgement.offset_ns) == (Verdict.SKEWED, minutes * 60 * 10**9)
    # Whoever did not prove who it is has no say.
    unverified = evolve(HYPER, tls=Tls(verify=False))
    failure = await end(unverified, answering(refusal(401, DATE[:-2])), Heard())
    assert judge(failure, secure=False, now_utc_ns=now_ns).verdict is DENIED
    assert failure.date_ns is None


def test_kinds_that_no_stream_brings() -> None:
    """Those of dialling: what real sockets bring is in the live tests."""
    for kind, verdict, cause in (
        (FailureKind.SHORTAGE, RETRY, "shortage"),
        (FailureKind.RESOLVE, RETRY, "unreachable"),
        (FailureKind.CONNECT, RETRY, "unreachable"),
        (FailureKind.TLS, Verdict.UNTRUSTED, "untrusted"),
        (FailureKind.RESET, RETRY, "dropped"),
        (FailureKind.CREDENTIAL, MISCONFIGURED, "credential"),
    ):
        judgement = judge(Failure(kind, "x"), secure=True, now_utc_ns=0)
        assert (judgement.verdict, judgement.cause) == (verdict, cause)


def test_a_pause_is_never_for_ever() -> None:
    longest = answers.http_failure(503, [(b"Retry-After", b"9" * 400)], b"", who="x", trust="off")
    life = Lifecycle(min_s=0.5, max_s=60.0, reset_after_s=60.0, rng=random.Random(1))
    life.dialing(0.0)
    judgement = judge(longest, secure=False, now_utc_ns=0)
    pause = life.failed(judgement, 0.0, retry_after_s=longest.retry_after_s)
    assert isinstance(pause, Pause)
    assert pause.delay_s <= 3660.0
