"""The subscriber protocol, without I/O: what a peer's bytes, silence and end of input mean.

| phase   | bytes                              | out of time | end of input          |
|---------|------------------------------------|-------------|-----------------------|
| silent  | `{`: asking; a method: HTTP; else  | live        | live                  |
|         | refused                            |             |                       |
| live    | `{`: asking; else refused          |             | goes on               |
| asking  | a line feed ends the request:      | refused     | ends the request, too |
|         | asked or refused; too long: refused|             |                       |
| asked   | refused: one request a connection  |             | goes on               |
| refused | ignored                            |             |                       |

White space before a request and after it means nothing. While a late request is coming in, live
mode goes on. With HTTP the conversation is over here: `core.http` has the connection then, and
begins with the bytes of the answer.
"""

from __future__ import annotations

import json
from enum import Enum, auto
from typing import Literal, TypeAlias

from attrs import define, field, frozen

from hypermux.core.request import BadRequest, Request
from hypermux.model.records import Cursor

# A client that has something to ask does so at once; a quarter of a second covers a busy machine,
# and is what someone with `nc -U` waits for nothing.
SILENCE_S = 0.25
# One line that a program has ready: ten seconds are generous, and end half-open requests.
REQUEST_S = 10.0
# Hundreds of globs and filter values fit; a peer cannot make us hold more than this.
MAX_REQUEST = 64 * 1024

_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ")
_SPACE = b" \t\r\n"

Cause: TypeAlias = Literal["request", "cursor", "busy", "denied", "fault"]


class Opening(Enum):
    """What the first bytes of a connection are."""

    REQUEST = auto()
    HTTP = auto()
    OTHER = auto()


def opening(data: bytes) -> Opening:
    """Tell from the first bytes (white space stripped, at least one) what a peer speaks."""
    if data.startswith(b"{"):
        return Opening.REQUEST
    if any(data.startswith(m[: len(data)]) for m in _METHODS):
        return Opening.HTTP
    return Opening.OTHER


@frozen
class Refusal:
    """The one error line that a peer gets before its connection is closed."""

    cause: Cause
    error: str

    @property
    def line(self) -> bytes:
        """Return the line to send."""
        return _line({"kind": "error", "cause": self.cause, "error": self.error})


@frozen
class Http:
    """The peer speaks HTTP; `data` is what it has said so far."""

    data: bytes


Answer: TypeAlias = Request | Refusal | Http


def subscribed_line(request: Request, cursor: Cursor) -> bytes:
    """Return the line that every stream starts with; `cursor` is where the reader stands."""
    mode = "live" if request.after == "live" else "replay"
    return _line({"kind": "subscribed", "mode": mode, "cursor": str(cursor)})


def end_line(cursor: Cursor) -> bytes:
    """Return the last line of a stream that was asked to end (limit, until, follow: false).

    Without it a reader could not tell a complete answer from one that a restart cut off.
    """
    return _line({"kind": "end", "cursor": str(cursor)})


def heartbeat_line(cursor: Cursor) -> bytes:
    """Return what a quiet stream says now and then: it lives, and has passed all up to `cursor`."""
    return _line({"kind": "heartbeat", "cursor": str(cursor)})


def _line(values: dict[str, str]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


class _Phase(Enum):
    SILENT = auto()
    LIVE = auto()
    ASKING = auto()
    ASKED = auto()
    OVER = auto()


@define(eq=False)
class Conversation:
    """One connection's side of the protocol. Each call returns a new answer, None for no change.

    `now` is monotonic (seconds), `now_ns` the time of day: a request's durations count from it.
    `deadline_s` is when `expire` is to be called (monotonic seconds), None for never.
    """

    deadline_s: float | None
    _phase: _Phase = _Phase.SILENT
    _held: bytearray = field(factory=bytearray)

    @classmethod
    def begin(cls, now: float) -> Conversation:
        """Start at the moment a connection was accepted."""
        return cls(now + SILENCE_S)

    def receive(self, data: bytes, now: float, now_ns: int) -> Answer | None:
        """Take bytes from the peer."""
        if self._phase is _Phase.OVER:
            return None
        if self._phase is not _Phase.ASKING:
            data = data.lstrip(_SPACE)
            if not data:
                return None
            if self._phase is _Phase.ASKED:
                return self._refuse("one connection takes one request")
            if (opened := opening(data)) is not Opening.REQUEST:
                if opened is Opening.OTHER:
                    return self._refuse(_NO_SENSE)
                if self._phase is not _Phase.SILENT:
                    return self._refuse(_LATE_HTTP)
                self._phase, self.deadline_s = _Phase.OVER, None
                return Http(data)
            self._phase, self.deadline_s = _Phase.ASKING, now + REQUEST_S
        # Only the new bytes are searched: byte by byte would be quadratic otherwise.
        end = data.find(b"\n")
        if len(self._held) + (len(data) if end < 0 else end) > MAX_REQUEST:
            return self._refuse(f"the request is over {MAX_REQUEST // 1024} KiB")
        if end < 0:
            self._held += data
            return None
        answer = self._ask(bytes(self._held + data[:end]), now_ns)
        return self.receive(data[end + 1 :], now, now_ns) or answer

    def expire(self) -> Answer | None:
        """The deadline has passed and the peer has sent nothing more."""
        self.deadline_s = None
        if self._phase is _Phase.SILENT:
            self._phase = _Phase.LIVE
            return Request()
        if self._phase is _Phase.ASKING:
            return self._refuse(
                f"the request was not complete within {REQUEST_S:g} s: end it with a line feed"
            )
        return None

    def end(self, now_ns: int) -> Answer | None:
        """The peer will send nothing more; it may well go on reading."""
        self.deadline_s = None
        if self._phase is _Phase.SILENT:
            self._phase = _Phase.LIVE
            return Request()
        return self._ask(bytes(self._held), now_ns) if self._phase is _Phase.ASKING else None

    def _ask(self, line: bytes, now_ns: int) -> Answer:
        self._held.clear()
        self.deadline_s = None
        try:
            request = Request.parse(line, now_ns)
        except BadRequest as error:
            return self._refuse(str(error))
        self._phase = _Phase.ASKED
        return request

    def _refuse(self, error: str) -> Refusal:
        self._phase, self.deadline_s = _Phase.OVER, None
        self._held.clear()
        return Refusal("request", error)


_LATE_HTTP = f"HTTP comes within {SILENCE_S * 1000:g} ms of connecting; this stream is live already"
_NO_SENSE = 'send nothing for live records, or one line of JSON such as {"after":"start"}'
