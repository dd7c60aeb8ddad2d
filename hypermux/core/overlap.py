"""Two connections of one source at once: which of their messages go on.

When a connection is replaced, old and new run side by side for a moment, and nothing in a message
says whether the other one brought it too. So they are counted, from the moment that the new
connection's request is sent:

- d[m] = deliveries of m on old - deliveries of m on new, for each message m as its raw bytes. A
  delivery that moves d[m] away from zero goes on; one towards zero is a duplicate.
- New's deliveries are held until everything that the server sent on old before it let new in is
  certain to be here: old has answered a ping sent after new's 101. Then they pass the same rule.

What comes out is, per message, the larger of both counts, whatever the delays. While the server
gives both the same order, what has come out is always one unbroken run of it: old is past the
point where new begins, so each adds to the end of the other. A server whose pongs overtake its
own messages costs order, nothing else, as long as old is read to its end. Simpler rules fail:
`tests/unit/overlaps.py` counts how often.

One thing cannot be told from bytes alone. A true repeat, to the byte and the nanosecond, that
only new brings (after old's end) of a message that only old brought (after the request, before
new began) looks like the same one twice, and is dropped. So the counts are kept for a short
while only.
"""

from __future__ import annotations

from collections import Counter

# What comes within a round trip, at worst within the patience for a pong; a source's share of the
# buffer is no larger either. Above it the held ones are let go early.
HOLD_BYTES = 8 << 20
# What one side has brought and the other not yet: the same, and what old brings while the request
# is being answered.
COUNTED_BYTES = 16 << 20
# What a message costs beside its bytes: the object, and its place in a list or table.
_ENTRY_BYTES = 150


class Overlap:
    """The counts of one replacement; made when the new connection's request is sent.

    Memory is bounded. When new's held messages exceed `hold_bytes` they are let go as by `release`:
    none is lost or doubled, but some may stand before older ones that old brings later. When what
    one side is ahead by exceeds `counted_bytes`, the oldest half of it is forgotten: what the other
    side still brings of that is doubled, never lost. The oldest are the likeliest to have come
    before new began, and so never to come again.
    """

    __slots__ = (
        "_held",
        "_hold_bytes",
        "_new",
        "_old",
        "duplicates",
        "held_bytes",
        "holding",
    )

    def __init__(self, *, hold_bytes: int = HOLD_BYTES, counted_bytes: int = COUNTED_BYTES) -> None:
        self._hold_bytes = hold_bytes
        # Whether new's deliveries are held, and what those weigh that are.
        self.holding = True
        self.held_bytes = 0
        # How many deliveries were dropped, because the other connection had brought them.
        self.duplicates = 0
        self._held: list[bytes] = []
        # What each is ahead of the other by: the messages with d > 0, and those with d < 0.
        self._old = _Lead(counted_bytes)
        self._new = _Lead(counted_bytes)

    @property
    def held(self) -> int:
        """How many of new's messages are held."""
        return len(self._held)

    def old(self, messages: list[bytes]) -> list[bytes]:
        """Take what old brought; return what of it goes on."""
        return self._pass(messages, self._old, self._new)

    def new(self, messages: list[bytes]) -> list[bytes]:
        """Take what new brought; return what goes on: nothing while it is held."""
        if not self.holding:
            return self._pass(messages, self._new, self._old)
        self._held += messages
        self.held_bytes += _weight(messages)
        return self.release() if self.held_bytes > self._hold_bytes else []

    def release(self) -> list[bytes]:
        """Hold nothing from now on: old's pong is here. Return what goes on of what was held."""
        held, self._held = self._held, []
        self.holding, self.held_bytes = False, 0
        return self._pass(held, self._new, self._old)

    def old_ended(self) -> list[bytes]:
        """Old brings nothing more. Return what goes on of what was held.

        Before the pong that is all that can be done: what old had still to bring is a gap.
        """
        released = self.release()
        self._new.close()
        return released

    def new_ended(self) -> None:
        """New brings nothing more and old goes on: what was held has come on old or will."""
        self.duplicates += len(self._held)
        self._held.clear()
        self.holding, self.held_bytes = False, 0
        self._old.close()

    def _pass(self, messages: list[bytes], side: _Lead, other: _Lead) -> list[bytes]:
        """Return what of a side's deliveries goes on: what the other one is not ahead by."""
        kept = other.without(messages) if other.counts else messages
        self.duplicates += len(messages) - len(kept)
        side.add(kept)
        return kept


class _Lead:
    """The deliveries that one connection is ahead of the other by."""

    __slots__ = ("_closed", "_limit", "_weight", "counts")

    def __init__(self, limit: int) -> None:
        self.counts: Counter[bytes] = Counter()
        self._weight = 0
        self._limit = limit
        self._closed = False

    def add(self, messages: list[bytes]) -> None:
        """Count what went on."""
        if self._closed or not messages:
            return
        self.counts.update(messages)
        self._weight += _weight(messages)
        if self._weight > self._limit:
            self._forget()

    def without(self, messages: list[bytes]) -> list[bytes]:
        """Return the deliveries of the other one that do not take the lead down."""
        counts, kept, caught_up = self.counts, [], []
        for message in messages:
            ahead = counts.get(message)
            if ahead is None:
                kept.append(message)
                continue
            caught_up.append(message)
            if ahead == 1:
                del counts[message]
            else:
                counts[message] = ahead - 1
        self._weight -= _weight(caught_up)
        return kept

    def close(self) -> None:
        """The other one brings nothing more: there is nothing to compare with."""
        self._closed = True
        self.counts.clear()

    def _forget(self) -> None:
        """Forget the oldest, down to half of the limit: rarely, since it walks over them."""
        oldest = []
        for message, ahead in self.counts.items():
            if self._weight <= self._limit // 2:
                break
            oldest.append(message)
            self._weight -= ahead * (len(message) + _ENTRY_BYTES)
        for message in oldest:
            del self.counts[message]


def _weight(messages: list[bytes]) -> int:
    return sum(map(len, messages)) + _ENTRY_BYTES * len(messages)
