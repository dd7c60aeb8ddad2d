from __future__ import annotations

import json
import string
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.recording import BadLine, Encoder, parse_line, parse_rfc3339, rfc3339
from hypermux.model.accounts import SourceId
from hypermux.model.records import (
    Checkpoint,
    Event,
    Gap,
    Item,
    Kind,
    StateChange,
    TimeFrom,
    Unparsed,
)

SOURCE = SourceId("prod", "us-west-1")
T = 1_476_375_774_255_155_116

times = st.integers(0, 9_000_000_000_000_000_000)
texts = st.text(max_size=20)
words = st.text(string.ascii_letters, max_size=8)
sources = st.builds(SourceId, texts, texts)


@st.composite
def events(draw: st.DrawFn) -> Event:
    value = draw(st.dictionaries(texts, st.one_of(texts, st.integers(), st.booleans()), max_size=4))
    raw = json.dumps(value).replace("\x7f", "\\u007f").encode()
    time_ns = draw(st.none() | times)
    own: TimeFrom = draw(st.sampled_from(["timeNano", "time", "float"]))
    time_from: TimeFrom = "received" if time_ns is None else own
    flags = st.booleans()
    return Event(raw, time_ns, time_from, replayed=draw(flags), synthetic=draw(flags))


items: st.SearchStrategy[Item | Checkpoint] = st.one_of(
    events(),
    st.builds(Unparsed, texts, st.integers(0, 10**9), texts, st.booleans()),
    st.builds(
        Gap,
        times,
        times,
        texts,
        st.sampled_from(["possible", "proven"]),
        st.none() | st.integers(0, 10**9),
    ),
    st.builds(
        StateChange,
        texts,
        st.none() | texts,
        st.none() | texts,
        st.none() | texts,
        st.none() | times,
        st.none() | st.integers(-(10**18), 10**18),
    ),
    st.builds(Checkpoint, times),
)


def test_an_event_line_in_full() -> None:
    line = Encoder().encode(
        1042,
        Event(b'{"status":"start"}', T, "timeNano"),
        source=SOURCE,
        at_ns=T,
        received_ns=T + 1_000_000_000,
    )
    body = (
        b'{"seq":1042,"kind":"event","time":"2016-10-13T16:22:54.255155116Z",'
        b'"received":"2016-10-13T16:22:55.255155116Z","account":"prod","region":"us-west-1",'
        b'"event":{"status":"start"}'
    )
    assert line == body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def test_every_optional_key_in_its_place() -> None:
    line = Encoder().encode(
        7,
        Event(b"{}", T, "float", replayed=True, synthetic=True),
        source=SOURCE,
        at_ns=T + 1,
        received_ns=T + 2,
        late=True,
        durable=6,
    )
    assert list(json.loads(line)) == [
        *("seq", "kind", "time", "at", "time_from", "received", "account", "region"),
        *("late", "replayed", "synthetic", "durable", "event", "crc"),
    ]


@pytest.mark.parametrize(
    ("item", "payload"),
    [
        (
            Gap(0, 1, "silent", "proven", 3),
            {
                "from": "1970-01-01T00:00:00.000000000Z",
                "to": "1970-01-01T00:00:00.000000001Z",
                "cause": "silent",
                "certainty": "proven",
                "lost": 3,
            },
        ),
        (
            StateChange("down", "gone", "retry", "closed", 0, -5, "00ff"),
            {
                "state": "down",
                "verdict": "retry",
                "cause": "closed",
                "from": "1970-01-01T00:00:00.000000000Z",
                "reason": "gone",
                "offset_ns": -5,
                "anchor": "00ff",
            },
        ),
        (
            Unparsed("[1]", 3, "not an object"),
            {"text": "[1]", "size": 3, "reason": "not an object"},
        ),
        (
            Unparsed("[1]", 3, "not an object", replayed=True),
            {"replayed": True, "text": "[1]", "size": 3, "reason": "not an object"},
        ),
        (Checkpoint(0), {"through": "1970-01-01T00:00:00.000000000Z"}),
        (
            Checkpoint(1, 0),
            {
                "through": "1970-01-01T00:00:00.000000001Z",
                "looked": "1970-01-01T00:00:00.000000000Z",
            },
        ),
    ],
)
def test_payloads(item: Item | Checkpoint, payload: dict[str, object]) -> None:
    line = Encoder().encode(1, item, source=None, at_ns=T, received_ns=T)
    record = json.loads(line)
    received = "2016-10-13T16:22:54.255155116Z"
    del record["crc"]
    kind = parse_line(line).kind.value
    assert record == {"seq": 1, "kind": kind, "time": received, "received": received, **payload}
    assert list(record)[4:] == list(payload)


@given(items, st.none() | sources, times, times, st.booleans(), st.none() | st.integers(0))
@settings(max_examples=200)
def test_lines_read_back(
    item: Item | Checkpoint,
    source: SourceId | None,
    at_ns: int,
    received_ns: int,
    late: bool,
    durable: int | None,
) -> None:
    durable = None if durable is None else durable % 10**15
    line = Encoder().encode(
        3, item, source=source, at_ns=at_ns, received_ns=received_ns, late=late, durable=durable
    )
    assert line[:-1].isascii()
    assert line[:-1].decode().isprintable()
    assert line.endswith(b"\n")
    parsed = parse_line(line)
    assert parsed.item == item
    assert (parsed.seq, parsed.source, parsed.at_ns) == (3, source, at_ns)
    assert (parsed.received_ns, parsed.late, parsed.durable) == (received_ns, late, durable)
    assert parsed.line is line
    if isinstance(item, Event):
        assert parsed.event == item.raw
    assert json.loads(line)["seq"] == 3


def test_one_encoder_for_many_lines_is_as_good_as_one_for_each() -> None:
    shared = Encoder()
    for n in range(40):
        source = SourceId(f"a{n % 3}", f'r"{n % 2}\u00e9')
        item = Event(b"{}", T + n, "timeNano")
        for encoder in (shared, Encoder()):
            line = encoder.encode(n, item, source=source, at_ns=T, received_ns=T + n // 4)
            assert parse_line(line).source == source
            assert parse_line(line).received_ns == T + n // 4


def test_text_that_no_strict_reader_takes_is_made_fit() -> None:
    odd = StateChange("down", "path \udcff\x7f\x1b[31m")
    line = Encoder().encode(1, odd, source=None, at_ns=0, received_ns=0)
    read = parse_line(line).item
    assert isinstance(read, StateChange)
    assert read.reason == "path ?\x7f\x1b[31m"
    assert line[:-1].decode("ascii").isprintable()


def test_names_and_payloads_cannot_pretend_to_be_keys() -> None:
    source = SourceId('x,"event":{', ',"crc":"00000000"}')
    event = Event(b'{"a":{"event":1},"event":{"crc":"00000000"}}', T, "timeNano")
    parsed = parse_line(Encoder().encode(1, event, source=source, at_ns=T, received_ns=T))
    assert parsed.source == source
    assert parsed.event == event.raw
    hidden = Unparsed(',"event":{}', 1, ',"event":')
    read = parse_line(Encoder().encode(2, hidden, source=source, at_ns=T, received_ns=T))
    assert read.kind is Kind.UNPARSED
    assert read.item == hidden


def test_depth_is_no_matter_for_reading_back() -> None:
    raw = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    line = Encoder().encode(1, Event(raw, T, "timeNano"), source=SOURCE, at_ns=T, received_ns=T)
    assert parse_line(line).event == raw


def test_any_changed_or_missing_byte_is_noticed() -> None:
    line = Encoder().encode(
        9, Event(b'{"a":1}', T, "time"), source=SOURCE, at_ns=T, received_ns=T, durable=8
    )
    for index in range(len(line)):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[index] ^= 1 << bit
            with pytest.raises(BadLine):
                parse_line(bytes(flipped))
        with pytest.raises(BadLine):
            parse_line(line[:index])
    with pytest.raises(BadLine):
        parse_line(line + b"\n")


@given(st.binary(max_size=60))
def test_noise_is_a_bad_line(data: bytes) -> None:
    with pytest.raises(BadLine):
        parse_line(data)
    sealed = data + b',"crc":"%08x"}\n' % zlib.crc32(data)
    with pytest.raises(BadLine):
        parse_line(sealed)


@given(times)
def test_times_read_back(ns: int) -> None:
    assert parse_rfc3339(rfc3339(ns)) == ns
    assert len(rfc3339(ns)) == 30


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01t00:00:01.5z", 1_500_000_000),
        ("1970-01-01 01:00:00+01:00", 0),
        ("1969-12-31T23:30:00.000000001-00:30", 1),
        ("1970-01-01T00:00:00.0000000019Z", 1),
        ("1969-12-31T23:59:59.999999999Z", -1),
    ],
)
def test_times_that_people_write(text: str, ns: int) -> None:
    assert parse_rfc3339(text) == ns


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "2016-10-13", "2016-10-13T16:22:54", "2016-13-13T16:22:54Z"),
        *("2016-10-13T16:22:54.Z", "2016-10-13T25:00:00Z", "2016-10-13T16:22:54+99:00"),
        "2016-W41-4T16:22:5.255155116Z",
        "٢٠١٦-10-13T16:22:54.255155116Z",
        "2016-10-13T16:22:54.25515511٦Z",
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="a time is written like"):
        parse_rfc3339(text)
