"""One accepted connection: what it is sent, and how it ends.

A peer that reads slowly stops this connection's sender and nothing else: its own traffic falls
behind (and catches up), and what others cause waits in a bounded queue.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable

import trio
import trio_websocket
from attrs import define, field, frozen

from hypermux.core.filters import Filters
from hypermux.emulator.stream import CLOSE_DEADLINE_S, ServerStream
from hypermux.emulator.traffic import Traffic

# About 64 KiB: larger writes gain nothing, and a goodbye waits for one batch at most.
BATCH = 128

# Events that wait for one connection. Their bytes are shared by all connections of a source.
QUEUE_EVENTS = 16_384
QUEUE_BYTES = 16 * 1024 * 1024

Sink = Callable[[bytes], None]


@frozen
class Goodbye:
    """How the emulator ends a connection: with a close frame, or with none (`code` None)."""

    code: int | None
    reason: str = ""


@frozen
class Message:
    """A message to send as it is; `splices` when it is one line of JSON that holds an object."""

    raw: bytes
    splices: bool = True


@define(eq=False)
class Stamper:
    """One source's event times: the clock's, but strictly increasing."""

    _last_ns: int = 0

    def stamp(self, now_ns: int) -> int:
        """Return the time of an event that happens now."""
        self._last_ns = max(now_ns, self._last_ns + 1)
        return self._last_ns


@define(eq=False)
class Connection:
    """One connection, numbered over the router's life, and by `ordinal` among its source's."""

    number: int
    account: str
    region: str
    ordinal: int
    filters: Filters
    stream: ServerStream
    traffic: Traffic
    opened_ns: int
    now_ns: Callable[[], int] = field(repr=False)
    stamper: Stamper = field(repr=False)
    manifest: Sink | None = field(repr=False)
    report: Callable[[str], None] = field(repr=False)
    # Those that get this connection's own traffic too, itself among them; None: nobody else.
    sharers: Callable[[], list[Connection]] | None = field(default=None, repr=False)
    sent: int = 0
    mute: bool = False  # answers pings, but what happens is lost
    _websocket: trio_websocket.WebSocketConnection | None = None
    _queue: deque[Message] = field(factory=deque, repr=False)
    _queued_bytes: int = 0
    _wake: trio.Event = field(factory=trio.Event, repr=False)
    _ending: trio.Event = field(factory=trio.Event, repr=False)
    _sender_done: trio.Event = field(factory=trio.Event, repr=False)
    _goodbye: Goodbye | None = None

    @property
    def queued(self) -> int:
        """Messages that wait to be sent."""
        return len(self._queue)

    @property
    def over(self) -> bool:
        """Whether it has ended, on either side, though its task may not have finished yet."""
        websocket = self._websocket
        return self._ending.is_set() or (websocket is not None and websocket.closed is not None)

    def offer(self, message: Message) -> None:
        """Queue a message; when the queue is full the connection ends with 1011."""
        if self.over:
            return
        if len(self._queue) >= QUEUE_EVENTS or self._queued_bytes >= QUEUE_BYTES:
            self.report(
                f"connection {self.number} ({self.account}/{self.region}) reads too slowly: closed"
            )
            self.end(Goodbye(1011, "too slow"))
            return
        self._queue.append(message)
        self._queued_bytes += len(message.raw)
        self._wake.set()

    def end(self, goodbye: Goodbye | None = None) -> None:
        """End it, None when the peer did; the first end counts."""
        if not self._ending.is_set():
            self._goodbye = goodbye
            self._ending.set()
            self._wake.set()

    async def run(self, websocket: trio_websocket.WebSocketConnection, max_age_s: float) -> None:
        """Send and listen until either side ends it; the stream is closed afterwards."""
        self._websocket = websocket
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, websocket)
            nursery.start_soon(self._send)
            with trio.move_on_after(max_age_s):
                await self._ending.wait()
            self.end(Goodbye(1001, "the connection is too old"))
            await self._finish(websocket)
            nursery.cancel_scope.cancel()

    async def _finish(self, websocket: trio_websocket.WebSocketConnection) -> None:
        goodbye = self._goodbye
        if goodbye is None:
            await self.stream.aclose()
        elif goodbye.code is None:
            await self.stream.abort()
        else:
            with trio.move_on_after(CLOSE_DEADLINE_S):
                # A batch under way is finished first: a close frame cannot stand inside another.
                await self._sender_done.wait()
                await websocket.aclose(goodbye.code, goodbye.reason or None)
            await self.stream.aclose()

    async def _listen(self, websocket: trio_websocket.WebSocketConnection) -> None:
        # The endpoint is push-only: messages are taken, so that pings behind them are seen.
        try:
            while True:
                await websocket.get_message()
        except trio_websocket.ConnectionClosed:
            self.end()

    async def _send(self) -> None:
        try:
            while not self.over:
                batch = self._collect()
                if batch and not self.mute:
                    self._record(batch)
                    await self.stream.send_events([message.raw for message in batch])
                    self.sent += len(batch)
                else:
                    await self._wait()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.end()
        finally:
            self._sender_done.set()

    async def _wait(self) -> None:
        await trio.lowlevel.checkpoint()  # the clock may say "now" again and again
        if self._queue or self.over:
            return
        self._wake = trio.Event()
        with trio.CancelScope(deadline=self.traffic.next_at(trio.current_time())):
            await self._wake.wait()

    def _collect(self) -> list[Message]:
        """Return the next batch: what others caused first, as it was stamped first."""
        batch: list[Message] = []
        while self._queue and len(batch) < BATCH:
            message = self._queue.popleft()
            self._queued_bytes -= len(message.raw)
            batch.append(message)
        due = 0 if self._queue else self.traffic.due(trio.current_time(), BATCH - len(batch))
        if due:
            now_ns, filters, stamper = self.now_ns(), self.filters, self.stamper
            for text in self.traffic.take(due):
                message = Message(text.at(stamper.stamp(now_ns)))
                if not filters or text.passes(filters):
                    batch.append(message)
                for other in () if self.sharers is None else self.sharers():
                    if other is not self and (not other.filters or text.passes(other.filters)):
                        other.offer(message)
        return batch

    def _record(self, batch: list[Message]) -> None:
        if self.manifest is None:
            return
        head = (
            f'{{"time":{self.now_ns()},"account":{json.dumps(self.account)},'
            f'"region":{json.dumps(self.region)},"connection":{self.number},'
        ).encode()
        parts = []
        for message in batch:
            if message.splices:
                parts.append(b'%b"event":%b}\n' % (head, message.raw))
            else:
                # Garbage has no place inside a line of JSON: it stands there as text.
                parts.append(b'%b"text":%b}\n' % (head, json.dumps(message.raw.decode()).encode()))
        self.manifest(b"".join(parts))
