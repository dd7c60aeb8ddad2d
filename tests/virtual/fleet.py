"""A thousand sources over a heap of timed events: the core's decisions without trio and sockets.

Each source lives as `upstream.connection` has it: the same lifecycle, limiter, pacer, rotation and
overlap, in the same order, over connections that take their time. `scenarios` says what happens to
it and what must hold. What a source brings, and its gaps, are written down here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from math import inf
from random import Random

from agenda import Agenda, Signal, Task, Wait, signal, until
from attrs import define, field, frozen
from fleet_server import Message, Path, Server, Wire

from hypermux.core import heartbeat
from hypermux.core.lifecycle import Lifecycle
from hypermux.core.limiter import Allocator, Rank
from hypermux.core.overlap import Overlap
from hypermux.core.pacing import Pacer
from hypermux.core.rotation import Rotation
from hypermux.core.verdicts import Verdict, judge
from hypermux.model.accounts import Limits, SourceId
from hypermux.model.errors import Failure, FailureKind

# As `upstream.connection` and `upstream.succession` have them.
PONG_PATIENCE_S = 10.0
REMEMBERED_S = 30.0


@frozen
class Manner:
    """How sources go about it, and how long the network takes; seconds.

    `connect_s`: TCP and TLS, from a few milliseconds to this. `delay_s`: one way, up to this.
    """

    limits: Limits
    rotate_after_s: float | None = 20 * 3600.0
    pings: bool = False
    ping_interval_s: float = 15.0
    pong_timeout_s: float = 10.0
    dial_timeout_s: float = 10.0
    backoff_min_s: float = 0.5
    backoff_max_s: float = 60.0
    reset_after_s: float = 60.0
    connect_s: float = 0.2
    delay_s: float = 0.05


@frozen
class Outage:
    """A gap: from when to when, and why."""

    from_s: float
    to_s: float
    cause: str


@define(eq=False)
class Gate:
    """The allocator, and the signals that its permits come as. `log` is what went through it."""

    agenda: Agenda
    allocator: Allocator
    log: list[tuple[float, str, SourceId]] = field(factory=list)
    _waiting: dict[SourceId, Signal] = field(factory=dict)
    _due: float = inf

    def request(
        self, source: SourceId, address: str, rank: Rank, *, handover: bool = False
    ) -> Signal:
        """Wait for a permit; the signal is when it is there."""
        granted = self._waiting[source] = Signal()
        self.log.append((self.agenda.now, "handover" if handover else "request", source))
        self.allocator.request(source, address, rank, self.agenda.now, handover=handover)
        self.grant()
        return granted

    def withdraw(self, source: SourceId) -> None:
        del self._waiting[source]
        self.log.append((self.agenda.now, "withdraw", source))
        self.allocator.withdraw(source)

    def release(self, source: SourceId) -> None:
        self.log.append((self.agenda.now, "release", source))
        self.allocator.release(source)
        self.grant()

    def grant(self) -> None:
        now = self.agenda.now
        if now >= self._due:
            self._due = inf
        for source in self.allocator.grant(now):
            self.log.append((now, "grant", source))
            self._waiting.pop(source).fire()
        at = self.allocator.next_at(now)
        if at is not None and at < self._due:
            self._due = at
            self.agenda.at(at, self.grant)


@define(eq=False)
class Link:
    """One connection of a source, from dial to its end."""

    dialed_at: float
    wire: Wire | None = None
    open: bool = False
    heard_at: float = 0.0
    answered: Signal = field(factory=Signal)
    ended: Signal = field(factory=Signal)
    failure: Failure | None = None


@define(eq=False)
class Life:
    """One source's life; `upstream.connection` is what it follows."""

    fleet: Fleet
    id: SourceId
    server: Server
    rng: Random
    lifecycle: Lifecycle
    rotation: Rotation
    link: Link | None = None
    outage: tuple[float, str] | None = (0.0, "start")
    brought: list[Message] = field(factory=list)
    gaps: list[Outage] = field(factory=list)
    noticed: list[tuple[float, str]] = field(factory=list)  # when an open link fell, and why
    replaced: int = 0
    _overlap: Overlap | None = None
    _old: Link | None = None
    _forget_at: float = inf
    _changed: Signal = field(factory=Signal)

    @property
    def up(self) -> bool:
        return self.link is not None and self.link.open

    def run(self) -> Task:
        rank = Rank.NEW
        agenda, gate = self.fleet.agenda, self.fleet.gate
        while True:
            yield signal(gate.request(self.id, self.server.address, rank))
            yield from self._connected()
            delay_s, rank = self._judged()
            gate.release(self.id)
            yield until(agenda.now + delay_s)
            self.lifecycle.waiting(agenda.now)

    def _connected(self) -> Task:
        self._dial()
        agenda = self.fleet.agenda
        while True:
            link = self.link
            assert link is not None
            while not link.ended.happened:
                due = self.rotation.due_s if link.open else inf
                if agenda.now >= due:
                    break
                yield from self._wait(due)
            else:
                return
            yield from self._replace(link)

    def _wait(self, when: float = inf) -> Task:
        self._changed = Signal()
        yield until(when, self._changed)

    def _dial(self) -> None:
        self.lifecycle.dialing(self.fleet.agenda.now)
        self.link = self._begin()

    def _begin(self) -> Link:
        link = Link(self.fleet.agenda.now)
        self.fleet.dialed.append((link.dialed_at, self.id))
        self.fleet.agenda.start(self._run_link(link))
        return link

    def _replace(self, link: Link) -> Task:
        agenda, gate = self.fleet.agenda, self.fleet.gate
        self.fleet.rotating(self)
        if gate.allocator.contested(self.id):
            yield from self._part(link, "yielded")
            return
        while self._old is not None and not self._old.ended.happened:
            yield from self._wait()
        if (yield from self._permit(link, self.rotation.patient_until(agenda.now))):
            yield from self._succeed(link)
        elif link.open and (yield from self._permit(link, inf, handover=True)):
            yield from self._part(link, "rotation")
            self.lifecycle.waiting(agenda.now)
            self._dial()

    def _permit(
        self, link: Link, until_s: float, *, handover: bool = False
    ) -> Generator[Wait, None, bool]:
        gate = self.fleet.gate
        granted = gate.request(self.id, self.server.address, Rank.ROTATION, handover=handover)
        yield until(until_s, granted, link.ended)
        if not granted.happened:
            gate.withdraw(self.id)
            return False
        if not link.open and not handover:
            gate.release(self.id)
        return link.open

    def _part(self, link: Link, cause: str) -> Task:
        self.lifecycle.draining(self.fleet.agenda.now)
        assert link.wire is not None
        link.wire.close()
        self.fleet.rotating(self)
        yield signal(link.ended)
        if self.outage is None:
            self.outage = self.fleet.agenda.now, cause

    def _succeed(self, old: Link) -> Task:
        agenda = self.fleet.agenda
        new = self._begin()
        self._old, self._overlap, self._forget_at = old, None, inf
        self.fleet.rotating(self)
        yield signal(new.answered, new.ended, old.ended)
        if not old.ended.happened and new.open:
            assert old.wire is not None
            pong = Signal()
            old.wire.ping(pong)
            yield until(agenda.now + PONG_PATIENCE_S, old.ended, new.ended, pong)
        if new.ended.happened and not old.ended.happened:
            self._replacement_failed(new)
            return
        self.link = new
        if not new.open:
            self._judge(old)
            self.lifecycle.waiting(agenda.now)
            self.lifecycle.dialing(agenda.now)
        else:
            self._switch(old)
        agenda.start(self._retire(old))

    def _replacement_failed(self, new: Link) -> None:
        assert new.failure is not None
        now = self.fleet.agenda.now
        judgement = judge(new.failure, secure=True, now_utc_ns=0)
        if judgement.verdict is Verdict.THROTTLED:
            self._throttled(new)
        retry_after_s = new.failure.retry_after_s
        self.rotation.failed(judgement.verdict, now, retry_after_s=retry_after_s)
        if self._overlap is not None:
            self._overlap.new_ended()
        self._overlap = self._old = None
        self.fleet.gate.release(self.id)

    def _switch(self, old: Link) -> None:
        assert self._overlap is not None
        now = self.fleet.agenda.now
        overlap = self._overlap
        if old.ended.happened:
            self.gaps.append(Outage(old.heard_at, now, "rotation"))
            self.brought += overlap.old_ended()
            self._forget_at = now + REMEMBERED_S
        else:
            self.brought += overlap.release()
        self.lifecycle.replaced(now)
        self.rotation.opened(now)
        self.replaced += 1

    def _retire(self, old: Link) -> Task:
        if not old.ended.happened:
            assert old.wire is not None
            old.wire.close()
        yield signal(old.ended)
        if self._overlap is not None:
            self.brought += self._overlap.old_ended()
            self._forget_at = self.fleet.agenda.now + REMEMBERED_S
        self.fleet.gate.release(self.id)
        self._changed.fire()

    def _judged(self) -> tuple[float, Rank]:
        assert self.link is not None
        if self.lifecycle.state == "draining":
            return 0.0, Rank.NEW
        return self._judge(self.link), Rank.LOST

    def _judge(self, link: Link) -> float:
        assert link.failure is not None
        now = self.fleet.agenda.now
        opened = self.outage is None
        judgement = judge(link.failure, secure=True, now_utc_ns=0, opened=opened)
        pause = self.lifecycle.failed(judgement, now, retry_after_s=link.failure.retry_after_s)
        if opened:
            self.outage = link.heard_at, judgement.cause
            self.noticed.append((now, judgement.cause))
        if judgement.verdict is Verdict.THROTTLED:
            self._throttled(link)
        return pause.delay_s

    def _throttled(self, link: Link) -> None:
        assert link.failure is not None
        gate, retry_after_s = self.fleet.gate, link.failure.retry_after_s
        now = self.fleet.agenda.now
        self._tell(gate.allocator.throttled(self.id, link.dialed_at, retry_after_s, now))

    def _tell(self, sentence: str | None) -> None:
        if sentence is not None:
            self.fleet.told.append((self.fleet.agenda.now, sentence))
        self.fleet.gate.grant()

    # -- one link

    def _run_link(self, link: Link) -> Task:
        manner, agenda, server = self.fleet.manner, self.fleet.agenda, self.server
        if server.silent:
            yield until(agenda.now + manner.dial_timeout_s)
            self._end(link, Failure(FailureKind.TIMEOUT, "nothing answers"))
            return
        yield until(agenda.now + self.rng.uniform(0.002, manner.connect_s))
        yield until(self.fleet.pacer.reserve(self.id.account, server.address, agenda.now))
        wire = link.wire = Wire(
            server,
            self.id,
            Path(agenda, self._delay),
            Path(agenda, self._delay),
            partial(self._opened, link),
            partial(self._received, link),
        )
        if link is not self.link:
            self._overlap = Overlap()
        wire.request()
        yield until(agenda.now + manner.dial_timeout_s, wire.answered)
        if not link.open:
            late = Failure(FailureKind.TIMEOUT, "the server did not answer in time")
            wire.abandon()
            self._end(link, wire.refusal or late)
            return
        yield from self._keep_pinging(link, wire)
        assert wire.failure is not None
        self._end(link, wire.failure)

    def _keep_pinging(self, link: Link, wire: Wire) -> Task:
        manner, agenda = self.fleet.manner, self.fleet.agenda
        while manner.pings and not wire.ended.happened:
            pause_s = heartbeat.next_ping(manner.ping_interval_s, self.rng)
            yield until(agenda.now + pause_s, wire.ended)
            pong = Signal()
            wire.ping(pong)
            yield until(agenda.now + manner.pong_timeout_s, wire.ended, pong)
            if pong.happened:
                self._heard(link)
            elif not wire.ended.happened:
                wire.finish(Failure(FailureKind.SILENT, "a ping went unanswered"))
                wire.abandon()
        yield signal(wire.ended)

    def _delay(self) -> float:
        return self.rng.uniform(0.0005, self.fleet.manner.delay_s)

    def _opened(self, link: Link) -> None:
        now = self.fleet.agenda.now
        link.open, link.heard_at = True, now
        self._tell(self.fleet.gate.allocator.succeeded(self.id, now))
        if link is self.link:
            self.lifecycle.opened(now)
            self.rotation.opened(now)
            if self.outage is not None:
                self.gaps.append(Outage(self.outage[0], now, self.outage[1]))
                self.outage = None
        link.answered.fire()
        self._changed.fire()

    def _heard(self, link: Link) -> None:
        link.heard_at = self.fleet.agenda.now
        healthy_at = self.lifecycle.healthy_at()
        if link is self.link and healthy_at is not None and link.heard_at >= healthy_at:
            self.lifecycle.healthy(link.heard_at)

    def _received(self, link: Link, message: Message) -> None:
        self._heard(link)
        if self._overlap is not None and link.heard_at >= self._forget_at:
            self._overlap = self._old = None
        if self._overlap is None:
            self.brought.append(message)
        elif link is self._old:
            self.brought += self._overlap.old([message])
        else:
            self.brought += self._overlap.new([message])

    def _end(self, link: Link, failure: Failure) -> None:
        link.open, link.failure = False, failure
        if failure.kind in (FailureKind.CLOSE, FailureKind.EOF):
            link.heard_at = self.fleet.agenda.now  # in its place behind all data
        link.ended.fire()
        self._changed.fire()


@define(eq=False)
class Fleet:
    """All sources, their servers, and what they share.

    `rotating` hears when one is about to replace its link: a scenario may make that interesting.
    """

    agenda: Agenda
    manner: Manner
    servers: dict[str, Server]
    gate: Gate
    pacer: Pacer
    lives: list[Life] = field(factory=list)
    dialed: list[tuple[float, SourceId]] = field(factory=list)
    told: list[tuple[float, str]] = field(factory=list)
    rotating: Callable[[Life], None] = lambda life: None

    @classmethod
    def make(
        cls,
        manner: Manner,
        servers: Iterable[Server],
        sources: Iterable[tuple[SourceId, str]],
        agenda: Agenda,
        seed: int,
    ) -> Fleet:
        """Return a fleet that begins when the agenda runs."""
        gate = Gate(agenda, Allocator(manner.limits, agenda.now))
        by_address = {server.address: server for server in servers}
        fleet = cls(agenda, manner, by_address, gate, Pacer(manner.limits, agenda.now))
        for source, address in sources:
            rng = Random(f"{seed}/{source}")
            life = Life(
                fleet,
                source,
                by_address[address],
                rng,
                Lifecycle(
                    min_s=manner.backoff_min_s,
                    max_s=manner.backoff_max_s,
                    reset_after_s=manner.reset_after_s,
                    rng=rng,
                ),
                Rotation(
                    manner.rotate_after_s,
                    min_s=manner.backoff_min_s,
                    max_s=manner.backoff_max_s,
                    rng=rng,
                ),
            )
            fleet.lives.append(life)
            agenda.start(life.run())
        return fleet

    def requests(self) -> list[tuple[float, SourceId, int]]:
        """Return every request that servers saw, in order of time, with its answer."""
        return sorted(r for server in self.servers.values() for r in server.requests)
