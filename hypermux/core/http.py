"""HTTP/1.1 on the service's own socket, without I/O: bytes in, requests out; replies in, bytes out.

A connection takes one request after the other, each answered before the next is looked at.
Whatever is not HTTP gets a reply that says so, and is the connection's last. Bodies are read
whole and small: nothing that is asked here needs more than a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar
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
    """One request: `path` is decoded, `query` as sent; `who` is for a person to read."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""
    who: str = ""


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


@frozen
class Ended:
    """The peer will ask nothing more."""


# A Reply is for what was no request.
Heard: TypeAlias = HttpRequest | Reply | Ended
H = TypeVar("H")


@define(eq=False)
class Exchange:
    """One connection's side of HTTP.

    Feed it bytes (`receive`), ask what came (`heard`, None: more bytes are needed), and answer
    each request or reply that it gives with `answer` before asking again. `deadline_s` is when
    to give up waiting for bytes (monotonic seconds).
    """

    who: str
    deadline_s: float
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
        return HttpRequest(method, path, target.query, bytes(self._body), self.who)

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
        connection = self._connection
        last = connection.their_state is not h11.DONE  # the rest of it will not be read
        headers = [
            ("Content-Type", reply.content_type),
            ("Content-Length", str(len(reply.body))),
            *reply.headers,
        ]
        if last:
            headers.append(("Connection", "close"))
        head = self._request is not None and self._request.method == b"HEAD"
        reason = HTTPStatus(reply.status).phrase.encode()
        events: list[h11.Event] = [
            h11.Response(status_code=reply.status, reason=reason, headers=headers)
        ]
        if reply.body and not head:
            events.append(h11.Data(data=reply.body))
        events.append(h11.EndOfMessage())
        sent = b"".join(connection.send(event) or b"" for event in events)
        self._request, self._body = None, bytearray()
        self._asked, self.deadline_s = False, now + IDLE_S
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            return sent, False
        connection.start_next_cycle()
        return sent, True


def route(request: HttpRequest, routes: Mapping[str, Mapping[str, H]]) -> H | Reply:
    """Return what of `routes` (path, then method) answers `request`, or the reply that none does.

    HEAD is asked of GET.
    """
    methods = routes.get(request.path)
    if methods is None:
        known = ", ".join(sorted(routes))
        return Reply.error(404, f"there is no {request.path[:200]} here; there are {known}")
    found = methods.get("GET" if request.method == "HEAD" else request.method)
    if found is None:
        allowed = [*methods, *(["HEAD"] if "GET" in methods else [])]
        sentence = f"{request.path} takes {' and '.join(allowed)}"
        return Reply.error(405, sentence, Allow=", ".join(allowed))
    return found
