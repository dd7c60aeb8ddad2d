"""The splitter: every separator a stream may use, limits, and any cut of the reads."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.splitting import KEPT_OF_OVERSIZE, LineSplitter, Oversize

BIG = 256 * 1024


def whole(data: bytes, limit: int = BIG) -> list[bytes]:
    splitter = LineSplitter(limit)
    return splitter.feed(data) + splitter.finish()


def bytewise(data: bytes, limit: int = BIG) -> list[bytes]:
    splitter = LineSplitter(limit)
    messages = [m for i in range(len(data)) for m in splitter.feed(data[i : i + 1])]
    return messages + splitter.finish()


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        (b"", []),
        (b" \r\n\t\x1e\n", []),
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\r\n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}']),
        (b'\x1e{"a":1}\n\x1e{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'\x1e{"a":1}\x1e{"b":2}', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}{"b":{}}[{}] {"c":3}', [b'{"a":1}', b'{"b":{}}', b"[{}]", b'{"c":3}']),
        (b'{\n "a": 1\n}\n{"b":2}\n', [b'{\n "a": 1\n}', b'{"b":2}']),
        (rb'{"a":"}{\"\\"}{"b":"]"}', [rb'{"a":"}{\"\\"}', b'{"b":"]"}']),
        (b'oops {"a":1}\n{"b":2}\n', [b'oops {"a":1}', b'{"b":2}']),
        (b'{"a":1} oops\n12\n"x"\nnull', [b'{"a":1}', b"oops", b"12", b'"x"', b"null"]),
        (b'{"a":"cut\n{"b":2}\n', [b'{"a":"cut', b'{"b":2}']),
        (b'{"a":"cut\\\n{"b":2}\n', [b'{"a":"cut\\', b'{"b":2}']),
        (b'{"a":[\x1e{"b":2}\n', [b'{"a":[', b'{"b":2}']),
        (b'{"a":1]\n}\n', [b'{"a":1]', b"}"]),
        (b'{"a":1', [b'{"a":1']),
    ],
)
def test_messages(data: bytes, messages: list[bytes]) -> None:
    assert whole(data) == messages
    assert bytewise(data) == messages


def test_a_message_comes_as_soon_as_it_is_complete() -> None:
    splitter = LineSplitter(BIG)
    assert splitter.feed(b'{"a":') == []
    assert splitter.feed(b"1}") == [b'{"a":1}']
    assert splitter.feed(b"\n") == []
    assert splitter.feed(b'{"b":2}') == [b'{"b":2}']
    assert splitter.finish() == []


def test_a_message_may_have_exactly_the_limit() -> None:
    assert whole(b'{"a":1}\n', 7) == [b'{"a":1}']
    [message] = whole(b'{"a":1}\n', 6)
    assert isinstance(message, Oversize)
    assert message.size == 7


def test_an_oversize_message_keeps_its_beginning_and_size_and_the_next_comes() -> None:
    value = json.dumps({"a": "x" * 50_000}).encode()
    for split in (whole, bytewise):
        first, second = split(value + b'{"b":2}\n', 20_000)
        assert isinstance(first, Oversize)
        assert (first.size, first) == (len(value), value[:KEPT_OF_OVERSIZE])
        assert second == b'{"b":2}'


def test_a_stream_gone_wrong_is_bounded_and_finds_its_way_back() -> None:
    splitter = LineSplitter(100)
    assert splitter.feed(b'{"never":{"closed":1\n') == []
    [broken] = splitter.feed(b'{"a":"' + b"x" * 100 + b'"}\n')
    assert isinstance(broken, Oversize)
    assert splitter.feed(b'{"b":2}\n') == [b'{"b":2}']
    for _ in range(100):
        splitter.feed(b"[" * 1000)
    assert len(splitter._kept) <= KEPT_OF_OVERSIZE


def test_a_buffer_of_the_caller_is_not_kept() -> None:
    buffer = bytearray(b'{"a":1}\n')
    [message] = LineSplitter(BIG).feed(buffer)
    assert type(message) is bytes


PIECES = st.lists(
    st.sampled_from(
        [*(bytes([c]) for c in b'{}[]"\\\n\r \x1ea:1,\xff'), b'{"a":1}', b'{"a":"b"}\n', b'"x"\n']
    ),
    max_size=40,
).map(b"".join)


def described(messages: list[bytes]) -> list[tuple[bytes, int | None]]:
    return [(m, m.size if isinstance(m, Oversize) else None) for m in messages]


@given(PIECES, st.integers(1, 12), st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_cut_gives_the_same_messages(data: bytes, limit: int, cuts: list[int]) -> None:
    splitter = LineSplitter(limit)
    edges = [0, *sorted(cuts), max([len(data), *cuts])]
    messages = [m for a, b in itertools.pairwise(edges) for m in splitter.feed(data[a:b])]
    messages += splitter.finish()
    assert described(messages) == described(whole(data, limit)) == described(bytewise(data, limit))


@given(PIECES)
@settings(max_examples=100, deadline=None)
def test_nothing_but_white_space_is_left_out(data: bytes) -> None:
    kept = b"".join(whole(data))
    assert kept.translate(None, b" \t\r\n\x1e") == data.translate(None, b" \t\r\n\x1e")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=5),
    st.sampled_from(["", " ", "\n", "\r\n", "\x1e", "\n\x1e", "\n\n"]),
    st.sampled_from([None, 1]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_values_come_back_whatever_separates_them(
    values: list[object], separator: str, indent: int | None, ascii_only: bool
) -> None:
    texts = [json.dumps(v, indent=indent, ensure_ascii=ascii_only).encode() for v in values]
    data = separator.encode().join(texts)
    assert whole(data) == bytewise(data) == texts
