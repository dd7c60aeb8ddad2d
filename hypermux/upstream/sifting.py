"""From the messages of a source to what the stream gets: decoded, and without what is excluded.

What comes in is counted on the way, so that nothing goes missing without a number.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

from attrs import define, field

from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.decoding import decode_batch
from hypermux.core.intake import Feed
from hypermux.model.records import Event, Item, Unparsed
from hypermux.upstream.counters import Counters


def reading(source: Source) -> Callable[[list[bytes]], list[Event | Unparsed]]:
    """Return what makes of each message of `source` the item that is recorded of it."""
    return decode_batch


@define(eq=False)
class Sieve:
    """One source's way from bytes to items."""

    source: Source
    feed: Feed
    clock: StreamClock
    _read: Callable[[list[bytes]], list[Event | Unparsed]] = field(init=False)
    counters: Counters = field(factory=Counters)

    def __attrs_post_init__(self) -> None:
        self._read = reading(self.source)

    def hand_on(self, messages: list[bytes], *, more: bool) -> None:
        """Decode messages and deliver what is not excluded."""
        items = self._kept(self._read(messages))
        now_ns = self.clock.now_ns()
        self.counters.handed_on(items, now_ns)
        # Also when nothing is left: `more` is news of its own.
        self.feed.deliver(items, now_ns, more=more)

    def replayed(self, messages: list[bytes]) -> list[Item]:
        """Return the items of messages that the upstream remembers."""
        self.counters.received += len(messages)
        items = self._kept(self._read(messages))
        for item in items:
            if isinstance(item, Event):
                item.replayed = True
        return items

    def synthetic(self, messages: list[bytes]) -> list[Item]:
        """Return the items of messages that the upstream never sent."""
        items = [item for item in self._read(messages) if not self._excluded(item)]
        self.counters.synthetic += len(items)
        for item in items:
            if isinstance(item, Event):
                item.synthetic = True
        return [*items]

    def _kept(self, found: list[Event | Unparsed]) -> list[Item]:
        """Return what is not excluded, and count the rest."""
        if not self.source.exclude_events:
            return [*found]
        kept: list[Item] = [item for item in found if not self._excluded(item)]
        self.counters.filtered += len(found) - len(kept)
        return kept

    def _excluded(self, item: Event | Unparsed) -> bool:
        return isinstance(item, Event) and any(
            fnmatch.fnmatchcase(item.action, pattern) for pattern in self.source.exclude_events
        )
