"""How wrong a source's clock is: the offset to add to its times.

The smallest (received - time) of the last ten minutes is the offset plus the shortest delay that
an event had, so it is never less than the offset: when it falls, the offset is certainly that
small, and the estimate follows at once. When it rises, or is the first, it may be mere delay:
up to two seconds a few more events are waited for.

An offset is used when it is over half a second, and a used one is left alone until it is wrong by
a tenth, so that changes are rare: each one is a record in the stream.
"""

from __future__ import annotations

from collections import deque

USE_NS = 500_000_000  # an offset is used from here on
KEEP_NS = 400_000_000  # and no longer from here on down
STEP_NS = 100_000_000  # a used one changes by at least this
CERTAIN_NS = 2_000_000_000  # too long for a mere delay; and more than an HTTP `Date` is off by
SETTLED = 5  # events that make an estimate out of a sample

# The last ten minutes, in half minutes.
BUCKET_NS = 30_000_000_000
BUCKETS = 20


class Skew:
    """One source's offset: `applied_ns` is what to add to its times, 0 while it is in order.

    `observe` is to be called for live events for which `wants` holds; it need not be called for the
    others, which change nothing. Memory is bounded: one number per bucket.
    """

    __slots__ = ("_lows", "_seen", "applied_ns", "due_ns", "low_ns")

    def __init__(self) -> None:
        self.applied_ns = 0
        # The least of the current bucket, and when the next bucket begins: 0 while unsettled.
        self.low_ns = 0
        self.due_ns = 0
        # (bucket, its least), both increasing: what can still become the least of all.
        self._lows: deque[tuple[int, int]] = deque()
        self._seen = 0

    def wants(self, delay_ns: int, received_ns: int) -> bool:
        """Whether this event can change anything; the merge has this test inline."""
        return delay_ns < self.low_ns or received_ns >= self.due_ns

    def observe(self, delay_ns: int, received_ns: int) -> bool:
        """Take (received - time) of a live event; return whether `applied_ns` changed."""
        bucket = received_ns // BUCKET_NS
        lows = self._lows
        while lows and lows[0][0] <= bucket - BUCKETS:
            lows.popleft()
        if not lows:
            self._seen = 0
        self._seen += 1
        while lows and lows[-1][1] >= delay_ns:
            lows.pop()
        if not lows or lows[-1][0] != bucket:
            lows.append((bucket, delay_ns))
        self.low_ns = lows[-1][1]
        settled = self._seen >= SETTLED
        self.due_ns = (bucket + 1) * BUCKET_NS if settled else 0
        target = self._target(lows[0][1])
        if target > self.applied_ns and not settled and abs(target) <= CERTAIN_NS:
            return False
        return self._apply(target)

    def guess(self, offset_ns: int) -> bool:
        """Take the offset that an HTTP `Date` implies; return whether `applied_ns` changed.

        It is used when over two seconds, and only while there are no live events to go by.
        """
        if self._lows:
            return False
        return self._apply(offset_ns if abs(offset_ns) > CERTAIN_NS else 0)

    def _target(self, estimate_ns: int) -> int:
        applied = self.applied_ns
        if abs(estimate_ns) <= (KEEP_NS if applied else USE_NS):
            return 0
        if applied and abs(estimate_ns - applied) < STEP_NS:
            return applied
        return estimate_ns

    def _apply(self, offset_ns: int) -> bool:
        changed = offset_ns != self.applied_ns
        self.applied_ns = offset_ns
        return changed
