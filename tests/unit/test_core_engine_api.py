"""The Engine's API: versions, errors in its words, the query of /events."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from hypermux.core import engine_api
from hypermux.core.engine_api import BadQuery, parse_events_query
from hypermux.core.filters import Filters

SECOND = 10**9


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/events", None),
        ("/v1.51/events", None),
        ("/v1.24/events", None),
        ("/v1.24.0/events", None),
        ("/v1.52/events", "client version 1.52 is too new. Maximum supported API version is 1.51"),
        ("/v2/_ping", "client version 2 is too new. Maximum supported API version is 1.51"),
        ("/v1.51.1/x", "client version 1.51.1 is too new. Maximum supported API version is 1.51"),
        ("/v99999999999999999999999/x", "client version 99999999999999999999999 is too new"),
        ("/v1.23/events", "client version 1.23 is too old. Minimum supported API version is 1.24,"),
        ("/v.../events", "client version ... is too old."),
        ("/vfoo/events", None),
    ],
)
def test_versions(path: str, says: str | None) -> None:
    reply = engine_api.refuse_version(path)
    if says is None:
        assert reply is None
        return
    assert reply is not None
    assert reply.status == 400
    assert ("Api-Version", "1.51") in reply.headers
    text = reply.body.decode()
    if "too old" in says:  # as a person reads it
        assert reply.content_type.startswith("text/plain")
        assert text.startswith(says)
        assert text.endswith("please upgrade your client to a newer version\n")
    else:
        assert json.loads(text)["message"].startswith(says)


@pytest.mark.parametrize("status", [404, 405])
def test_what_is_not_there_is_told_as_an_engine_does(status: int) -> None:
    reply = engine_api.error(status, "there is no such thing")
    assert (reply.status, reply.content_type) == (404, "application/json")
    assert reply.body == b'{"message":"page not found"}\n'
    assert engine_api.error(500, "a fault").body == b'{"message":"a fault"}\n'


def test_ping_and_version() -> None:
    assert engine_api.ping("HEAD").body == b""
    ping = engine_api.ping("GET")
    assert (ping.status, ping.body) == (200, b"OK")
    headers = dict(ping.headers)
    assert headers["Api-Version"] == "1.51"
    assert headers["Docker-Experimental"] == "false"
    assert headers["Ostype"] == "linux"
    assert headers["Server"].endswith(" (linux)")
    version = json.loads(engine_api.version("amd64", "6.1").body)
    assert (version["ApiVersion"], version["Os"], version["Arch"]) == ("1.51", "linux", "amd64")


@pytest.mark.parametrize(
    ("query", "since", "until"),
    [
        ("", None, None),
        ("since=&until=", None, None),
        ("since=10", 10 * SECOND, None),
        ("since=0&until=0", 0, 0),
        ("since=10&until=10", 10 * SECOND, 10 * SECOND),
        ("until=10.5", None, 10 * SECOND + 500_000_000),
        ("since=1.000000001", SECOND + 1, None),
        ("since=1.1234567899", SECOND + 123_456_789, None),
        ("since=%2B1", SECOND, None),
        ("since=-1", -SECOND, None),
        ("since=1&since=abc&x=y&&z", SECOND, None),
    ],
)
def test_times(query: str, since: int | None, until: int | None) -> None:
    parsed = parse_events_query(query)
    assert (parsed.since_ns, parsed.until_ns) == (since, until)
    assert not parsed.filters


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("since=abc", 'strconv.ParseInt: parsing "abc": invalid syntax'),
        ("until=5x", 'strconv.ParseInt: parsing "5x": invalid syntax'),
        ("since=1.5x", 'strconv.ParseInt: parsing "5x": invalid syntax'),
        ("since=1.", 'strconv.ParseInt: parsing "": invalid syntax'),
        ("since=%202", 'strconv.ParseInt: parsing " 2": invalid syntax'),
        ("since=1_0", 'strconv.ParseInt: parsing "1_0": invalid syntax'),
        (
            "since=9223372036854775808",
            'strconv.ParseInt: parsing "9223372036854775808": value out of range',
        ),
        ("since=" + "9" * 5000, "value out of range"),
        ("since=10m", 'strconv.ParseInt: parsing "10m": invalid syntax'),
        ("since=10&until=5", "`since` time (10) cannot be after `until` time (5)"),
        ("since=%zz", 'invalid URL escape "%zz"'),
        ("since=%a", 'invalid URL escape "%a"'),
        ("filters=abc", "invalid filter: filters are not JSON"),
        ("filters=[]", "invalid filter: filters are not a JSON object"),
        ("filters=" + quote('{"type":"container"}'), "invalid filter: the values of filter"),
        ("filters=" + quote('{"event":["a"],"type":{"b":true}}'), "invalid filter: filters mix"),
        ("filters=" + quote('{"event":{"a":1}}'), "invalid filter: "),
    ],
)
def test_bad_queries_are_refused_in_the_engines_words(query: str, says: str) -> None:
    with pytest.raises(BadQuery) as caught:
        parse_events_query(query)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("null", {}),
        ("{}", {}),
        ('{"type":{"container":true}}', {"type": ["container"]}),
        ('{"event":["a"],"label":["b=c","d"]}', {"event": ["a"], "label": ["b=c", "d"]}),
    ],
)
def test_filters(text: str, expected: dict[str, list[str]]) -> None:
    assert parse_events_query(f"filters={quote(text)}").filters == Filters.from_mapping(expected)
    assert parse_events_query(f"filters={text}").filters == Filters.from_mapping(expected)
