"""A dialer that gives a connection out only when its request may be sent."""

from __future__ import annotations

import trio
from attrs import define

from hypermux.core.pacing import Pacer
from hypermux.model.accounts import Endpoint, Tls
from hypermux.upstream.transport import Dialer


@define(eq=False)
class PacedDialer:
    """Dials for one account; see `core.pacing`. A transport sends its request right away."""

    dialer: Dialer
    pacer: Pacer
    account: str

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        """See `Dialer.dial`."""
        stream = await self.dialer.dial(endpoint, tls)
        now = trio.current_time()
        try:
            await trio.sleep_until(self.pacer.reserve(self.account, endpoint.address, now))
        except trio.Cancelled:
            await trio.aclose_forcefully(stream)
            raise
        return stream
