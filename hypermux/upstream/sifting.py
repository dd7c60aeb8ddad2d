"""From the messages of a source to what the stream gets: decoded, and without what is excluded.

What comes in is counted on the way, so that nothing goes missing without a number.
"""

from __future__ import annotations

import fnmatch

from attrs import define, field

from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.decoding import decode_batch
from hypermux.core.intake import Feed
from hypermux.model.records import Event, Item


@define
class Counters:
    """What a source did so far; received = handed on + filtered + duplicate + held."""

    received: int = 0
    filtered: int = 0
    duplicate: int = 0


@define(eq=False)
class Sieve:
    """One source's way from bytes to items."""

    source: Source
    feed: Feed
    clock: StreamClock
    counters: Counters = field(factory=Counters)

    def hand_on(self, messages: list[bytes], *, more: bool) -> None:
        """Decode messages and deliver what is not excluded."""
        items: list[Item] = list(decode_batch(messages))
        if self.source.exclude_events:
            kept = [item for item in items if not self._excluded(item)]
            self.counters.filtered += len(items) - len(kept)
            items = kept
        # Also when nothing is left: `more` is news of its own.
        self.feed.deliver(items, self.clock.now_ns(), more=more)

    def _excluded(self, item: Item) -> bool:
        return isinstance(item, Event) and any(
            fnmatch.fnmatchcase(item.action, pattern) for pattern in self.source.exclude_events
        )
