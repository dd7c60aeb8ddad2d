"""The way from a source into the sequencer: the interface, and the arithmetic of its buffer.

`Feed` is all that `upstream` knows of `downstream`. A delivery never waits: when the buffer is
full the events are counted and dropped, and the count becomes one gap record per episode, because
a reader that stops reading loses more (Docker: silently) and breaks its own heartbeat.
"""

from __future__ import annotations

from typing import Protocol

from attrs import define, field

from hypermux.model.accounts import SourceId
from hypermux.model.records import Event, Gap, Item, Unparsed

# What an item costs in memory beside its bytes: the object, its queue slot, its numbers.
ITEM_OVERHEAD = 256


class Feed(Protocol):
    """One source's way into the merge. No call waits or raises."""

    def opened(self, offset_ns: int | None = None) -> None:
        """The source is connected: from now on the merge waits for it.

        `offset_ns` is a first guess of our clock minus its own, from a `Date` header.
        """

    def closed(self) -> None:
        """The source is not connected: the merge no longer waits for it."""

    def deliver(self, items: list[Item], received_ns: int, *, more: bool = False) -> None:
        """Hand over what one read brought, in order.

        `more` says that the read did not empty the socket, so that older events may still be
        in it.
        """


def weigh_one(item: Item) -> int:
    """Return the bytes that `item` counts for in the buffer."""
    if isinstance(item, Event):
        return ITEM_OVERHEAD + len(item.raw)
    if isinstance(item, Unparsed):
        return ITEM_OVERHEAD + len(item.text)
    return ITEM_OVERHEAD


def weigh(items: list[Item]) -> int:
    """Return the bytes that `items` count for in the buffer."""
    return sum(map(weigh_one, items))


@define(eq=False)
class Share:
    """One source's part of the buffer, and its overflow episode while there is one.

    Conservation holds at all times: received = accepted + lost.
    """

    used: int = 0
    received: int = 0
    lost: int = 0
    _episode_from_ns: int | None = None
    _episode_lost: int = 0

    def overflow(self, count: int, received_ns: int) -> None:
        """Count `count` events that found the buffer full."""
        if self._episode_from_ns is None:
            self._episode_from_ns = received_ns
        self._episode_lost += count
        self.lost += count

    def end_episode(self, now_ns: int) -> Gap | None:
        """Return the gap of the episode that ends now, None when there was none."""
        if self._episode_from_ns is None:
            return None
        gap = Gap(self._episode_from_ns, now_ns, "overflow", "proven", self._episode_lost)
        self._episode_from_ns, self._episode_lost = None, 0
        return gap


@define(eq=False)
class Budget:
    """The buffer before the journal, in bytes: a limit for all and a share for each source.

    Gap and state items are never refused: they are what tells of a loss, and a source makes at
    most a few per connection attempt.
    """

    size: int
    per_source: int
    used: int = 0
    shares: dict[SourceId, Share] = field(factory=dict)

    def admit(self, source: SourceId, items: list[Item], received_ns: int) -> list[Item]:
        """Return what of `items` fits, an ended overflow episode's gap in front."""
        share = self.shares.get(source)
        if share is None:
            share = self.shares[source] = Share()
        events = sum(1 for item in items if isinstance(item, (Event, Unparsed)))
        share.received += events
        weight = weigh(items)
        fits = self.used + weight <= self.size and share.used + weight <= self.per_source
        if events and not fits:
            share.overflow(events, received_ns)
            items = [item for item in items if not isinstance(item, (Event, Unparsed))]
            weight = weigh(items)
        elif (gap := share.end_episode(received_ns)) is not None:
            items = [gap, *items]
            weight += ITEM_OVERHEAD
        share.used += weight
        self.used += weight
        return items

    def release(self, source: SourceId, weight: int) -> None:
        """Give back what a durable batch held."""
        self.used -= weight
        self.shares[source].used -= weight

    def end_episodes(self, now_ns: int) -> list[tuple[SourceId, Gap]]:
        """Return the gaps of all episodes still open, at the end of the stream."""
        gaps = []
        for source, share in self.shares.items():
            if (gap := share.end_episode(now_ns)) is not None:
                share.used += ITEM_OVERHEAD
                self.used += ITEM_OVERHEAD
                gaps.append((source, gap))
        return gaps
