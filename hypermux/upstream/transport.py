"""What a transport is: one attempt at a source, from dial to its end.

A transport knows its protocol and nothing else: no retry, no limits, no siblings. It tells a
`Listener` what happens, in plain calls that never wait, and ends by raising `ConnectionFailed`.
"""

from __future__ import annotations

from math import inf
from typing import Literal, Protocol

import trio
from attrs import field, frozen

from hypermux.model.accounts import Endpoint, Tls

# How far the peer's identity is known from TLS. "pinned": it holds a key that was configured,
# whether its certificate verifies or not. "off": no TLS, as with sockets here and over ssh.
Trust = Literal["verified", "pinned", "unverified", "off"]
PROVEN: frozenset[Trust] = frozenset({"verified", "pinned"})


class Control(Protocol):
    """What an open connection can be told to do, beside being cancelled."""

    async def ping(self) -> None:
        """Return when the peer has answered a ping sent now.

        All that it sent before its answer has been handed over by then. Does not return on a
        connection that ends.
        """

    def close(self) -> None:
        """Say goodbye; what the peer still sends is read to the end, which comes soon."""


@frozen
class Resumption:
    """What an upstream's own memory tells of the time without a connection.

    `replayed`: messages from it that were not seen. `synthetic`: messages that its state implies.
    `complete`: with these nothing is missing, up to `as_of_ns` on the stream's clock: what came
    later is on the live stream alone. `anchor`: see `core.resume`.
    """

    complete: bool = False
    replayed: list[bytes] = field(factory=list)
    synthetic: list[bytes] = field(factory=list)
    anchor: str | None = None
    as_of_ns: int | None = None


@frozen
class Opened:
    """An accepted connection: the server's `Date` (ns since 1970) if it sent one, and its TLS.

    `control` is there where the protocol has a ping and a goodbye, `resumption` where the
    upstream remembers.
    """

    date_ns: int | None
    trust: Trust
    control: Control | None = field(default=None, eq=False, repr=False)
    resumption: Resumption | None = None


class Listener(Protocol):
    """Hears of one connection's life. No call waits or raises."""

    def asking(self) -> None:
        """The request is about to be sent: from now on events may count for this connection."""

    def opened(self, opened: Opened) -> None:
        """The server accepted: events may come."""

    def heard(self) -> None:
        """Bytes came, whatever they mean."""

    def replied(self) -> None:
        """The upstream answered a question beside its stream: that says nothing of the stream.

        Also before it is open: the request for the stream itself was answered.
        """

    def received(self, messages: list[bytes], *, more: bool) -> None:
        """Whole messages came, in order; `more`: the read did not empty the socket."""

    def repeated(self, count: int) -> None:
        """So many messages came that had been handed on already, as remembered ones."""

    def recovered(self, messages: list[bytes], *, unsure_from_ns: int | None) -> None:
        """The upstream remembers messages that the open connection should have brought.

        `unsure_from_ns`: since when it may have lost others, which nobody remembers. Before it is
        open, and without messages: what the connection before it had lost.
        """

    def unanswered(self, *, dead_s: float = inf) -> None:
        """Being cancelled, there was no answer to a goodbye, or its protocol knows none.

        The peer may have been dead, for `dead_s` seconds at the most.
        """


class Dialer(Protocol):
    """Opens the byte stream below a transport; the seam for tests in virtual time."""

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        """Return a connected stream, TLS done when the endpoint asks for it.

        Raises ConnectionFailed (resolve, connect, tls, timeout).
        """
