"""What the tests of one source's life share: a feed and keys that remember."""

from __future__ import annotations

from attrs import define, field

from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.verdicts import Judgement
from hypermux.model.accounts import Credential, Endpoint, Secret, SourceId
from hypermux.model.errors import Failure
from hypermux.model.records import Gap, Item, StateChange

SECOND = 1_000_000_000
ID = SourceId("prod", "us-west-1")
SOURCE = Source(ID, "hyper", Endpoint.parse("wss://router.example:443/events/ws"))
EVENT = b'{"status":"start","id":"f296","Type":"container","Action":"start","time":1,"timeNano":1}'


@define
class Tape:
    """A feed and an observer that remember."""

    clock: StreamClock
    items: list[Item] = field(factory=list)
    # When the service last found the socket empty; None: just now.
    stood_still_since_ns: int | None = None
    calls: list[str] = field(factory=list)

    def opened(self, offset_ns: int | None = None) -> None:
        self.calls.append("opened")

    def closed(self) -> None:
        self.calls.append("closed")
        self.stood_still_since_ns = None  # as the inbox forgets what it knew of the socket

    def deliver(self, items: list[Item], received_ns: int, *, more: bool = False) -> None:
        self.items.extend(items)

    @property
    def empty_ns(self) -> int:
        if self.stood_still_since_ns is not None:
            return self.stood_still_since_ns
        return self.clock.now_ns()

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in self.items if isinstance(item, Gap)]

    @property
    def states(self) -> list[StateChange]:
        return [item for item in self.items if isinstance(item, StateChange)]


class Quiet:
    def dialing(self, source: Source) -> None: ...
    def opened(self, source: Source) -> None: ...
    def replaced(self, source: Source) -> None: ...
    def failed(self, source: Source, judgement: Judgement, failure: Failure) -> None: ...


@define
class Keys:
    refusals: int = 0

    async def get(self, source: Source) -> Credential | None:
        return Credential("AK", Secret("sk"))

    def refused(self, source: Source, credential: Credential | None) -> bool:
        self.refusals += 1
        return False

    def accepted(self, source: Source, credential: Credential | None) -> None: ...

    def trouble(self, account: str) -> str | None:
        return None
