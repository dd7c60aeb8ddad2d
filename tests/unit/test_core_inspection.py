from __future__ import annotations

import random

import pytest

from hypermux.core.inspection import Damage, Inspected, Inspector
from hypermux.core.recording import Encoder
from hypermux.model.records import Event

SECOND = 10**9


def line(seq: int, durable: int | None = None) -> bytes:
    ns = seq * SECOND
    event = Event(b'{"n":%d}' % seq, ns, "timeNano")
    return Encoder().encode(seq, event, source=None, at_ns=ns, received_ns=ns, durable=durable)


def inspect(
    data: bytes, end_seq: int | None, durable: int = 0, first_seq: int = 1, block: int = 1 << 20
) -> tuple[Inspected, list[int]]:
    taken: list[int] = []

    def take(parsed: object, offset: int) -> None:
        assert data[offset:].startswith(parsed.line)  # type: ignore[attr-defined]
        taken.append(parsed.seq)  # type: ignore[attr-defined]

    inspector = Inspector(first_seq, end_seq, durable, take)
    for start in range(0, len(data), block):
        inspector.feed(data[start : start + block])
    return inspector.finish(), taken


LINES = [line(seq, durable=seq - 1) for seq in range(1, 8)]
WHOLE = b"".join(LINES)


def test_a_sound_segment() -> None:
    for block in (1, 7, 1 << 20):
        found, taken = inspect(WHOLE, 8, block=block)
        assert found == Inspected(7, len(WHOLE), (), 6, None)
        assert taken == [1, 2, 3, 4, 5, 6, 7]


def test_a_changed_byte_costs_its_record() -> None:
    start = len(LINES[0]) + len(LINES[1])
    for at in range(start, start + len(LINES[2]) - 1):
        data = bytearray(WHOLE)
        data[at] ^= 1
        found, taken = inspect(bytes(data), 8)
        end = start + len(LINES[2])
        assert len(found.damages) == 1
        damage = found.damages[0]
        assert (damage.line, damage.offset, damage.end) == (3, start, end)
        assert (damage.first_seq, damage.last_seq, damage.lost) == (3, 3, 1)
        assert (damage.from_ns, damage.to_ns) == (2 * SECOND, 4 * SECOND)
        assert taken == [1, 2, 4, 5, 6, 7]


def test_a_changed_line_feed_costs_one_record_not_two() -> None:
    data = bytearray(WHOLE)
    data[len(LINES[0]) - 1] ^= 1
    found, taken = inspect(bytes(data), 8)
    assert [d.lost for d in found.damages] == [1]
    assert found.damages[0].end == len(LINES[0])
    assert taken == [2, 3, 4, 5, 6, 7]


def test_lines_that_were_cut_out_or_put_in() -> None:
    found, taken = inspect(b"".join(LINES[:2] + LINES[5:]), 8)
    assert [(d.offset, d.end, d.first_seq, d.last_seq) for d in found.damages] == [
        (len(LINES[0]) * 2, len(LINES[0]) * 2, 3, 5)
    ]
    assert found.damages[0].reason == "it has seq 6 in place of 3"
    found, taken = inspect(LINES[0] + b"what is this?\n" + b"".join(LINES[1:]), 8)
    assert [d.lost for d in found.damages] == [0]
    assert taken == [1, 2, 3, 4, 5, 6, 7]
    # A record of another place is none of this one's, whatever its checksum says.
    found, taken = inspect(LINES[0] + line(900) + b"".join(LINES[1:]), 8)
    assert taken == [1, 2, 3, 4, 5, 6, 7]
    assert [d.lost for d in found.damages] == [0]


def test_a_closed_segment_that_is_too_short_or_too_long() -> None:
    found, _ = inspect(b"".join(LINES[:4])[:-5], 8)
    assert [(d.first_seq, d.last_seq) for d in found.damages] == [(4, 7)]
    found, taken = inspect(WHOLE + b"void", 6)
    assert not found.damages
    assert taken == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("tail", [b"", b"torn", b"\0" * 500])
def test_what_was_not_synced_is_a_tail(tail: bytes) -> None:
    kept = b"".join(LINES[:5])
    found, _ = inspect(kept + tail, None, durable=5)
    assert not found.damages
    assert (found.last_seq, found.end) == (5, len(kept))
    assert found.tail == (len(kept) if tail else None)


def test_good_lines_behind_a_lost_page_are_a_tail_too() -> None:
    batch = [line(6, durable=5), line(7), line(8), line(9)]
    data = b"".join(LINES[:5] + batch[:1]) + b"\0" * len(batch[1]) + b"".join(batch[2:])
    found, _ = inspect(data, None)
    assert not found.damages
    assert (found.last_seq, found.durable) == (6, 5)
    assert found.tail == sum(map(len, LINES[:5] + batch[:1]))


def test_a_synced_end_that_is_gone_is_damage() -> None:
    kept = b"".join(LINES[:4])
    for rest in (b"", b"\0" * 300):
        found, _ = inspect(kept + rest, None, durable=7)
        assert found.tail is None
        assert [(d.first_seq, d.last_seq) for d in found.damages] == [(5, 7)]
        assert (found.last_seq, found.end) == (4, len(kept))
        assert found.damages[0].end == len(kept) + len(rest)


def test_every_record_is_taken_or_missing_whatever_is_done_to_the_bytes() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        data = bytearray(WHOLE)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(data))
            size = rng.choice((1, 1, 30, 300))
            how = rng.randrange(3)
            if how == 0:
                data[start : start + size] = bytes(rng.randrange(256) for _ in range(size))
            elif how == 1:
                del data[start : start + size]
            else:
                data[start:start] = data[: rng.randrange(len(data))]
            if not data:
                break
        found, taken = inspect(bytes(data), 8, block=rng.choice((13, 1 << 20)))
        missing = [seq for d in found.damages for seq in range(d.first_seq, d.last_seq + 1)]
        assert sorted(taken + missing) == list(range(1, 8))
        assert taken == sorted(taken)
        ends = [0]
        for damage in found.damages:
            assert isinstance(damage, Damage)
            assert ends[-1] <= damage.offset <= damage.end <= len(data)
            ends.append(damage.end)
