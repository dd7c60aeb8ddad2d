"""Waiting for the moment at which a request may be sent, and a dialer that does it."""

from __future__ import annotations

import trio
from attrs import define, field

from hypermux.core.pacing import Pacer
from hypermux.model.accounts import Endpoint, Limits, Tls
from hypermux.upstream.transport import Dialer


@define(eq=False)
class Pace:
    """One pacer for all requests, and the tasks that wait for theirs to be due."""

    _pacer: Pacer
    _changed: trio.Event = field(factory=trio.Event)

    async def wait(self, account: str, address: str) -> None:
        """Return when a request of `account` to `address` may be sent."""
        while True:
            changed = self._changed
            at = self._pacer.reserve(account, address, trio.current_time())
            with trio.move_on_at(at):
                await changed.wait()
            # What was reserved under other limits is void.
            if not changed.is_set():
                return

    def change(self, limits: Limits) -> None:
        """Go on with other limits."""
        if self._pacer.change(limits, trio.current_time()):
            self._changed.set()
            self._changed = trio.Event()


@define(eq=False)
class PacedDialer:
    """Dials for one account; see `core.pacing`. A transport sends its request right away."""

    dialer: Dialer
    pace: Pace
    account: str

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        """See `Dialer.dial`."""
        stream = await self.dialer.dial(endpoint, tls)
        try:
            await self.pace.wait(self.account, endpoint.address)
        except trio.Cancelled:
            await trio.aclose_forcefully(stream)
            raise
        return stream
