"""A link that takes another's place, in virtual time: nothing lost, nothing twice, no gap."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from itertools import count
from math import inf

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from one_source import EVENT, ID, SECOND, SOURCE, Keys, Quiet, Tape

from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.intake import Share
from hypermux.core.lifecycle import Lifecycle, State
from hypermux.core.limiter import Allocator, Rank
from hypermux.core.rotation import Rotation
from hypermux.model.accounts import Cap, Credential, Limits, Secret, SourceId
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.model.records import Event
from hypermux.upstream.connection import Connection
from hypermux.upstream.gate import Gate
from hypermux.upstream.replacing import HANDOVER_PATIENCE_S
from hypermux.upstream.status import Flow, source_status
from hypermux.upstream.telling import Outage
from hypermux.upstream.transport import Listener, Opened, Resumption

HOUR, DAY = 3600.0, 86_400.0


@define(eq=False)
class Socket:
    """The server's side of one connection: events reach it after `delay_s`."""

    listener: Listener
    delay_s: float
    _sending: trio.MemorySendChannel[tuple[float, bytes | None]]
    _arriving: trio.MemoryReceiveChannel[tuple[float, bytes | None]]
    silent: bool = False  # answers no ping
    hasty: bool = False  # answers pings and goodbyes ahead of what it has queued
    stays: bool = False  # answers no goodbye
    parting: trio.Event = field(factory=trio.Event)
    pongs: dict[bytes, trio.Event] = field(factory=dict)
    _numbers: count[int] = field(factory=count)

    def send(self, message: bytes | None) -> None:
        """Send a message, or the end of the stream."""
        self._sending.send_nowait((trio.current_time() + self.delay_s, message))

    async def ping(self) -> None:
        if self.silent:
            await trio.sleep_forever()
        if self.hasty:
            return
        mark = b"pong %d" % next(self._numbers)
        answered = self.pongs[mark] = trio.Event()
        self.send(mark)
        await answered.wait()

    def close(self) -> None:
        self.parting.set()

    async def read(self) -> None:
        async for at, message in self._arriving:
            await trio.sleep_until(at)
            if message is None:
                raise ConnectionFailed(Failure(FailureKind.EOF, "cut"))
            if message in self.pongs:
                self.pongs[message].set()
            else:
                self.listener.heard()
                self.listener.received([message], more=False)


@define(eq=False)
class Server:
    """Sends every event to every socket; connections may be refused, or differ in delay."""

    delays: list[float]
    answers: list[Failure | None] = field(factory=list)
    goodbye_s: float = 0.0  # how long our goodbye takes where we cut a connection short
    sockets: list[Socket] = field(factory=list)
    sent: list[bytes] = field(factory=list)
    dialed_at: list[float] = field(factory=list)
    most: int = 0
    _changed: trio.Event = field(factory=trio.Event)

    async def reach(self, *, dials: int = 0, sockets: int = 0) -> None:
        """Return when there have been so many dials, and there are so many open sockets."""
        while len(self.dialed_at) < dials or len(self.sockets) < sockets:
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def __call__(
        self,
        source: Source,
        credential: Credential | None,
        listener: Listener,
        sign_offset_s: float,
    ) -> None:
        self.dialed_at.append(trio.current_time())
        self._tell()
        await trio.sleep(0.01)
        listener.asking()
        await trio.sleep(0.01)
        if self.answers and (failure := self.answers.pop(0)) is not None:
            raise ConnectionFailed(failure)
        delay_s = self.delays[min(len(self.dialed_at), len(self.delays)) - 1]
        socket = Socket(
            listener, delay_s, *trio.open_memory_channel[tuple[float, bytes | None]](1000)
        )
        self.sockets.append(socket)
        self.most = max(self.most, len(self.sockets))
        try:
            listener.opened(Opened(None, "verified", socket))
            self._tell()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end, socket)
                await socket.read()
        except* ConnectionFailed as group:
            raise group.exceptions[0] from None
        finally:
            if trio.current_effective_deadline() == -inf:
                with trio.CancelScope(shield=True):
                    await trio.sleep(self.goodbye_s)
            self.sockets.remove(socket)

    async def _end(self, socket: Socket) -> None:
        await socket.parting.wait()
        if socket.stays:
            await trio.sleep_forever()
        await trio.sleep(0.01)
        if socket.hasty:
            raise ConnectionFailed(Failure(FailureKind.CLOSE, "goodbye", 1000))
        socket.send(None)

    async def talk(self, every_s: float) -> None:
        for number in count():
            message = b'{"Type":"container","Action":"start","id":"%d","timeNano":1}' % number
            self.sent.append(message)
            for socket in self.sockets:
                socket.send(message)
            await trio.sleep(every_s)


@define(eq=False)
class World:
    tape: Tape
    server: Server
    connection: Connection
    gate: Gate
    keys: Keys

    @property
    def events(self) -> list[bytes]:
        return [item.raw for item in self.tape.items if isinstance(item, Event)]

    def causes(self) -> list[str]:
        return [gap.cause for gap in self.tape.gaps]


async def live(
    server: Server,
    *also: Callable[[World], Awaitable[None]],
    seconds: float,
    slots: int = 2,
    rotate_after_s: float | None = HOUR,
    every_s: float = 0.005,
    ending: trio.CancelScope | None = None,
) -> World:
    clock = StreamClock(trio.current_time, lambda: 1_000 * SECOND)
    tape, keys = Tape(clock), Keys()
    limits = Limits(Cap(slots, 10.0), 5)
    gate = Gate(Allocator(limits, trio.current_time()))
    rng = random.Random(1)
    connection = Connection(
        source=SOURCE,
        gate=gate,
        feed=tape,
        keys=keys,
        transport=server,
        lifecycle=Lifecycle(min_s=0.5, max_s=60.0, reset_after_s=60.0, rng=rng),
        rotation=Rotation(rotate_after_s, min_s=0.5, max_s=60.0, rng=rng),
        clock=clock,
        observer=Quiet(),
        outage=Outage(clock.now_ns(), "start"),
        utc_ns=clock.now_ns,
    )
    world = World(tape, server, connection, gate, keys)

    async def run() -> None:
        with ending or trio.CancelScope():
            await connection.run()

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.run)
            nursery.start_soon(run)
            for task in also:
                nursery.start_soon(task, world)
            await trio.sleep(1)
            nursery.start_soon(server.talk, every_s)
    return world


def assert_unbroken(world: World, *, tail: int = 400) -> None:
    """All that was sent came once and in order; the last may have been on their way."""
    sent = world.server.sent
    assert world.events == sent[: len(world.events)]
    assert len(world.events) >= len(sent) - tail


@pytest.mark.parametrize("delays", [[0.001, 0.003], [0.003, 0.001], [0.002]])
async def test_an_old_connection_is_replaced_without_a_gap(
    delays: list[float], autojump_clock: trio.testing.MockClock
) -> None:
    world = await live(Server(delays), seconds=20, rotate_after_s=10.0)
    assert len(world.server.dialed_at) == 3
    assert 8.5 <= world.server.dialed_at[1] - world.server.dialed_at[0] <= 10.1
    assert world.causes() == ["start"]
    assert [s.state for s in world.tape.states] == ["down", "up", "down"]
    assert_unbroken(world)
    counters = world.connection.counters
    assert counters.duplicate > 0
    assert counters.received == len(world.events) + counters.duplicate
    assert world.server.most == 2
    assert world.gate.allocator.held == 0


async def test_a_rotation_moves_every_rotate_after(autojump_clock: trio.testing.MockClock) -> None:
    world = await live(Server([0.001]), seconds=12 * HOUR, every_s=60)
    assert 12 <= len(world.server.dialed_at) <= 15
    assert world.causes() == ["start"]
    assert_unbroken(world)


async def test_without_a_spare_slot_the_own_one_is_handed_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await live(Server([0.001]), seconds=14, slots=1, rotate_after_s=10.0)
    assert world.server.most == 1
    assert world.causes() == ["start", "rotation"]
    gap = world.tape.gaps[1]
    assert 0 < gap.to_ns - gap.from_ns < SECOND
    assert [s.state for s in world.tape.states] == ["down", "up", "down", "up", "down"]
    assert world.gate.allocator.held == 0


async def test_a_source_yields_its_slot_to_one_that_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    served: list[float] = []

    async def other(world: World) -> None:
        await trio.sleep(2)
        other_id = SourceId("prod", "elsewhere")
        await world.gate.permit(other_id, SOURCE.endpoint.address, Rank.NEW)
        served.append(trio.current_time())
        await trio.sleep(5)
        world.gate.release(other_id)

    world = await live(Server([0.001]), other, seconds=20, slots=1, rotate_after_s=10.0)
    assert len(served) == 1
    assert world.causes() == ["start", "yielded"]
    gap = world.tape.gaps[1]
    assert 5 * SECOND < gap.to_ns - gap.from_ns < 6 * SECOND


async def test_a_handover_that_the_rates_hold_back_sees_who_wants_the_slot(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A server has stopped the dials for an hour; meanwhile another needs the slot."""
    served: list[float] = []
    waits: list[str | None] = []

    async def stopped(world: World) -> None:
        await trio.sleep(2)
        world.gate.throttled(ID, trio.current_time(), 3600.0)

    async def other(world: World) -> None:
        await trio.sleep(30)
        flow = Flow(Share(), 0)
        waits.append(source_status(world.connection, flow, trio.current_time()).waits_for)
        other_id = SourceId("other", "elsewhere")
        await world.gate.permit(other_id, "elsewhere:1", Rank.NEW)
        served.append(trio.current_time())
        await trio.sleep(5)
        world.gate.release(other_id)

    world = await live(
        *(Server([0.001]), stopped, other),
        seconds=5000,
        slots=1,
        rotate_after_s=10.0,
        every_s=10,
    )
    assert (waits[0] or "").startswith("told by endpoint")
    assert HANDOVER_PATIENCE_S < served[0] < HANDOVER_PATIENCE_S + 60
    assert world.causes() == ["start", "yielded", *["rotation"] * (len(world.causes()) - 2)]
    assert "limits leave no room" in caplog.text


@pytest.mark.parametrize(
    "failure",
    [
        Failure(FailureKind.HTTP, "500", 500),
        Failure(FailureKind.HTTP, "429", 429, retry_after_s=3.0),
        Failure(FailureKind.CONNECT, "refused"),
    ],
)
async def test_a_replacement_that_fails_leaves_the_old_one_alone(
    failure: Failure, autojump_clock: trio.testing.MockClock
) -> None:
    world = await live(Server([0.001], [None, failure]), seconds=30, rotate_after_s=10.0)
    assert len(world.server.dialed_at) >= 3
    assert world.causes() == ["start"]
    assert_unbroken(world)


async def test_a_replacement_that_breaks_before_the_pong_leaves_the_old_one_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def breaks(world: World) -> None:
        await world.server.reach(sockets=2)
        world.server.sockets[1].send(None)

    world = await live(Server([0.5, 0.001]), breaks, seconds=18, rotate_after_s=10.0, every_s=1)
    assert len(world.server.dialed_at) >= 3
    assert world.causes() == ["start"]
    assert_unbroken(world)


async def test_an_old_one_that_ends_before_its_pong_is_a_short_gap(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def cut(world: World) -> None:
        await world.server.reach(sockets=1)
        world.server.sockets[0].silent = True
        await world.server.reach(sockets=2)
        world.server.sockets[0].send(None)

    world = await live(Server([0.2, 0.001]), cut, seconds=14, rotate_after_s=10.0, every_s=0.1)
    assert world.causes() == ["start", "rotation"]
    assert [s.state for s in world.tape.states] == ["down", "up", "down"]
    assert sorted(world.events) == sorted(set(world.events))
    assert world.gate.allocator.held == 0


async def test_an_old_one_that_answers_no_ping_is_not_waited_for_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def hush(world: World) -> None:
        await world.server.reach(sockets=1)
        world.server.sockets[0].silent = True

    world = await live(Server([0.001]), hush, seconds=25, rotate_after_s=10.0)
    assert world.causes() == ["start"]
    assert len(world.server.dialed_at) >= 2
    assert_unbroken(world)


async def test_what_is_held_at_a_stop_is_not_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = await live(Server([1.0, 0.001]), seconds=10.5, rotate_after_s=10.0, every_s=0.1)
    assert len(world.server.dialed_at) == 2
    counters = world.connection.counters
    assert counters.received == len(world.events) + counters.duplicate
    last_by_new = world.server.sent[-2]
    assert last_by_new in world.events
    assert world.causes() == ["start"]
    assert world.gate.allocator.held == 0


async def test_a_server_whose_pongs_overtake_its_events_loses_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def hasten(world: World) -> None:
        await world.server.reach(sockets=1)
        world.server.sockets[0].hasty = True

    world = await live(Server([0.5, 0.001]), hasten, seconds=14, rotate_after_s=10.0)
    assert len(world.server.dialed_at) == 2
    assert world.causes() == ["start"]
    assert_unbroken(world)


async def test_an_old_one_that_ends_during_the_dial_is_an_outage(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def cut(world: World) -> None:
        await world.server.reach(dials=2)
        world.server.sockets[0].send(None)
        await trio.sleep(3)
        # Nothing waits for a pong of the one that is gone.
        assert world.server.sent[-2] in world.events

    world = await live(Server([0.001]), cut, seconds=14, rotate_after_s=10.0)
    assert world.causes() == ["start", "dropped"]
    assert [s.state for s in world.tape.states] == ["down", "up", "down", "up", "down"]
    assert len(world.server.dialed_at) == 2
    assert world.gate.allocator.held == 0


async def test_a_renewed_credential_waits_for_its_acceptance(
    autojump_clock: trio.testing.MockClock,
) -> None:
    denied = Failure(FailureKind.HTTP, "401", 401)

    async def renew(world: World) -> None:
        await trio.sleep(5)
        world.connection.renew()

    server = Server([0.001], [None, denied, denied])
    world = await live(server, renew, seconds=2 * HOUR, rotate_after_s=None, every_s=30)
    assert world.causes() == ["start"]
    assert world.keys.refusals == 2
    assert len(server.dialed_at) == 4
    assert server.dialed_at[2] - server.dialed_at[1] >= 15 * 60
    assert_unbroken(world)


async def test_a_renewed_credential_never_hands_the_slot_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def renew(world: World) -> None:
        await trio.sleep(5)
        world.connection.renew()

    world = await live(
        Server([0.001]), renew, seconds=HOUR / 2, slots=1, rotate_after_s=HOUR, every_s=30
    )
    assert len(world.server.dialed_at) == 1
    assert world.causes() == ["start"]


async def test_a_key_that_changes_while_its_link_is_dialed_is_used_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def change(world: World) -> None:
        await trio.sleep(5)
        world.connection.key_changed(Credential("AK", Secret("second")))
        await world.server.reach(dials=2)
        world.connection.key_changed(Credential("AK", Secret("third")))

    world = await live(Server([0.001]), change, seconds=60, rotate_after_s=None, every_s=1)
    assert len(world.server.dialed_at) == 3
    assert world.causes() == ["start"]
    assert world.gate.allocator.held == 0


async def test_a_key_that_changes_while_the_only_link_is_dialed_is_used_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def change(world: World) -> None:
        await world.server.reach(sockets=1)
        world.server.sockets[0].send(None)
        await world.server.reach(dials=2)
        world.connection.key_changed(Credential("AK", Secret("second")))
        await world.server.reach(dials=3)

    world = await live(Server([0.001]), change, seconds=60, rotate_after_s=None, every_s=1)
    assert len(world.server.dialed_at) == 3
    assert world.causes() == ["start", "dropped"]


async def test_parting_does_not_wait_for_a_rotation_that_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def renew_and_part(world: World) -> None:
        await trio.sleep(5)
        world.connection.renew()
        await trio.sleep(5)
        world.connection.part("reload")

    world = await live(Server([0.001]), renew_and_part, seconds=30, slots=1, rotate_after_s=None)
    assert world.causes() == ["start", "reload"]
    assert len(world.server.dialed_at) == 2
    assert world.gate.allocator.held == 0


async def test_a_source_that_waits_for_a_rotation_falls_quiet_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def renew(world: World) -> None:
        world.connection.configure(evolve(SOURCE, expect_event_within_s=60.0))
        await trio.sleep(5)
        world.connection.renew()

    # The own slot is the only one: the renewal waits for another as long as there is none.
    world = await live(
        Server([0.001]), renew, seconds=HOUR, slots=1, rotate_after_s=None, every_s=DAY
    )
    assert [s.state for s in world.tape.states] == ["down", "up", "quiet", "down"]


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.015])
async def test_a_slot_that_is_asked_back_is_given_back_by_one_that_dials(
    after_s: float, autojump_clock: trio.testing.MockClock
) -> None:
    held: list[int] = []

    async def ask_back(world: World) -> None:
        await trio.sleep(0.1 + after_s)  # when its permit came
        if after_s:
            assert len(world.server.dialed_at) == 1
        change = Limits(Cap(0, 10.0), 5)
        for source in world.gate.change(change):
            assert source == ID
            world.connection.part("yielded")
        await trio.sleep(5)
        held.append(world.gate.allocator.held)

    await live(Server([0.001]), ask_back, seconds=10)
    assert held == [0]


async def test_what_opens_in_the_moment_of_its_parting_counts_and_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Racing(Server):
        async def __call__(
            self,
            source: Source,
            credential: Credential | None,
            listener: Listener,
            sign_offset_s: float,
        ) -> None:
            self.dialed_at.append(trio.current_time())
            try:
                await trio.sleep(0.1)
            finally:
                listener.opened(Opened(None, "off", None, Resumption(replayed=[EVENT])))
            await trio.sleep_forever()

    async def ask_back(world: World) -> None:
        await trio.sleep(0.15)
        world.connection.part("yielded")

    world = await live(Racing([0.001]), ask_back, seconds=10)
    assert len(world.server.dialed_at) == 2
    assert world.causes() == ["start", "yielded"]
    assert [s.state for s in world.tape.states] == ["down", "up", "down", "up", "down"]
    assert world.events == [EVENT, EVENT]
    assert world.gate.allocator.held == 0


async def test_a_slot_that_is_asked_back_during_a_rotation_whose_old_one_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    held: list[int] = []

    async def cut(world: World) -> None:
        await world.server.reach(dials=2)
        for _ in world.gate.change(Limits(Cap(0, 10.0), 5)):
            world.connection.part("yielded")
        world.server.sockets[0].send(None)
        await trio.sleep(3)
        held.append(world.gate.allocator.held)

    await live(Server([0.001]), cut, seconds=20, rotate_after_s=10.0)
    assert held == [0]


async def test_a_renewed_credential_ends_a_pause(autojump_clock: trio.testing.MockClock) -> None:
    async def renew(world: World) -> None:
        await trio.sleep(60)
        assert world.connection.lifecycle.state is State.DENIED
        world.connection.renew()

    server = Server([0.001], [Failure(FailureKind.HTTP, "401", 401)])
    world = await live(server, renew, seconds=120, every_s=30)
    assert 59 < server.dialed_at[1] - server.dialed_at[0] < 61
    assert world.connection.source.id == ID


async def test_parting_for_a_reason_of_our_own_is_one_gap_with_its_word(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def part(world: World) -> None:
        await trio.sleep(5)
        world.connection.part("reload")

    world = await live(Server([0.001]), part, seconds=10)
    assert world.causes() == ["start", "reload"]
    assert len(world.server.dialed_at) == 2


@pytest.mark.parametrize("saying_goodbye", [False, True])
async def test_two_links_that_are_cut_hold_their_slots_to_their_ends(
    saying_goodbye: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """A source ends in the middle of a replacement; who waits for its slots dials no earlier."""
    open_then: list[int] = []
    other = SourceId("other", "elsewhere")

    async def stop(world: World) -> None:
        await world.server.reach(sockets=1)
        world.server.sockets[0].silent = not saying_goodbye
        world.server.sockets[0].stays = True
        await world.server.reach(sockets=2)
        await trio.sleep(3)
        assert world.server.sockets[0].parting.is_set() is saying_goodbye
        ending.cancel()
        await world.gate.permit(other, "elsewhere:1", Rank.NEW)
        open_then.append(len(world.server.sockets))
        world.gate.release(other)

    ending = trio.CancelScope()
    world = await live(
        *(Server([0.001], goodbye_s=1.0), stop),
        seconds=30,
        rotate_after_s=10.0,
        every_s=1,
        ending=ending,
    )
    assert len(open_then) == 1
    assert open_then[0] < 2
    assert world.gate.allocator.held == 0
