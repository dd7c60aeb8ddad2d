"""Servers for the fleet: limits enforced by plain counting, an age at which connections are cut.

What they do is written down here, for the oracles: every request and its answer, every message.
Nothing is shared with hypermux: a rate is a bucket that fills, a count is a count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from random import Random
from typing import TypeAlias

from agenda import Agenda, Signal
from attrs import define, field, frozen

from hypermux.model.accounts import Cap, SourceId
from hypermux.model.errors import Failure, FailureKind

Message: TypeAlias = bytes


@frozen
class ServerLimits:
    """What one server lets in, in all and of each account; a burst for its rates."""

    whole: Cap
    per_account: Cap
    burst: int
    account_caps: Mapping[str, Cap]


@define(eq=False)
class Bucket:
    """Permits that come at a rate, up to a burst."""

    rate: float | None
    burst: int
    level: float = inf
    at: float = 0.0

    def ready_in(self, now: float) -> float:
        """Return in how many seconds there will be one; 0: now."""
        if self.rate is None:
            return 0.0
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        return 0.0 if self.level >= 1.0 - 1e-6 else (1.0 - self.level) / self.rate

    def take(self) -> None:
        self.level -= 1.0


@define(eq=False)
class Path:
    """One direction of a connection: what is sent arrives late, and in order."""

    agenda: Agenda
    delay: Callable[[], float]
    _last: float = 0.0

    def send(self, act: Callable[[], None]) -> None:
        """Have something arrive at the other end."""
        self._last = max(self._last, self.agenda.now + self.delay())
        self.agenda.at(self._last, act)


@define(eq=False)
class Wire:
    """A connection as the network knows it: both ends, and what each has heard of the other."""

    server: Server
    source: SourceId
    up: Path
    down: Path
    opened: Callable[[], None]
    received: Callable[[Message], None]
    answered: Signal = field(factory=Signal)
    ended: Signal = field(factory=Signal)
    refusal: Failure | None = None  # set when it was refused
    failure: Failure | None = None  # set when it has ended
    over: bool = False  # for the server

    # What the client does.

    def request(self) -> None:
        self.up.send(partial(self.server.requested, self))

    def ping(self, pong: Signal) -> None:
        self.up.send(partial(self.server.pinged, self, pong))

    def close(self) -> None:
        """Say goodbye: the server stops sending, and answers."""
        goodbye = Failure(FailureKind.CLOSE, "the server answered our goodbye", 1000)
        self.up.send(partial(self.server.end, self, goodbye))

    def abandon(self) -> None:
        """Break it off; the server finds out by itself."""
        self.up.send(partial(self.server.forget, self))

    # What comes from the server.

    def arrive(self, message: Message) -> None:
        if not self.ended.happened:
            self.received(message)

    def finish(self, failure: Failure) -> None:
        if not self.ended.happened:
            self.failure = failure
            self.ended.fire()


@define(eq=False)
class Server:
    """One address. `cut_after_s` is the age at which it ends every connection."""

    agenda: Agenda
    address: str
    limits: ServerLimits
    rng: Random
    cut_after_s: float = inf
    silent: bool = False
    live: dict[SourceId, list[Wire]] = field(factory=lambda: defaultdict(list))
    requests: list[tuple[float, SourceId, int]] = field(factory=list)
    sent: dict[SourceId, list[tuple[float, Message]]] = field(factory=lambda: defaultdict(list))
    first: dict[SourceId, float] = field(factory=dict)  # when it was first let in
    cut: int = 0  # connections that reached that age
    _held: Counter[str] = field(factory=Counter)
    _whole: Bucket = field(init=False)
    _accounts: dict[str, Bucket] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._whole = Bucket(self.limits.whole.connect_rate, self.limits.burst)

    def requested(self, wire: Wire) -> None:
        """An upgrade request is here: 101 or 429."""
        if self.silent:
            return
        account = wire.source.account
        rates = [self._whole, self._account(account)]
        wait = max(bucket.ready_in(self.agenda.now) for bucket in rates)
        refused = wait > 0
        if not refused:
            for bucket in rates:
                bucket.take()
            most, own = self.limits.whole.max_connections, self._cap(account).max_connections
            refused = (most is not None and self._held.total() >= most) or (
                own is not None and self._held[account] >= own
            )
            wait = 5.0 if refused else 0.0
        self.requests.append((self.agenda.now, wire.source, 429 if refused else 101))
        if refused:
            detail = "HTTP 429: too many connections"
            failure = Failure(FailureKind.HTTP, detail, 429, retry_after_s=max(1.0, wait // 1 + 1))
            wire.down.send(partial(self._answer, wire, failure))
            return
        self._held[account] += 1
        self.live[wire.source].append(wire)
        self.first.setdefault(wire.source, self.agenda.now)
        wire.down.send(partial(self._answer, wire, None))
        if self.cut_after_s < inf:
            self.agenda.at(self.agenda.now + self.cut_after_s, partial(self._old, wire))

    def pinged(self, wire: Wire, pong: Signal) -> None:
        if not self.silent and not wire.over:
            wire.down.send(pong.fire)

    def end(self, wire: Wire, failure: Failure) -> None:
        """Send nothing more over it, then a goodbye."""
        if not wire.over:
            self.forget(wire)
            if not self.silent:
                wire.down.send(partial(wire.finish, failure))

    def forget(self, wire: Wire) -> None:
        """Know of it no longer."""
        if self.silent:
            return
        if not wire.over and wire in self.live[wire.source]:
            self._held[wire.source.account] -= 1
            self.live[wire.source].remove(wire)
        wire.over = True

    def end_all(self, failure: Failure) -> None:
        """Cut every connection at once."""
        for wires in list(self.live.values()):
            for wire in list(wires):
                self.end(wire, failure)

    def fall_silent(self) -> None:
        """From now on nothing arrives here and nothing leaves; nobody is told."""
        self.silent = True

    def come_back(self) -> None:
        """Serve again, and know of nobody."""
        self.silent = False
        self.live.clear()
        self._held.clear()

    def emit(self, source: SourceId, message: Message) -> None:
        """Something happens: every connection of the source is told."""
        self.sent[source].append((self.agenda.now, message))
        if not self.silent:
            for wire in self.live[source]:
                wire.down.send(partial(wire.arrive, message))

    def _old(self, wire: Wire) -> None:
        if not wire.over:
            self.cut += 1
            self.end(wire, Failure(FailureKind.CLOSE, "the server ends old connections", 1000))

    def _account(self, account: str) -> Bucket:
        if account not in self._accounts:
            self._accounts[account] = Bucket(self._cap(account).connect_rate, self.limits.burst)
        return self._accounts[account]

    def _cap(self, account: str) -> Cap:
        return self.limits.account_caps.get(account, self.limits.per_account)

    @staticmethod
    def _answer(wire: Wire, refusal: Failure | None) -> None:
        if wire.ended.happened:
            return
        wire.refusal = refusal
        if refusal is None:
            wire.opened()
        wire.answered.fire()
