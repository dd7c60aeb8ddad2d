"""Resume and audit over memory streams, with a scripted engine."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from engines import EPOCH_S, ScriptedEngine, life, volume
from transports import Heard, PairDialer

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core.decoding import decode_batch
from hypermux.core.filters import Filters
from hypermux.core.limiter import Allocator, Rank
from hypermux.core.recollection import Recollection
from hypermux.core.resume import AUDIT_EVENTS, AUDIT_MIN_S, AUDIT_S
from hypermux.model.accounts import Cap, Endpoint, Limits, SourceId, Tls
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import docker_memory
from hypermux.upstream.aside import Asides
from hypermux.upstream.docker import stream_docker
from hypermux.upstream.docker_memory import (
    ANSWER_S,
    AUDIT_PATIENCE_S,
    RESUME_PATIENCE_S,
    SECOND_LOOK_S,
    Keeper,
)
from hypermux.upstream.docker_snapshot import Memory
from hypermux.upstream.gate import Gate
from hypermux.upstream.transport import Opened, Resumption

SOURCE = Source(SourceId("ci", "build1"), "docker", Endpoint.parse("unix:///run/docker.sock"))
S = 1_000_000_000


def now_ns() -> int:
    return int((EPOCH_S + trio.current_time()) * 1e9)


@define(eq=False)
class World:
    """One engine, one source's memory of it, and the limits between them."""

    nursery: trio.Nursery
    engine: ScriptedEngine
    source: Source = SOURCE
    slots: int | None = None
    # When set, side connections that were dialed meanwhile are refused.
    refused: trio.Event | None = None
    memory: Memory = field(init=False)
    gate: Gate = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.memory = Memory(Recollection(), now_ns())
        self.gate = Gate(Allocator(Limits(Cap(self.slots, None)), trio.current_time()))
        self.nursery.start_soon(self.gate.run)

    def know(self, *events: bytes, anchor: bytes = b"") -> None:
        """Remember events as seen, and when they ended."""
        for item in decode_batch([*events]):
            self.memory.recollection.note(item)
        self.memory.recollection.seen.anchor = anchor
        self.memory.heard_ns = now_ns()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Life]:
        """Connect, holding a slot as a source does."""
        one = Life(Listening())
        dialer = RefusedAside(self.nursery, self.engine.serve, refused=self.refused)
        keeper = Keeper(
            source=self.source,
            memory=self.memory,
            aside=Asides(self.source, self.gate, dialer),
            reading=decode_batch,
            now_ns=now_ns,
            rng=random.Random(1),
            max_message_size=100_000,
        )

        async def run() -> None:
            try:
                await stream_docker(
                    self.source,
                    dialer=dialer,
                    listener=one.heard,
                    settings=ConnectionSettings(),
                    keeper=keeper,
                )
            except ConnectionFailed as exc:
                one.failure = exc.failure
                one.ended_s = trio.current_time()
                one.ended.set()

        await self.gate.permit(self.source.id, self.source.endpoint.address, Rank.NEW)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield one
            nursery.cancel_scope.cancel()
        self.gate.release(self.source.id)


@define(eq=False)
class RefusedAside(PairDialer):
    refused: trio.Event | None = None

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        if self.dialed and self.refused is not None:
            await self.refused.wait()
            raise ConnectionFailed(Failure(FailureKind.CONNECT, "it stops"))
        return await super().dial(endpoint, tls)


@define(eq=False)
class Life:
    """One connection, and what was heard of it."""

    heard: Listening
    failure: Failure | None = None
    ended_s: float = 0.0
    ended: trio.Event = field(factory=trio.Event)

    @property
    def resumption(self) -> Resumption:
        (opened,) = self.heard.openings
        assert opened.resumption is not None
        return opened.resumption

    async def opened(self) -> Resumption:
        with trio.fail_after(1000):
            await self.heard.open.wait()
        return self.resumption


@define(eq=False)
class Listening(Heard):
    """A listener that can be waited for."""

    open: trio.Event = field(factory=trio.Event)

    def opened(self, opened: Opened) -> None:
        super().opened(opened)
        self.open.set()


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    engine_options = {k: v for k, v in options.items() if k not in ("source", "slots")}
    async with trio.open_nursery() as nursery:
        engine = ScriptedEngine(**engine_options)
        yield World(nursery, engine, options.get("source", SOURCE), options.get("slots"))
        nursery.cancel_scope.cancel()


def events(prefix: str, count: int) -> list[bytes]:
    return [volume(f"{prefix}{n}", now_ns() + n) for n in range(count)]


async def test_the_first_connection_takes_nothing_from_the_ring(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the:
        await the.engine.happen(*events("old", 5))
        await trio.sleep(10)
        async with the.connected() as one:
            found = await one.opened()
            assert (found.complete, found.replayed) == (False, [])
            assert (found.anchor or "").startswith("first:")
            await the.engine.happen(*(new := events("new", 2)))
            await trio.sleep(0.1)
            assert one.heard.messages == new
        await the.engine.happen(*(missed := events("missed", 5)))
        async with the.connected() as one:
            found = await one.opened()
            assert (found.complete, found.replayed) == (True, missed)
    assert the.gate.allocator.held == 0


async def test_what_is_both_in_the_ring_and_live_comes_once_repeats_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Two identical events are two, wherever they are cut apart."""
    async with world(held=(gate := trio.Event())) as the:
        twin = volume("twin")
        for seen_before, in_ring_only, on_both, live_only in [
            (1, 1, 0, 0), (1, 0, 1, 0), (0, 2, 0, 0), (0, 0, 2, 0), (1, 0, 0, 1),
            (2, 0, 1, 1), (0, 0, 1, 1),
        ]:  # fmt: skip
            the.engine.restart()
            the.memory = Memory(Recollection(), now_ns())
            seen = [volume("first"), *[twin] * seen_before]
            the.know(*seen)
            await the.engine.happen(*seen, *[twin] * in_ring_only)
            the.engine.held = gate = trio.Event()
            async with the.connected() as one:
                await trio.sleep(0.01)
                await the.engine.happen(*[twin] * on_both)
                await trio.sleep(0.01)
                gate.set()
                found = await one.opened()
                await trio.sleep(1)
                await the.engine.happen(*[twin] * live_only, volume("last"))
                await trio.sleep(0.1)
                assert found.complete
                assert found.replayed == [twin] * (in_ring_only + on_both)
                assert one.heard.messages == [twin] * live_only + [volume("last")]
                assert one.heard.repeats == on_both


async def test_what_is_remembered_leaves_in_the_order_of_the_ring(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A ring can hold what was lost, say in an overflow, among what was recorded."""
    async with world() as the:
        mixed = events("mixed", 256)
        await the.engine.happen(*mixed)
        the.know(*mixed[1::2], anchor=b"gone")
        async with the.connected() as one:
            assert (await one.opened()).replayed == mixed[::2]
            await the.engine.happen(*(later := events("later", 200)))
            await trio.sleep(AUDIT_S + SECOND_LOOK_S + 1)
            assert the.engine.pinged.is_set(), "it was audited"
            assert one.heard.messages == later
            assert not one.heard.recoveries


async def test_what_an_audit_found_takes_its_place_in_the_ring_s_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Found late, it must not outlive in memory what is newer than it in the ring."""
    async with world() as the, the.connected() as one:
        await one.opened()
        await the.engine.happen(*(first := events("first", 150)))
        await the.engine.happen(*(missed := events("missed", 100)), live=False)
        await the.engine.happen(*(newer := events("newer", 5)))
        await trio.sleep(AUDIT_S + SECOND_LOOK_S + 1)
        assert one.heard.recoveries == [(missed, None)]
        # As many as the memory holds beside the ring, and some more: all of them arrive.
        later = [events(f"later{n}-", 190) for n in range(3)]
        for some in later:
            await the.engine.happen(*some)
            await trio.sleep(AUDIT_S + SECOND_LOOK_S + 1)
        assert one.heard.messages == first + newer + [m for some in later for m in some]
        assert len(one.heard.recoveries) == 1


async def test_what_is_known_to_be_whole_is_so_up_to_the_question(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the:
        the.know(volume("seen"))
        await the.engine.happen(volume("seen"))
        the.engine.held = trio.Event()
        async with the.connected() as one:
            await trio.sleep(5)
            asked_ns = now_ns() - 5 * S
            the.engine.held.set()
            found = await one.opened()
            assert found.complete
            assert found.as_of_ns == pytest.approx(asked_ns, abs=1000)
            assert the.memory.heard_ns == found.as_of_ns


async def test_live_events_are_held_in_order_until_the_ring_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the:
        a, b, c, d = events("e", 4)
        the.know(a)
        await the.engine.happen(a, b)
        the.engine.held = trio.Event()
        async with the.connected() as one:
            await trio.sleep(0.1)
            await the.engine.happen(c)
            assert one.heard.log == []
            the.engine.held.set()
            await one.opened()
            await the.engine.happen(d)
            await trio.sleep(0.1)
            assert one.resumption.replayed == [b, c]
            assert one.heard.messages == [d]
            assert one.heard.openings[0].date_ns is not None
            assert abs(one.heard.openings[0].date_ns - now_ns()) < 2 * S


@pytest.mark.parametrize(
    ("trouble", "after_s"),
    [("no slot", RESUME_PATIENCE_S), ("no answer", ANSWER_S), ("refused", 0), ("flood", 0)],
)
async def test_a_resume_that_cannot_be_is_incomplete_and_loses_nothing(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
    after_s: float,
) -> None:
    monkeypatch.setattr(docker_memory, "MAX_HELD", 1000)
    async with world(slots=1 if trouble == "no slot" else None) as the:
        the.know(volume("seen"))
        the.memory.recollection.seen.add(b"12345678", 1)
        the.engine.held = None if trouble in ("no slot", "refused") else trio.Event()
        if trouble == "refused":
            the.engine.statuses["ring"] = 403
        begun_s = trio.current_time()
        async with the.connected() as one:
            await trio.testing.wait_all_tasks_blocked()
            live = events("live", 30 if trouble == "flood" else 3)
            await the.engine.happen(*live)
            assert await one.opened() == Resumption()
            assert trio.current_time() - begun_s == pytest.approx(after_s, abs=0.1)
            await trio.sleep(0.1)
            assert one.heard.messages == live
            assert the.gate.allocator.held == 1


async def test_an_end_while_holding_hands_on_what_was_held(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(held=trio.Event()) as the:
        the.know(volume("seen"))
        async with the.connected() as one:
            await trio.sleep(0.1)
            await the.engine.happen(*(live := events("live", 3)))
            await the.engine.cut()
            await one.ended.wait()
            assert one.resumption == Resumption()
            assert one.heard.messages == live
            assert one.failure is not None
            assert one.failure.kind is FailureKind.EOF
    assert the.gate.allocator.held == 0


@pytest.mark.parametrize("steps", range(0, 24, 3))
async def test_an_end_in_the_moment_of_the_answer_is_told_once_and_loses_nothing(
    autojump_clock: trio.testing.MockClock, steps: int
) -> None:
    """Wherever in the resume's last steps the stream ends."""
    for _ in range(5):  # trio takes turns by chance
        async with world(held=(gate := trio.Event())) as the:
            the.know(seen := volume("seen"))
            await the.engine.happen(seen, *(missed := events("missed", 2)))
            async with the.connected() as one:
                await trio.sleep(0.1)
                gate.set()
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                await the.engine.cut()
                await one.ended.wait()
                assert one.heard.log.count("opened") == 1
                told = one.resumption.replayed
            async with the.connected() as one:
                found = await one.opened()
                assert found.complete
                assert told + found.replayed == missed


async def test_an_engine_that_stops_while_it_is_asked_is_told_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its stream ends, and the dial for the question fails, in one moment."""
    for _ in range(20):  # trio takes turns by chance
        async with world() as the:
            the.know(volume("seen"))
            the.refused = trio.Event()
            async with the.connected() as one:
                await trio.sleep(0.1)
                the.refused.set()
                await the.engine.cut()
                await one.ended.wait()
                assert one.heard.log == ["opened"]
                assert one.resumption == Resumption()
        assert the.gate.allocator.held == 0


async def test_an_engine_whose_ring_was_read_when_its_stream_ends_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It stops while its containers are looked at: what it remembered may be nowhere else."""
    async with world() as the:
        the.know(volume("seen"), anchor=b"lost")
        the.memory.recollection.seen.add(b"12345678", 1)
        the.engine.held_paths["/containers/json"] = trio.Event()
        await the.engine.happen(*(missed := events("missed", 2)))
        async with the.connected() as one:
            await trio.sleep(0.1)
            await the.engine.cut()
            await one.ended.wait()
            assert (one.resumption.complete, one.resumption.replayed) == (False, missed)


async def test_an_engine_that_answers_is_heard_of_by_its_audits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the, the.connected() as one:
        await one.opened()
        await trio.sleep(5 * AUDIT_S)
        replies = one.heard.replies
        assert len(replies) >= 1 + 2 * 4  # the stream's head; then a ping and an answer each
        assert all(later - earlier < 1.1 * AUDIT_S for earlier, later in pairwise(replies))
        assert "heard" not in one.heard.log
        the.engine.statuses["ring"] = 500
        before = len(replies)
        await trio.sleep(2 * AUDIT_S)
        assert len(replies) > before, "a ping's answer is one"
        assert set(the.engine.requests[-2:]) == {"/_ping", "/events?since=0&until=0"}


async def test_an_audit_finds_what_the_stream_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the, the.connected() as one:
        await one.opened()
        a, b, c = events("e", 3)
        await the.engine.happen(a)
        await the.engine.happen(b, live=False)
        await the.engine.happen(c)
        await trio.sleep(AUDIT_S + SECOND_LOOK_S + 1)
        assert one.heard.recoveries == [([b], None)]
        assert one.heard.messages == [a, c]
        assert the.engine.requests[-2:] == ["/_ping", "/events?since=0&until=0"]
        await the.engine.happen(b, ring=False)  # it was only slow
        await the.engine.happen(d := volume("d"))
        await trio.sleep(2 * AUDIT_S)
        assert one.heard.messages == [a, c, d]
        assert len(one.heard.recoveries) == 1
        assert the.gate.allocator.held == 1


async def test_what_is_under_way_at_an_audit_is_not_missing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the, the.connected() as one:
        await one.opened()
        a, b = events("e", 2)
        await the.engine.happen(a, b, live=False)
        with trio.fail_after(AUDIT_S):
            await the.engine.pinged.wait()
        await the.engine.happen(a, b, ring=False)
        await trio.sleep(SECOND_LOOK_S + 1)
        assert one.heard.recoveries == []
        assert one.heard.messages == [a, b]


async def test_a_dead_stream_is_dialed_anew_and_resumes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the:
        the.know(a := volume("a"))
        await the.engine.happen(a)
        async with the.connected() as one:
            await one.opened()
            missed = events("missed", 3)
            await the.engine.happen(*missed, live=False)
            await one.ended.wait()
            assert one.failure is not None
            assert one.failure.kind is FailureKind.SILENT
            assert "3 events that never came" in one.failure.detail
            assert one.ended_s <= AUDIT_S + SECOND_LOOK_S + 1
        async with the.connected() as one:
            found = await one.opened()
            assert (found.complete, found.replayed) == (True, missed)


async def test_an_engine_that_stands_still_is_silent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the, the.connected() as one:
        await one.opened()
        the.engine.mute = True
        await one.ended.wait()
        assert one.failure is not None
        assert one.failure.kind is FailureKind.SILENT
        assert "a ping" in one.failure.detail
        assert one.ended_s <= AUDIT_S + ANSWER_S + 1


async def test_an_audit_that_is_refused_changes_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(statuses={"ring": 403, "/_ping": 403}) as the:
        the.know(volume("seen"))
        async with the.connected() as one:
            await one.opened()
            await the.engine.happen(volume("a"))
            await trio.sleep(15 * AUDIT_S)
            assert one.failure is None
            assert the.engine.requests.count("/_ping") == 4  # less and less often
            the.engine.statuses.clear()
            await the.engine.happen(b := volume("b"), live=False)
            await trio.sleep(10 * AUDIT_S + SECOND_LOOK_S)
            assert one.heard.recoveries == [([b], None)]


async def test_an_engine_with_one_answer_a_connection_is_audited_without_pings(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(closes=True) as the:
        the.know(a := volume("a"))
        await the.engine.happen(a, b := volume("b"))
        async with the.connected() as one:
            assert (await one.opened()).replayed == [b]
            await the.engine.happen(c := volume("c"), live=False)
            await the.engine.happen(volume("d"))
            await trio.sleep(3 * AUDIT_S)
            assert one.heard.recoveries == [([c], None)]
            assert the.engine.requests.count("/_ping") == 1


async def test_audits_come_by_events_too_but_not_too_often(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the, the.connected() as one:
        await one.opened()
        for n in range(9):
            await the.engine.happen(*events(f"burst{n}-", AUDIT_EVENTS))
            await trio.sleep(1)
        assert the.engine.requests.count("/_ping") == 0
        await trio.sleep(AUDIT_MIN_S - 8)
        assert the.engine.requests.count("/_ping") == 1
        assert one.heard.recoveries == []


async def test_audits_without_a_slot_stretch_and_never_block(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(slots=1) as the:
        async with the.connected() as one:
            await one.opened()
            waits = 0.0
            for _ in range(4000):
                await trio.sleep(1)
                waits += the.gate.allocator.waiting
            assert one.failure is None
            # 60, 120, 240, 480, 600 s apart, and a few seconds each
            assert 6 * AUDIT_PATIENCE_S <= waits <= 12 * AUDIT_PATIENCE_S
        assert (the.gate.allocator.held, the.gate.allocator.waiting) == (0, 0)


async def test_a_ring_that_turned_over_between_two_looks_leaves_doubt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as the, the.connected() as one:
        await one.opened()
        await the.engine.happen(*events("a", 3))
        await trio.sleep(AUDIT_S)
        looked_by_ns = now_ns()
        await the.engine.happen(*events("lost", 300), live=False)
        await the.engine.happen(volume("last"))
        await trio.sleep(AUDIT_S + SECOND_LOOK_S)
        ((messages, unsure_from_ns),) = one.heard.recoveries
        assert len(messages) == 255
        assert unsure_from_ns is not None
        assert looked_by_ns - AUDIT_S * S <= unsure_from_ns <= looked_by_ns


@pytest.mark.parametrize("looked", [True, False])
async def test_a_full_ring_that_does_not_reach_back_to_the_beginning_leaves_doubt(
    autojump_clock: trio.testing.MockClock, looked: bool
) -> None:
    """The last look saw an empty ring, or there was none since the connection opened."""
    async with world(statuses={} if looked else {"ring": 503}) as the:
        the.know(volume("before"))
        await trio.sleep(5)
        opened_ns = now_ns()
        async with the.connected() as one:
            await one.opened()
            the.engine.statuses.clear()
            await the.engine.happen(*(live := events("live", 2)))
            await the.engine.happen(*events("lost", 300), live=False)
            await trio.sleep(AUDIT_S + SECOND_LOOK_S)
            ((messages, unsure_from_ns),) = one.heard.recoveries
            assert one.heard.messages == live
            assert len(messages) == 256
            assert unsure_from_ns is not None
            assert opened_ns <= unsure_from_ns <= opened_ns + S


async def test_what_could_not_be_read_at_first_comes_with_the_first_audit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(statuses={"ring": 503}) as the:
        the.know(a := volume("a"))
        await the.engine.happen(a, b := volume("b"))
        async with the.connected() as one:
            assert await one.opened() == Resumption()
            the.engine.statuses.clear()
            await trio.sleep(AUDIT_S + SECOND_LOOK_S + 1)
            assert one.heard.recoveries == [([b], None)]
            assert one.failure is None


async def test_a_first_connection_that_read_no_ring_takes_the_first_audit_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(statuses={"ring": 503}) as the:
        await the.engine.happen(*events("old", 3))
        async with the.connected() as one:
            assert await one.opened() == Resumption()
            the.engine.statuses.clear()
            await trio.sleep(AUDIT_S + 1)
            assert one.heard.recoveries == []
        await the.engine.happen(b := volume("b"))
        async with the.connected() as one:
            assert (await one.opened()).replayed == [b]


async def test_podman_s_backlog_is_asked_for_by_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(podman=True) as the:
        base = now_ns() - 5 * S
        seen = [volume(f"s{n}", base + n) for n in (5, 3, 7)]  # times go backwards
        same_second = volume("older", base + 1)
        the.know(*seen)
        await the.engine.happen(volume("old", base - 9 * S), same_second, *seen)
        await the.engine.happen(*(missed := [volume(f"m{n}", base + n) for n in (9, 8)]))
        async with the.connected() as one:
            found = await one.opened()
            assert (found.complete, found.replayed) == (True, missed)
            assert the.engine.requests[-1] == f"/events?since={base // S}&stream=false"
            await trio.sleep(3 * AUDIT_S)
            assert one.heard.recoveries == []
            await the.engine.happen(slow := volume("slow", now_ns()), live=False)
            await the.engine.happen(volume("quick", now_ns()))
            await trio.sleep(AUDIT_S + SECOND_LOOK_S + 1)
            assert [messages for messages, _ in one.heard.recoveries] == [[slow]]


def names(messages: list[bytes]) -> list[tuple[str, str]]:
    trees = [json.loads(message) for message in messages]
    return [(tree["Actor"]["ID"], tree["Action"]) for tree in trees]


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
async def test_containers_tell_what_the_ring_has_lost(
    autojump_clock: trio.testing.MockClock, ahead_s: float
) -> None:
    async with world(clock_s=ahead_s) as the:
        engine = the.engine
        start = engine.now_ns()
        the.know(
            life("create", "ends", start), life("start", "ends", start),
            life("create", "goes", start), life("start", "goes", start),
            life("create", "stays", start), life("start", "stays", start),
            life("create", "rung", start),
        )  # fmt: skip
        await trio.sleep(100)
        old = start - 1000 * S
        engine.container("stays", created_ns=start, started_ns=start, running=True)
        engine.container("ancient", created_ns=old, started_ns=old, running=True)
        t = engine.now_ns() - 50 * S
        engine.container("new", created_ns=t, started_ns=t + 1, running=True)
        engine.container("ends", created_ns=start, started_ns=start, finished_ns=t + 2, code=7)
        t2 = engine.now_ns()
        engine.container("rung", created_ns=start, started_ns=t2, running=True)
        await engine.happen(*events("flood", 300))
        await engine.happen(life("start", "rung", t2 + 1))
        async with the.connected() as one:
            found = await one.opened()
            assert not found.complete
            assert names(found.synthetic) == [
                ("new", "create"), ("new", "start"), ("ends", "die"),
                ("goes", "die"), ("goes", "destroy"),
            ]  # fmt: skip
            create, _, die, *_ = [json.loads(message) for message in found.synthetic]
            assert create["timeNano"] == t
            assert create["Actor"]["Attributes"] == {"a": "b", "image": "img", "name": "new"}
            assert (die["timeNano"], die["Actor"]["Attributes"]["exitCode"]) == (t + 2, "7")
            assert len(found.replayed) == 256
        engine.restart()  # and nothing of it comes again
        async with the.connected() as one:
            found = await one.opened()
            assert (found.complete, found.synthetic) == (False, [])


async def test_more_containers_than_there_is_time_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What was looked at in time is told, and so is what the list alone shows."""
    async with world(inspect_s=0.7) as the:
        engine = the.engine
        the.know(life("create", "gone", now_ns()))
        await trio.sleep(100)
        for number in range(20):
            t = engine.now_ns() - 50 * S
            engine.container(f"new-{number}", created_ns=t, started_ns=t + 1, running=True)
        async with the.connected() as one:
            found = await one.opened()
            told = names(found.synthetic)
            assert told[-1] == ("gone", "destroy")
            assert 5 <= sum(action == "start" for _, action in told) <= 10


async def test_what_happens_while_the_list_is_read_is_not_made_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(held=trio.Event()) as the:
        engine = the.engine
        the.know(life("create", "c", now_ns()), life("create", "gone", now_ns()))
        await trio.sleep(100)
        async with the.connected() as one:
            await trio.sleep(0.5)
            t = engine.now_ns()
            engine.container("c", created_ns=t - 100 * S, started_ns=t, running=True)
            engine.container("made", created_ns=t, started_ns=t, running=True)
            await engine.happen(life("start", "c", t + 1), life("create", "made", t + 1))
            await engine.happen(life("start", "made", t + 2), life("destroy", "gone", t + 3))
            assert engine.held is not None
            engine.held.set()
            found = await one.opened()
            assert found.synthetic == []
            assert len(found.replayed) == 4


async def test_containers_that_cannot_be_listed_leave_the_gap_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(statuses={"/containers/json": 403}) as the:
        the.know(life("start", "c", now_ns()))
        await the.engine.happen(a := volume("a"))
        async with the.connected() as one:
            found = await one.opened()
            assert (found.complete, found.replayed, found.synthetic) == (False, [a], [])


async def test_synthetic_events_pass_the_source_s_filters(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = evolve(SOURCE, filters=Filters.parse_flags(["event=die,event=destroy"]))
    async with world(source=source) as the:
        the.know(life("die", "c", now_ns()))
        await trio.sleep(100)
        the.engine.container("new", created_ns=now_ns(), started_ns=now_ns(), finished_ns=now_ns())
        await trio.sleep(5)
        async with the.connected() as one:
            found = await one.opened()
            assert names(found.synthetic) == [("new", "die"), ("c", "destroy")]
