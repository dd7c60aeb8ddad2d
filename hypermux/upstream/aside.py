"""A second connection to a source's endpoint, for a question beside its stream.

It counts like any other: it has a permit of its own, slot and rates, for as long as it is open.
Whoever asks holds a slot already, so nobody waits here without an end: that would be a deadlock
where each source of an account holds one slot and waits for another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio
from attrs import define

from hypermux.config.settings import Source
from hypermux.core.limiter import Rank
from hypermux.model.errors import HypermuxError
from hypermux.upstream.gate import Gate
from hypermux.upstream.transport import Dialer


class NoPermit(HypermuxError):
    """No connection was free in time."""


class Aside(Protocol):
    """Opens side connections of one source."""

    def __call__(
        self, patience_s: float, *, urgent: bool = False
    ) -> AbstractAsyncContextManager[trio.abc.Stream]:
        """Give a dialed stream, whose request is to be sent right away; closed on leaving.

        `urgent` goes with the lost sources, the rest behind all others. Raises NoPermit when
        there is none within `patience_s`, and ConnectionFailed as a dialer does.
        """


@define(eq=False)
class Asides:
    """The side connections of `source`, through its account's limits."""

    source: Source
    gate: Gate
    dialer: Dialer

    @asynccontextmanager
    async def __call__(
        self, patience_s: float, *, urgent: bool = False
    ) -> AsyncIterator[trio.abc.Stream]:
        """See `Aside`."""
        source = self.source
        rank = Rank.LOST if urgent else Rank.PROBE
        granted = False
        with trio.move_on_after(patience_s):
            await self.gate.permit(source.id, source.endpoint.address, rank)
            granted = True
        if not granted:
            raise NoPermit(f"no connection was free within {patience_s:g} s")
        try:
            stream = await self.dialer.dial(source.endpoint, source.tls)
            try:
                yield stream
            finally:
                await trio.aclose_forcefully(stream)
        finally:
            self.gate.release(source.id)
