"""What arrived from the sources and is not yet merged."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import trio
from attrs import define, field, frozen

from hypermux.core.intake import Budget
from hypermux.model.accounts import SourceId
from hypermux.model.records import Gap, Item, StateChange


@frozen
class Connectivity:
    """A source came up or went down, behind what it delivered before."""

    source: SourceId
    live: bool
    offset_ns: int | None = None


@frozen
class Delivery:
    """What one read of a source brought."""

    source: SourceId
    items: list[Item]
    received_ns: int


Arrival: TypeAlias = Connectivity | Delivery


@define(eq=False)
class _Lane:
    """One source's `Feed`."""

    source: SourceId
    inbox: Inbox

    def opened(self, offset_ns: int | None = None) -> None:
        self.inbox.put(Connectivity(self.source, True, offset_ns))

    def closed(self) -> None:
        self.inbox.busy.pop(self.source, None)
        self.inbox.put(Connectivity(self.source, False))

    @property
    def empty_ns(self) -> int:
        return self.inbox.busy.get(self.source, self.inbox.last_round_ns)

    def deliver(self, items: list[Item], received_ns: int, *, more: bool = False) -> None:
        self.inbox.deliver(self.source, items, received_ns, more)


@define(eq=False)
class Inbox:
    """What arrived and is not yet merged; bounded in bytes by its `Budget`."""

    budget: Budget
    last_round_ns: int = 0
    busy: dict[SourceId, int] = field(factory=dict)
    closed: trio.Event = field(factory=trio.Event)
    # Gaps and states that are not in the journal yet: no checkpoint may reach past their `from`.
    untold: dict[int, tuple[SourceId, Gap | StateChange]] = field(factory=dict)
    _queue: deque[Arrival] = field(factory=deque)
    _arrived: trio.Event = field(factory=trio.Event)

    @property
    def closing(self) -> bool:
        """Whether nothing more is taken."""
        return self.closed.is_set()

    def feed(self, source: SourceId) -> _Lane:
        """Return the way in for `source`."""
        return _Lane(source, self)

    def put(self, change: Connectivity) -> None:
        """Queue that a source came up or went down, behind what it delivered before."""
        self._queue.append(change)
        self._arrived.set()

    def deliver(self, source: SourceId, items: list[Item], received_ns: int, more: bool) -> None:
        """Queue what fits of a read; what does not is counted for a gap."""
        if more:
            self.busy.setdefault(source, self.last_round_ns)
        else:
            self.busy.pop(source, None)
        items = self.budget.admit(source, items, received_ns)
        if items:
            self._add(source, items, received_ns)

    def close(self, now_ns: int) -> None:
        """Take nothing more: the sequencer ends when it has written what is here."""
        self.tell_episodes(now_ns, all_of_them=True)
        self.closed.set()
        self._arrived.set()

    def tell_episodes(self, now_ns: int, *, all_of_them: bool = False) -> None:
        """Queue the gaps of the overflow episodes that are over."""
        for source, gap in self.budget.end_episodes(now_ns, all_of_them=all_of_them):
            self._add(source, [gap], now_ns)

    def _add(self, source: SourceId, items: list[Item], received_ns: int) -> None:
        for item in items:
            if isinstance(item, (Gap, StateChange)):
                self.untold[id(item)] = source, item
        self._queue.append(Delivery(source, items, received_ns))
        self._arrived.set()

    def take(self) -> deque[Arrival]:
        """Return all that is queued, in order of arrival."""
        queue, self._queue = self._queue, deque()
        if not self.closing:
            self._arrived = trio.Event()
        return queue

    def wake(self) -> None:
        """Have a round made although nothing is queued."""
        self._arrived.set()

    async def wait(self) -> None:
        """Return when something is queued or the inbox is closing."""
        await self._arrived.wait()
