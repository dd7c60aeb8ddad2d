"""HTTP/1.1 on the service's own socket, without I/O: bytes in, requests out; replies in, bytes out.

A connection takes one request after the other, each answered before the next is looked at.
Whatever is not HTTP gets a reply that says so, and is the connection's last. Bodies are read
whole and small: nothing that is asked here needs more than a word.

An answer is a `Reply`, all of it at hand, or `Streamed`: its body comes part by part (`begin`,
`part`, `finish`), in chunks for HTTP/1.1, and for HTTP/1.0 until the connection closes. One that
is not finished has no last chunk, so that its reader knows.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import h11
from attrs import define, field, frozen

# Names of a few routes and of a client: h11's own bound on a request line with its headers.
MAX_HEAD = 16 * 1024
MAX_BODY = 64 * 1024
# A client has its request ready: ten seconds are generous, and end half-open ones.
REQUEST_S = 10.0
# Between two requests: longer than a person looks at an answer and asks again, and than the
# scrape intervals that monitors usually have.
IDLE_S = 90.0


@frozen
class HttpRequest:
    """One request: `path` is decoded, `query` as sent; `who` is for a person to read.

    `ours` says that it comes from the service's own user, or root, and may ask for more than to
    read.

    `headers` have their names in lower case, and the values of one name joined by `, `; all
    together they are no longer than MAX_HEAD. One may hold a credential: they are not printed.
    """

    method: str
    path: str
    query: str = ""
    body: bytes = b""
    who: str = ""
    ours: bool = field(default=False, kw_only=True)
    headers: Mapping[str, str] = field(repr=False, factory=dict)


@frozen
class Reply:
    """What a request is answered with."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Reply:
        """Return a reply with `value` as JSON; a line feed ends it, for people with a terminal."""
        return cls(status, json.dumps(value).encode() + b"\n")

    @classmethod
    def error(cls, status: int, sentence: str, **headers: str) -> Reply:
        """Return `{"error": sentence}`."""
        shown = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        body = json.dumps({"error": sentence}).encode() + b"\n"
        return cls(status, body, headers=shown)


# Takes a part of a body, or several at once.
Send: TypeAlias = Callable[[bytes | Sequence[bytes]], Awaitable[None]]


@frozen
class Streamed:
    """What a request is answered with that has no end yet.

    `body` sends parts; what it sends is on its way when `send` returns. It is cancelled when the
    peer has gone, whether or not there is something to send, and is not run for HEAD. `over` is
    called once when all is done with, whatever became of it.
    """

    status: int
    content_type: str
    headers: tuple[tuple[str, str], ...]
    body: Callable[[Send], Awaitable[None]]
    over: Callable[[], None] = lambda: None


@frozen
class Ended:
    """The peer will ask nothing more."""


# A Reply is for what was no request.
Heard: TypeAlias = HttpRequest | Reply | Ended


@define(eq=False)
class Exchange:
    """One connection's side of HTTP.

    Feed it bytes (`receive`), ask what came (`heard`, None: more bytes are needed), and answer
    each request or reply that it gives with `answer`, or with `begin`, `part` and `finish`, before
    asking again. `deadline_s` is when to give up waiting for bytes (monotonic seconds).
    """

    who: str
    deadline_s: float
    ours: bool = False
    _connection: h11.Connection = field(
        init=False,
        factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD),
    )
    _request: h11.Request | None = None
    _body: bytearray = field(factory=bytearray)
    _asked: bool = False

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the peer; empty at the end of its input."""
        if not self._asked:
            self._asked, self.deadline_s = True, now + REQUEST_S
        self._connection.receive_data(data)

    def heard(self) -> Heard | None:
        """Return what came, None while it is not complete."""
        connection = self._connection
        try:
            while True:
                event = connection.next_event()
                match event:
                    case h11.NEED_DATA:
                        return None
                    case h11.PAUSED:  # a next request while nobody has asked for it
                        return None
                    case h11.Request():
                        self._request = event
                    case h11.Data():
                        self._body += event.data
                        if len(self._body) > MAX_BODY:
                            return Reply.error(413, f"a body has at most {MAX_BODY} bytes")
                    case h11.EndOfMessage():
                        return self._whole()
                    case _:
                        return Ended()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            return Reply.error(status, f"this is not HTTP as it is spoken here: {error}")

    def _whole(self) -> HttpRequest | Reply:
        request = self._request
        assert request is not None
        try:
            target = urlsplit(request.target.decode("ascii"))
            path = unquote(target.path, errors="strict")
        except ValueError:
            return Reply.error(400, "the request's target is no URL")
        method = request.method.decode("ascii")
        headers: dict[str, str] = {}
        for name, value in request.headers:
            key, text = name.decode("ascii"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return HttpRequest(
            *(method, path, target.query, bytes(self._body), self.who),
            headers=headers,
            ours=self.ours,
        )

    @property
    def waits_for_continue(self) -> bool:
        """Whether the peer sends its body only when told to go on."""
        return self._connection.they_are_waiting_for_100_continue

    def go_on(self) -> bytes:
        """Return what tells it to."""
        sent = self._connection.send(h11.InformationalResponse(status_code=100, headers=[]))
        assert sent is not None
        return sent

    def timed_out(self) -> Reply | None:
        """The deadline has passed: return what to say, None when nothing was asked."""
        if not self._asked:
            return None
        return Reply.error(408, f"no whole request came within {REQUEST_S:g} s")

    def answer(self, reply: Reply, now: float) -> tuple[bytes, bool]:
        """Return the bytes of `reply`, and whether the connection may take another request."""
        length = ("Content-Length", str(len(reply.body)))
        sent = self._head(reply.status, reply.content_type, (length, *reply.headers))
        if reply.body and self.wants_body:
            sent += self.part(reply.body)
        last, more = self.finish(now)
        return sent + last, more

    def begin(self, streamed: Streamed) -> bytes:
        """Return the head of an answer whose body comes in parts, if one is wanted."""
        return self._head(streamed.status, streamed.content_type, streamed.headers)

    @property
    def wants_body(self) -> bool:
        """Whether the answer under way has a body: not for HEAD."""
        return self._request is None or self._request.method != b"HEAD"

    def part(self, data: bytes) -> bytes:
        """Return the bytes that carry `data`, a part of a body; not empty."""
        return self._connection.send(h11.Data(data=data)) or b""

    def parts(self, data: Sequence[bytes]) -> bytes:
        """Return the bytes that carry parts of a body, each in a chunk of its own; none is empty.

        Some clients take each chunk for a message. h11 would make the same bytes, at 10 us a chunk.
        """
        request = self._request
        if request is None or request.http_version < b"1.1":
            return b"".join(data)
        return b"".join([b"%x\r\n%b\r\n" % (len(part), part) for part in data])

    def finish(self, now: float) -> tuple[bytes, bool]:
        """Return the bytes that end an answer, and whether there may be another request."""
        connection = self._connection
        sent = connection.send(h11.EndOfMessage()) or b""
        self._request, self._body = None, bytearray()
        self._asked, self.deadline_s = False, now + IDLE_S
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return sent, False
        connection.start_next_cycle()
        if connection.trailing_data[0]:  # a next request has begun already
            self._asked, self.deadline_s = True, now + REQUEST_S
        return sent, True

    def _head(self, status: int, content_type: str, more: tuple[tuple[str, str], ...]) -> bytes:
        headers = [("Content-Type", content_type), *more]
        if self._connection.their_state is not h11.DONE:  # the rest of it will not be read
            headers.append(("Connection", "close"))
        reason = HTTPStatus(status).phrase.encode()
        response = h11.Response(status_code=status, reason=reason, headers=headers)
        return self._connection.send(response) or b""
