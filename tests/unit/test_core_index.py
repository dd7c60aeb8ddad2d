from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core import index as module
from hypermux.core.index import NEVER_NS, Index, Summary
from hypermux.core.recording import BadLine

BATCHES = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 40_000), st.integers(0, 99), st.integers(0, 9)),
    max_size=20,
)


def build(batches: list[tuple[int, int, int, int]]) -> tuple[Index, list[tuple[int, int, int]]]:
    """Return an index, and (seq, offset, largest `at`) of each batch."""
    index, places, seq = Index.empty(7), [], 7
    for count, size, least, more in batches:
        places.append((seq, index.size, least + more))
        index.add(b"x" * size, seq + count - 1, least, least + more)
        seq += count
    return index, places


@given(BATCHES, st.integers(0, 120))
@settings(max_examples=200)
def test_a_search_never_begins_too_late(
    batches: list[tuple[int, int, int, int]], at_ns: int
) -> None:
    index, places = build(batches)
    again, coverage = Index.from_bytes(index.to_bytes(b"seen\n"))
    assert coverage == b"seen\n"
    for found in (index, again):
        for seq, offset, _ in places:
            start, begin = found.block_of(seq)
            assert start <= seq
            assert offset - module.BLOCK - 40_000 <= begin <= offset
        wanted = next((seq for seq, _, largest in places if largest >= at_ns), None)
        first = found.since(at_ns)
        assert (first is None) == (wanted is None)
        assert first is None or wanted is None or first <= wanted
    largest = max((p[2] for p in places), default=NEVER_NS)
    data = index.to_bytes()
    assert Summary.from_bytes(data[:512]) == Summary(7, index.last_seq, index.size, largest)


@given(BATCHES, st.integers(0, 400_000), st.integers(0, 200_000), st.integers(0, 200_000))
@settings(max_examples=200)
def test_an_end_is_that_of_a_batch(
    batches: list[tuple[int, int, int, int]], begin: int, size: int, more: int
) -> None:
    index, places = build(batches)
    near, far = begin + size, begin + size + more
    found = index.end_within(begin, near, far)
    blocks = [index.block_of(seq) for seq, _, _ in places]
    ends = sorted({(seq - 1, offset) for seq, offset in blocks if begin < offset <= far})
    before = [end for end in ends if end[1] <= near]
    assert found == (before[-1] if before else ends[0] if ends else None)


def test_one_that_is_not_whole_is_none() -> None:
    data = build([(1, 9, 1, 1)] * 3)[0].to_bytes()
    for n in range(0, len(data), 7):
        with pytest.raises(BadLine):
            Index.from_bytes(data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :])
    with pytest.raises(BadLine):
        Index.from_bytes(b"")
