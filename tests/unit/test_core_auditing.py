"""What an audit makes of records: lives, outages, gaps, and what is not known yet."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from hypermux.core.auditing import Auditor, Report, SourceReport, Verdict
from hypermux.core.coverage import Coverage
from hypermux.core.recording import Encoder, parse_line
from hypermux.model.accounts import SourceId
from hypermux.model.records import Checkpoint, Event, Gap, StateChange, Unparsed

S = 10**9
T0 = 1_700_000_000 * S
A, B = SourceId("prod", "us"), SourceId("ci", "build1")
EVENT = Event(b'{"Action":"start"}', T0, "timeNano")

Entry = tuple[float, SourceId | None, Any]


def t(seconds: float) -> int:
    return T0 + round(seconds * S)


def gap(begin: float, end: float, cause: str = "dropped", lost: int | None = None) -> Gap:
    return Gap(t(begin), t(end), cause, "possible" if lost is None else "proven", lost)


def down(begin: float, cause: str = "dropped") -> StateChange:
    return StateChange("down", cause=cause, from_ns=t(begin))


UP, GONE = StateChange("up"), StateChange("config")


def through(seconds: float) -> Entry:
    return (seconds, None, Checkpoint(t(seconds)))


def audit(
    entries: Iterable[Entry],
    since: float = 0,
    until: float = 100,
    *,
    coverage: Coverage | None = None,
    removed: float | None = None,
    running: bool = True,
) -> Report:
    auditor = Auditor(
        t(since),
        t(until),
        lambda source: True,
        coverage or Coverage(),
        None if removed is None else t(removed),
    )
    for line in lines(entries):
        if auditor.needs(line):
            auditor.take(parse_line(line))
    return auditor.report(running=running)


def lines(entries: Iterable[Entry], *, late: bool = False) -> list[bytes]:
    encoder = Encoder()
    return [
        encoder.encode(
            seq, item, source=source, at_ns=t(at), received_ns=t(at), late=late and source == A
        )
        for seq, (at, source, item) in enumerate(entries, 1)
    ]


def one(report: Report, source: SourceId = A) -> SourceReport:
    (found,) = [s for s in report.sources if s.source == source]
    return found


def up_since(source: SourceId, seconds: float) -> Coverage:
    coverage = Coverage()
    coverage.apply(source, UP, t(seconds))
    return coverage


def test_a_source_that_was_connected_throughout() -> None:
    report = audit([(5, A, EVENT), through(101)], coverage=up_since(A, -50))
    found = one(report)
    assert (report.verdict, found.verdict) == (Verdict.COMPLETE, Verdict.COMPLETE)
    assert (found.connected, found.losses, found.kinds) == (1.0, (), {"event": 1})
    assert found.configured_ns == 100 * S


def test_a_gap_within() -> None:
    entries = [(20, A, down(19)), (30, A, gap(19, 29)), (30, A, UP), through(101)]
    found = one(audit(entries, coverage=up_since(A, -50)))
    assert found.verdict is Verdict.INCOMPLETE
    (loss,) = found.losses
    assert (loss.span.from_ns, loss.span.to_ns, loss.cause) == (t(19), t(29), "dropped")
    assert found.connected == pytest.approx(0.89)  # from 19 to 30


@pytest.mark.parametrize(
    ("begin", "end", "part"), [(-10, 3, 3), (95, 120, 5), (-10, 120, 100), (-10, 0, 0)]
)
def test_a_gap_that_reaches_in_counts_with_its_part(begin: float, end: float, part: float) -> None:
    """However long after the interval it was written."""
    entries = [(end, A, gap(begin, end)), through(500), (600, A, gap(begin, end)), through(700)]
    found = one(audit(entries, coverage=up_since(A, -50)))
    assert found.verdict is Verdict.INCOMPLETE
    assert [loss.within.length_ns for loss in found.losses] == 2 * [part * S]


def test_gaps_outside_do_not_count() -> None:
    entries = [(-5, A, gap(-10, -1)), (300, A, gap(101, 290)), through(400)]
    assert one(audit(entries, coverage=up_since(A, -50))).verdict is Verdict.COMPLETE


def test_an_outage_that_was_covered_is_none_of_the_losses() -> None:
    """Its upstream remembered all of it: there is an `up`, and no gap."""
    replayed = Event(EVENT.raw, t(30), "timeNano", replayed=True)
    entries = [(20, A, down(20)), (30, A, replayed), (60, A, UP), through(101)]
    found = one(audit(entries, coverage=up_since(A, -50)))
    assert found.verdict is Verdict.COMPLETE
    assert found.connected == pytest.approx(0.6)
    assert (found.replayed, found.kinds["event"]) == (1, 1)


def test_an_outage_that_lasts_on() -> None:
    found = one(audit([(90, A, down(80)), through(300)], coverage=up_since(A, -50)))
    assert found.verdict is Verdict.INCOMPLETE
    assert [(x.cause, x.certainty, x.within.length_ns) for x in found.losses] == [
        ("dropped", "lasts on", 20 * S)
    ]
    assert found.connected == pytest.approx(0.8)


def test_an_outage_that_began_later_does_not_count() -> None:
    found = one(audit([(200, A, down(150)), through(300)], coverage=up_since(A, -50)))
    assert found.verdict is Verdict.COMPLETE


def test_one_that_was_open_already() -> None:
    coverage = up_since(A, -50)
    coverage.apply(A, down(-20), t(-20))
    entries = [(10, A, gap(-20, 10)), (10, A, UP), through(101)]
    found = one(audit(entries, coverage=coverage))
    assert found.verdict is Verdict.INCOMPLETE
    assert found.connected == pytest.approx(0.9)


def test_what_was_counted_is_a_loss_while_connected() -> None:
    entries = [(50, A, gap(40, 50, "overflow", 7)), through(101)]
    found = one(audit(entries, coverage=up_since(A, -50)))
    assert (found.verdict, found.connected) == (Verdict.INCOMPLETE, 1.0)
    assert found.losses[0].lost == 7


def test_a_source_is_complete_from_its_beginning() -> None:
    entries = [(40, A, UP), (50, A, EVENT), through(101)]
    found = one(audit(entries))
    assert (found.verdict, found.configured_ns) == (Verdict.COMPLETE, 60 * S)


def test_connecting_for_the_first_time_is_a_gap() -> None:
    entries = [(40, A, down(40, "start")), (42, A, gap(40, 42, "start")), (42, A, UP), through(101)]
    found = one(audit(entries))
    assert (found.verdict, found.configured_ns) == (Verdict.INCOMPLETE, 60 * S)


def test_a_source_is_complete_up_to_its_end() -> None:
    found = one(audit([(40, A, GONE), through(101)], coverage=up_since(A, -50)))
    assert (found.verdict, found.configured_ns) == (Verdict.COMPLETE, 40 * S)
    coverage = up_since(A, -50)
    coverage.apply(A, down(-20), t(-20))
    entries = [(40, A, gap(-20, 40)), (40, A, GONE), through(101)]
    assert one(audit(entries, coverage=coverage)).verdict is Verdict.INCOMPLETE


def test_a_source_that_comes_again_is_two_lives() -> None:
    entries = [(40, A, GONE), (70, A, UP), through(101)]
    found = one(audit(entries, coverage=up_since(A, -50)))
    assert (found.verdict, found.configured_ns) == (Verdict.COMPLETE, 70 * S)


def test_a_source_that_was_not_there_counts_for_nothing() -> None:
    coverage = up_since(A, -50)
    coverage.apply(B, UP, t(-50))
    coverage.apply(B, GONE, t(-20))
    report = audit([through(101), (200, SourceId("c", "d"), UP)], coverage=coverage)
    assert one(report, B).verdict is Verdict.ABSENT
    assert one(report, SourceId("c", "d")).verdict is Verdict.ABSENT
    assert report.verdict is Verdict.COMPLETE


def test_nothing_at_all() -> None:
    assert audit([]).verdict is Verdict.ABSENT


def test_what_is_behind_the_last_checkpoint_is_not_known_yet() -> None:
    report = audit([through(95)], coverage=up_since(A, -50))
    assert (report.verdict, one(report).losses) == (Verdict.UNKNOWN, ())
    assert report.known_ns == t(95)


def test_before_the_first_checkpoint_nothing_is_known() -> None:
    report = audit([], coverage=up_since(A, -50))
    assert report.verdict is Verdict.UNKNOWN
    assert report.known_ns == report.interval.from_ns


def test_without_a_service_nobody_will_tell() -> None:
    """kill -9: what came behind the checkpoint may be recorded, or lost."""
    report = audit([through(95)], coverage=up_since(A, -50), running=False)
    (loss,) = one(report).losses
    assert report.verdict is Verdict.INCOMPLETE
    assert (loss.cause, loss.within.length_ns) == ("no service runs", 5 * S)


def test_a_loss_outweighs_what_is_not_known_yet() -> None:
    coverage = up_since(A, -50)
    coverage.apply(B, UP, t(-50))
    report = audit([(30, B, gap(20, 30)), through(95)], coverage=coverage)
    assert [s.verdict for s in report.sources] == [Verdict.INCOMPLETE, Verdict.UNKNOWN]
    assert report.verdict is Verdict.INCOMPLETE


def test_what_is_no_longer_kept() -> None:
    coverage = up_since(A, -500)
    report = audit([(60, B, UP), through(101)], coverage=coverage, removed=30)
    (loss,) = one(report).losses
    assert (loss.cause, loss.within.length_ns) == ("retention", 30 * S - 1)
    assert one(report, B).verdict is Verdict.COMPLETE
    assert audit([through(101)], since=40, coverage=coverage, removed=30).verdict is (
        Verdict.COMPLETE
    )


def test_a_loss_of_the_journal_itself_is_everybodys() -> None:
    coverage = up_since(A, -50)
    coverage.apply(B, UP, t(-50))
    entries = [(20, None, gap(10, 20, "damage", 5)), (40, SourceId("c", "d"), UP), through(101)]
    report = audit(entries, coverage=coverage)
    for source in (A, B):
        assert one(report, source).verdict is Verdict.INCOMPLETE
        assert one(report, source).connected == 1.0
    assert one(report, SourceId("c", "d")).verdict is Verdict.COMPLETE


def test_counts_are_of_the_interval() -> None:
    entries: list[Entry] = [
        (-1, A, EVENT),
        (0, A, EVENT),
        (50, A, Unparsed("x", 1, "no JSON")),
        (60, A, Event(EVENT.raw, T0, "timeNano", synthetic=True)),
        (100, A, EVENT),
        (101, A, EVENT),
        through(101),
    ]
    auditor = Auditor(t(0), t(100), lambda source: source == A, up_since(A, -50))
    for line in lines(entries, late=True):
        auditor.take(parse_line(line))
    found = one(auditor.report(running=True))
    assert found.kinds == {"event": 3, "unparsed": 1}
    assert (found.late, found.synthetic) == (4, 1)


def test_only_what_is_asked_for() -> None:
    auditor = Auditor(t(0), t(100), lambda source: source.account == "ci", up_since(A, -50))
    for line in lines([(1, B, UP), (2, A, EVENT), through(101)]):
        auditor.take(parse_line(line))
    assert [s.source for s in auditor.report(running=True).sources] == [B]


def test_blocks_behind_the_interval_need_not_be_read() -> None:
    """But for what may tell of it."""
    auditor = Auditor(t(0), t(100), lambda source: True, up_since(A, -50))
    entries: list[Entry] = [(170, A, EVENT), through(180), (181, A, EVENT), (182, A, UP)]
    plain, checkpoint, event, state = lines(entries)
    assert auditor.needs(plain)
    auditor.take(parse_line(plain))
    assert not auditor.needs(event)
    assert auditor.needs(checkpoint)
    auditor.take(parse_line(checkpoint))
    assert not auditor.needs(checkpoint)
    assert auditor.needs(state)
    replayed = Event(EVENT.raw, t(30), "timeNano", replayed=True)
    assert auditor.needs(lines([(183, A, replayed)])[0])
    assert auditor.needs(lines([(183, A, EVENT)], late=True)[0])


def test_against_a_plain_reckoning() -> None:
    """Random outages, second by second: connected, and complete where no gap is."""
    rng = random.Random(4)
    for _ in range(300):
        since, until = sorted(rng.sample(range(200), 2))
        entries: list[Entry] = []
        connected = [False] * 400
        lost = [False] * 400
        now, up = 0, True
        entries.append((0, A, UP))
        while now < 300:
            length = rng.randrange(1, 60)
            if up:
                connected[now : now + length] = [True] * length
            else:
                entries.append((now, A, down(now)))
                covered = rng.random() < 0.5
                if not covered:
                    lost[now : now + length] = [True] * length
                    entries.append((now + length, A, gap(now, now + length)))
                entries.append((now + length, A, UP))
            now, up = now + length, not up
        entries.append(through(now))
        found = one(audit(entries, since, until))
        span = range(since, until)
        assert found.connected is not None
        assert round(found.connected * len(span)) == sum(connected[s] for s in span)
        touches = lost[max(0, since - 1) : until + 1]  # a moment in common is enough
        assert (found.verdict is Verdict.COMPLETE) == (not any(touches))
