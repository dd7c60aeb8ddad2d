"""What a transport is: one attempt at a source, from dial to its end.

A transport knows its protocol and nothing else: no retry, no limits, no siblings. It tells a
`Listener` what happens, in plain calls that never wait, and ends by raising `ConnectionFailed`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import trio
from attrs import frozen

from hypermux.model.accounts import Endpoint, Tls

Trust = Literal["verified", "unverified", "off"]


@frozen
class Opened:
    """An accepted connection: the server's `Date` (ns since 1970) if it sent one, and its TLS."""

    date_ns: int | None
    trust: Trust


class Listener(Protocol):
    """Hears of one connection's life. No call waits or raises."""

    def opened(self, opened: Opened) -> None:
        """The server accepted: events may come."""

    def heard(self) -> None:
        """Bytes came, whatever they mean."""

    def received(self, messages: list[bytes], *, more: bool) -> None:
        """Whole messages came, in order; `more`: the read did not empty the socket."""


class Dialer(Protocol):
    """Opens the byte stream below a transport; the seam for tests in virtual time."""

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        """Return a connected stream, TLS done when the endpoint asks for it.

        Raises ConnectionFailed (resolve, connect, tls, timeout).
        """
