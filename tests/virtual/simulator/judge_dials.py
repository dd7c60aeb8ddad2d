"""Dials: limits as the dialer and the servers saw them, dead peers, refusals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypermux.model.accounts import SourceId
from simulator.network import KEEPALIVE_S, Wire
from simulator.plan import Caps, slowest_s
from simulator.truth import Refusal

if TYPE_CHECKING:
    from simulator.judge import Case

NOTICED_S = 27.0
PROBE_S = 900.0
MAX_RETRY_AFTER_S = 3600.0
# Half a second of the world's own: the last pong's way and the like.
SLACK_S = 0.5
# From what part of `rotate_after` on a connection is replaced: sources are spread.
OLD = 0.7
EARLY = 1.0
# How long a source that gives its slot back may take to its goodbye's end.
GIVEN_BACK_S = 10.0


def limits(case: Case) -> Iterator[str]:
    """Counts and rates of all, of each account and of each endpoint."""
    world = case.world
    for text in world.network.beyond:
        yield f"limits: {text}"
    dials: dict[tuple[str, str], list[float]] = defaultdict(list)
    requests: dict[tuple[str, str], list[float]] = defaultdict(list)
    for attempt in world.network.attempts:
        for key in attempt.keys:
            dials[key].append(attempt.began)
            if attempt.wire is not None and attempt.wire.asked is not None:
                requests[key].append(attempt.wire.asked)
    for what, found in (("dials", dials), ("requests", requests)):
        for (kind, name), times in found.items():
            # A dial may be a little early: what counts is when its request is sent.
            early = EARLY if what == "dials" else 0.0
            if (at := _too_fast(sorted(times), kind, world.truth.caps, early)) is not None:
                yield f"limits: {what} of {kind} {name} over the rate, at {at}"


def _too_fast(
    times: list[float], kind: str, caps: list[tuple[float, Caps]], early: float
) -> float | None:
    """Return when a bucket of the burst that fills at the rate was overdrawn.

    With another rate nothing is free at first, but what was in a bucket may be on its way.
    """
    changes = [(since, *_rate(kind, found)) for since, found in caps]
    level, last, place = changes[0][2] + early, 0.0, 0
    for at in times:
        while place + 1 < len(changes) and changes[place + 1][0] <= at:
            level = _filled(level, changes[place], changes[place + 1][0] - last, early)
            last, place = changes[place + 1][0], place + 1
        level = _filled(level, changes[place], at - last, early)
        last = at
        if changes[place][1] is None:
            continue
        level -= 1.0
        if level < -1e-3:
            return at
    return None


def _filled(
    level: float, change: tuple[float, float | None, int], seconds: float, early: float
) -> float:
    _, rate, burst = change
    most = burst + early
    return most if rate is None else min(most, level + seconds * rate)


def _rate(kind: str, caps: Caps) -> tuple[float | None, int]:
    rates = {"all": caps.rate, "account": caps.account_rate, "endpoint": caps.endpoint_rate}
    return rates[kind], caps.burst


def dead(case: Case) -> Iterator[str]:
    """A dead peer is given up in time, and nobody else without a reason."""
    world = case.world
    opened = {s.wire for found in world.truth.sessions.values() for s in found if s.opened}
    for wire in world.network.wires:
        closed = wire.closed
        if closed is None or wire.lost is None:
            yield f"dead: wire {wire.number} of {wire.source} was never closed"
            continue
        patience = KEEPALIVE_S + 1.0 if wire.keepalive else NOTICED_S
        if wire.lost_by == "dead" and closed - wire.lost > patience:
            yield (f"dead: {wire.source} died at {wire.lost:.3f} and was held until {closed:.3f}")
        if wire.lost_by != "closed by us" or wire not in opened or wire.fault:
            continue
        # An engine that does not answer questions is given up with its stream.
        if case.is_docker(wire.source) and not world.well(wire.source, closed - 60, closed):
            continue
        if world.plan.rotate_s is not None and _replaced(case, wire):
            continue
        if any(t <= closed <= t + GIVEN_BACK_S for t, _ in world.truth.caps[1:]):
            continue  # for want of slots
        life = world.truth.lives[wire.life - 1]
        # A goodbye takes a second, and a slow disk its time.
        slow_s = 1.0 + 2 * slowest_s(world.plan)
        if life.how == "fault" and life.ended is not None and life.ended - closed <= slow_s:
            continue
        if life.stopping is None or closed < life.stopping:
            yield f"dead: {wire.source} was well, and was given up at {closed:.3f}"


def _replaced(case: Case, wire: Wire) -> bool:
    """Say whether a connection was old, or another one took its place."""
    rotate_s = case.world.plan.rotate_s
    found = case.world.truth.sessions[wire.source]
    assert rotate_s is not None
    assert wire.closed is not None
    return any(
        (s.wire is wire and s.opened is not None and wire.closed - s.opened >= OLD * rotate_s)
        or (s.wire is not wire and s.opened is not None and wire.dialed < s.opened < wire.closed)
        for s in found
    )


def denied(case: Case) -> Iterator[str]:
    """Refused credentials are left alone for a quarter of an hour, `Retry-After` is honoured."""
    world = case.world
    by_source: dict[SourceId, list[Refusal]] = defaultdict(list)
    for refusal in world.truth.refusals:
        by_source[refusal.source].append(refusal)
    for source, found in by_source.items():
        sessions = [s for s in world.truth.sessions[source] if s.opened is not None]
        opened = [s.opened or 0.0 for s in sessions]
        closed = [s.wire.closed for s in sessions if s.wire.closed is not None]
        for index, first in enumerate(found):
            if first.status not in (401, 403):
                continue
            # A key that was good earns a second look, a clock that looks wrong one more attempt.
            extra = 2 if first.status == 401 else 1
            later = found[index + 1 : index + 2 + extra]
            if len(later) <= extra:
                continue
            last = later[-1]
            calm = any(first.read <= at <= last.read for at in opened)
            # Whoever reloads asks for another look, too.
            calm = calm or any(first.read <= at <= last.read for at, _ in world.truth.caps)
            # What is refused to a replacement is looked at again when the old connection is gone.
            calm = calm or any(first.read <= at <= last.read for at in closed)
            same = all(r.life == first.life and r.status in (401, 403) for r in later)
            if same and not calm and last.read - first.read < PROBE_S:
                yield f"denied: {source} was refused at {first.read:.3f} and at {last.read:.3f}"
    for refusal in world.truth.refusals:
        if refusal.status != 429 or refusal.retry_after_s is None:
            continue
        until = refusal.read + min(round(refusal.retry_after_s), MAX_RETRY_AFTER_S)
        for attempt in world.network.attempts:
            if (
                attempt.life == refusal.life
                and attempt.address == refusal.address
                and attempt.source.account == refusal.source.account
                and refusal.read < attempt.began < until - 1e-6
            ):
                text = f"dialed at {attempt.began:.3f}, not before {until:.3f}"
                yield f"denied: {attempt.source} {text}"
