"""The Docker Engine's API on a socket of ours: what answers `core.engine_api`'s routes.

`/events` replays as deep as the journal reaches, in the journal's order. What is chosen by the
events' own times is found by their places in the order, which differ: a clock that is ahead gives
a later time than place, so reading begins SLACK earlier; what was recorded late (an outage's
replay) has an earlier one, so an `until` that has passed is read to the journal's present end.

An end asks the sequencer to have shown what was received by then: events wait for each other for
moments, and `--until 0s` right behind a command is to show what it did. Where that does not come
about (a disk that refuses), what there is is sent, and the answer is cut off: who has not got all
of it has to see that.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio
from attrs import define

from hypermux.core import engine_api
from hypermux.core.engine_api import BadQuery
from hypermux.core.engine_events import EngineEvents, EventsQuery
from hypermux.core.http import HttpRequest, Reply, Send, Streamed
from hypermux.core.request import Request
from hypermux.core.routes import Table
from hypermux.core.selection import Selection
from hypermux.core.subscription import Refusal
from hypermux.downstream.http import Cut, Handler
from hypermux.downstream.streaming import Published, Stream, StreamRefused

log = logging.getLogger("hypermux.engine")

_SECOND = 1_000_000_000
# How much ahead of ours a source's clock may be for `since` to find all that it stamped; a minute
# of a thousand events a second is half a second's reading.
SLACK_NS = 60 * _SECOND
# What happened by `until` is received a little later.
ON_ITS_WAY_NS = _SECOND // 10
# How long an end waits for what was received to be shown: an event's longest hold (2 s) and a
# commit on a slow disk; beside the time between two syncs.
SETTLE_S = 5.0

# Go's names for what this machine is.
_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class Places(Protocol):
    """Counts those who read the stream, and refuses them when there are too many."""

    def subscribe(self, who: str) -> Refusal | None:
        """Take a place, or say why there is none."""

    def leave(self) -> None:
        """Give it back."""


@define(eq=False)
class Engine:
    """The handlers. `settle(ns)` returns when all that was received before `ns` is shown."""

    published: Published
    places: Places
    now_ns: Callable[[], int]
    settle: Callable[[int], Awaitable[None]]
    settle_s: float = SETTLE_S

    @property
    def table(self) -> Table[Handler]:
        """The routes, and the form of their refusals."""
        return Table(
            {
                "/_ping": {"GET": self.ping, "HEAD": self.ping},
                "/version": {"GET": self.version, "HEAD": self.nothing},
                "/events": {"GET": self.events, "HEAD": self.nothing},
            },
            prefix=engine_api.VERSIONED,
            error=engine_api.error,
        )

    async def ping(self, request: HttpRequest) -> Reply:
        """Answer that somebody is here."""
        return engine_api.refuse_version(request.path) or engine_api.ping(request.method)

    async def version(self, request: HttpRequest) -> Reply:
        """Answer what this is."""
        machine = platform.machine()
        return engine_api.refuse_version(request.path) or engine_api.version(
            _ARCH.get(machine, machine), platform.release()
        )

    async def nothing(self, _: HttpRequest) -> Reply:
        """Answer HEAD where an Engine has only GET."""
        return engine_api.error(404, "page not found")

    async def events(self, request: HttpRequest) -> Reply | Streamed:
        """Answer with the events from `since` to `until`, or from now on."""
        if refused := engine_api.refuse_version(request.path):
            return refused
        try:
            query = engine_api.parse_events_query(request.query)
        except BadQuery as error:
            return engine_api.error(400, str(error))
        if full := self.places.subscribe(request.who):
            return engine_api.error(503, full.error)
        stream = self.published.open()

        def over() -> None:
            stream.close()
            self.places.leave()

        try:
            await self._begin(stream, query)
        except StreamRefused as refusal:
            over()
            return engine_api.error(500, refusal.refusal.error)
        except BaseException:
            over()
            raise
        body = partial(self._send_events, query, stream)
        return Streamed(200, "application/json", engine_api.HEADERS, body, over)

    async def _begin(self, stream: Stream, query: EventsQuery) -> None:
        if query.since_ns is None and query.until_ns is None:
            return
        selection = Selection()
        if query.since_ns is not None:
            selection = Selection(since_ns=max(0, query.since_ns - SLACK_NS))
        await stream.ask(Request("start", selection))
        # Only the place was wanted: from there on all is read.
        await stream.ask(Request())

    async def _send_events(self, query: EventsQuery, stream: Stream, send: Send) -> None:
        show = EngineEvents(query).show
        try:
            while query.until_ns is None or query.until_ns > self.now_ns():
                block: bytes | None = b""
                with trio.move_on_after(self._seconds_to(query.until_ns)):
                    block = await stream.next()
                if block is None:
                    return
                await send(show(block))
            settled = await self._settled(query.until_ns + ON_ITS_WAY_NS)
            await stream.ask(Request(follow=False))
            while (block := await stream.next()) is not None:
                await send(show(block))
            if not settled:
                raise Cut
        except StreamRefused:  # which is logged
            raise Cut from None

    def _seconds_to(self, moment_ns: int | None) -> float:
        """Return how long to wait for a moment; whatever the rounding, it will have passed."""
        if moment_ns is None:
            return float("inf")
        return max(0, moment_ns - self.now_ns()) / _SECOND + 0.001

    async def _settled(self, moment_ns: int) -> bool:
        with trio.move_on_after(self._seconds_to(moment_ns) + self.settle_s):
            await self.settle(moment_ns)
            return True
        log.warning("events asked for may be incomplete: not all is written that was received")
        return False
