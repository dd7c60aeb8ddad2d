"""What a URL asks for, and the two forms of the answer."""

from __future__ import annotations

import json

import pytest

from hypermux.core.query import FORMS, Asked, Format
from hypermux.core.request import BadRequest, Request
from hypermux.core.subscription import Refusal
from hypermux.model.records import Cursor

NOW = 1_700_000_000 * 10**9
LINE = b'{"seq":7,"kind":"gap","time":"2026-01-01T00:00:00Z","crc":"00000000"}\n'


def test_every_key_of_a_request_line_is_a_parameter() -> None:
    asked = Asked.parse(
        "after=ep:3&since=5&until=2016-10-13T16:22:54Z&accounts=a*,b&accounts=c&regions=r"
        "&kinds=event,gap&filters=%7B%22event%22%3A%5B%22die%22%5D%7D&follow=false&limit=9&heartbeat=30s",
        {},
        NOW,
    )
    same = Request.parse(
        json.dumps(
            {
                "after": "ep:3",
                "since": 5,
                "until": "2016-10-13T16:22:54Z",
                "accounts": ["a*", "b", "c"],
                "regions": ["r"],
                "kinds": ["event", "gap"],
                "filters": {"event": ["die"]},
                "follow": False,
                "limit": 9,
                "heartbeat": "30s",
            }
        ).encode(),
        NOW,
    )
    assert asked.request == same
    assert asked.format is Format.NDJSON
    assert Asked.parse("", {}, NOW).request == Request()


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("after=x", "after"),
        ("aftr=start", "aftr"),
        ("after=start&after=live", "twice"),
        ("follow=no", "true or false"),
        ("limit=-1", "limit"),
        ("limit=0", "limit"),
        ("limit=" + "9" * 50, "limit"),
        ("since=soon", "since"),
        ("kinds=events", "event"),
        ("filters={", "filters"),
        ("filters=%7B%22wrong%22%3A%5B%22x%22%5D%7D", "wrong"),
        ("format=xml", "ndjson or sse"),
        ("accounts=%ff", "UTF-8"),
        ("&".join(["accounts=a"] * 2000), "too many"),
    ],
)
def test_what_makes_no_sense_is_said(query: str, word: str) -> None:
    with pytest.raises(BadRequest, match=word):
        Asked.parse(query, {}, NOW)


def test_last_event_id_is_where_it_goes_on() -> None:
    asked = Asked.parse("after=start", {"last-event-id": "ep:12"}, NOW)
    assert asked.request.after == Cursor("ep", 12)
    assert Asked.parse("after=start", {"last-event-id": ""}, NOW).request.after == "start"
    with pytest.raises(BadRequest, match="Last-Event-ID"):
        Asked.parse("", {"last-event-id": "start"}, NOW)


def test_who_was_away_for_longer_than_since_gets_what_came_meanwhile() -> None:
    asked = Asked.parse("since=10m", {"last-event-id": "ep:12"}, NOW)
    assert asked.request == Request(Cursor("ep", 12), heartbeat_s=None)
    assert Asked.parse("since=10m", {}, NOW).request.selection.since_ns == NOW - 600 * 10**9


def test_the_place_of_a_cursor_stands_until_something_came() -> None:
    """Or a reader that is cut off before the gap that tells of a rewritten end never gets it."""
    begun = FORMS[Format.SSE].begin(Request(Cursor("old", 12)), Cursor("new", 9))
    assert begun.startswith(b"id: old:12\n")
    assert b'"cursor":"new:9"' in begun


@pytest.mark.parametrize(
    ("query", "accept", "expected"),
    [
        ("", "", Format.NDJSON),
        ("", "*/*", Format.NDJSON),
        ("", "text/event-stream", Format.SSE),
        ("", "text/html, Text/Event-Stream;q=0.5", Format.SSE),
        ("", "text/event-stream;q=0", Format.NDJSON),
        ("", "text/event-stream;q=zero", Format.NDJSON),
        ("", "text/event-stream;q=0.5, application/x-ndjson", Format.NDJSON),
        ("format=sse", "application/x-ndjson", Format.SSE),
        ("format=ndjson", "text/event-stream", Format.NDJSON),
    ],
)
def test_the_form(query: str, accept: str, expected: Format) -> None:
    assert Asked.parse(query, {"accept": accept}, NOW).format is expected


def test_lines_are_what_the_socket_has() -> None:
    form = FORMS[Format.NDJSON]
    assert form.content_type == "application/x-ndjson"
    assert form.records(LINE * 2, "ep") == LINE * 2
    begin = json.loads(form.begin(Request(), Cursor("ep", 6)))
    assert begin == {"kind": "subscribed", "mode": "live", "cursor": "ep:6"}
    assert json.loads(form.end(Cursor("ep", 7))) == {"kind": "end", "cursor": "ep:7"}


def test_server_sent_events() -> None:
    form = FORMS[Format.SSE]
    assert form.content_type == "text/event-stream"
    one = b"id: ep:7\nevent: gap\ndata: " + LINE + b"\n"
    assert form.records(LINE * 2, "ep") == one * 2
    assert form.begin(Request(), Cursor("ep", 6)).startswith(
        b"id: ep:6\nevent: subscribed\ndata: {"
    )
    assert form.end(Cursor("ep", 7)).startswith(b"id: ep:7\nevent: end\ndata: {")
    fault = form.fault(Refusal("fault", "it cannot be read"))
    assert fault.startswith(b"event: fault\ndata: {")  # no id: the place stays
    for data in (form.begin(Request(), Cursor("ep", 6)), form.end(Cursor("ep", 7)), fault):
        assert data.endswith(b"}\n\n")


def test_a_heartbeat_moves_the_place_and_shows_nothing() -> None:
    beat = FORMS[Format.SSE].beat(Cursor("ep", 9)).decode()
    fields = [line for line in beat.split("\n") if line and not line.startswith(":")]
    assert beat.startswith(":")
    assert fields == ["id: ep:9"]  # without data nothing is dispatched
    assert beat.endswith("\n\n")
