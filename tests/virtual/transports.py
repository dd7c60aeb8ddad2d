"""What the tests of both transports share: a listener that remembers, a dialer over memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf

import trio
import trio.testing
from attrs import define, field

from hypermux.model.accounts import Endpoint, Tls
from hypermux.upstream.transport import Opened

Server = Callable[[trio.abc.Stream], Awaitable[None]]


@define(eq=False)
class Heard:
    """A listener that writes everything down."""

    log: list[str] = field(factory=list)
    messages: list[bytes] = field(factory=list)
    openings: list[Opened] = field(factory=list)
    mores: list[bool] = field(factory=list)
    replies: list[float] = field(factory=list)  # when
    repeats: int = 0
    dead_s: float | None = None  # None: nobody was left without an answer
    recoveries: list[tuple[list[bytes], int | None]] = field(factory=list)

    def asking(self) -> None: ...

    def opened(self, opened: Opened) -> None:
        self.openings.append(opened)
        self.log.append("opened")

    def heard(self) -> None:
        self.log.append("heard")

    def replied(self) -> None:
        self.replies.append(trio.current_time())

    def received(self, messages: list[bytes], *, more: bool) -> None:
        assert self.openings
        assert messages or (self.mores[-1] and not more)
        self.log.append("received")
        self.messages += messages
        self.mores.append(more)

    def repeated(self, count: int) -> None:
        self.repeats += count

    def recovered(self, messages: list[bytes], *, unsure_from_ns: int | None) -> None:
        assert messages
        self.log.append("recovered")
        self.recoveries.append((messages, unsure_from_ns))

    def unanswered(self, *, dead_s: float = inf) -> None:
        self.log.append("unanswered")
        self.dead_s = dead_s


@define(eq=False)
class PairDialer:
    """Dials one end of a memory stream pair whose other end `server` holds."""

    nursery: trio.Nursery
    server: Server
    dialed: list[trio.abc.Stream] = field(factory=list)

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        self.dialed.append(ours)
        self.nursery.start_soon(self.server, theirs)
        return ours
