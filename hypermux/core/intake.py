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
# Causes of gaps that are counted apart for one source.
MAX_CAUSES = 40


class Feed(Protocol):
    """One source's way into the merge. No call waits or raises."""

    def opened(self, offset_ns: int | None = None) -> None:
        """The source is connected: from now on the merge waits for it.

        `offset_ns` is a first guess of our clock minus its own, from a `Date` header.
        """

    def closed(self) -> None:
        """The source is not connected: the merge no longer waits for it."""

    @property
    def empty_ns(self) -> int:
        """When the source's socket was last known to be open and read to its end.

        0 when it is not known yet.
        """

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
class Tally:
    """What a durable batch recorded of one source: its weight in the buffer, and what it was."""

    weight: int = 0
    events: int = 0
    unparsed: int = 0
    gaps: int = 0
    gap_ns: int = 0
    # Gaps by cause: how many, and how long all together. Causes are words of ours and close codes.
    causes: dict[str, tuple[int, int]] = field(factory=dict)

    def add(self, item: Item) -> None:
        """Count one item."""
        self.weight += weigh_one(item)
        if isinstance(item, Event):
            self.events += 1
        elif isinstance(item, Unparsed):
            self.events += 1
            self.unparsed += 1
        elif isinstance(item, Gap):
            self.gaps += 1
            self.gap_ns += item.to_ns - item.from_ns
            self.add_gaps(item.cause, 1, item.to_ns - item.from_ns)

    def add_gaps(self, cause: str, count: int, ns: int) -> None:
        """Count gaps of one cause; of more than MAX_CAUSES the rest is "other"."""
        if cause not in self.causes and len(self.causes) >= MAX_CAUSES:
            cause = "other"
        was, was_ns = self.causes.get(cause, (0, 0))
        self.causes[cause] = was + count, was_ns + ns


@define(eq=False)
class Share:
    """One source's part of the buffer, and its overflow episode while there is one.

    `received` counts events: at all times it is recorded + lost + in_flight. `recorded` sums up
    what the journal has of this run.
    """

    used: int = 0
    received: int = 0
    lost: int = 0
    in_flight: int = 0
    recorded: Tally = field(factory=Tally)
    episode_from_ns: int | None = None
    episode_lost: int = 0

    def overflow(self, count: int, received_ns: int) -> None:
        """Count `count` events that found the buffer full."""
        if self.episode_from_ns is None:
            self.episode_from_ns = received_ns
        self.episode_lost += count
        self.lost += count

    def end_episode(self, now_ns: int) -> Gap | None:
        """Return the gap of the episode that ends now, None when there was none."""
        if self.episode_from_ns is None:
            return None
        gap = Gap(self.episode_from_ns, now_ns, "overflow", "proven", self.episode_lost)
        self.episode_from_ns, self.episode_lost = None, 0
        return gap


@define(eq=False)
class Budget:
    """The buffer before the journal, in bytes: a limit for all and a share for each source.

    Gap and state items are never refused: they are what tells of a loss, and a source makes at
    most a few per connection attempt. An episode ends with the next event that fits, or when its
    source's share is half empty again: a source that falls quiet must not keep its loss to itself.
    """

    size: int
    per_source: int
    used: int = 0
    shares: dict[SourceId, Share] = field(factory=dict)
    _overflowing: dict[SourceId, Share] = field(factory=dict)

    @property
    def oldest_episode_ns(self) -> int | None:
        """Since when a loss is not yet told, None when all are."""
        starts = (share.episode_from_ns for share in self._overflowing.values())
        return min((start for start in starts if start is not None), default=None)

    def admit(self, source: SourceId, items: list[Item], received_ns: int) -> list[Item]:
        """Return what of `items` fits, an ended overflow episode's gap in front.

        From the first event that does not fit on, the read's other events are lost with it.
        """
        share = self.shares.get(source)
        if share is None:
            share = self.shares[source] = Share()
        events = sum(1 for item in items if isinstance(item, (Event, Unparsed)))
        share.received += events
        room = min(self.size - self.used, self.per_source - share.used)
        kept, lost = items, 0
        if (weight := weigh(items)) > room:
            kept, lost = _cut(items, room)
            weight = weigh(kept)
        self._take(share, weight)
        if lost < events and (gap := self._end(source, received_ns)) is not None:
            kept = [gap, *kept]
        share.in_flight += events - lost
        if lost:
            share.overflow(lost, received_ns)
            self._overflowing[source] = share
        return kept

    def recorded(self, source: SourceId, tally: Tally) -> None:
        """Give back what a durable batch held, and count it."""
        share = self.shares[source]
        self._take(share, -tally.weight)
        share.in_flight -= tally.events
        total = share.recorded
        total.events += tally.events
        total.unparsed += tally.unparsed
        total.gaps += tally.gaps
        total.gap_ns += tally.gap_ns
        for cause, (count, ns) in tally.causes.items():
            total.add_gaps(cause, count, ns)

    def end_episodes(self, now_ns: int, *, all_of_them: bool) -> list[tuple[SourceId, Gap]]:
        """Return the gaps of the episodes that are over: of half-empty shares, or all."""
        gaps = []
        for source, share in list(self._overflowing.items()):
            if all_of_them or (2 * share.used <= self.per_source and 2 * self.used <= self.size):
                gap = self._end(source, now_ns)
                if gap is not None:
                    gaps.append((source, gap))
        return gaps

    def _end(self, source: SourceId, now_ns: int) -> Gap | None:
        share = self._overflowing.pop(source, None)
        gap = None if share is None else share.end_episode(now_ns)
        if share is not None and gap is not None:
            self._take(share, weigh_one(gap))
        return gap

    def _take(self, share: Share, weight: int) -> None:
        share.used += weight
        self.used += weight


def _cut(items: list[Item], room: int) -> tuple[list[Item], int]:
    """Return what of a read fits into `room` bytes, and how many events do not."""
    kept: list[Item] = []
    lost = 0
    for item in items:
        weight = weigh_one(item)
        if isinstance(item, (Event, Unparsed)) and (lost or weight > room):
            lost += 1
        else:
            kept.append(item)
            room -= weight
    return kept, lost
