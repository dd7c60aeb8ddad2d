"""The lowest bound of all live sources, without asking them all.

A source's bound is the least key that it can still bring: its last `at`, or the moment its socket
was last found empty less its window, whichever is later.

Bounds stand in two heaps. In `_calm` are idle sources by window, the longest first: their bounds
all move on with the shared drained time, whatever it becomes. In `_fixed` is everyone else, by a
bound that stands still: a busy source, and one whose last `at` is beyond its drained bound. Bounds
grow on their own, so what a heap says is never too high: only its smallest entry is checked, and
entered anew where it belongs. Where a bound falls (a longer window) its source is entered anew at
once. A round costs O(changes x log n).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import TypeAlias

from hypermux.model.accounts import SourceId

Key: TypeAlias = tuple[int, str, str, int]

# The drained time of a source that no round has seen yet, and of a busy one never found empty.
FRESH_NS = -1
NEVER_NS = 0


class Lane:
    """One source in the merge, as far as its bound goes. Times are ns since 1970."""

    __slots__ = (
        "account",
        "drained_ns",
        "entry",
        "last_at_ns",
        "live",
        "ordinal",
        "region",
        "source",
        "window_ns",
    )

    def __init__(self, source: SourceId, window_ns: int) -> None:
        self.source = source
        self.account = source.account
        self.region = source.region
        self.window_ns = window_ns
        self.last_at_ns = 0
        # Of the item that comes next.
        self.ordinal = 0
        self.live = False
        # When its socket was last found empty; None: with everybody else's, at the shared time.
        self.drained_ns: int | None = None
        # The number of its valid entry in one of the heaps.
        self.entry = 0

    @property
    def busy(self) -> bool:
        """Whether the last round found its socket not empty: time does not move its bound."""
        return self.drained_ns is not None and self.drained_ns != FRESH_NS


# bound (among the calm: minus the window), account, region, entry's number, lane
_Entry: TypeAlias = tuple[int, str, str, int, Lane]


class Bounds:
    """The bounds of all live lanes."""

    __slots__ = ("_apart", "_calm", "_fixed", "_live", "_numbers", "drained_ns")

    def __init__(self) -> None:
        self.drained_ns = NEVER_NS
        self._apart: dict[Lane, None] = {}  # live lanes with a drained time of their own
        self._calm: list[_Entry] = []
        self._fixed: list[_Entry] = []
        self._live = 0
        self._numbers = 0

    def opened(self, lane: Lane) -> None:
        """The lane is live; until the next `drained` its bound is its last `at`."""
        if not lane.live:
            lane.live = True
            self._live += 1
        lane.drained_ns = FRESH_NS
        self._apart[lane] = None
        self._enter(lane)

    def closed(self, lane: Lane) -> None:
        """The lane is not live: it has no bound."""
        if lane.live:
            lane.live = False
            lane.entry = 0
            self._live -= 1
            self._apart.pop(lane, None)

    def drained(self, drained_ns: int, except_for: Mapping[Lane, int]) -> None:
        """All live lanes were found empty at `drained_ns`, the others when they say."""
        self.drained_ns = max(self.drained_ns, drained_ns)
        for lane in [lane for lane in self._apart if lane not in except_for]:
            # Its entry stays among the fixed ones, not above its bound, until it comes up.
            lane.drained_ns = None
            del self._apart[lane]
        for lane, empty_ns in except_for.items():
            if not lane.live:
                continue
            empty_ns = min(empty_ns, self.drained_ns)
            if lane.drained_ns is None:
                lane.drained_ns = empty_ns
                self._apart[lane] = None
                self._enter(lane)
            else:
                lane.drained_ns = max(lane.drained_ns, empty_ns)

    def set_window(self, lane: Lane, window_ns: int) -> None:
        """Give a lane another window, live or not."""
        if lane.window_ns != window_ns:
            lane.window_ns = window_ns
            if lane.live:
                self._enter(lane)

    def key(self, lane: Lane) -> Key:
        """Return the least key that a live lane's next item can have."""
        drained_ns = self.drained_ns if lane.drained_ns is None else lane.drained_ns
        bound_ns = max(lane.last_at_ns, drained_ns - lane.window_ns)
        return (bound_ns, lane.account, lane.region, lane.ordinal)

    def lowest(self) -> Lane | None:
        """Return the live lane with the lowest bound; None: no lane is live."""
        calm, fixed, drained_ns = self._calm, self._fixed, self.drained_ns
        while True:
            while calm and calm[0][3] != calm[0][4].entry:
                heapq.heappop(calm)
            while fixed and fixed[0][3] != fixed[0][4].entry:
                heapq.heappop(fixed)
            if calm and (not fixed or (drained_ns + calm[0][0], *calm[0][1:3]) < fixed[0][:3]):
                lane = calm[0][4]
                if self._is_calm(lane):
                    return lane
                heapq.heappop(calm)
            elif fixed:
                lane = fixed[0][4]
                if not self._is_calm(lane) and self.key(lane)[0] == fixed[0][0]:
                    return lane
                heapq.heappop(fixed)
            else:
                return None
            self._enter(lane)

    def _is_calm(self, lane: Lane) -> bool:
        """Whether the lane's bound moves on with the shared drained time."""
        return lane.drained_ns is None and lane.last_at_ns <= self.drained_ns - lane.window_ns

    def _enter(self, lane: Lane) -> None:
        """Enter a live lane's bound where it belongs; its other entry is invalid from now on."""
        self._numbers += 1
        lane.entry = self._numbers
        if self._is_calm(lane):
            heap, place = self._calm, -lane.window_ns
        else:
            heap, place = self._fixed, self.key(lane)[0]
        if len(heap) > 2 * self._live + 16:  # mostly invalid entries
            heap[:] = [entry for entry in heap if entry[3] == entry[4].entry]
            heapq.heapify(heap)
        heapq.heappush(heap, (place, lane.account, lane.region, lane.entry, lane))
