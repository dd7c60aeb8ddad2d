"""HTTP on a socket of ours: one connection's requests, answered one by one.

The routes are tables (`core.routes`); a handler is an async function from a request to its answer.
Handlers get what they need from whoever makes the tables.

While a body is streamed somebody else looks at the peer, because a stream that has nothing to say
would not notice that nobody listens any more. What the peer sends meanwhile is the next request,
and waits; a bounded part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio
from attrs import define, field

from hypermux.core.http import (
    MAX_BODY,
    MAX_HEAD,
    REQUEST_S,
    Ended,
    Exchange,
    Heard,
    HttpRequest,
    Reply,
    Streamed,
)
from hypermux.core.routes import Table, route
from hypermux.downstream.peer import LINGER_S, Peer, PeerGone, PeerStalled

log = logging.getLogger("hypermux.http")

Handler: TypeAlias = Callable[[HttpRequest], Awaitable[Reply | Streamed]]
Routes: TypeAlias = Sequence[Table[Handler]]


class Cut(Exception):
    """Raised by a body that cannot go on: the peer is to see that it has not got all of it."""


@define(eq=False)
class HttpServer:
    """Answers the requests of any number of connections until `end`."""

    routes: Routes
    stall_timeout_s: float
    # Says why a request is not even looked at.
    refusal: Callable[[HttpRequest], Reply | None] = lambda _: None
    _ending: bool = False
    # Connections that wait for a request.
    _resting: set[trio.CancelScope] = field(factory=set)

    async def serve(self, peer: Peer, data: bytes | None) -> None:
        """Serve a connection that began with `data`, None when nothing came yet.

        Raises PeerGone and PeerStalled.
        """
        now = trio.current_time()
        who, ours = peer.caller()
        exchange = Exchange(who, now + REQUEST_S, ours)
        if data is not None:
            exchange.receive(data, now)
        more = True
        while more:
            heard = await self._next(peer, exchange)
            if isinstance(heard, Ended):
                return
            answer = heard if isinstance(heard, Reply) else await self._answer(heard)
            if isinstance(answer, Streamed):
                try:
                    more = await self._stream(peer, exchange, answer)
                except Cut:
                    return
                finally:
                    answer.over()
            else:
                sent, more = exchange.answer(answer, trio.current_time())
                await peer.send(sent, self.stall_timeout_s)
        peer.finish()
        with trio.move_on_after(LINGER_S):
            while await peer.receive(None):
                pass

    def end(self) -> None:
        """Take no more requests; those under way are still answered."""
        self._ending = True
        for scope in self._resting:
            scope.cancel()

    async def _next(self, peer: Peer, exchange: Exchange) -> Heard:
        while (heard := exchange.heard()) is None:
            if exchange.waits_for_continue:
                await peer.send(exchange.go_on(), self.stall_timeout_s)
            data = None
            if not self._ending:
                with trio.CancelScope() as scope:
                    self._resting.add(scope)
                    try:
                        data = await peer.receive(exchange.deadline_s)
                    finally:
                        self._resting.discard(scope)
            if data is None:
                return (None if self._ending else exchange.timed_out()) or Ended()
            exchange.receive(data, trio.current_time())
        return heard

    async def _answer(self, request: HttpRequest) -> Reply | Streamed:
        if (refusal := self.refusal(request)) is not None:
            return refusal
        found = route(request, self.routes)
        if isinstance(found.answer, Reply):
            return found.answer
        try:
            return await found.answer(request)
        except Exception:  # whatever it is, it is this request's alone
            log.exception("%s %s failed", request.method, request.path)
            return found.error(500, "a fault of hypermux; its log has more")

    async def _stream(self, peer: Peer, exchange: Exchange, streamed: Streamed) -> bool:
        """Send an answer part by part; return whether there may be another request.

        Raises PeerGone, PeerStalled and Cut.
        """
        await peer.send(exchange.begin(streamed), self.stall_timeout_s)
        if exchange.wants_body:
            await self._send_body(peer, exchange, streamed)
        sent, more = exchange.finish(trio.current_time())
        await peer.send(sent, self.stall_timeout_s)
        return more

    async def _send_body(self, peer: Peer, exchange: Exchange, streamed: Streamed) -> None:
        trouble: Exception | None = PeerGone()  # what it is when the watcher ends it

        async def send(data: bytes | Sequence[bytes]) -> None:
            if data:  # an empty chunk would be the last
                sent = exchange.part(data) if isinstance(data, bytes) else exchange.parts(data)
                await peer.send(sent, self.stall_timeout_s)
            await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, peer, exchange, nursery.cancel_scope)
            try:
                await streamed.body(send)
                trouble = None
            except (PeerGone, PeerStalled, Cut) as error:
                trouble = error
            except Exception:
                log.exception("a streamed answer failed")
                trouble = Cut()
            nursery.cancel_scope.cancel()
        if trouble is not None:
            raise trouble


async def _watch(peer: Peer, exchange: Exchange, body: trio.CancelScope) -> None:
    """Cancel `body` when the peer has gone; keep what it sends."""
    held = 0
    try:
        while held < MAX_HEAD + MAX_BODY:
            data = await peer.receive(None)
            if data is not None:
                exchange.receive(data, trio.current_time())
                held += len(data)
            if data == b"":
                break
        await peer.wait_gone()
    except PeerGone:
        pass
    body.cancel()
