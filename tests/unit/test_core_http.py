"""HTTP on the socket, without I/O."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.http import (
    IDLE_S,
    MAX_BODY,
    MAX_HEAD,
    REQUEST_S,
    Ended,
    Exchange,
    Heard,
    HttpRequest,
    Reply,
    Send,
    Streamed,
)

GET = b"GET /status?a=1 HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"


def hear(*pieces: bytes) -> tuple[list[Heard], bytes]:
    """Feed pieces and answer all that is asked; return what was heard and what was sent."""
    exchange = Exchange("me", 0.0)
    found: list[Heard] = []
    sent = b""
    for piece in pieces:
        exchange.receive(piece, 1.0)
        while (heard := exchange.heard()) is not None:
            found.append(heard)
            if isinstance(heard, Ended):
                return found, sent
            reply = heard if isinstance(heard, Reply) else Reply.json({"path": heard.path})
            data, more = exchange.answer(reply, 1.0)
            sent += data
            if not more:
                return found, sent
    return found, sent


def test_a_request_and_its_answer() -> None:
    found, sent = hear(GET)
    assert found == [HttpRequest("GET", "/status", "a=1", b"", "me", {"host": "x"})]
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: application/json" in head.lower()
    assert b"close" not in head
    assert json.loads(body) == {"path": "/status"}


def test_one_request_after_the_other_keeps_the_connection() -> None:
    found, sent = hear(GET + POST + b"abc" + GET)
    assert [heard.method for heard in found if isinstance(heard, HttpRequest)] == [
        "GET",
        "POST",
        "GET",
    ]
    assert sent.count(b"HTTP/1.1 200") == 3


def test_head_has_the_length_and_no_body() -> None:
    _, sent = hear(GET.replace(b"GET", b"HEAD") + GET)
    first, second = sent.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert first.endswith(b"\r\n\r\n")
    length = len(second.partition(b"\r\n\r\n")[2])
    assert f"content-length: {length}".encode() in first.lower()


@pytest.mark.parametrize(
    "data", [GET.replace(b"1.1", b"1.0"), GET[:-2] + b"Connection: close\r\n\r\n"]
)
def test_who_asks_once_is_answered_once(data: bytes) -> None:
    found, sent = hear(data + GET)
    assert len(found) == 1
    assert b"connection: close" in sent.lower()


def test_the_end_of_input_is_not_the_end_of_the_answer() -> None:
    found, sent = hear(GET, b"")
    assert [type(heard) for heard in found] == [HttpRequest, Ended]
    assert sent.startswith(b"HTTP/1.1 200")
    assert [type(heard) for heard in hear(b"")[0]] == [Ended]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD + 1), 431),
        (POST.replace(b"3", b"99999") + b"a" * (MAX_BODY + 1), 413),
        (b"GET /\x1b[31m HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_gets_a_reply_that_says_so(data: bytes, status: int) -> None:
    found, sent = hear(data)
    assert len(found) == 1
    assert isinstance(found[0], Reply)
    assert found[0].status == status
    assert sent.startswith(f"HTTP/1.1 {status} ".encode())
    body = sent.partition(b"\r\n\r\n")[2]
    assert set(json.loads(body)) == {"error"}
    assert body.isascii()
    assert b"\x1b" not in body


def test_half_a_request_then_the_end() -> None:
    found, _ = hear(b"GET / HT", b"")
    assert isinstance(found[0], Reply)
    assert found[0].status == 400


def test_a_body_that_waits_to_be_asked_for() -> None:
    exchange = Exchange("me", 0.0)
    exchange.receive(
        b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 0.0
    )
    assert exchange.heard() is None
    assert exchange.waits_for_continue
    assert exchange.go_on().startswith(b"HTTP/1.1 100 ")
    assert not exchange.waits_for_continue
    exchange.receive(b"x", 0.0)
    heard = exchange.heard()
    assert isinstance(heard, HttpRequest)
    assert heard.body == b"x"


def test_deadlines() -> None:
    exchange = Exchange("me", 5.0)
    assert exchange.timed_out() is None
    exchange.receive(GET[:10], 100.0)
    assert exchange.deadline_s == 100 + REQUEST_S
    exchange.receive(GET[10:20], 105.0)  # a byte now and then does not help
    assert exchange.deadline_s == 100 + REQUEST_S
    late = exchange.timed_out()
    assert late is not None
    assert late.status == 408
    sent, more = exchange.answer(late, 111.0)
    assert (sent[:12], more) == (b"HTTP/1.1 408", False)
    exchange = Exchange("me", 5.0)
    exchange.receive(GET, 100.0)
    exchange.heard()
    exchange.answer(Reply.json({}), 101.0)
    assert exchange.deadline_s == 101 + IDLE_S


def test_headers_are_at_hand_and_never_printed() -> None:
    found, _ = hear(GET[:-2] + b"ACCEPT: text/plain\r\nAuthorization: Bearer s3cret\r\n"
                    b"Accept: */*\r\n\r\n")  # fmt: skip
    request = found[0]
    assert isinstance(request, HttpRequest)
    assert request.headers["accept"] == "text/plain, */*"
    assert request.headers["host"] == "x"
    assert "s3cret" not in repr(request)


async def _no_body(send: Send) -> None:
    raise AssertionError


STREAMED = Streamed(200, "text/plain", (("X-A", "1"),), _no_body)


def stream(request: bytes, *parts: bytes) -> tuple[bytes, bool]:
    """Answer `request` in parts; return all that is sent, and whether another may come."""
    exchange = Exchange("me", 0.0)
    exchange.receive(request, 0.0)
    assert isinstance(exchange.heard(), HttpRequest)
    sent = exchange.begin(STREAMED)
    if exchange.wants_body:
        sent += b"".join(map(exchange.part, parts))
    last, more = exchange.finish(0.0)
    return sent + last, more


def test_a_streamed_answer_comes_in_chunks() -> None:
    sent, more = stream(GET, b"abc", b"d" * 20)
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    assert b"x-a: 1" in head.lower()
    assert b"content-length" not in head.lower()
    assert body == b"3\r\nabc\r\n14\r\n" + b"d" * 20 + b"\r\n0\r\n\r\n"
    assert more


def test_http_1_0_knows_no_chunks() -> None:
    sent, more = stream(GET.replace(b"1.1", b"1.0"), b"abc", b"def")
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body == b"abcdef"
    assert not more


def test_head_of_a_streamed_answer_has_no_body() -> None:
    sent, more = stream(GET.replace(b"GET", b"HEAD"), b"abc")
    assert sent.endswith(b"\r\n\r\n")
    assert sent.count(b"\r\n\r\n") == 1
    assert b"transfer-encoding: chunked" in sent.lower()
    assert more


def test_a_request_that_waits_behind_an_answer_has_its_own_deadline() -> None:
    exchange = Exchange("me", 0.0)
    exchange.receive(GET + GET[:5], 0.0)
    assert isinstance(exchange.heard(), HttpRequest)
    exchange.begin(STREAMED)
    exchange.finish(50.0)
    assert exchange.heard() is None
    assert exchange.deadline_s == 50 + REQUEST_S
    assert exchange.timed_out() is not None


@given(st.lists(st.sampled_from([GET, b"GET / H", b"\r\n", b"POST /x HTTP/1.1\r\nHost: y\r\n"
                                 b"Content-Length: 2\r\n\r\n", b"ab", b"\xff", b""])))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_one_chunk_and_byte_by_byte_agree(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    whole = hear(data, b"")
    bytewise = hear(*(data[i : i + 1] for i in range(len(data))), b"")
    assert [type(heard) for heard in whole[0]] == [type(heard) for heard in bytewise[0]]
    requests = [heard for heard in whole[0] if isinstance(heard, HttpRequest)]
    assert requests == [heard for heard in bytewise[0] if isinstance(heard, HttpRequest)]
