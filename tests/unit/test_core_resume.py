"""What of a snapshot is new: a test per row of the tables, and a model that checks them all."""

from __future__ import annotations

import base64
import random
from collections import Counter
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.resume import (
    AUDIT_BURST,
    AUDIT_EVENTS,
    AUDIT_MAX_S,
    AUDIT_MIN_S,
    AUDIT_S,
    REMEMBERED,
    RING,
    Audit,
    AuditTimes,
    Expected,
    Finding,
    Resume,
    Seen,
    compare,
    digest_of,
    find,
    first_anchor,
    lost_more,
)
from hypermux.model.records import Event, Unparsed


def seen(text: str, anchor: str | None = "") -> Seen:
    """Remember each letter as an event, its place as its time."""
    made = Seen(None if anchor is None else anchor.encode())
    for time_ns, letter in enumerate(text, 1):
        made.add(letter.encode(), time_ns)
    return made


def ring(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


def new(remembered: Seen, snapshot: str, *, whole: bool = True) -> tuple[str, bool]:
    found = compare(remembered, ring(snapshot), whole=whole)
    return "".join(snapshot[place] for place in found.new), found.complete


@pytest.mark.parametrize(
    ("says", "remembered", "anchor", "snapshot", "expected", "complete"),
    [
        ("a first connection has nothing to resume", "", None, "abc", "", False),
        ("nor with an empty ring", "", None, "", "", False),
        ("nor with events of a connection that knew no ring", "ab", None, "abc", "", False),
        ("nothing happened", "abc", "", "abc", "", True),
        ("some happened", "abc", "", "abcde", "de", True),
        ("the ring has turned, but not past the last seen", "abc", "", "cdefg", "defg", True),
        ("exactly what was seen was pushed out", "abc", "", "defgh", "defgh", False),
        ("the engine was restarted, nothing since", "abc", "", "", "", False),
        ("the engine was restarted, some since", "abc", "", "xy", "xy", False),
        ("an empty ring at first, nothing since: a restart cannot be told", "", "", "", "", False),
        ("an empty ring at first, some since", "", "", "ab", "ab", False),
        ("nothing seen, but the first ring's newest is there", "", "b", "ab", "", True),
        ("and what is behind it is new", "", "b", "abcd", "cd", True),
        ("also where it is the oldest of the ring", "", "a", "abc", "bc", True),
        ("what lies before the anchor is not ours", "d", "c", "abcde", "e", True),
        ("the anchor was pushed out, a seen one not", "de", "c", "def", "f", True),
        ("anchor and seen were pushed out", "de", "c", "fgh", "fgh", False),
        ("events that the stream dropped silently are found", "abe", "", "abcdef", "cdf", True),
        ("ring and stream order differ", "acb", "", "abcd", "d", True),
        ("a true repeat survives by count", "aab", "", "aaba", "a", True),
        ("and repeats that were all seen do not come again", "aaba", "", "aab", "", True),
        ("a repeat of what is before the anchor", "a", "b", "aba", "a", True),
        ("the memory is longer than the ring", "abcdef", "", "efg", "g", True),
    ],
)
def test_compare(
    says: str, remembered: str, anchor: str | None, snapshot: str, expected: str, complete: bool
) -> None:
    assert new(seen(remembered, anchor), snapshot) == (expected, complete), says


@pytest.mark.parametrize(
    ("remembered", "snapshot", "expected", "complete"),
    [
        ("cde", "abcdef", "f", True),  # a and b: from the same second, older than the memory
        ("cde", "abcxdef", "xf", True),
        ("cde", "xyz", "xyz", False),
        ("cde", "", "", False),
    ],
)
def test_a_backlog_by_time_begins_at_its_first_remembered(
    remembered: str, snapshot: str, expected: str, complete: bool
) -> None:
    assert new(seen(remembered), snapshot, whole=False) == (expected, complete)


@given(st.integers(0, 2**32), st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_an_engine_and_a_source_that_loses_its_connection(
    seed: int, before: int, during: int
) -> None:
    """Everything is recorded once when the ring holds it, and a hole is never called complete."""
    rng = random.Random(seed)
    # Repeats have the same nanosecond in them: they come one behind the other.
    events = [b"%d" % rng.choice([n, n & ~1]) for n in range(before + during)]
    recorded: list[bytes] = []
    memory = Seen(b"")
    live = events[:before]
    for place in range(0, len(live) - 1, 7):  # publication order is not that of the ring
        live[place], live[place + 1] = live[place + 1], live[place]
    for event in live:
        memory.add(event, 1)
        recorded.append(event)
    snapshot = events[-RING:] if events else []
    found = compare(memory, snapshot, whole=True)
    recorded += [snapshot[place] for place in found.new]
    over = Counter(recorded) - Counter(events)
    lost = Counter(events) - Counter(recorded)
    assert not over
    cut_apart = len(events) > RING and events[-RING - 1] == events[-RING]  # a repeat at the edge
    if found.complete and not cut_apart:
        assert not lost
    assert sum(lost.values()) - max(0, during - RING) in ((0, 1) if cut_apart else (0,))
    if before and during < RING - 1:
        assert found.complete


def told(text: str, *, unproven: str) -> Seen:
    """Remember letters, the last ones of an outage that has not ended."""
    made = seen(text)
    for letter in unproven:
        made.add(letter.encode(), 1, proven=False)
    return made


def test_what_was_recorded_in_an_open_outage_proves_nothing() -> None:
    assert new(told("ab", unproven="cd"), "cde") == ("e", False)
    assert new(told("ab", unproven="cd"), "bcde") == ("e", True)
    assert new(told("ab", unproven="b"), "bbc") == ("c", False)  # which of the two is it?
    assert new(told("", unproven="a"), "ab") == ("b", False)
    # A backlog by time begins at what is remembered, proof or not.
    assert new(told("a", unproven="c"), "xcd", whole=False) == ("d", False)


def test_an_anchor_is_proof_whatever_was_recorded_since() -> None:
    remembered = told("", unproven="a")
    remembered.anchor = b"a"
    assert new(remembered, "ab") == ("b", True)


def test_the_earliest_is_of_the_last_ring() -> None:
    remembered = seen("x" * (RING + 44))
    assert remembered.earliest_ns == 45
    remembered.add(b"y", None)
    assert remembered.earliest_ns == 46
    assert Seen().earliest_ns is None


def test_what_is_unproven_are_the_last_ones() -> None:
    remembered = told("ab", unproven="cd")
    assert remembered.unproven == 2
    assert remembered.proofs() == {b"a", b"b"}
    assert remembered.copy() == remembered
    remembered.add(b"e", 1)  # the outage is over: all of it was told
    assert remembered.unproven == 0
    assert remembered.proofs() == {b"a", b"b", b"c", b"d", b"e"}
    remembered.clear()
    assert (remembered.unproven, remembered.proofs()) == (0, frozenset())
    cleared = told("ab", unproven="c")
    cleared.clear()
    assert cleared == Seen()
    assert Seen().unproven == 0
    flooded = told("", unproven="x" * (REMEMBERED + 5))
    assert flooded.unproven == REMEMBERED


def test_a_snapshot_that_is_settled_stands_in_its_own_order() -> None:
    def order(remembered: Seen, snapshot: str, newer: int = 0) -> tuple[str, list[int]]:
        times = [100 + place for place, _ in enumerate(snapshot)]
        remembered.settle(ring(snapshot), times, newer=newer)
        digests, times_ns = b"".join(remembered._digests).decode(), list(remembered._times)
        return digests, times_ns

    # What it holds moves to its own place; what is older stays before it.
    assert order(seen("abcd"), "bd") == ("acbd", [1, 3, 100, 101])
    assert order(seen("ab"), "xb") == ("axb", [1, 100, 101])
    # As often as it is there, the first of them first.
    assert order(seen("aba"), "a") == ("baa", [2, 3, 100])
    # Of the last two, what is not in it came behind it.
    assert order(seen("abcd"), "bc", newer=2) == ("abcd", [1, 100, 101, 4])
    assert order(seen("abcd"), "b", newer=1) == ("acbd", [1, 3, 100, 4])
    remembered = told("a", unproven="b")
    assert order(remembered, "b")[0] == "ab"
    assert remembered.unproven == 0


def test_an_audit_counts_what_arrives() -> None:
    audit = Audit.begin(seen("a"))
    assert audit.arrivals == 0
    audit.arrived(b"b")
    assert audit.arrivals == 1


def test_the_anchor_s_twin_is_from_before_our_time_too() -> None:
    memory = Seen(b"b")
    snapshot = [b"a", b"b", b"b", b"c"]
    assert compare(memory, snapshot, whole=True) == Resume((3,), True, seen=3, anchored=True)
    memory.add(b"b", 1)  # it was recorded: the other one was not
    assert compare(memory, snapshot, whole=True) == Resume((2, 3), True, seen=2, anchored=True)


def test_digests() -> None:
    event = Event(b'{"a":1}', 5, "timeNano")
    assert digest_of(event) == digest_of(Event(b'{"a":1}', 6, "time"))
    assert digest_of(event) != digest_of(Event(b'{"a":2}', 5, "timeNano"))
    unparsed = Unparsed("x\ud800", 3, "not JSON")
    assert digest_of(unparsed) != digest_of(Unparsed("x\ud800", 4, "not JSON"))
    assert {len(digest_of(event)), len(digest_of(unparsed))} == {8}


def test_memory_is_bounded_and_packs() -> None:
    memory = Seen(b"anchor")
    for n in range(1000):
        memory.add(digest_of(Event(b"%d" % n, None, "received")), n or None)
    memory.add(digest_of(Unparsed("x", 1, "y")), None)
    assert sum(memory.counts().values()) == REMEMBERED
    assert memory.earliest_ns == 1001 - RING
    again = Seen.unpack(memory.pack(), b"anchor")
    assert again == memory
    assert len(base64.b64decode(memory.pack())) == 16 * REMEMBERED
    other = memory.copy()
    other.add(b"12345678", 1)
    assert other.earliest_ns == 1
    assert memory != other
    other.clear()
    assert other.known is False
    assert not other.counts()
    assert other.earliest_ns is None
    for harmed in ("!", memory.pack()[:-4]):
        with pytest.raises(ValueError):  # noqa: PT011 - binascii's or our own
            Seen.unpack(harmed, b"")


def test_the_first_anchor_is_older_than_the_stream() -> None:
    digests = ring("abcd")
    assert first_anchor(digests, [1, 2, 3, 4], 4) == b"c"
    assert first_anchor(digests, [1, None, 9, 9], 4) == b"a"
    assert first_anchor(digests, [5, 6, 7, 8], 5) == b""
    assert first_anchor([], [], 5) == b""


def test_what_was_emitted_is_dropped_once_each_and_not_for_ever() -> None:
    expected = Expected()
    assert not expected.drops(b"a")
    expected.add(ring("aab"), 100.0)
    assert [expected.drops(letter) for letter in ring("abaa")] == [True, True, True, False]
    expected.add(ring("c"), 110.0)
    expected.forget(139.9)
    assert expected.drops(b"c")
    expected.add(ring("d"), 120.0)
    expected.forget(150.0)
    assert not expected.drops(b"d")
    expected.add(ring("e"), 200.0)
    expected.add(ring("f"), 230.0)
    assert [expected.drops(letter) for letter in ring("ef")] == [False, True]


def missing(audit: Audit, snapshot: str, *, whole: bool = True) -> str:
    return "".join(snapshot[place] for place in audit.look(ring(snapshot), whole=whole))


def test_an_audit_takes_the_ring_against_all_that_came() -> None:
    audit = Audit.begin(seen("abc"))
    assert missing(audit, "abc") == ""
    assert missing(audit, "bcdd") == "dd"
    audit.arrived(b"d")
    assert missing(audit, "bcdd") == "d"  # the second look, by count
    audit.arrived(b"d")
    assert missing(audit, "bcdd") == ""
    assert missing(audit, "bcdd") == ""


def test_an_audit_of_a_backlog_passes_over_what_is_older_than_the_memory() -> None:
    audit = Audit.begin(seen("cd"))
    assert missing(audit, "abcde", whole=False) == "e"
    assert missing(audit, "xyz", whole=False) == "xyz"
    assert missing(audit, "acxde", whole=False) == "xe"


def test_an_audit_asks_nothing_from_before_the_anchor() -> None:
    memory = Seen(b"b")
    memory.add(b"c", 1)
    audit = Audit.begin(memory)
    assert audit.look([b"a", b"b", b"c", b"d"], whole=True) == (3,)
    assert audit.look([b"a", b"c", b"d"], whole=True) == (0, 2)


def test_an_audit_outlives_the_memory() -> None:
    memory = seen("abc")
    audit = Audit.begin(memory)
    for n in range(2 * REMEMBERED):
        memory.add(b"%d" % n, 1)
        audit.arrived(b"%d" % n)
    assert missing(audit, "abcd") == "d"


def test_an_audit_gives_up_in_a_flood() -> None:
    audit = Audit.begin(seen(""))
    for n in range(AUDIT_BURST):
        audit.arrived(b"%d" % n)
    last = b"%d" % (AUDIT_BURST - 1)
    assert audit.look([last, b"a"], whole=True) == (1,)
    audit.arrived(b"x")
    assert audit.look([last, b"a"], whole=True) == ()


@pytest.mark.parametrize(
    ("missed", "received", "finding"),
    [
        (0, 0, Finding.WHOLE),
        (0, 5, Finding.WHOLE),
        (1, 1, Finding.LOSSY),
        (1, 0, Finding.DEAD),
        (256, 0, Finding.DEAD),
    ],
)
def test_find(missed: int, received: int, finding: Finding) -> None:
    assert find(missed, received) is finding


def test_audit_times() -> None:
    times = AuditTimes(random.Random(1))
    assert (times.due_s, times.received_since) == (inf, 0)
    times.received(AUDIT_EVENTS)
    assert times.due_s == inf
    times.opened(1000.0)
    assert 1000 + 0.75 * AUDIT_S <= times.due_s <= 1000 + AUDIT_S
    times.received(AUDIT_EVENTS - 1)
    assert times.due_s > 1000 + AUDIT_MIN_S
    times.received(1)
    assert times.due_s == 1000 + AUDIT_MIN_S
    assert times.received_since == AUDIT_EVENTS
    times.done(1020.0)
    assert times.received_since == 0
    assert 1020 + 0.75 * AUDIT_S <= times.due_s <= 1020 + AUDIT_S


def test_audits_that_cannot_be_come_less_often() -> None:
    times = AuditTimes(random.Random(1))
    times.opened(0.0)
    times.received(AUDIT_EVENTS)
    waits = []
    for _ in range(6):
        now_s = times.due_s
        times.put_off(now_s)
        waits.append(times.due_s - now_s)
        assert times.received_since == AUDIT_EVENTS
    assert waits[0] > AUDIT_S
    assert waits[0] < waits[1] < waits[2]
    assert max(waits) <= AUDIT_MAX_S
    times.done(5000.0)
    assert times.due_s <= 5000 + AUDIT_S


def test_a_resume_is_a_value() -> None:
    assert compare(seen("a"), ring("ab"), whole=True) == Resume((1,), complete=True, seen=1)


@pytest.mark.parametrize(
    ("says", "remembered", "anchor", "snapshot", "excluded", "lost"),
    [
        ("all of it came", "abc", "", "abc", "", False),
        ("what is new came later", "abc", "", "bcde", "", False),
        ("what came is newer", "az", "", "bcz", "", True),
        ("what came is around it", "abz", "", "bcz", "", True),
        ("only what is excluded did not come", "az", "", "bcz", "bc", False),
        ("not only that", "az", "", "bcz", "b", True),
        ("nothing is known to have come: its outage tells of all", "a", "", "bc", "", False),
        ("the anchor was seen at a look, or before", "az", "b", "bcz", "", False),
        ("nothing is known", "", None, "ab", "", False),
    ],
)
def test_what_a_stream_lost_before_it_broke(
    says: str, remembered: str, anchor: str | None, snapshot: str, excluded: str, lost: bool
) -> None:
    found = compare(seen(remembered, anchor), ring(snapshot), whole=True)
    kept = [digest not in excluded for digest in snapshot]
    times = [None, *range(10, 10 * len(snapshot), 10)]
    assert lost_more(found, kept, times, 10) == lost, says
    assert not lost_more(found, kept, times, 11), "it holds what is older than the look"
    assert lost_more(found, kept, [None] * len(kept), 11) == lost, "or may not"


def test_the_figures() -> None:
    assert (RING, REMEMBERED) == (256, 512)
    assert (AUDIT_S, AUDIT_EVENTS, AUDIT_MIN_S, AUDIT_MAX_S) == (60, 200, 10, 600)
    assert AUDIT_BURST == 20_000
