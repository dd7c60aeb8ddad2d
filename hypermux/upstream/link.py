"""One connection of a source, from dial to its end: it runs one transport and is its `Listener`.

A source has one, and for a moment two while the second takes the first one's place. Each tells its
owner, the source's task, what happens to it; what that means is decided there.
"""

from __future__ import annotations

import logging
from math import inf
from typing import Protocol

import trio
from attrs import define, field

from hypermux.config.settings import Source
from hypermux.core.verdicts import Judgement
from hypermux.model.accounts import Credential
from hypermux.model.errors import ConfigurationFault, ConnectionFailed, Failure, FailureKind
from hypermux.upstream.transport import Control, Listener, Opened

log = logging.getLogger("hypermux.connection")


# Of a fault of ours, which may hold anything, nothing else is told in the stream.
FAULT_TEXT = "its log has the details"


class Keys(Protocol):
    """Where a source's credential comes from."""

    async def get(self, source: Source) -> Credential | None:
        """Return the credential, None where the upstream needs none. Raises ConfigurationFault."""

    def refused(self, source: Source, credential: Credential | None) -> bool:
        """The server refused this one; say whether there is another one already."""

    def accepted(self, source: Source, credential: Credential | None) -> None:
        """The server took this one."""

    def trouble(self, account: str) -> str | None:
        """Return why an account's key could not be read or renewed, None when it could."""


class Transport(Protocol):
    """One attempt at a source; ends by raising ConnectionFailed."""

    async def __call__(
        self,
        source: Source,
        credential: Credential | None,
        listener: Listener,
        sign_offset_s: float,
    ) -> None:
        """Dial, read until the end."""


class Observer(Protocol):
    """Hears what happens to sources, beside the stream; calls never wait."""

    def dialing(self, source: Source) -> None:
        """A dial begins."""

    def opened(self, source: Source) -> None:
        """A connection is open."""

    def replaced(self, source: Source) -> None:
        """Another connection has taken the open one's place."""

    def failed(self, source: Source, judgement: Judgement, failure: Failure) -> None:
        """A connection or a dial ended."""


class Owner(Protocol):
    """The source's task, as its links see it. No call waits or raises."""

    def link_asking(self, link: Link) -> None:
        """The link's request is about to be sent."""

    def link_opened(self, link: Link, opened: Opened) -> None:
        """The server accepted the link."""

    def link_heard(self, link: Link) -> None:
        """Bytes came over the link."""

    def link_replied(self, link: Link) -> None:
        """The upstream answered beside the link; see `Listener.replied`."""

    def link_received(self, link: Link, messages: list[bytes]) -> None:
        """Whole messages came over the link, in order; `link.more` says whether more are there."""

    def link_repeated(self, link: Link, count: int) -> None:
        """Messages came over the link that had been handed on; see `Listener.repeated`."""

    def link_recovered(self, link: Link, messages: list[bytes], unsure_from_ns: int | None) -> None:
        """The upstream remembers what the link did not bring; see `Listener.recovered`."""

    def link_ended(self, link: Link) -> None:
        """The link is no more; `link.failure` says why."""


@define(eq=False)
class Link:
    """One connection. Monotonic times are seconds, stream times nanoseconds since 1970.

    `failure` is set when it has `ended`. `more`: its last read did not empty its socket.
    `sign_offset_ns` is added to our clock for its signature. `dead_s`: for how long its peer can
    have been dead at its end, if nothing is known but when it was heard.
    """

    source: Source
    owner: Owner
    dialed_at: float
    sign_offset_ns: int = 0
    credential: Credential | None = field(default=None, repr=False)
    accepted: Opened | None = None
    opened_ns: int = 0
    heard_ns: int = 0
    more: bool = False
    failure: Failure | None = None
    dead_s: float = inf
    ended: trio.Event = field(factory=trio.Event)
    _scope: trio.CancelScope = field(factory=trio.CancelScope)

    async def run(self, keys: Keys, transport: Transport) -> None:
        """Dial, and read until the end."""
        try:
            with self._scope:
                self.failure = await self._attempt(keys, transport)
        finally:
            if self.failure is None:
                self.failure = Failure(FailureKind.EOF, "ended by hypermux")
            self.more = False
            self.ended.set()
            self.owner.link_ended(self)

    async def _attempt(self, keys: Keys, transport: Transport) -> Failure:
        try:
            self.credential = await keys.get(self.source)
            await transport(self.source, self.credential, self, self.sign_offset_ns / 1e9)
        except ConnectionFailed as error:
            return error.failure
        except ConfigurationFault as error:
            return Failure(FailureKind.CREDENTIAL, str(error))
        except Exception:
            # One source's fault must not end the others; it is told like any other failure.
            log.exception("%s: internal error", self.source.id)
            return Failure(FailureKind.INTERNAL, FAULT_TEXT)
        return Failure(FailureKind.EOF, "the stream ended")

    @property
    def open(self) -> bool:
        """Whether the server accepted it and it has not ended."""
        return self.accepted is not None and not self.ended.is_set()

    @property
    def control(self) -> Control | None:
        """What an open link can be told to do, where its protocol has a way."""
        return None if self.accepted is None else self.accepted.control

    def part(self) -> None:
        """End it soon, and in peace: what the server still sends is read where that can be."""
        if self.control is not None:
            self.control.close()
        else:
            self._scope.cancel()

    # Listener: what the transport tells, in plain calls.

    def asking(self) -> None:
        """See `Listener`."""
        self.owner.link_asking(self)

    def opened(self, opened: Opened) -> None:
        """See `Listener`."""
        self.accepted = opened
        self.owner.link_opened(self, opened)

    def heard(self) -> None:
        """See `Listener`."""
        self.owner.link_heard(self)

    def replied(self) -> None:
        """See `Listener`."""
        self.owner.link_replied(self)

    def received(self, messages: list[bytes], *, more: bool) -> None:
        """See `Listener`."""
        self.more = more
        self.owner.link_received(self, messages)

    def repeated(self, count: int) -> None:
        """See `Listener`."""
        self.owner.link_repeated(self, count)

    def recovered(self, messages: list[bytes], *, unsure_from_ns: int | None) -> None:
        """See `Listener`."""
        self.owner.link_recovered(self, messages, unsure_from_ns)

    def unanswered(self, *, dead_s: float = inf) -> None:
        """See `Listener`."""
        self.dead_s = dead_s
        self.failure = Failure(FailureKind.SILENT, "the server did not answer our goodbye")
