"""From the messages of a source to what the stream gets: decoded, redacted, and not excluded.

What comes in is counted on the way, so that nothing goes missing without a number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache

from attrs import define, evolve, field

from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.decoding import decode_batch
from hypermux.core.exclusion import Exclusion
from hypermux.core.intake import Feed
from hypermux.core.redaction import Redaction
from hypermux.model.records import Event, Item, Unparsed
from hypermux.upstream.counters import Counters

# Compiled once for all sources of an account and all their connections; more accounts than that
# with patterns of their own would compile again and again.
_ACCOUNTS = 10_000
_exclusion = lru_cache(_ACCOUNTS)(Exclusion.of)
_redaction = lru_cache(_ACCOUNTS)(Redaction.of)


def reading(source: Source) -> Callable[[list[bytes]], list[Event | Unparsed]]:
    """Return what makes of each message of `source` the item that is recorded of it."""
    if not source.redact:
        return decode_batch
    redact = _redaction(source.redact).item
    return lambda messages: [redact(item) for item in decode_batch(messages)]


def excluded(source: Source, item: Event | Unparsed) -> bool:
    """Say whether `item` is not to be recorded."""
    if not source.exclude_events or isinstance(item, Unparsed):
        return False
    return _exclusion(source.exclude_events).matches(item.action)


@define(eq=False)
class Sieve:
    """One source's way from bytes to items."""

    source: Source
    feed: Feed
    clock: StreamClock
    counters: Counters = field(factory=Counters)

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
        items: list[Item] = []
        for item in self._kept(self._read(messages)):
            if isinstance(item, Event):
                item.replayed = True
            items.append(evolve(item, replayed=True) if isinstance(item, Unparsed) else item)
        return items

    def synthetic(self, messages: list[bytes]) -> list[Item]:
        """Return the items of messages that the upstream never sent."""
        items = self._unexcluded(self._read(messages))
        self.counters.synthetic += len(items)
        for item in items:
            if isinstance(item, Event):
                item.synthetic = True
        return [*items]

    def _read(self, messages: list[bytes]) -> list[Event | Unparsed]:
        """Return what is recorded of messages, excluded ones too."""
        items = decode_batch(messages)
        if self.source.redact:
            received, redact = items, _redaction(self.source.redact).item
            items = [redact(item) for item in received]
            self.counters.redacted += sum(map(operator.is_not, received, items))
        return items

    def _kept(self, found: list[Event | Unparsed]) -> list[Item]:
        """Return what is not excluded, and count the rest."""
        kept = self._unexcluded(found)
        self.counters.filtered += len(found) - len(kept)
        return [*kept]

    def _unexcluded(self, found: list[Event | Unparsed]) -> list[Event | Unparsed]:
        if not self.source.exclude_events:
            return found
        excluded = _exclusion(self.source.exclude_events).matches
        return [item for item in found if isinstance(item, Unparsed) or not excluded(item.action)]
