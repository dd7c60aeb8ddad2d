"""Decoding: both dialects, Docker and Podman, what is odd, and what is hostile."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.decoding import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_UNPARSED_TEXT,
    decode,
    decode_batch,
)
from hypermux.core.splitting import Oversize
from hypermux.model.records import Event, Unparsed

NANO = 1476375774255155116

DIALECT_A = (
    b'{"status":"start","id":"f296","from":"xjimmyshcn/busybox","Type":"container",'
    b'"Action":"start","Actor":{"ID":"f296","Attributes":{"":"","exitCode":"0","name":"test4",'
    b'"test3":"test3=test3"}},"time":1476375774,"timeNano":1476375774255155116}'
)
DIALECT_B = (
    b'{"Action":"MODIFIED","Actor":{"Attributes":{"ExitCode":"","Image":"busybox","Labels":null,'
    b'"Name":"test2"},"Id":"d180"},"From":"busybox","Id":"d180","Status":"Running",'
    b'"Time":1476017460,"TimeNano":1476017460533640000,"Type":"container"}'
)
DOCKER = (
    b'{"Type":"volume","Action":"create","Actor":{"ID":"v","Attributes":{"driver":"local"}},'
    b'"scope":"local","time":1700000000,"timeNano":1700000000000000001}'
)
PODMAN = (
    b'{"status":"health_status","id":"c","from":"localhost/a:1","HealthStatus":"healthy",'
    b'"Type":"container","Action":"health_status","Actor":{"ID":"c","Attributes":{}},'
    b'"scope":"local","time":1700000000,"timeNano":1700000000000000002}'
)


def event(message: bytes) -> Event:
    """Decode one message on every way, which must agree."""
    made = decode(message)
    assert decode_batch([message]) == [made]
    assert decode_batch([message, b"\xff"])[0] == made
    assert isinstance(made, Event), made
    return made


def unparsed(message: bytes) -> Unparsed:
    made = decode(message)
    assert decode_batch([message]) == [made]
    assert decode_batch([DOCKER, message, DOCKER])[1] == made
    assert isinstance(made, Unparsed), made
    return made


@pytest.mark.parametrize(
    ("message", "time_ns", "action"),
    [
        (DIALECT_A, NANO, "start"),
        (DIALECT_B, 1476017460533640000, "MODIFIED"),
        (DOCKER, 1700000000000000001, "create"),
        (PODMAN, 1700000000000000002, "health_status"),
    ],
)
def test_every_dialect_is_kept_to_the_byte(message: bytes, time_ns: int, action: str) -> None:
    assert event(message) == Event(message, time_ns, "timeNano", action)


@pytest.mark.parametrize(
    ("members", "time_ns", "time_from"),
    [
        ('"timeNano":1,"time":2', 1, "timeNano"),
        ('"timeNano":9214646399999999999', 9214646399999999999, "timeNano"),
        ('"timeNano":9214646400000000000,"time":5', 5_000_000_000, "time"),
        ('"timeNano":0,"time":5', 5_000_000_000, "time"),
        ('"timeNano":-6795364578871345152,"time":5', 5_000_000_000, "time"),
        ('"timeNano":-6795364578871345152,"time":-62135596800', None, "received"),
        ('"timeNano":0,"TimeNano":7', 7, "timeNano"),
        ('"time":9214646400', None, "received"),
        ('"Time":5', 5_000_000_000, "time"),
        ('"timeNano":1.47601746053364e+18', 1476017460533640000, "float"),
        ('"TimeNano":1.47601746053364e+18', 1476017460533640000, "float"),
        ('"timeNano":1476375774255155116.0', NANO, "float"),
        ('"timeNano":1476375774255155116.75', NANO, "float"),
        ('"time":1476375774.255155116', NANO, "float"),
        ('"timeNano":1e999,"time":5', 5_000_000_000, "time"),
        ('"timeNano":1e99999999999999999999,"time":5', 5_000_000_000, "time"),
        ('"timeNano":1e-99999999999,"time":5', 5_000_000_000, "time"),
        ('"timeNano":0.5', None, "received"),
        ('"time":9e-10,"Time":5', 5_000_000_000, "time"),
        ('"time":1e-99999999999', None, "received"),
        ('"timeNano":"1476375774255155116","time":5', 5_000_000_000, "time"),
        ('"timeNano":true,"time":null', None, "received"),
        ('"timeNano":[1],"time":{"a":1}', None, "received"),
        ('"timeNano":99999999999999999999', None, "received"),
        ('"a":1', None, "received"),
    ],
)
def test_times(members: str, time_ns: int | None, time_from: str) -> None:
    message = b'{"Action":"x",%s}' % members.encode()
    assert event(message) == Event(message, time_ns, time_from, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "action"),
    [
        ('"Action":"a","status":"b"', "a"),
        ('"status":"b"', "b"),
        ('"Action":"","status":"b"', "b"),
        ('"Status":"Running"', "Running"),
        ('"Action":null,"status":7', ""),
        ('"Action":["a"],"status":"b"', "b"),
        ('"Action":"\\u00e9 "', "é "),
        ('"x":1', ""),
    ],
)
def test_actions(members: str, action: str) -> None:
    message = b'{"timeNano":%d,%s}' % (NANO, members.encode())
    assert event(message) == Event(message, NANO, "timeNano", action)


def test_an_object_without_event_fields_is_an_event() -> None:
    assert event(b"{}") == Event(b"{}", None, "received", "")


@pytest.mark.parametrize(
    ("message", "raw"),
    [
        ('{"a":"é"}'.encode(), rb'{"a":"\u00e9"}'),
        (
            '{"a":"é😀\x7f\u2028b\u0416"}'.encode(),
            rb'{"a":"\u00e9\ud83d\ude00\u007f\u2028b\u0416"}',
        ),
        ('{"a":\t\r\n"é"\n\n}'.encode(), rb'{"a":   "\u00e9"  }'),
        ('{"é":"😀\u2028"}'.encode(), rb'{"\u00e9":"\ud83d\ude00\u2028"}'),
        (b'{"a":"\x7f"}', rb'{"a":"\u007f"}'),
        (b'\r\n {"a":\n\t1.50,\r\n"b":[ ]}\n', b' {"a":  1.50,  "b":[ ]}'),
        ('{"n":12345678901234567890.10E+2,"é":-0}'.encode(), None),
        ('{"a":1,"a":2,"b":"é"}'.encode(), rb'{"a":1,"a":2,"b":"\u00e9"}'),
        (b'{"a":"\\n\\/\\u0041\\ud83d\\ude00"}\n', b'{"a":"\\n\\/\\u0041\\ud83d\\ude00"}'),
    ],
)
def test_the_unusual_is_rewritten_as_text(message: bytes, raw: bytes | None) -> None:
    if raw is None:
        raw = message.replace("é".encode(), rb"\u00e9")
    assert event(message).raw == raw


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "not JSON: Input data was truncated"),
        (b"hello", "not JSON: invalid character (byte 0)"),
        (b'{"a":1', "not JSON: Input data was truncated"),
        (b'{"a":1}{"b":2}', "not JSON: trailing characters (byte 7)"),
        (b'{"a":NaN}', "not JSON: invalid character (byte 5)"),
        (b'{"a":"\n"}', "not JSON: invalid character (byte 6)"),
        (b'{"a":"\x00"}', "not JSON: invalid character (byte 6)"),
        (b'\xef\xbb\xbf{"a":1}', "not JSON: invalid character (byte 0)"),
        ('{"a":\xa01}'.encode(), "not JSON: invalid character (byte 5)"),
        (rb'{"a":"\ud800 unpaired"}', "not JSON: unexpected end of hex escape (byte 12)"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
    ],
)
def test_what_is_no_event(message: bytes, reason: str) -> None:
    made = unparsed(message)
    assert (made.size, made.text) == (len(message), message.decode(errors="replace"))
    assert made.reason.startswith(reason[:20])


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 100_000])
@pytest.mark.parametrize(("opens", "closes"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_unparsed(opens: bytes, closes: bytes, depth: int) -> None:
    made = unparsed(b'{"a":' + opens * (depth - 1) + b"1" + closes * (depth - 1) + b"}")
    assert made.reason == "nested too deep"


def test_nesting_is_counted_and_brackets_in_strings_are_not() -> None:
    event(b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")
    event(b'{"a":[' + b"{},[]," * 500 + b"1]}")
    event(b'{"a":"' + rb"{[\"" * 500 + b'"}')


def test_numbers_too_long_for_readers_are_unparsed() -> None:
    digits = b"9" * (MAX_DIGITS + 1)
    assert "digits" in unparsed(b'{"a":%s}' % digits).reason
    assert "digits" in unparsed(b'{"timeNano":%s}' % digits).reason
    event(b'{"a":%s}' % digits[1:])
    event(b'{"a":"%s"}' % digits)


def test_an_oversize_message_tells_its_true_size() -> None:
    made = unparsed(Oversize(b'{"a":1', 10**6))
    assert made == Unparsed('{"a":1', 10**6, "over the size limit")


@pytest.mark.parametrize("beginning", [DIALECT_A, DIALECT_A + b"\n", '{"a":"é"}'.encode()])
def test_an_oversize_message_that_begins_like_an_event_is_none(beginning: bytes) -> None:
    made = unparsed(Oversize(beginning, 10**6))
    assert made == Unparsed(beginning.decode(), 10**6, "over the size limit")


def test_the_text_of_unparsed_is_capped() -> None:
    assert unparsed(b"x" * 10**5) == Unparsed(
        "x" * MAX_UNPARSED_TEXT, 10**5, "not JSON: invalid character (byte 0)"
    )
    assert len(unparsed("é".encode() * 5000).text) == MAX_UNPARSED_TEXT


def test_hostile_strings_take_no_more_than_linear_time() -> None:
    for message in (b'"' + rb"\"" * 120_000, b'{"a":"' + rb"\\" * 120_000, b'{"' * 80_000):
        assert unparsed(message).size == len(message)


def test_results_keep_the_order_of_a_mixed_batch() -> None:
    messages = [DIALECT_A, b"x", DIALECT_A + b"\n", '{"a":"é"}'.encode(), DIALECT_B, b"{}"]
    assert decode_batch(messages) == [decode(m) for m in messages]
    assert decode_batch([]) == []


TEXT = st.text(max_size=8) | st.sampled_from(['"', "\\", "\x7f", "{[", "\u2028", "😀", "\r\n"])
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["Action", "status", "Status", "time", "timeNano", "Time", "TimeNano"])


@given(
    st.dictionaries(KEYS | TEXT, JSON, max_size=6),
    st.booleans(),
    st.sampled_from([None, 0, 2, "\t"]),
)
@settings(max_examples=100, deadline=None)
def test_every_object_is_an_event_of_equal_printable_json(
    value: dict[str, Any], ascii_only: bool, indent: int | str | None
) -> None:
    message = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    made = event(message)
    assert all(0x20 <= byte < 0x7F for byte in made.raw)
    assert json.loads(made.raw) == value
    assert made.time_ns is None or 0 < made.time_ns < 9_214_646_400 * 10**9
    assert (made.time_ns is None) == (made.time_from == "received")
    assert event(made.raw) == made


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_no_input_raises_and_all_ways_agree(seed: int) -> None:
    rng = random.Random(seed)
    message = bytearray(rng.choice([DIALECT_A, DIALECT_B, DOCKER, PODMAN]))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(message))
        match rng.randrange(3):
            case 0:
                message[at] = rng.randrange(256)
            case 1:
                del message[at : at + rng.randrange(9)]
            case _:
                message[at:at] = rng.choice(
                    [b" ", b"\\", b'"', b"{", b"[", b"\xc3\xa9", b"\n", b"e9"]
                )
        if not message:
            break
    check(bytes(message))


@given(
    st.binary(max_size=60)
    | st.text(alphabet='{}[]":,\\0123e.-+ntul \n', max_size=40).map(str.encode)
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_taken(message: bytes) -> None:
    check(message)


def check(message: bytes) -> None:
    made = decode(message)
    assert decode_batch([message]) == [made]
    assert decode_batch([message, b"\xff"])[0] == made
    if isinstance(made, Event):
        assert all(0x20 <= byte < 0x7F for byte in made.raw)
        assert json.loads(made.raw) == json.loads(message)
    else:
        assert made.size == len(message)
