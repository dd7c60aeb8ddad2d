from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.frames import MAX_SENSIBLE, FrameSplitter
from hypermux.core.splitting import KEPT_OF_OVERSIZE, Oversize
from hypermux.model.errors import FailureKind

LIMIT = 70_000
SMALL = 150


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True, rsv: int = 0) -> bytes:
    first = bytes([fin << 7 | rsv << 4 | opcode])
    size = len(payload)
    if size < 126:
        return first + bytes([size]) + payload
    if size < 65536:
        return first + b"\x7e" + struct.pack("!H", size) + payload
    return first + b"\x7f" + struct.pack("!Q", size) + payload


def split(
    data: bytes, step: int | None = None, limit: int = LIMIT
) -> tuple[list[bytes], bytes, object]:
    splitter = FrameSplitter(limit)
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
        (b"\x81\x7f" + struct.pack("!Q", MAX_SENSIBLE + 1), FailureKind.PROTOCOL),
        (b"\x82\x7f" + struct.pack("!Q", 1 << 63), FailureKind.PROTOCOL),
        (b"\x82\x7f" + struct.pack("!Q", (1 << 64) - 1), FailureKind.PROTOCOL),
        (
            frame(b"x", 1, fin=False) + b"\x80\x7f" + struct.pack("!Q", MAX_SENSIBLE),
            FailureKind.PROTOCOL,
        ),
        (frame(b"x" * (LIMIT + 1), 1, fin=False) + frame(b"y", 1), FailureKind.PROTOCOL),
    ],
)
def test_faults_end_it_and_lose_nothing_before_them(bad: bytes, kind: FailureKind) -> None:
    for step in (None, 1000):
        messages, _, ended = split(frame(b"good") + bad + frame(b"never"), step)
        assert messages == [b"good"]
        assert getattr(ended, "kind", None) is kind


def sizes(messages: list[bytes]) -> list[int | None]:
    """What tells an oversize message from one that is as long as what is kept of it."""
    return [m.size if isinstance(m, Oversize) else None for m in messages]


BIG = bytes(range(256)) * (2 * LIMIT // 256)


@pytest.mark.parametrize(
    "frames",
    [
        [frame(BIG)],
        [frame(BIG, 2)],
        [frame(BIG, fin=False), frame(b"", 0)],
        [frame(BIG[:LIMIT], fin=False), frame(BIG[LIMIT:], 0)],
        [frame(BIG[:9], 2, fin=False), frame(BIG[9:], 0)],
        [frame(b"", fin=False), frame(BIG[:9], 0, fin=False), frame(BIG[9:], 0)],
        [frame(BIG[i : i + 5000], 0 if i else 1, fin=False) for i in range(0, len(BIG), 5000)]
        + [frame(b"", 0)],
    ],
)
@pytest.mark.parametrize("step", [None, 1, 1000])
def test_an_oversize_message_has_its_place(frames: list[bytes], step: int | None) -> None:
    ping = frame(b"p", 9)
    data = frame(b"a") + ping.join(frames) + frame(b"b") + frame(b"c", 2)
    messages, control, ended = split(data, step)
    assert messages == [b"a", BIG[:KEPT_OF_OVERSIZE], b"b", b"c"]
    assert sizes(messages) == [None, len(BIG), None, None]
    assert (control, ended) == (ping * (len(frames) - 1), None)


@pytest.mark.parametrize("whole", [True, False])
def test_an_oversize_message_is_not_held(whole: bool) -> None:
    splitter = FrameSplitter(LIMIT)
    piece, count = b"x" * LIMIT, 200
    splitter.feed(
        b"\x81\x7f" + struct.pack("!Q", LIMIT * count) if whole else frame(b"", fin=False)
    )
    messages: list[bytes] = []
    for n in range(count):
        data = piece if whole else frame(piece, 0, fin=n == count - 1)
        messages += splitter.feed(data)[0]
        assert len(splitter._held) + len(splitter._fragments or b"") <= LIMIT
    assert messages == [b"x" * KEPT_OF_OVERSIZE]
    assert sizes(messages) == [LIMIT * count]


def test_of_an_oversize_message_never_the_whole_is_kept() -> None:
    messages, _, _ = split(frame(b"x" * 11) + frame(b"{}"), None, 10)
    assert (messages, sizes(messages)) == ([b"x" * 10, b"{}"], [11, None])


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
    for limit in (LIMIT, SMALL):
        whole = split(data, None, limit)
        for cut in (1, step):
            pieces = split(data, cut, limit)
            assert pieces == whole
            assert sizes(pieces[0]) == sizes(whole[0])


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
    messages, passed, ended = split(data, 7, SMALL)
    assert sizes(messages) == [len(p) if len(p) > SMALL else None for p, _ in sent]
    assert messages == [p if len(p) <= SMALL else p[: len(p) - 1] for p, _ in sent]
    assert (passed, ended) == (control, None)
