"""`/records`: what a URL's query and a request's headers ask for, and the two forms of the answer.

The parameters are the keys of a request line (`core.request`), as text:

    accounts, regions, kinds   repeated, or several in one with commas
    follow                     true or false
    limit                      a number
    format                     ndjson or sse; without it the Accept header decides
    all others                 as in the request line; `filters` in Docker's form

`Last-Event-ID` is where a reader of server-sent events goes on; it counts instead of `after`,
because such readers ask again with the URL that they began with. `since` was where to begin the
first time: a duration counts back from now, and what lies behind the place is wanted whatever its
age.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import parse_qsl

from attrs import evolve, frozen

from hypermux.core.lines import kind_of, seq_of
from hypermux.core.request import BadRequest, Request
from hypermux.core.subscription import Refusal, end_line, heartbeat_line, subscribed_line
from hypermux.model.records import Cursor

_LISTS = ("accounts", "regions", "kinds")
_WORDS = {"true": True, "false": False}
# A request line has nine keys; globs may be many, but no URL is longer than MAX_HEAD.
_MAX_FIELDS = 1000


class Format(StrEnum):
    """How records are written into an answer."""

    NDJSON = "ndjson"
    SSE = "sse"


@frozen
class Asked:
    """What a request for records asks for."""

    request: Request
    format: Format

    @classmethod
    def parse(cls, query: str, headers: Mapping[str, str], now_ns: int) -> Asked:
        """Read a URL's query and a request's headers (names in lower case).

        Durations count back from `now_ns`. Raises BadRequest.
        """
        given = _read(query)
        if last := headers.get("last-event-id", "").strip():
            try:
                given["after"] = str(Cursor.parse(last))
            except ValueError as error:
                raise BadRequest(f"Last-Event-ID: {error}") from None
            given.pop("since", None)
        wanted = given.pop("format", None)
        if wanted is None:
            form = Format.SSE if _prefers_events(headers.get("accept", "")) else Format.NDJSON
        elif wanted in list(Format):
            form = Format(wanted)
        else:
            raise BadRequest("format: it is ndjson or sse")
        request = Request.of(given, now_ns)
        if request.heartbeat_s is None:
            request = evolve(request, heartbeat_s=FORMS[form].heartbeat_s)
        return cls(request, form)


def _read(query: str) -> dict[str, Any]:
    try:
        fields = parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise BadRequest("the query is not percent-encoded UTF-8, or has too many fields") from None
    given: dict[str, Any] = {}
    for key, text in fields:
        if key in _LISTS:
            given.setdefault(key, []).extend(part for part in text.split(",") if part)
        elif key in given:
            raise BadRequest(f"{key} is given twice")
        elif key == "follow":
            if text not in _WORDS:
                raise BadRequest("follow: it is true or false")
            given[key] = _WORDS[text]
        elif key == "limit":
            if not (text.isascii() and text.isdigit() and len(text) <= 18):
                raise BadRequest("limit: it is a number of records, 1 or more")
            given[key] = int(text)
        else:
            given[key] = text
    return given


def _prefers_events(accept: str) -> bool:
    """Tell whether an Accept header asks for server-sent events, and not for lines before them."""
    quality: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        text = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            quality[name] = float(text)
        except ValueError:
            quality[name] = 0.0
    events = quality.get("text/event-stream", 0.0)
    lines = max(quality.get(name, 0.0) for name in ("application/x-ndjson", "application/json"))
    return events > 0 and events >= lines


class Form(Protocol):
    """A way to write a stream of records. Every method returns bytes to send."""

    content_type: str
    # When a reader that does not say is told that it is still served; None: never.
    heartbeat_s: float | None

    def begin(self, request: Request, cursor: Cursor) -> bytes:
        """Say where the stream begins."""

    def records(self, lines: bytes, epoch: str) -> bytes:
        """Write whole record lines."""

    def beat(self, cursor: Cursor) -> bytes:
        """Say that there is nothing to say, and up to where."""

    def end(self, cursor: Cursor) -> bytes:
        """Say that all that was asked for is above."""

    def fault(self, refusal: Refusal) -> bytes:
        """Say why it cannot go on."""


class Lines:
    """NDJSON, line for line what the socket has."""

    content_type = "application/x-ndjson"
    heartbeat_s: float | None = None

    def begin(self, request: Request, cursor: Cursor) -> bytes:
        """See `Form`."""
        return subscribed_line(request, cursor)

    def records(self, lines: bytes, epoch: str) -> bytes:
        """See `Form`."""
        return lines

    def beat(self, cursor: Cursor) -> bytes:
        """See `Form`."""
        return heartbeat_line(cursor)

    def end(self, cursor: Cursor) -> bytes:
        """See `Form`."""
        return end_line(cursor)

    def fault(self, refusal: Refusal) -> bytes:
        """See `Form`."""
        return refusal.line


class ServerSentEvents:
    """Server-sent events: `id` is the cursor, `event` the kind, `data` the line.

    The first event tells the cursor too, so that a reader who is cut off before the first record
    goes on where it began; a heartbeat is a comment and an `id` without data, which moves the
    reader's place and shows it nothing. The last word on a fault has a name that browsers do not
    give their own errors.
    """

    content_type = "text/event-stream"
    # Proxies and browsers give a silent connection up after 30 s to a minute.
    heartbeat_s: float | None = 15.0

    def begin(self, request: Request, cursor: Cursor) -> bytes:
        """See `Form`."""
        # Behind a cursor the first record may be the gap that tells of records that were cut off:
        # one who is cut off before it has to ask with the same cursor to be told again.
        place = request.after if isinstance(request.after, Cursor) else cursor
        return _event("subscribed", subscribed_line(request, cursor), str(place))

    def records(self, lines: bytes, epoch: str) -> bytes:
        """See `Form`."""
        return b"".join(
            _event(kind_of(line), line, str(Cursor(epoch, seq_of(line))))
            for line in lines.splitlines(keepends=True)
        )

    def beat(self, cursor: Cursor) -> bytes:
        """See `Form`."""
        return f": nothing else up to here\nid: {cursor}\n\n".encode()

    def end(self, cursor: Cursor) -> bytes:
        """See `Form`."""
        return _event("end", end_line(cursor), str(cursor))

    def fault(self, refusal: Refusal) -> bytes:
        """See `Form`."""
        return _event("fault", refusal.line)


def _event(name: str, line: bytes, cursor: str = "") -> bytes:
    """Return one event; `line` ends in its line feed and has no other."""
    place = f"id: {cursor}\n" if cursor else ""
    return b"%sevent: %s\ndata: %s\n" % (place.encode(), name.encode(), line)


FORMS: dict[Format, Form] = {Format.NDJSON: Lines(), Format.SSE: ServerSentEvents()}
