"""HTTP on the unix socket: one connection's requests, answered one by one.

The routes are a table, path then method; a handler is an async function from a request to its
reply. Handlers get what they need from whoever makes the table.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import trio
from attrs import define, field

from hypermux.core.http import Ended, Exchange, Heard, HttpRequest, Reply, route
from hypermux.downstream.peer import LINGER_S, Peer

log = logging.getLogger("hypermux.http")

Handler: TypeAlias = Callable[[HttpRequest], Awaitable[Reply]]
Routes: TypeAlias = Mapping[str, Mapping[str, Handler]]


@define(eq=False)
class HttpServer:
    """Answers the requests of any number of connections until `end`."""

    routes: Routes
    stall_timeout_s: float
    _ending: bool = False
    # Connections that wait for a request.
    _resting: set[trio.CancelScope] = field(factory=set)

    async def serve(self, peer: Peer, data: bytes) -> None:
        """Serve a connection that began with `data`. Raises PeerGone and PeerStalled."""
        now = trio.current_time()
        exchange = Exchange(str(peer.credentials()), now)
        exchange.receive(data, now)
        more = True
        while more:
            heard = await self._next(peer, exchange)
            if isinstance(heard, Ended):
                return
            reply = heard if isinstance(heard, Reply) else await self._answer(heard)
            sent, more = exchange.answer(reply, trio.current_time())
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

    async def _answer(self, request: HttpRequest) -> Reply:
        handler = route(request, self.routes)
        if isinstance(handler, Reply):
            return handler
        try:
            return await handler(request)
        except Exception:  # whatever it is, it is this request's alone
            log.exception("%s %s failed", request.method, request.path)
            return Reply.error(500, "a fault of hypermux; its log has more")
