"""A source's state as a value, for people and programs that ask.

What its connection knows, and what came of its events further down (`Flow`).
"""

from __future__ import annotations

from math import inf

from attrs import frozen

from hypermux.core.intake import Share
from hypermux.core.lifecycle import State
from hypermux.core.recording import rfc3339
from hypermux.model.status import Counts, Gaps, LastFailure, SourceStatus
from hypermux.upstream.connection import Connection
from hypermux.upstream.counters import Counters, Fall


@frozen
class Flow:
    """What became of a source's events: its share of the buffer, and the offset that orders it."""

    share: Share
    offset_ns: int


def source_status(connection: Connection, flow: Flow, now_s: float) -> SourceStatus:
    """Return the state of one source. `now_s` is monotonic seconds."""
    source, lifecycle, link = connection.source, connection.lifecycle, connection.link
    now_ns = connection.clock.now_ns()

    def at(moment_s: float) -> str:
        return rfc3339(now_ns + round((moment_s - now_s) * 1e9))

    up = link is not None and link.open
    quiet = up and connection.quiet.quiet
    waits = lifecycle.state is State.WAITING or connection.awaits_successor
    counters, share, held = connection.counters, flow.share, connection.incoming.held
    fall = counters.fall
    due_s = connection.rotation.due_s if up else inf
    return SourceStatus(
        account=source.id.account,
        region=source.id.region,
        upstream=source.upstream,
        endpoint=str(source.endpoint),
        state="quiet" if quiet else lifecycle.state,
        since=rfc3339(connection.quiet.since_ns) if quiet else at(lifecycle.since_s),
        attempt=lifecycle.attempt,
        next_try=None if connection.next_try_s is None else at(connection.next_try_s),
        waits_for=connection.gate.allocator.why(source.id) if waits else None,
        connected_seconds=(now_ns - link.opened_ns) / 1e9 if link is not None and up else None,
        rotation_due=None if due_s == inf else at(due_s),
        tls=link.accepted.trust if link is not None and link.accepted and up else None,
        last_event=_moment(counters.event_ns),
        last_answer=_moment(counters.heard_ns),
        offset_seconds=flow.offset_ns / 1e9,
        lag_seconds=None if counters.lag_ns is None else counters.lag_ns / 1e9,
        signing_offset_seconds=connection.corrections.of(source.endpoint.address) / 1e9,
        key_trouble=connection.keys.trouble(source.id.account),
        events=Counts(
            received=counters.received,
            synthetic=counters.synthetic,
            recorded=share.recorded.events,
            duplicate=counters.duplicate,
            filtered=counters.filtered,
            redacted=counters.redacted,
            lost=share.lost + _swallowed(counters, share, held),
            in_flight=share.in_flight + held,
            unparsed=share.recorded.unparsed,
        ),
        gaps=Gaps(count=share.recorded.gaps, total_seconds=share.recorded.gap_ns / 1e9),
        internal_faults=counters.faults,
        last_failure=None if fall is None else _last_failure(fall),
    )


def _swallowed(counters: Counters, share: Share, held: int) -> int:
    """Return how many events came and went no further: a fault of ours was in their way."""
    if not counters.faults:
        return 0
    came = counters.received + counters.synthetic - counters.duplicate - counters.filtered
    return max(0, came - held - share.received)


def _last_failure(fall: Fall) -> LastFailure:
    judgement = fall.judgement
    return LastFailure(
        at=rfc3339(fall.at_ns),
        verdict=judgement.verdict,
        cause=judgement.cause,
        reason=judgement.reason,
    )


def _moment(ns: int | None) -> str | None:
    return None if ns is None else rfc3339(ns)
