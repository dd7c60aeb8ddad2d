from __future__ import annotations

from hypermux.core.recording import BadLine, Encoder, Parsed
from hypermux.core.segments import (
    first_seqs,
    recount,
    recover,
    segment_name,
    sources_name,
    split_lines,
    torn_name,
)
from hypermux.model.accounts import SourceId
from hypermux.model.records import Event

FIRST = 100


def lines(durables: list[int | None], first_seq: int = FIRST) -> list[bytes]:
    encoder, source = Encoder(), SourceId("a", "r")
    return [
        encoder.encode(
            first_seq + n,
            Event(b'{"n":%d}' % n, n, "timeNano"),
            source=source,
            at_ns=n,
            received_ns=n,
            durable=durable,
        )
        for n, durable in enumerate(durables)
    ]


# Three batches: two records, three, two; each written after the last one's sync.
BATCHES = lines([99, None, 101, None, None, 104, None])


def nothing(parsed: Parsed) -> None:
    pass


def test_names_sort_as_numbers_do() -> None:
    seqs = [1, 9, 10, 99_999, 10**19]
    names = [segment_name(seq) for seq in seqs]
    assert sorted(names) == names
    others = [sources_name(1), torn_name(5, "abcd"), "journal.toml", "current.ndjson", "1.ndjson"]
    assert first_seqs([*others, *reversed(names), names[0] + ".bad"]) == seqs


def test_lines_keep_their_ends() -> None:
    assert list(split_lines(b"a\n\nb\nc")) == [b"a\n", b"\n", b"b\n", b"c"]
    assert list(split_lines(b"")) == []


def test_a_whole_segment_is_kept() -> None:
    seen: list[int] = []
    data = b"".join(BATCHES)
    found = recover(data, FIRST, lambda parsed: seen.append(parsed.seq))
    assert (found.keep, found.last_seq, found.durable) == (len(data), 106, 104)
    assert found.bad is None
    assert seen == list(range(100, 107))


def test_an_empty_segment_follows_what_was_synced() -> None:
    found = recover(b"", FIRST, nothing)
    assert (found.keep, found.last_seq, found.durable, found.bad) == (0, 99, 99, None)


def test_every_prefix_recovers_to_whole_records_and_is_never_called_damaged() -> None:
    data = b"".join(BATCHES)
    ends = [0]
    for line in BATCHES:
        ends.append(ends[-1] + len(line))
    for size in range(len(data) + 1):
        found = recover(data[:size], FIRST, nothing)
        kept = max(n for n, end in enumerate(ends) if end <= size)
        assert (found.keep, found.last_seq) == (ends[kept], FIRST + kept - 1)
        assert not found.damaged
        assert (found.bad is None) == (size == ends[kept])


def test_every_flipped_byte_is_damage_up_to_d_and_a_torn_tail_behind() -> None:
    data = b"".join(BATCHES)
    start = 0
    for index, line in enumerate(BATCHES):
        for at in range(start, start + len(line)):
            harmed = bytearray(data)
            harmed[at] ^= 0x41
            found = recover(bytes(harmed), FIRST, nothing)
            # The records of the first two batches were synced when the third was written, unless
            # it is the line that said so that is harmed.
            assert found.damaged == (index < 5)
            assert found.bad is not None
            assert (found.bad.line, found.bad.offset, found.bad.seq) == (
                index + 1,
                start,
                100 + index,
            )
            assert found.keep == start
        start += len(line)


def test_good_lines_behind_a_lost_page_of_the_last_batch_are_not_kept() -> None:
    harmed = [*BATCHES[:5], b"\0" * len(BATCHES[5]), BATCHES[6]]
    found = recover(b"".join(harmed), FIRST, nothing)
    assert (found.last_seq, found.damaged) == (104, False)


def test_a_missing_line_is_noticed() -> None:
    found = recover(b"".join([*BATCHES[:1], *BATCHES[2:]]), FIRST, nothing)
    assert found.damaged
    assert found.bad is not None
    assert "seq 102 in place of 101" in found.bad.reason


def test_a_record_that_cannot_be_taken_is_bad() -> None:
    def refuse(parsed: Parsed) -> None:
        if parsed.seq == 105:
            raise BadLine("no")

    found = recover(b"".join(BATCHES), FIRST, refuse)
    assert (found.last_seq, found.damaged) == (104, False)


def test_a_closed_segment_is_good_up_to_its_successor() -> None:
    seen: list[int] = []
    data = b"".join(BATCHES)

    def take(parsed: Parsed) -> None:
        seen.append(parsed.seq)

    assert recount(data, FIRST, 107, take) is None
    assert recount(data + b"junk", FIRST, 107, nothing) is None
    assert seen == list(range(100, 107))
    seen.clear()
    assert recount(data, FIRST, 103, take) is None
    assert seen == [100, 101, 102]
    short = recount(data, FIRST, 109, nothing)
    assert short is not None
    assert (short.line, short.offset, short.seq) == (8, len(data), 107)
    empty = recount(b"", FIRST, 101, nothing)
    assert empty is not None
    assert empty.line == 1
    torn = recount(data[:-3], FIRST, 107, nothing)
    assert torn is not None
    assert torn.seq == 106
