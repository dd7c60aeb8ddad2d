"""One source's life in virtual time: what the stream is told of each way to fail."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import cast

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from one_source import EVENT, SECOND, SOURCE, Keys, Quiet, Tape

from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.lifecycle import Lifecycle, State
from hypermux.core.limiter import Allocator
from hypermux.core.rotation import Rotation
from hypermux.model.accounts import Cap, Credential, Limits
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.model.records import Event, Unparsed
from hypermux.upstream.connection import Connection
from hypermux.upstream.gate import Gate
from hypermux.upstream.link import Link
from hypermux.upstream.telling import Outage
from hypermux.upstream.transport import Listener, Opened, Resumption

Attempt = Callable[[Listener], Awaitable[None]]


def fail(kind: FailureKind, code: int | None = None, *, date_ns: int | None = None) -> Attempt:
    async def attempt(listener: Listener) -> None:
        raise ConnectionFailed(Failure(kind, f"{kind} {code}", code, date_ns=date_ns))

    return attempt


def live(seconds: float, kind: FailureKind, code: int | None = None) -> Attempt:
    """Open, one event at once, silence for `seconds`, then the failure."""

    async def attempt(listener: Listener) -> None:
        listener.opened(Opened(None, "verified"))
        listener.heard()
        listener.received([EVENT], more=False)
        await trio.sleep(seconds)
        raise ConnectionFailed(Failure(kind, f"{kind} {code}", code))

    return attempt


async def forever(listener: Listener) -> None:
    listener.opened(Opened(None, "verified"))
    await trio.sleep_forever()


@define
class Script:
    """A transport that plays attempts in order, then stays connected."""

    attempts: list[Attempt]
    dialed_at: list[float] = field(factory=list)
    offsets: list[float] = field(factory=list)

    async def __call__(
        self,
        source: Source,
        credential: Credential | None,
        listener: Listener,
        sign_offset_s: float,
    ) -> None:
        self.dialed_at.append(trio.current_time())
        self.offsets.append(sign_offset_s)
        attempt = self.attempts.pop(0) if self.attempts else forever
        await attempt(listener)


@define
class Played:
    tape: Tape
    script: Script
    keys: Keys
    connection: Connection


async def play(
    *attempts: Attempt,
    seconds: float = 3600.0,
    outage: Outage | None = None,
    source: Source = SOURCE,
) -> Played:
    start_s = trio.current_time()
    clock = StreamClock(trio.current_time, lambda: 1_000 * SECOND)
    tape, script, keys = Tape(clock), Script(list(attempts)), Keys()
    rng = random.Random(1)
    gate = Gate(Allocator(Limits(Cap(10, 10.0), 5), start_s))
    connection = Connection(
        source=source,
        gate=gate,
        feed=tape,
        keys=keys,
        transport=script,
        lifecycle=Lifecycle(min_s=0.5, max_s=60.0, reset_after_s=60.0, rng=rng),
        rotation=Rotation(None, min_s=0.5, max_s=60.0, rng=rng),
        clock=clock,
        observer=Quiet(),
        outage=outage or Outage(clock.now_ns(), "start"),
        utc_ns=clock.now_ns,
    )
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.run)
            nursery.start_soon(connection.run)
    return Played(tape, script, keys, connection)


async def test_coverage_starts_when_configured(autojump_clock: trio.testing.MockClock) -> None:
    played = await play()
    assert [s.state for s in played.tape.states] == ["down", "up", "down"]
    assert played.tape.states[0].cause == "start"
    (gap,) = played.tape.gaps
    assert (gap.from_ns, gap.cause, gap.certainty) == (1_000 * SECOND, "start", "possible")


async def test_server_down_at_start_is_one_outage(
    autojump_clock: trio.testing.MockClock,
) -> None:
    refused = fail(FailureKind.CONNECT)
    played = await play(refused, refused, refused)
    (gap,) = played.tape.gaps
    assert gap.from_ns == 1_000 * SECOND
    assert gap.cause not in ("start", "restart")
    assert [s.state for s in played.tape.states] == ["down", "down", "up", "down"]
    waits = [b - a for a, b in pairwise(played.script.dialed_at)]
    assert all(0 < wait <= 60 for wait in waits)


async def test_a_broken_connection_is_a_gap_from_the_last_byte(
    autojump_clock: trio.testing.MockClock,
) -> None:
    played = await play(live(5, FailureKind.RESET))
    first, second = played.tape.gaps
    assert first.cause == "start"
    assert second.from_ns == first.to_ns  # the event came with the answer; nothing since
    assert second.to_ns > second.from_ns + 5 * SECOND
    assert [s.state for s in played.tape.states] == ["down", "up", "down", "up", "down"]
    assert played.tape.calls == ["opened", "closed", "opened", "closed"]
    assert sum(isinstance(item, Event) for item in played.tape.items) == 1


async def test_an_end_in_its_place_is_a_gap_from_then_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    played = await play(live(5, FailureKind.EOF))
    first, second = played.tape.gaps
    assert second.from_ns == pytest.approx(first.to_ns + 5 * SECOND, abs=1000)


async def test_an_end_found_after_a_stall_of_our_own_is_a_gap_from_before_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def attempt(listener: Listener) -> None:
        assert isinstance(listener, Link)
        assert isinstance(listener.owner, Connection)
        listener.opened(Opened(None, "off"))
        await trio.sleep(10)
        assert isinstance(listener.owner.feed, Tape)
        listener.owner.feed.stood_still_since_ns = 1_004 * SECOND
        raise ConnectionFailed(Failure(FailureKind.CLOSE, "closed while we slept", 1001))

    played = await play(attempt, seconds=60)
    assert played.tape.gaps[1].from_ns == 1_004 * SECOND


async def test_each_way_to_end_has_its_word(autojump_clock: trio.testing.MockClock) -> None:
    causes = {}
    for kind, code in [
        (FailureKind.CLOSE, 1001),
        (FailureKind.EOF, None),
        (FailureKind.SILENT, None),
        (FailureKind.PROTOCOL, None),
    ]:
        played = await play(live(5, kind, code))
        causes[kind] = played.tape.gaps[1].cause
    assert len(set(causes.values())) == 4, causes


async def test_a_bad_certificate_waits_for_a_probe(autojump_clock: trio.testing.MockClock) -> None:
    played = await play(*[fail(FailureKind.TLS)] * 100, seconds=24 * 3600)
    assert len(played.script.dialed_at) <= 10
    assert played.tape.states[1].verdict == "untrusted"


async def test_a_certificate_that_is_mended_while_it_is_dialed_with_is_tried_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def refused(listener: Listener) -> None:
        assert isinstance(listener, Link)
        assert isinstance(listener.owner, Connection)
        await trio.sleep(1)
        listener.owner.look_again()  # too late for this one
        await trio.sleep(1)
        raise ConnectionFailed(Failure(FailureKind.TLS, "expired"))

    played = await play(refused, fail(FailureKind.TLS), seconds=600)
    first, second = played.script.dialed_at
    assert second - first < 3


async def test_denied_credentials_are_not_retried_hot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    played = await play(*[fail(FailureKind.HTTP, 401)] * 100, seconds=24 * 3600)
    assert len(played.script.dialed_at) <= 10
    assert played.keys.refusals == len(played.script.dialed_at)
    assert played.connection.lifecycle.state is State.STOPPED


async def test_a_clock_that_is_off_is_corrected_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    skewed = fail(FailureKind.HTTP, 401, date_ns=1_600 * SECOND)
    played = await play(skewed)
    assert [round(offset) for offset in played.script.offsets] == [0, 600]
    assert played.script.dialed_at[1] - played.script.dialed_at[0] < 60
    assert played.keys.refusals == 0
    refused = await play(skewed, skewed, seconds=600)
    assert len(refused.script.dialed_at) == 2
    assert refused.keys.refusals == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("at_s", "ahead_s", "pause_s"),
    [(1_300, 0, 300), (1_300, 200, 100), (900, 0, 0), (90_000, 0, 3600)],
)
async def test_a_date_to_come_back_at_is_read_by_our_corrected_clock(
    autojump_clock: trio.testing.MockClock, status: int, at_s: int, ahead_s: int, pause_s: float
) -> None:
    async def refuse(listener: Listener) -> None:
        assert isinstance(listener, Link)
        assert isinstance(listener.owner, Connection)
        address = SOURCE.endpoint.address
        listener.owner.corrections.refused(address, ahead_s * SECOND)
        failure = Failure(FailureKind.HTTP, "later", status, retry_at_ns=at_s * SECOND)
        raise ConnectionFailed(failure)

    played = await play(refuse, seconds=4000)
    first, second = played.script.dialed_at
    assert pause_s <= second - first <= pause_s + 2


async def test_a_clock_that_is_mended_meanwhile_is_corrected_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = fail(FailureKind.HTTP, 401, date_ns=1_600 * SECOND)
    mended = fail(FailureKind.HTTP, 401, date_ns=1_010 * SECOND)
    played = await play(slow, live(5, FailureKind.CLOSE, 1012), mended)
    assert [round(offset, -1) for offset in played.script.offsets] == [0, 600, 600, 0]
    assert played.keys.refusals == 0


async def test_health_and_not_the_connection_resets_the_backoff(
    autojump_clock: trio.testing.MockClock,
) -> None:
    flapping = await play(*[live(0.01, FailureKind.EOF)] * 12, seconds=2 * 3600)
    times = flapping.script.dialed_at
    assert times[-1] - times[0] > 60, "a source that opens and drops is backed off from"


async def test_an_outage_that_the_journal_knows_is_not_told_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    known = Outage(900 * SECOND, "stopped", recorded=True)
    played = await play(outage=known)
    assert [s.state for s in played.tape.states] == ["up", "down"]
    assert (played.tape.gaps[0].from_ns, played.tape.gaps[0].cause) == (900 * SECOND, "stopped")


@pytest.mark.internal_faults
async def test_our_own_fault_in_one_source_is_told_and_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def broken(listener: Listener) -> None:
        raise KeyError("oops")

    played = await play(broken)
    assert played.tape.gaps
    assert "oops" not in str(played.tape.states)


async def test_excluded_events_are_counted_as_filtered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def attempt(listener: Listener) -> None:
        assert isinstance(listener, Link)
        assert isinstance(listener.owner, Connection)
        listener.owner.incoming.sieve.source = evolve(SOURCE, exclude_events=("sta*",))
        listener.opened(Opened(None, "off"))
        listener.received([EVENT, EVENT.replace(b"start", b"die")], more=False)
        await trio.sleep_forever()

    played = await play(attempt)
    counters = played.connection.counters
    assert (counters.received, counters.filtered) == (2, 1)
    assert sum(isinstance(item, Event) for item in played.tape.items) == 1


async def test_what_matches_is_taken_out_and_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def attempt(listener: Listener) -> None:
        assert isinstance(listener, Link)
        assert isinstance(listener.owner, Connection)
        # What is excluded is judged by what it was.
        listener.owner.incoming.sieve.source = evolve(
            SOURCE, redact=("start|die",), exclude_events=("die",)
        )
        listener.opened(Opened(None, "off"))
        other = EVENT.replace(b"start", b"stop")
        messages = [EVENT, EVENT.replace(b"start", b"die"), other, b"start: no event"]
        listener.received(messages, more=False)
        await trio.sleep_forever()

    played = await play(attempt)
    counters = played.connection.counters
    assert (counters.received, counters.filtered, counters.redacted) == (4, 1, 3)
    shown = [i.raw for i in played.tape.items if isinstance(i, Event)]
    assert shown == [EVENT.replace(b"start", b"***"), EVENT.replace(b"start", b"stop")]
    assert [i.text for i in played.tape.items if isinstance(i, Unparsed)] == ["***: no event"]


def talking(*pauses_s: float, end_s: float = 0.0) -> Attempt:
    """Open, an event after each pause, then open on; `end_s`: closed so long after the last."""

    async def attempt(listener: Listener) -> None:
        listener.opened(Opened(None, "verified"))
        for pause_s in pauses_s:
            await trio.sleep(pause_s)
            listener.heard()
            listener.received([EVENT], more=False)
        if not end_s:
            await trio.sleep_forever()
        await trio.sleep(end_s)
        raise ConnectionFailed(Failure(FailureKind.CLOSE, "closed", 1001))

    return attempt


HOUR = 3600.0
EXPECTING = evolve(SOURCE, expect_event_within_s=HOUR)
REDIALING = evolve(EXPECTING, on_quiet="redial")


async def test_a_source_that_brings_nothing_is_quiet_until_it_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    played = await play(talking(10, 3000, 3 * HOUR, 1000), source=EXPECTING, seconds=5 * HOUR)
    states = [s for s in played.tape.states if s.state not in ("up", "down")]
    assert [s.state for s in states] == ["quiet", "active"]
    quiet, active = states
    opened_ns = played.tape.gaps[0].to_ns
    assert quiet.from_ns == active.from_ns == pytest.approx(opened_ns + 3010 * SECOND, abs=1000)
    assert quiet.reason == "no event for 1 h"
    assert active.reason == "events come again, after 3 h"
    items = played.tape.items
    third = [n for n, item in enumerate(items) if isinstance(item, Event)][2]
    assert items.index(active) == third - 1, "behind it comes what ended the quiet"
    assert len(played.script.dialed_at) == 1
    assert len(played.tape.gaps) == 1, "it was connected all the time"


async def test_nothing_at_all_over_many_short_connections_is_quiet_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    short = [talking(end_s=1700) for _ in range(10)]
    played = await play(*short, source=EXPECTING, seconds=4 * HOUR)
    (quiet,) = [s for s in played.tape.states if s.state == "quiet"]
    assert quiet.from_ns == played.tape.gaps[0].to_ns, "since it was connected first"


async def test_who_expects_nothing_is_never_quiet(autojump_clock: trio.testing.MockClock) -> None:
    played = await play(seconds=100 * HOUR)
    assert {s.state for s in played.tape.states} == {"up", "down"}


async def test_a_quiet_source_is_connected_anew_once_in_that_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    played = await play(source=REDIALING, seconds=5.5 * HOUR)
    assert len(played.script.dialed_at) == 6
    waits = [later - sooner for sooner, later in pairwise(played.script.dialed_at)]
    assert all(HOUR - 0.1 <= wait < HOUR + 5 for wait in waits)
    assert [s.state for s in played.tape.states].count("quiet") == 1, "said once"
    gaps = played.tape.gaps[1:]
    assert {gap.cause for gap in gaps} == {"quiet"}
    assert all(gap.to_ns - gap.from_ns < 5 * SECOND for gap in gaps)
    told = [s for s in played.tape.states if s.state == "down" and s.cause == "quiet"]
    assert told[0].reason == "no event came for too long: connecting anew"
    assert len(told) == 5


async def test_a_source_that_talks_is_left_connected(
    autojump_clock: trio.testing.MockClock,
) -> None:
    played = await play(talking(*[3500] * 20), source=REDIALING, seconds=19 * HOUR)
    assert len(played.script.dialed_at) == 1
    assert {s.state for s in played.tape.states} == {"up", "down"}


async def test_a_server_that_is_gone_when_a_quiet_source_comes_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    refused = [fail(FailureKind.CONNECT)] * 3
    played = await play(talking(), *refused, source=REDIALING, seconds=1.2 * HOUR)
    gap = played.tape.gaps[1]
    assert (gap.cause, len(played.tape.gaps)) == ("unreachable", 2)
    assert len(played.script.dialed_at) == 5


async def test_what_an_upstream_remembers_is_replayed_whatever_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def attempt(listener: Listener) -> None:
        listener.opened(Opened(None, "off", resumption=Resumption(True, [EVENT, b"no event"])))
        listener.received([b"neither"], more=False)
        listener.recovered([b"late"], unsure_from_ns=None)
        await trio.sleep_forever()

    played = await play(attempt)
    found = [item for item in played.tape.items if isinstance(item, Event | Unparsed)]
    assert [item.replayed for item in found] == [True, True, False, True]


@pytest.mark.parametrize(("complete", "from_s"), [(True, 1_002), (False, 1_010)])
async def test_a_stream_that_died_while_its_engine_was_asked_is_a_gap_from_the_question(
    autojump_clock: trio.testing.MockClock, complete: bool, from_s: int
) -> None:
    async def attempt(listener: Listener) -> None:
        await trio.sleep(10)
        resumption = Resumption(complete, as_of_ns=1_002 * SECOND)
        listener.opened(Opened(None, "off", resumption=resumption))
        await trio.sleep(30)
        raise ConnectionFailed(Failure(FailureKind.SILENT, "the host does not answer any more"))

    played = await play(attempt, seconds=50)
    gap = played.tape.gaps[-1]
    assert gap.cause == "silent"
    # Without a complete resume its own gap reaches to the opening.
    assert gap.from_ns == pytest.approx(from_s * SECOND, abs=SECOND)
    assert len(played.tape.gaps) == (1 if complete else 2)


@pytest.mark.parametrize(("answered", "from_s"), [(True, 1_040), (False, 1_025)])
async def test_a_stop_without_an_answer_begins_where_the_server_was_last_heard(
    autojump_clock: trio.testing.MockClock, answered: bool, from_s: int
) -> None:
    async def attempt(listener: Listener) -> None:
        listener.opened(Opened(None, "off"))
        await trio.sleep(25)
        listener.heard()
        try:
            await trio.sleep_forever()
        finally:
            if not answered:
                listener.unanswered()

    played = await play(attempt, seconds=40)
    last = played.tape.states[-1]
    assert (last.state, last.cause) == ("down", "stopped")
    assert last.from_ns == pytest.approx(from_s * SECOND, abs=SECOND)


@pytest.mark.parametrize(
    ("heard_s", "from_s"),
    [(5, 1_030), (50, 1_050)],  # by keepalive it lived at 1,030; or it was heard since
)
@pytest.mark.parametrize("cause", ["yielded", "stopped"])
async def test_who_has_no_goodbye_may_have_been_dead_since_its_last_proof_of_life(
    autojump_clock: trio.testing.MockClock, heard_s: int, from_s: int, cause: str
) -> None:
    async def attempt(listener: Listener) -> None:
        listener.opened(Opened(None, "off"))
        await trio.sleep(heard_s)
        listener.heard()
        try:
            if cause == "yielded":
                owner = cast(Link, listener).owner
                await trio.sleep(60 - heard_s)
                cast(Connection, owner).part("yielded")
            await trio.sleep_forever()
        finally:
            listener.unanswered(dead_s=30.0)

    played = await play(attempt, seconds=60 if cause == "stopped" else 70)
    down = next(s for s in played.tape.states if s.cause == cause)
    assert down.state == "down"
    assert down.from_ns == pytest.approx(from_s * SECOND, abs=SECOND)
    if cause == "yielded":
        assert played.tape.gaps[-1].from_ns == down.from_ns
