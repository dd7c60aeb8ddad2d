"""Byte streams with delays, stalls and deaths, and the dialer that gives them out.

A `Wire` is the client's end of a connection; its server is an object whose plain calls it makes
once the bytes have travelled. Bytes keep their order; a dead wire loses them, both ways, without
a word; a stalled one holds them.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Protocol

import trio
from attrs import define, field

from hypermux.model.accounts import Endpoint, SourceId, Tls
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from simulator.timeline import Timeline

# What TCP keepalive needs to find a dead host (`upstream.dialing`); given to wires that have it.
KEEPALIVE_S = 30.0
DIAL_TIMEOUT_S = 10.0


class Server(Protocol):
    """The other end of wires."""

    def received(self, wire: Wire, data: bytes) -> None:
        """Bytes came from the client."""

    def closed(self, wire: Wire) -> None:
        """The client is gone."""


@define(eq=False)
class Wire(trio.abc.Stream):
    """The client's end of one connection, numbered over the world's life."""

    number: int
    source: SourceId
    life: int
    server: Server
    timeline: Timeline
    delay_s: float
    keepalive: bool
    dialed: float
    on_close: Callable[[Wire], None]
    # When the client could no longer hear of anything sent later, and by what.
    lost: float | None = None
    lost_by: str = ""
    closed: float | None = None
    fault: str = ""  # for which the client may give it up
    asked: float | None = None  # when the first bytes of a request were sent
    open: bool = True  # on the client's side
    dead: bool = False
    sent: int = 0  # bytes from the server
    read: int = 0  # bytes that the client took
    marks: deque[tuple[int, Callable[[], None]]] = field(factory=deque)
    _inbox: bytearray = field(factory=bytearray)
    _ended: str = ""
    _arrived: trio.Event | None = None
    _down_at: float = 0.0  # when the last bytes to the client arrive
    _up_at: float = 0.0
    _stalled_until: float = 0.0

    # The server's side

    def send(self, data: bytes, mark: Callable[[], None] | None = None) -> float:
        """Send bytes to the client; return when they arrive.

        `mark` is called when it has taken the last of them.
        """
        if self.dead or self._ended:
            return self._arrival(self._down_at)
        self.sent += len(data)
        if mark is not None:
            self.marks.append((self.sent, mark))
        self._down_at = self._arrival(self._down_at)
        self.timeline.at(self._down_at, lambda: self._arrive(data))
        return self._down_at

    def end(self, how: str = "eof") -> float:
        """End the stream, behind all that was sent: "eof" or "reset"; return when that arrives."""
        if self.dead:
            return 0.0
        self._down_at = self._arrival(self._down_at)
        self.timeline.at(self._down_at, lambda: self._end(how))
        return self._down_at

    def die(self) -> None:
        """Lose everything from now on, both ways, and tell nobody."""
        if self.dead or not self.open:
            return
        self.dead = True
        self._lose("dead")
        if self.keepalive:
            self.timeline.after(KEEPALIVE_S, lambda: self._end("keepalive"))

    def stall(self, seconds: float) -> None:
        """Hold what is sent from now on, both ways, for a while."""
        self._stalled_until = max(self._stalled_until, trio.current_time() + seconds)

    @property
    def stalled_until(self) -> float:
        """Until when nothing passes."""
        return self._stalled_until

    def _arrival(self, last: float) -> float:
        return max(trio.current_time() + self.delay_s, last, self._stalled_until)

    def _arrive(self, data: bytes) -> None:
        if not self.dead and self.open and not self._ended:
            self._inbox += data
            self._wake()

    def _end(self, how: str) -> None:
        if self.open and not self._ended and (not self.dead or how == "keepalive"):
            self._ended = how
            self._lose(how)
            self._wake()

    def _lose(self, how: str) -> None:
        if self.lost is None:
            self.lost, self.lost_by = trio.current_time(), how

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()

    # The client's side

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            if not self.open:
                raise trio.ClosedResourceError
            if self._ended == "eof":
                return b""
            if self._ended:
                code = errno.ETIMEDOUT if self._ended == "keepalive" else errno.ECONNRESET
                raise trio.BrokenResourceError from OSError(code, "simulated")
            self._arrived = trio.Event()
            await self._arrived.wait()
            self._arrived = None
        size = len(self._inbox) if max_bytes is None else min(max_bytes, len(self._inbox))
        data = bytes(self._inbox[:size])
        del self._inbox[:size]
        self.read += size
        while self.marks and self.marks[0][0] <= self.read:
            self.marks.popleft()[1]()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if not self.open:
            raise trio.ClosedResourceError
        if self._ended in ("reset", "keepalive"):
            raise trio.BrokenResourceError from OSError(errno.EPIPE, "simulated")
        if self.asked is None:
            self.asked = trio.current_time()
        if not self.dead and not self._ended:
            sent = bytes(data)
            self._up_at = self._arrival(self._up_at)
            self.timeline.at(self._up_at, lambda: self._reach(sent))

    def _reach(self, data: bytes) -> None:
        if not self.dead:
            self.server.received(self, data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.close("closed by us")
        await trio.lowlevel.checkpoint()

    def close(self, how: str) -> None:
        """End the client's side at once, as the system does for a process that is gone."""
        if not self.open:
            return
        self._lose(how)
        self.open, self.closed = False, trio.current_time()
        self._inbox.clear()
        self.marks.clear()
        self._wake()
        self.on_close(self)
        if not self.dead and not self._ended:
            self._up_at = self._arrival(self._up_at)
            self.timeline.at(self._up_at, self._gone)

    def _gone(self) -> None:
        if not self.dead:
            self.server.closed(self)


@define(eq=False)
class Attempt:
    """One dial: when it began, the wire that it led to, when all of it was over."""

    source: SourceId
    address: str
    life: int
    began: float
    wire: Wire | None = None
    ended: float | None = None

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """What it counts for."""
        return ("all", ""), ("account", self.source.account), ("endpoint", self.address)


class Reachable(Server, Protocol):
    """A server, and what dialing it does.

    `keepalive`: whether its wires find a dead host by themselves, as those without pings must.
    """

    keepalive: bool

    def dial(self) -> Failure | float:
        """Return the seconds that connecting takes, or why it fails; inf: no answer at all."""

    def accept(self, wire: Wire) -> None:
        """A wire to this server is open."""


@define(eq=False)
class Network:
    """All wires and dials of a world."""

    timeline: Timeline
    servers: dict[SourceId, Reachable] = field(factory=dict)
    attempts: list[Attempt] = field(factory=list)
    wires: list[Wire] = field(factory=list)
    delays: Callable[[SourceId], float] = lambda source: 0.01
    trace: Callable[[str], None] = lambda text: None
    # How many dials and connections there are, how many there may be, and what began beyond that.
    now: Counter[tuple[str, str]] = field(factory=Counter)
    allowed: dict[str, int | None] = field(factory=dict)
    beyond: list[str] = field(factory=list)

    def begun(self, attempt: Attempt) -> None:
        """A dial begins."""
        self.attempts.append(attempt)
        for key in attempt.keys:
            self.now[key] += 1
        # Where a limit was lowered others may still be on their way out, of which this is none.
        self.count("begun", attempt.keys)

    def count(self, when: str, keys: Iterable[tuple[str, str]]) -> None:
        """Note what there is too much of."""
        for key in keys:
            kind, name = key
            found, cap = self.now[key], self.allowed.get(kind)
            if cap is not None and found > cap:
                now = trio.current_time()
                self.beyond.append(f"{found} of {kind} {name}, {when} at {now:.3f}, allowed {cap}")

    def over(self, attempt: Attempt) -> None:
        """A dial failed, or its connection is closed."""
        attempt.ended = trio.current_time()
        for key in attempt.keys:
            self.now[key] -= 1


def label(source: SourceId) -> str:
    """Return the `ca` by which a dial says whose it is: the dialer is asked for no account."""
    return f"/simulated/{source.account}/{source.region}"


@define(eq=False)
class WireDialer:
    """The dialer of one life."""

    network: Network
    life: int
    alive: bool = True

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        assert tls.ca is not None
        account, region = tls.ca.removeprefix("/simulated/").split("/")
        source = SourceId(account, region)
        network = self.network
        attempt = Attempt(source, endpoint.address, self.life, trio.current_time())
        network.begun(attempt)
        try:
            server = network.servers[source]
            outcome = server.dial()
            if isinstance(outcome, Failure):
                await trio.sleep(network.delays(source))
                raise ConnectionFailed(outcome)
            with trio.move_on_after(DIAL_TIMEOUT_S) as scope:
                await trio.sleep(outcome)
            if scope.cancelled_caught:
                raise ConnectionFailed(Failure(FailureKind.TIMEOUT, "connecting took too long"))
        except BaseException:
            network.over(attempt)
            raise
        return self._connect(server, attempt)

    def _connect(self, server: Reachable, attempt: Attempt) -> Wire:
        network = self.network
        now = trio.current_time()

        def closed(wire: Wire) -> None:
            network.over(attempt)
            network.trace(f"{wire.source} wire {wire.number} closed, lost by {wire.lost_by}")

        wire = Wire(
            len(network.wires) + 1,
            attempt.source,
            self.life,
            server,
            network.timeline,
            network.delays(attempt.source),
            server.keepalive,
            now,
            closed,
        )
        network.wires.append(wire)
        attempt.wire = wire
        network.trace(f"{wire.source} wire {wire.number} connected")
        server.accept(wire)
        return wire

    def crash(self) -> None:
        """End every wire of this life, as the system does when a process is gone."""
        self.alive = False
        for wire in self.network.wires:
            if wire.life == self.life:
                wire.close("crash")
