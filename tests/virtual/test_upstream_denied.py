"""Refused keys and wrong clocks over hours: the real task of a source, against a model of a server
that checks a signature's age as the upstream does: against the past alone."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from one_source import Quiet, Tape

from hypermux.config import credentials
from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.correction import Corrections
from hypermux.core.lifecycle import Lifecycle, State
from hypermux.core.limiter import Allocator
from hypermux.core.recording import rfc3339
from hypermux.core.rotation import Rotation
from hypermux.model.accounts import (
    Cap,
    Credential,
    CredentialSource,
    Endpoint,
    Limits,
    Secret,
    SourceId,
)
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.model.records import Gap, StateChange
from hypermux.upstream.connection import Connection
from hypermux.upstream.gate import Gate
from hypermux.upstream.keys import KeyRing
from hypermux.upstream.telling import Outage
from hypermux.upstream.transport import Listener, Opened

S = 1_000_000_000
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
START_NS = 1_700_000_000 * S
PROCESS = CredentialSource(process=("get-keys",))
ENDPOINT = Endpoint.parse("wss://router.test:443/events/ws")
GOOD, WRONG = Credential("AK", Secret("good")), Credential("AK", Secret("wrong"))


@define(eq=False)
class Server:
    """Knows the time; `ahead_s` is by how much it is ahead of ours."""

    ahead_s: float = 0.0
    lies_s: float = 0.0  # each `Date` is that much further from the truth
    dials: list[tuple[float, str]] = field(factory=list)
    lost: trio.Event = field(factory=trio.Event)

    async def __call__(
        self,
        source: Source,
        credential: Credential | None,
        listener: Listener,
        sign_offset_s: float,
    ) -> None:
        self.dials.append((trio.current_time(), source.id.region))
        await trio.sleep(0.1)
        date_ns = utc_ns() + round((self.ahead_s + self.lies_s * len(self.dials)) * 1e9)
        date_ns -= date_ns % S
        old = self.ahead_s - sign_offset_s > 300.0
        if old or credential != GOOD:
            text = "401 signature " + ("expired" if old else "wrong")
            raise ConnectionFailed(Failure(FailureKind.HTTP, text, 401, date_ns=date_ns))
        listener.asking()
        listener.opened(Opened(date_ns, "verified"))
        listener.heard()
        lost = self.lost
        await lost.wait()
        raise ConnectionFailed(Failure(FailureKind.CLOSE, "closed", 1001))

    def cut(self) -> None:
        self.lost.set()
        self.lost = trio.Event()


@define(eq=False)
class Keys:
    credential: Credential = GOOD
    reads: int = 0

    async def get(self, source: Source) -> Credential | None:
        self.reads += 1
        return self.credential

    def refused(self, source: Source, credential: Credential | None) -> bool:
        return credential != self.credential

    def accepted(self, source: Source, credential: Credential | None) -> None: ...

    def trouble(self, account: str) -> str | None:
        return None


def utc_ns() -> int:
    return START_NS + round(trio.current_time() * 1e9)


@define(eq=False)
class World:
    server: Server
    keys: Keys
    tape: Tape
    connections: list[Connection]

    def told(self, state: str) -> list[StateChange]:
        items = self.tape.items
        return [item for item in items if isinstance(item, StateChange) and item.state == state]

    @property
    def states(self) -> set[State]:
        return {connection.lifecycle.state for connection in self.connections}


@asynccontextmanager
async def world(
    server: Server,
    keys: Keys | None = None,
    regions: tuple[str, ...] = ("us",),
    ring: KeyRing | None = None,
    rate: float = 10.0,
) -> AsyncIterator[World]:
    keys, clock = keys or Keys(), StreamClock(trio.current_time, utc_ns)
    tape = Tape(clock)
    corrections, rng = Corrections(), random.Random(7)
    gate = Gate(Allocator(Limits(Cap(10, rate), 5), trio.current_time()))
    connections = [
        Connection(
            source=Source(SourceId("prod", region), "hyper", ENDPOINT, PROCESS),
            gate=gate,
            feed=tape,
            keys=ring or keys,
            transport=server,
            lifecycle=Lifecycle(min_s=0.5, max_s=60.0, reset_after_s=60.0, rng=rng),
            rotation=Rotation(None, min_s=0.5, max_s=60.0, rng=rng),
            clock=clock,
            observer=Quiet(),
            outage=Outage(clock.now_ns(), "start"),
            utc_ns=utc_ns,
            corrections=corrections,
        )
        for region in regions
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.run)
        for connection in connections:
            nursery.start_soon(connection.run)
        yield World(server, keys, tape, connections)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def made_keys() -> AsyncIterator[KeyRing]:
    async def run_directly(function: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    ring = KeyRing(utc_ns, random.Random(1), run_sync=run_directly)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.run)
        yield ring
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ahead_s", [0.0, 239.0, 290.0, 600.0, DAY, -600.0, -DAY])
async def test_a_refused_key_is_tried_ten_times_a_day_at_the_most(
    autojump_clock: trio.testing.MockClock, ahead_s: float
) -> None:
    async with world(Server(ahead_s), Keys(WRONG)) as w:
        await trio.sleep(DAY)
        assert w.states == {State.DENIED}
    assert 5 <= len(w.server.dials) <= 10


@pytest.mark.parametrize("ahead_s", [0.0, 600.0])
async def test_a_key_that_was_good_is_tried_ten_times_a_day_too(
    autojump_clock: trio.testing.MockClock, ahead_s: float
) -> None:
    async with world(Server()) as w:
        await trio.sleep(HOUR)
        w.keys.credential, w.server.ahead_s = WRONG, ahead_s
        before = len(w.server.dials)
        w.server.cut()
        await trio.sleep(DAY)
        assert w.states == {State.DENIED}
    assert 5 <= len(w.server.dials) - before <= 10


@pytest.mark.parametrize(
    ("rate", "lasting_s"), [(1.0, None), (10.0, None), (10.0, 60.0), (10.0, 900.0)]
)
async def test_a_program_that_makes_a_new_key_each_time_changes_nothing_about_that(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    lasting_s: float | None,
) -> None:
    """What one of them was given and refused is no reason for the others to try again."""
    made = itertools.count()

    def make(argv: tuple[str, ...]) -> bytes:
        key = {"AccessKeyId": "AK", "SecretAccessKey": f"made-{next(made)}"}
        if lasting_s is not None:
            key["Expiration"] = rfc3339(utc_ns() + int(lasting_s * S))
        return json.dumps(key).encode()

    monkeypatch.setattr(credentials, "_run", make)
    regions = ("a", "b", "c")

    def changed(account: str, renewed: bool) -> None:
        for connection in w.connections:
            connection.key_changed(ring.current(account), renewed=renewed)

    async with made_keys() as ring, world(Server(), None, regions, ring, rate) as w:
        ring.changed = changed
        ring.use([connection.source for connection in w.connections])
        await trio.sleep(DAY)
        assert w.states == {State.DENIED}
        for region in regions:
            assert 5 <= sum(where == region for _, where in w.server.dials) <= 10


async def test_a_server_whose_keys_come_up_later_than_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(Server()) as w:
        await trio.sleep(HOUR)
        w.keys.credential = WRONG
        w.server.cut()
        await trio.sleep(15)
        w.keys.credential = GOOD
        await trio.sleep(60)
        assert w.states == {State.PROVING}


async def test_a_refused_key_and_a_server_that_lies_about_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each answer shows another time: every attempt is skewed anew."""
    async with world(Server(lies_s=1000.0), Keys(WRONG)) as w:
        await trio.sleep(DAY)
        assert w.states == {State.DENIED}
    assert 5 <= len(w.server.dials) <= 10
    between = w.server.dials[2][0] - w.server.dials[1][0]
    assert between >= 15 * MINUTE, "skewed twice is denied"


@pytest.mark.parametrize("ahead_s", [305.0, 600.0, DAY - 1, DAY])
async def test_a_slow_clock_costs_one_attempt(
    autojump_clock: trio.testing.MockClock, ahead_s: float
) -> None:
    async with world(Server(ahead_s)) as w:
        await trio.sleep(HOUR)
        assert w.states <= {State.PROVING, State.LIVE}
        assert len(w.server.dials) == 2
        assert w.server.dials[1][0] < 3.0
        (clock,) = w.told("clock")
        assert clock.reason is not None
        assert "s behind the server's: requests are signed with the server's time" in clock.reason
        # It is kept: after a loss the first attempt is good.
        w.server.cut()
        await trio.sleep(MINUTE)
        assert len(w.server.dials) == 3
        assert len(w.told("clock")) == 1


@pytest.mark.parametrize("ahead_s", [-DAY, -600.0, 0.0, 230.0, 299.0])
async def test_a_clock_that_the_server_takes_is_left_alone(
    autojump_clock: trio.testing.MockClock, ahead_s: float
) -> None:
    async with world(Server(ahead_s)) as w:
        await trio.sleep(HOUR)
        assert len(w.server.dials) == 1
        assert not w.told("clock")


async def test_further_than_a_day_is_not_followed(autojump_clock: trio.testing.MockClock) -> None:
    async with world(Server(2 * DAY)) as w:
        await trio.sleep(HOUR)
        assert w.states == {State.DENIED}
        (_, down) = w.told("down")
        assert down.reason is not None
        assert "too far to follow" in down.reason


async def test_sources_of_one_endpoint_share_what_one_learned(
    autojump_clock: trio.testing.MockClock,
) -> None:
    regions = tuple(f"r{number}" for number in range(10))
    async with world(Server(600.0), regions=regions) as w:
        await trio.sleep(MINUTE)
        assert w.states <= {State.PROVING, State.LIVE}
        per_source = [sum(r == region for _, r in w.server.dials) for region in regions]
        assert max(per_source) == 2, "one attempt more at the most"
        assert len(w.told("clock")) == 1, "told once"
        w.server.cut()
        await trio.sleep(5 * MINUTE)
        assert len(w.server.dials) == sum(per_source) + 10


@pytest.mark.parametrize("ahead_s", [600.0, DAY])
async def test_a_mended_clock_ends_its_correction(
    autojump_clock: trio.testing.MockClock, ahead_s: float
) -> None:
    async with world(Server(ahead_s)) as w:
        await trio.sleep(HOUR)
        w.server.ahead_s = 0.0
        w.server.cut()
        await trio.sleep(HOUR)
        assert len(w.server.dials) == 3, "dated ahead it is taken, and its answer shows the time"
        assert [change.reason for change in w.told("clock")][1:] == [
            "our clock is right again: requests are signed with it"
        ]
        w.server.ahead_s = 400.0  # wrong once more, otherwise
        w.server.cut()
        await trio.sleep(HOUR)
        assert len(w.server.dials) == 5
        assert w.states <= {State.PROVING, State.LIVE}


async def test_a_mended_key_is_used_at_once_and_the_wrong_clock_does_not_keep_it_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(Server(600.0), Keys(WRONG), regions=("a", "b")) as w:
        await trio.sleep(10 * HOUR)
        assert w.states == {State.DENIED}
        before = len(w.server.dials)
        w.keys.credential = GOOD
        w.server.ahead_s = 7200.0  # the clock went further off meanwhile
        for connection in w.connections:
            connection.renew()
        await trio.sleep(10)
        assert w.states <= {State.PROVING, State.LIVE}
        assert len(w.server.dials) <= before + 4
        gaps = [item for item in w.tape.items if isinstance(item, Gap)]
        assert len(gaps) == 2
        assert {gap.from_ns for gap in gaps} == {START_NS}


async def test_a_refusal_finds_that_there_is_another_key_already(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The key was replaced while a dial with the old one was on its way."""
    async with world(Server(), Keys(WRONG)) as w:
        await trio.sleep(0.15)  # the first permit comes after 0.1 s, the answer after 0.2 s
        assert len(w.server.dials) == 1
        w.keys.credential = GOOD
        await trio.sleep(2)
        assert w.states == {State.PROVING}
        assert len(w.server.dials) == 2


async def test_mending_what_is_not_broken_does_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(Server()) as w:
        await trio.sleep(HOUR)
        w.connections[0].renew()
        await trio.sleep(HOUR)
        assert len(w.server.dials) == 1
        w.server.cut()
        await trio.sleep(MINUTE)
        assert len(w.server.dials) == 2
