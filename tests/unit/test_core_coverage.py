from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.coverage import Coverage, SourceCoverage
from hypermux.core.recollection import Recollection, engine_of
from hypermux.core.recording import BadLine, Encoder, parse_line, seal, unseal
from hypermux.core.resume import Seen, compare, digest_of
from hypermux.model.accounts import SourceId
from hypermux.model.records import Checkpoint, Event, Gap, Item, StateChange, Unparsed

A, B = SourceId("a", "x"), SourceId("b", "é")
EVENT = Event(b"{}", 5, "timeNano")
LIFE = b'{"Type":"container","Action":"start","timeNano":5,"Actor":{"ID":"c"}}'


def down(from_ns: int | None, cause: str = "closed") -> StateChange:
    return StateChange("down", "gone", "retry", cause, from_ns)


def state(*items: tuple[Item, int]) -> SourceCoverage:
    coverage = Coverage()
    for item, at_ns in items:
        coverage.apply(A, item, at_ns)
    return coverage.sources[A]


def test_up_then_events() -> None:
    assert state((StateChange("up"), 10), (EVENT, 11)) == SourceCoverage(True, 10, None, None, 11)


def test_down_opens_an_outage_where_it_says() -> None:
    found = state((StateChange("up"), 10), (down(15), 20))
    assert found == SourceCoverage(False, 15, 15, "closed", 20)


def test_an_outage_keeps_its_first_beginning() -> None:
    found = state((down(15), 20), (down(18, "restart"), 30))
    assert (found.outage_from_ns, found.cause) == (15, "restart")


def test_a_down_without_a_beginning_begins_at_its_own_time() -> None:
    assert state((down(None), 20)).outage_from_ns == 20


def test_gap_and_up_end_an_outage() -> None:
    gap = Gap(15, 40, "closed", "possible")
    found = state((down(15), 20), (gap, 40), (StateChange("up"), 40))
    assert found == SourceCoverage(True, 40, None, None, 40)


def test_a_gap_whose_up_was_lost_leaves_the_rest_of_the_outage() -> None:
    found = state((down(15), 20), (Gap(15, 40, "closed", "possible"), 40))
    assert (found.up, found.outage_from_ns, found.since_ns) == (False, 40, 40)


@pytest.mark.parametrize(
    "gap", [Gap(1, 99, "overflow", "proven", 3), Gap(16, 99, "audit", "proven", 1)]
)
def test_other_gaps_leave_an_outage_alone(gap: Gap) -> None:
    assert state((down(15), 20), (gap, 99)).outage_from_ns == 15


def test_a_gap_while_connected_leaves_it_connected() -> None:
    gap = Gap(11, 12, "rotation", "possible")
    assert state((StateChange("up"), 10), (gap, 12)) == SourceCoverage(True, 10, None, None, 12)


def test_a_complete_replay_needs_no_gap() -> None:
    assert state((down(15), 20), (StateChange("up"), 30)).outage_from_ns is None


def test_a_removed_source_is_not_covered() -> None:
    found = state((StateChange("up"), 10), (StateChange("config"), 20))
    assert found == SourceCoverage(False, 20, None, None, 20)


def test_the_last_key_is_below_every_new_item() -> None:
    coverage = Coverage()
    assert coverage.last_key is None
    coverage.apply(B, EVENT, 7)
    coverage.apply(A, EVENT, 9)
    coverage.apply(None, Checkpoint(8), 99)
    assert coverage.last_key == (9, "a", "x", -1)
    coverage.apply(B, EVENT, 9)
    last_key = coverage.last_key
    assert last_key is not None
    assert last_key == (9, "b", "é", -1)
    assert last_key < (9, "b", "é", 0)
    assert (coverage.wall_ns, coverage.through_ns) == (99, 8)


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[SourceId | None, Item | Checkpoint, int]]:
    times = st.integers(0, 50)
    word = st.sampled_from(["up", "down", "clock", "config"])
    cause = st.sampled_from(["overflow", "closed"])
    of_source = st.one_of(
        st.just(EVENT),
        st.builds(Event, st.sampled_from([LIFE, EVENT.raw]), st.just(5), st.just("timeNano")),
        st.just(Unparsed("x", 1, "y")),
        st.builds(Gap, times, times, cause, st.just("possible")),
        st.builds(
            StateChange,
            word,
            cause=st.none() | cause,
            from_ns=st.none() | times,
            anchor=st.sampled_from([None, None, "", "00ff", "first:", "first:01@0a", "00ff@0a"]),
        ),
    )
    of_service = st.one_of(
        st.builds(Checkpoint, times), st.builds(StateChange, st.sampled_from(["start", "stop"]))
    )
    step = st.one_of(
        st.tuples(st.sampled_from([A, B]), of_source, times),
        st.tuples(st.none(), of_service, times),
    )
    return draw(st.lists(step, max_size=30))


@given(steps(), st.integers(0, 30))
@settings(max_examples=150)
def test_live_and_read_back_agree_also_over_a_stored_beginning(
    given_steps: list[tuple[SourceId | None, Item | Checkpoint, int]], split: int
) -> None:
    live, scanned, encoder = Coverage(), Coverage(), Encoder()
    for seq, (source, item, at_ns) in enumerate(given_steps, 1):
        if seq == split:
            scanned = Coverage.from_bytes(scanned.to_bytes())
        live.apply(source, item, at_ns)
        line = encoder.encode(seq, item, source=source, at_ns=at_ns, received_ns=60)
        parsed = parse_line(line)
        scanned.apply(parsed.source, parsed.item, parsed.at_ns)
    assert scanned == live
    assert scanned.to_bytes() == live.to_bytes()
    assert Coverage.from_bytes(live.to_bytes()) == live


def test_stored_bytes_are_checked() -> None:
    coverage = Coverage()
    coverage.apply(A, StateChange("up"), 10)
    data = coverage.to_bytes()
    for index in range(len(data)):
        harmed = bytearray(data)
        harmed[index] ^= 1
        with pytest.raises(BadLine):
            Coverage.from_bytes(bytes(harmed))
        with pytest.raises(BadLine):
            Coverage.from_bytes(data[:index])


def test_another_format_is_not_read() -> None:
    with pytest.raises(BadLine, match="format 3"):
        Coverage.from_bytes(seal(b'{"format":3,"through":0,"service_at":0,"sources":[]'))


def test_the_format_before_recollections_is_read() -> None:
    body = (
        b'{"format":1,"through":7,"service_at":8,"sources":[{"account":"a","region":"x",'
        b'"up":true,"since":10,"outage_from":null,"cause":null,"last_at":11}]'
    )
    found = Coverage.from_bytes(seal(body))
    assert found == Coverage(7, {A: SourceCoverage(True, 10, None, None, 11)}, 8)


def test_a_quiet_source_is_connected() -> None:
    before = state((StateChange("up"), 10))
    after = state(
        (StateChange("up"), 10),
        (StateChange("quiet", from_ns=10), 3610),
        (StateChange("active", from_ns=10), 4000),
    )
    assert after.since_ns == before.since_ns
    assert after.up
    assert not after.in_outage
    down = state((StateChange("down", cause="eof", from_ns=5), 6), (StateChange("active"), 7))
    assert (down.up, down.outage_from_ns, down.cause) == (False, 5, "eof")


def test_events_are_remembered_from_an_anchor_on() -> None:
    before = state((StateChange("up"), 10), (EVENT, 11))
    assert before.recollection is None
    items: list[tuple[Item, int]] = [
        (EVENT, 9),
        (StateChange("up", anchor=""), 10),
        (Unparsed("x", 1, "y"), 11),
        (EVENT, 12),
        (Event(b'{"s":1}', 6, "timeNano", synthetic=True), 13),
        (StateChange("up", anchor="00ff"), 14),
        (StateChange("up"), 15),
    ]
    kept = state(*items).recollection
    assert kept is not None
    assert kept.seen.anchor == b"\x00\xff"
    assert sum(kept.seen.counts().values()) == 2  # a synthetic event was never the engine's
    assert kept.since_ns == 10
    assert state(*items, (StateChange("config"), 16)).recollection is None
    anew = state(*items, (StateChange("up", anchor="first:01"), 20)).recollection
    assert anew == Recollection(Seen(b"\x01"), since_ns=20, looked_ns=20)


def test_what_a_cut_off_resume_recorded_is_no_proof() -> None:
    """A life that is told what an engine remembers may end before it has recorded the gap."""
    replayed = Event(b'{"r":1}', 6, "timeNano", replayed=True)
    told: list[tuple[Item, int]] = [
        (StateChange("up", anchor=""), 10),
        (EVENT, 11),
        (down(12), 13),
        (replayed, 20),
    ]
    gap = Gap(12, 20, "closed", "possible")
    remembers = [digest_of(replayed), digest_of(EVENT)]  # the second one is a later twin

    def complete(*items: tuple[Item, int], of: int) -> bool:
        coverage = Coverage()
        for item, at_ns in items:
            coverage.apply(A, item, at_ns)
        stored = Coverage.from_bytes(coverage.to_bytes())
        assert stored == coverage
        recollection = stored.sources[A].recollection
        assert recollection is not None
        return compare(recollection.seen, remembers[:of], whole=True).complete

    assert not complete(*told, of=1)
    assert complete(*told, of=2)
    assert not complete(*told, (down(21), 22), of=1)
    assert not complete(*told, (EVENT, 21), of=2)  # recorded now, or then: who knows
    assert complete(*told, (gap, 20), of=1)
    assert complete(*told, (StateChange("up", anchor=""), 20), of=1)
    assert complete(*told, (StateChange("up"), 20), of=1)


def test_an_anchor_that_is_none_makes_the_line_bad() -> None:
    with pytest.raises(BadLine, match="hexadecimal"):
        state((StateChange("up", anchor="xyz"), 10))


def test_an_anchor_says_whose_events_are_remembered() -> None:
    engine = engine_of("tcp://first:2375", ())
    assert engine not in (engine_of("tcp://other:2375", ()), engine_of("tcp://first:2375", ("a",)))
    told = Recollection(Seen(b"\x01"), engine=engine).anchor(first=True)
    kept = state((StateChange("up", anchor=told), 10), (EVENT, 11))
    assert kept.recollection is not None
    assert (kept.recollection.engine, kept.recollection.seen.anchor) == (engine, b"\x01")
    later = kept.recollection.anchor(first=False)
    again = state((StateChange("up", anchor=told), 10), (StateChange("up", anchor=later), 20))
    assert again.recollection == Recollection(
        Seen(b"\x01"), since_ns=10, engine=engine, looked_ns=10
    )


def test_the_last_look_is_known_from_up_and_from_checkpoints() -> None:
    coverage = Coverage()
    told = Recollection(Seen(b"\x01"), engine="0a", looked_ns=9).anchor(first=True)
    coverage.apply(A, StateChange("up", anchor=told), 10)
    coverage.apply(B, StateChange("up", anchor="first:"), 11)
    looks = [kept.recollection for kept in coverage.sources.values()]

    def looked() -> list[int]:
        return [kept.looked_ns for kept in looks if kept is not None]

    assert looked() == [9, 11], "without a look: when it came up"
    again = Coverage.from_bytes(coverage.to_bytes())
    assert again.sources == coverage.sources
    coverage.apply(None, Checkpoint(30, 10), 30)
    assert looked() == [10, 11], "never earlier than known"
    coverage.apply(B, down(31), 31)
    coverage.apply(None, Checkpoint(40, 35), 40)
    assert looked() == [35, 11], "a source that is down was not looked at"
    coverage.apply(None, Checkpoint(50), 50)
    assert looked() == [35, 11]
    assert coverage.looked_ns({A: 41}.get) == 41
    coverage.apply(B, StateChange("up", anchor=""), 51)
    assert coverage.looked_ns({A: 61, B: 62}.get) == 61
    assert coverage.looked_ns({A: 61}.get) is None, "nothing is said for all of them"
    assert Coverage().looked_ns({A: 1}.get) is None


def test_what_an_earlier_version_remembered_reads_back_without_a_look() -> None:
    coverage = Coverage()
    coverage.apply(A, StateChange("up", anchor="first:01"), 10)
    data = coverage.to_bytes()
    assert b',"looked":10' in data
    kept = Coverage.from_bytes(seal(unseal(data).replace(b',"looked":10', b""))).sources[A]
    assert kept.recollection is not None
    assert kept.recollection.looked_ns == 0


def test_what_an_earlier_version_remembered_reads_back_without_an_engine() -> None:
    coverage = Coverage()
    coverage.apply(A, StateChange("up", anchor="first:01"), 10)
    data = coverage.to_bytes()
    assert b'"engine":""' in data
    earlier = seal(unseal(data).replace(b',"engine":""', b""))
    assert Coverage.from_bytes(earlier).sources == coverage.sources
