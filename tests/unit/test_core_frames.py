from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.frames import FrameSplitter
from hypermux.model.errors import FailureKind

LIMIT = 70_000


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True, rsv: int = 0) -> bytes:
    first = bytes([fin << 7 | rsv << 4 | opcode])
    size = len(payload)
    if size < 126:
        return first + bytes([size]) + payload
    if size < 65536:
        return first + b"\x7e" + struct.pack("!H", size) + payload
    return first + b"\x7f" + struct.pack("!Q", size) + payload


def split(data: bytes, step: int | None = None) -> tuple[list[bytes], bytes, object]:
    splitter = FrameSplitter(LIMIT)
    messages: list[bytes] = []
    control = b""
    for at in range(0, len(data), step or len(data) or 1):
        more, passed = splitter.feed(data[at : at + (step or len(data))])
        messages += more
        control += passed
    return messages, control, splitter.ended


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, LIMIT])
def test_every_length_form(size: int) -> None:
    payload = b"x" * size
    assert split(frame(payload) + frame(b"next")) == ([payload, b"next"], b"", None)


def test_control_frames_pass_between_fragments_and_nothing_overtakes() -> None:
    ping, pong = frame(b"p", 9), frame(b"q", 10)
    data = (
        frame(b"a")
        + frame(b"b1", 1, fin=False)
        + ping
        + frame(b"", 0, fin=False)
        + pong
        + frame(b"b2", 0)
        + frame(b"c", 2)
        + frame(b"d1", 2, fin=False)
        + frame(b"d2", 0)
        + frame(b"e")
    )
    for step in (None, 1, 3):
        assert split(data, step) == ([b"a", b"b1b2", b"c", b"d1d2", b"e"], ping + pong, None)


def test_invalid_utf8_is_handed_over() -> None:
    data = frame(b"\xff\xfe") + frame(b"\xc3", 1, fin=False) + frame(b"\x28", 0)
    assert split(data)[0] == [b"\xff\xfe", b"\xc3\x28"]


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        (b"", 1005, "1005 no status"),
        (struct.pack("!H", 1001) + b"bye", 1001, "1001 going away (bye)"),
        (struct.pack("!H", 4321), 4321, "4321"),
        (
            struct.pack("!H", 1008) + b"\x1b[2J\n\xff",
            1008,
            "(\\x1b[2J\\n\N{REPLACEMENT CHARACTER})",
        ),
    ],
)
def test_close_ends_and_is_passed_on(payload: bytes, code: int, says: str) -> None:
    close = frame(payload, 8)
    splitter = FrameSplitter(LIMIT)
    assert splitter.feed(frame(b"a") + close + frame(b"after")) == ([b"a"], close)
    assert splitter.ended is not None
    assert splitter.ended.kind is FailureKind.CLOSE
    assert splitter.ended.code == code
    assert says in splitter.ended.detail
    assert splitter.feed(frame(b"later")) == ([], b"")


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (b"\x81\x81mask\x00", FailureKind.PROTOCOL),
        (b"\x81\xfe", FailureKind.PROTOCOL),
        (frame(b"x", rsv=4), FailureKind.PROTOCOL),
        (frame(b"x", 3), FailureKind.PROTOCOL),
        (frame(b"x", 11), FailureKind.PROTOCOL),
        (frame(b"x", 9, fin=False), FailureKind.PROTOCOL),
        (b"\x89\x7e\x00\x7e" + b"x" * 126, FailureKind.PROTOCOL),
        (frame(b"x", 0), FailureKind.PROTOCOL),
        (frame(b"x", 1, fin=False) + frame(b"y", 1), FailureKind.PROTOCOL),
        (b"\x81\x7e\x00\x05hello", FailureKind.PROTOCOL),
        (b"\x81\x7f\x00\x00\x00\x00\x00\x00\x00\x05hello", FailureKind.PROTOCOL),
        (frame(b"x", 8), FailureKind.PROTOCOL),
        (b"\x81\x7f" + struct.pack("!Q", LIMIT + 1), FailureKind.OVERSIZE),
        (b"\x82\x7f" + struct.pack("!Q", (1 << 64) - 1), FailureKind.OVERSIZE),
        (
            frame(b"x" * LIMIT, 1, fin=False) + frame(b"", 0, fin=False) + b"\x80\x01",
            FailureKind.OVERSIZE,
        ),
    ],
)
def test_faults_end_it_and_lose_nothing_before_them(bad: bytes, kind: FailureKind) -> None:
    for step in (None, 1000):
        messages, _, ended = split(frame(b"good") + bad + frame(b"never"), step)
        assert messages == [b"good"]
        assert getattr(ended, "kind", None) is kind


def test_oversize_is_refused_at_its_header() -> None:
    splitter = FrameSplitter(10)
    splitter.feed(b"\x81\x0b")
    assert splitter.ended is not None
    assert "11 bytes" in splitter.ended.detail


frames = st.builds(
    frame,
    st.binary(max_size=200),
    st.sampled_from([0, 1, 1, 1, 1, 2, 8, 9, 10, 3]),
    fin=st.sampled_from([True, True, True, False]),
)


@given(st.lists(frames | st.binary(max_size=4), max_size=12), st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_any_cut_gives_the_same(parts: list[bytes], step: int) -> None:
    data = b"".join(parts)
    whole = split(data)
    assert split(data, 1) == whole
    assert split(data, step) == whole


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 3)), max_size=20))
@settings(max_examples=100, deadline=None)
def test_what_is_sent_is_what_comes(sent: list[tuple[bytes, int]]) -> None:
    data, control = b"", b""
    for payload, cuts in sent:
        size = len(payload) // (cuts + 1) + 1
        pieces = [payload[i : i + size] for i in range(0, len(payload), size)] or [b""]
        for i, piece in enumerate(pieces):
            data += frame(piece, 0 if i else 1, fin=i == len(pieces) - 1)
            ping = frame(b"%d" % i, 9)
            data += ping
            control += ping
    assert split(data, 7) == ([payload for payload, _ in sent], control, None)
