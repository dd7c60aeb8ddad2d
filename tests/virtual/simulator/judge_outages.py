"""Outages: one gap for each, no shorter than it was, and longer only by what is stated here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

from hypermux.model.accounts import SourceId
from simulator.journal import Line
from simulator.truth import Life, Session

if TYPE_CHECKING:
    from simulator.judge import Case

FOREVER_NS = 1 << 63
# Gaps of a source that is connected.
NO_OUTAGE = ("overflow", "audit")
SECOND = 1_000_000_000
# A socket is known to be empty once a second; a peer is heard with each ping, at the least.
ROUND_S = 1.1
PING_S = 15 * 1.1 + 0.5
NOTICED_S = 27.0
CHECKPOINT_S = 10.0
STALLED_S = 30.0
REFUSED_S = 11.0  # until a disk that refused is tried again
UNHEARD_S = inf
MAX_HOLD_S = 2.0
# How long asking an engine what it remembers may take: a permit, an answer, its containers.
RESUME_S = 36.0
GIVEN_BACK_S = 10.0


def covered(case: Case, source: SourceId) -> list[tuple[int, int]]:
    """Return the times that a source's gaps admit, with the outage that is open at the end."""
    found = []
    open_from: int | None = None
    for line in case.by_source[source]:
        if line.kind == "gap":
            found.append((line.ns("from"), line.ns("to")))
            if open_from is not None and line.head["cause"] != "overflow":
                open_from = max(open_from, line.ns("to"))
        elif line.state == "up":
            open_from = None
        elif line.state == "down" and open_from is None:
            open_from = line.ns("from")
    if open_from is not None:
        found.append((open_from, FOREVER_NS))
    return found


def first_began(case: Case, source: SourceId) -> float:
    """Return when the life began that the source's first record is of."""
    found = case.by_source[source]
    writer = case.life_of_line[found[0].seq] if found else 0
    return case.world.truth.lives[writer - 1].began if writer else 0.0


def died_unnoticed(case: Case, source: SourceId, at: float) -> bool:
    """Whether a peer was dead at `at`, and we ended before it could be noticed: not covered."""
    return any(
        session.wire.lost_by == "dead"
        and session.wire.lost is not None
        and session.wire.closed is not None
        and session.wire.lost - session.wire.delay_s <= at <= session.wire.closed
        and _ended_at(case, session.wire.closed)
        for session in case.world.truth.sessions[source]
    )


def _ended_at(case: Case, t: float) -> bool:
    """Whether at `t` the service was gone, or was before it could tell.

    A stop tells of a dead peer: it says goodbye, or goes by what keepalive takes.
    """
    return any(
        (
            life.how != "stop"
            and life.stopping is not None
            and life.stopping <= t <= (life.ended or inf)
        )
        or (life.ended is not None and t <= life.ended <= t + _telling_s(case, life))
        for life in case.world.truth.lives
        if life.began <= t
    )


def _telling_s(case: Case, life: Life) -> float:
    """Return how long what came last may take to be told; it is lost with a life that ends."""
    if life.how == "stop":
        return 0.0
    told_s = MAX_HOLD_S + ROUND_S + _slow_s(case) + _unsynced_s(case, life)
    return told_s + _refused_s(case, life)


def outages(case: Case) -> Iterator[str]:
    """Check every source's outages."""
    for source in case.world.plan.sources:
        yield from _of_source(case, source)


def _of_source(case: Case, source: SourceId) -> Iterator[str]:
    truth = case.world.truth
    sessions = [s for s in truth.sessions[source] if s.opened is not None]
    sessions = _chained(case, source, sessions)
    before: Session | None = None
    missed = 0
    gaps: list[Line] = []
    beside: set[int] = set()
    down: Line | None = None
    place = 0
    for line in case.by_source[source]:
        if line.kind == "gap" and line.head["cause"] not in NO_OUTAGE:
            gaps.append(line)
            if line.head["cause"] == "rotation" and down is None:
                beside.add(line.seq)
        elif line.state == "down":
            down = down or line
        elif line.state == "up":
            found = _opened_at(case, sessions, place, line)
            if case.is_docker(source):
                found = _resumed_at(case, sessions, place, line.received)
            if found is None:
                yield f"outages: record {line.seq} says that {source} is up, and it is not"
                continue
            for session in sessions[place:found]:
                missed += 1
                if not _may_be_missing(case, session):
                    yield f"outages: {source} came up at {session.opened}: no record of it"
            # Of a replacement whose predecessor ended early, the source staying connected.
            # (In an outage it is one of the source's: a life may have ended behind it.)
            gaps = [g for g in gaps if g.seq not in beside or g.ns("to") == line.received]
            yield from _judge(case, source, before, line, gaps, missed)
            before, place, missed, gaps, down = sessions[found], found + 1, 0, [], None
    for session in sessions[place:]:
        missed += 1
        if not _may_be_missing(case, session):
            yield f"outages: {source} came up at {session.opened}: no record of it"
    gaps = [gap for gap in gaps if gap.head["cause"] != "rotation"]
    if len(gaps) > missed:
        yield f"outages: {source} has a gap at the end, and did not come back"
    if down is None:
        yield f"outages: {source} is not down at the end"
    else:
        yield from _begin(case, source, before, down.ns("from"), down)


def _chained(case: Case, source: SourceId, sessions: list[Session]) -> list[Session]:
    """Return one session for each run of connections that took each other's place.

    A predecessor may be gone already, and still be held: then a gap of their own is between them.
    """
    rotations = [
        line
        for line in case.by_source[source]
        if line.kind == "gap" and line.head["cause"] == "rotation"
    ]
    clock = case.world.truth.clock
    chains: list[Session] = []
    for session in sorted(sessions, key=lambda s: s.opened or 0.0):
        last = chains[-1].wire if chains else None
        opened = session.opened
        assert opened is not None
        replaced = last is not None and (last.lost is None or opened <= last.lost)
        if last is not None and not replaced and last.closed is not None and last.lost is not None:
            replaced = opened <= last.closed and any(
                line.ns("from") <= clock.between(last.lost)[1]
                and clock.between(opened)[0] <= line.ns("to")
                # One that failed before has none: the gap of the next one ends with that.
                and (line.ns("to") <= clock.between(opened)[1] or line.ns("from") == line.ns("to"))
                and line.received <= clock.between(last.closed + RESUME_S)[1]
                for line in rotations
            )
        if not replaced and last is not None and last.life == session.life:
            # A dead one was to be replaced, and the other one ended before that was noticed.
            ended, lost = last.closed, session.wire.lost
            if ended is not None and lost is not None and opened <= ended and lost <= ended:
                continue
        if not replaced:
            chains.append(session)
        elif last is not None and (
            session.wire.lost is None or last.lost is None or session.wire.lost > last.lost
        ):
            begun = chains[-1]
            chains[-1] = Session(source, session.wire, begun.life, begun.accepted, begun.opened)
    return chains


def _opened_at(case: Case, sessions: list[Session], place: int, up: Line) -> int | None:
    """Return which session an `up` is of.

    Over a clock that stands still, lives may have opened several at one time: then it is one of the
    life that wrote the record.
    """
    matching = []
    for index in range(place, len(sessions)):
        opened = sessions[index].opened
        assert opened is not None
        least, most = case.world.truth.clock.between(opened)
        if least <= up.received <= most:
            matching.append(index)
    writer = case.life_of_line[up.seq]
    own = [index for index in matching if sessions[index].life == writer]
    return next(iter(own or matching), None)


def _resumed_at(case: Case, sessions: list[Session], place: int, received: int) -> int | None:
    """Return which session an `up` is of, when asking an engine lies between them."""
    clock = case.world.truth.clock
    found = None
    for index in range(place, len(sessions)):
        opened = sessions[index].opened
        assert opened is not None
        if clock.between(opened)[0] <= received <= clock.between(opened + RESUME_S)[1]:
            found = index
    return found


def _life(case: Case, number: int) -> Life:
    return case.world.truth.lives[number - 1]


def _slow_s(case: Case) -> float:
    plan = case.world.plan
    slow = [step.number for step in plan.steps if step.what == "slow"]
    return 4 * max([plan.disk_s, *slow])


def _refused_s(case: Case, life: Life) -> float:
    """Return for how long the disk had refused what came, at the end of a life."""
    ended = life.ended or 0.0
    return sum(
        step.seconds + REFUSED_S
        for step in case.world.plan.steps
        if step.what == "fault" and step.at <= ended <= step.at + step.seconds + REFUSED_S
    )


def _unsynced_s(case: Case, life: Life) -> float:
    """How far the disk may be behind at the end of a life."""
    fsync = case.world.plan.fsync
    if fsync == "never":
        cut = any(later.how == "power" for later in case.world.truth.lives[life.number - 1 :])
        return inf if cut else 0.0
    return 0.0 if fsync == "commit" else float(fsync)


def _may_be_missing(case: Case, session: Session) -> bool:
    """Whether the record that a connection opened may have been lost with the end of its life."""
    life, closed = _life(case, session.life), session.wire.closed
    if life.ended is None or session.opened is None or closed is None:
        return False
    # An engine's may give its slot back before it has been asked what it remembers.
    changes = case.world.truth.caps[1:] if case.is_docker(session.source) else ()
    if closed - session.opened <= RESUME_S and any(
        since <= closed <= since + GIVEN_BACK_S for since, _ in changes
    ):
        return True
    if life.how == "stop":
        return case.is_docker(session.source) and (life.stopping or inf) <= closed <= life.ended
    # An engine is asked first what it remembers.
    asked_s = RESUME_S if case.is_docker(session.source) else 0.0
    return life.ended - session.opened <= _telling_s(case, life) + asked_s


def _judge(
    case: Case,
    source: SourceId,
    before: Session | None,
    up: Line,
    gaps: list[Line],
    missed: int,
) -> Iterator[str]:
    """Check the gaps between two connections that the journal knows of."""
    where = f"{source} until record {up.seq}"
    if not gaps:
        # Of an engine's outage nothing may be missing: `lost` is about that.
        if not case.is_docker(source) or before is None:
            yield f"outages: {where}: no gap"
        return
    if len(gaps) > 1 + missed:
        yield f"outages: {where}: {len(gaps)} gaps: records {[line.seq for line in gaps]}"
    for earlier, later in itertools.pairwise(gaps):
        if later.ns("from") > earlier.ns("to"):
            yield f"outages: {where}: nothing between records {earlier.seq} and {later.seq}"
    yield from _begin(case, source, before, gaps[0].ns("from"), gaps[0])
    # An engine's memory may have bridged what was left of it, when a life ended behind the gap.
    if gaps[-1].ns("to") != up.received and not case.is_docker(source):
        yield f"outages: {where}: the gap of record {gaps[-1].seq} ends at another time"


def _held_back_s(case: Case, life: Life) -> float:
    """Return by how much another source's silence, not told yet, held the last checkpoint back."""
    assert life.ended is not None
    for wire in case.world.network.wires:
        if (
            wire.life == life.number
            and wire.lost_by in ("dead", "reset", "closed by us")
            and wire.closed is not None
            and life.ended - wire.closed <= 2 * ROUND_S + _telling_s(case, life)
        ):
            # An engine has no pings: it was heard with its last event, or with its opening.
            return UNHEARD_S if case.is_docker(wire.source) else NOTICED_S
    return 0.0


def _begin(
    case: Case, source: SourceId, before: Session | None, from_ns: int, line: Line
) -> Iterator[str]:
    """Check when an outage began."""
    truth = case.world.truth
    if before is None:
        _, most = truth.clock.between(truth.lives[0].started or truth.lives[0].began)
        if from_ns > most and case.world.plan.fsync != "never":
            yield f"outages: {source}: record {line.seq} begins after the source was configured"
        return
    wire = before.wire
    assert wire.lost is not None
    assert wire.closed is not None
    how, lost = wire.lost_by, wire.lost
    least, most = truth.clock.between(lost)
    if how == "dead" and _ended_at(case, wire.closed):
        most = truth.clock.between(wire.closed)[1]
    if case.is_docker(source) and before.opened is not None:
        # It counts as open from the end of the questions on; what the ring holds is told.
        most = max(most, truth.clock.between(min(before.opened + RESUME_S, wire.closed))[1])
    if from_ns > most:
        late = (from_ns - most) / SECOND
        yield f"outages: {source}: record {line.seq} begins {late:.3f} s after the loss ({how})"
    life = _life(case, before.life)
    slack = ROUND_S + _slow_s(case)
    if case.is_docker(source) and how not in ("eof", "crash"):
        slack = inf  # it has no pings: it was heard with its last event
    if case.world.plan.fsync == "never" and any(x.how == "power" for x in truth.lives):
        slack = inf  # of what was lost with the power nothing is known
    if how in ("reset", "dead") or wire.fault:
        slack += PING_S + 4 * wire.delay_s + STALLED_S * (wire.stalled_until > 0)
    if how == "closed by us":
        slack += NOTICED_S
    if wire.closed == life.ended and life.how != "stop":
        slack += CHECKPOINT_S + MAX_HOLD_S + _unsynced_s(case, life) + PING_S * (how == "dead")
        slack += _held_back_s(case, life) + _refused_s(case, life)
    elif life.how != "stop" and life.ended is not None:
        behind = CHECKPOINT_S + MAX_HOLD_S + _unsynced_s(case, life) + _refused_s(case, life)
        slack += behind + _held_back_s(case, life) if life.ended - lost <= behind + slack else 0.0
    if slack == inf:
        return
    # A clock that was set back at the start of the life goes by less than the time that passed.
    earliest = truth.clock.between(max(0.0, lost - slack))[0]
    if from_ns < min(earliest, least - round(slack * SECOND)):
        early = (least - from_ns) / SECOND
        yield (
            f"outages: {source}: record {line.seq} begins {early:.3f} s before the loss ({how}),"
            f" {slack:.3f} s at the most"
        )
