"""Many ordered queues into one order: the watermark merge.

Rules
- An item's place is its key (at, account, region, ordinal). `at` is its time, corrected by the
  source's clock offset, but never before the source's last `at` and never after it was received.
- A live source's bound is the least key that it can still bring: its last `at`, or the moment its
  socket was last found empty less its window, whichever is later. Items below all bounds are
  released in order. A source that is not live has no bound.
- Whatever has been held `max_hold` is released, smaller items first.
- What comes behind the last released key is late: flagged, and out with the next release.

Per source keys only grow, so the order of heads is the order of all items: they stand in one
sorted list, and a release is a cut through it. A queued source needs no exception from the bounds:
its last `at` is at or above its own items.

Bounds stand in two heaps. In `_calm` are idle sources by window, the longest first: their bounds
all move on with the shared drained time, whatever it becomes. In `_fixed` is everyone else, by a
bound that stands still: a busy source, and one whose last `at` is beyond its drained bound. Bounds
only grow, so what a heap says is never too high: only the smallest entry is checked, and entered
anew where it belongs. A round costs O(changes x log n).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from hypermux.core.skew import Skew
from hypermux.core.window import ENOUGH, TOO_FEW, Lateness, Scale
from hypermux.model.accounts import SourceId

T = TypeVar("T")

Key: TypeAlias = tuple[int, str, str, int]

# How often (by the received clock) a source's window is looked at anew.
TUNE_NS = 1_000_000_000
# Released items are cut off the list when they are this many and the larger part of it.
_TRIM = 1024


class Released(NamedTuple, Generic[T]):
    """An item in its place. A tuple that begins with its key, so that lists of it just sort."""

    at_ns: int
    account: str
    region: str
    ordinal: int
    source: SourceId
    payload: T
    received_ns: int
    late: bool

    @property
    def key(self) -> Key:
        """(at, account, region, ordinal)."""
        return self[:4]


class _Lane:
    """What the merge knows of one source."""

    __slots__ = (
        "account",
        "drained_ns",
        "entry",
        "histogram",
        "last_at_ns",
        "live",
        "ordinal",
        "own_window",
        "region",
        "skew",
        "source",
        "told_offset_ns",
        "tune_ns",
        "window_ns",
    )

    def __init__(self, source: SourceId, window_ns: int, histogram: Lateness) -> None:
        self.source = source
        self.account = source.account
        self.region = source.region
        self.last_at_ns = 0
        self.ordinal = 0
        self.live = False
        # When its socket was last found empty; None: with everybody else's, at the shared time.
        self.drained_ns: int | None = None
        # The number of its valid entry in one of the heaps.
        self.entry = 0
        self.skew = Skew()
        self.told_offset_ns = 0
        self.histogram = histogram
        self.window_ns = window_ns
        self.own_window = False
        self.tune_ns = 0


# bound (or, among the calm, minus window), account, region, entry's number, lane
_Entry: TypeAlias = tuple[int, str, str, int, _Lane]


class Merger(Generic[T]):
    """Takes items of sources, gives them back in one order. All times are ns since 1970, UTC."""

    def __init__(
        self, *, max_hold_ns: int, window_ns: int | None, last_key: Key | None = None
    ) -> None:
        """Hold nothing longer than `max_hold_ns`.

        `window_ns` None follows each source's lateness. `last_key` is the last one that an earlier
        run released: what comes behind it is late.
        """
        self._max_hold_ns = max_hold_ns
        self._auto = window_ns is None
        self._scale = Scale(max_hold_ns)
        self._edges = self._scale.edges
        self._common = Lateness(self._scale)
        self._common_tune_ns = 0
        self._common_window_ns = self._scale.cold_ns if window_ns is None else window_ns
        self._last_key: Key = (0, "", "", 0) if last_key is None else last_key
        self._lanes: dict[SourceId, _Lane] = {}
        # The lane of the last push: items come in batches of one source.
        self._lane: _Lane | None = None
        self._pending: list[Released[T]] = []  # sorted; before `_start` all is released
        self._start = 0
        self._incoming: list[Released[T]] = []  # not yet sorted in
        self._late: list[Released[T]] = []
        self._waiting: deque[Released[T]] = deque()  # pending and incoming ones, as received
        self._drained_ns = 0
        self._apart: dict[_Lane, None] = {}  # live lanes with a drained time of their own
        self._calm: list[_Entry] = []
        self._fixed: list[_Entry] = []
        self._live = 0
        self._numbers = 0
        self._retimed: dict[_Lane, None] = {}

    @property
    def held(self) -> int:
        """How many items are held."""
        return len(self._pending) - self._start + len(self._incoming) + len(self._late)

    @property
    def oldest_received_ns(self) -> int | None:
        """When the oldest of the held items was received."""
        held = [queue[0].received_ns for queue in (self._waiting, self._late) if queue]
        return min(held, default=None)

    def opened(self, source: SourceId, *, last_at_ns: int = 0) -> None:
        """The source is live: from now on the merge waits for it.

        Until the next `drained` its bound is its last `at`, or `last_at_ns` when that is later.
        """
        lane = self._find(source)
        if not lane.live:
            lane.live = True
            self._live += 1
        lane.last_at_ns = max(lane.last_at_ns, last_at_ns)
        lane.drained_ns = 0
        self._apart[lane] = None
        self._enter(lane)

    def closed(self, source: SourceId) -> None:
        """The source is not live: nothing waits for it. What it has queued goes in order."""
        lane = self._find(source)
        if lane.live:
            lane.live = False
            lane.entry = 0
            self._live -= 1
            self._apart.pop(lane, None)

    def push(
        self,
        source: SourceId,
        payload: T,
        time_ns: int | None,
        received_ns: int,
        *,
        live: bool = True,
    ) -> None:
        """Take an item of a source; `received_ns` never decreases from call to call.

        `time_ns` None: it counts from when it was received. `live` False (replayed events, gaps,
        states): it says nothing about the source's clock and lateness.
        """
        lane = self._lane
        if lane is None or lane.source is not source:
            lane = self._lane = self._find(source)
        if time_ns is None:
            at = received_ns
        else:
            skew = lane.skew
            if live:
                delay = received_ns - time_ns
                # Skew.wants(), inline
                if (delay < skew.low_ns or received_ns >= skew.due_ns) and skew.observe(
                    delay, received_ns
                ):
                    self._retimed[lane] = None
                at = time_ns + skew.applied_ns
                if self._auto and skew.due_ns:
                    # Lateness.add(), inline
                    bucket = bisect_left(self._edges, received_ns - at)
                    lane.histogram.counts[bucket] += 1
                    self._common.counts[bucket] += 1
                    if received_ns >= lane.tune_ns:
                        self._tune(lane, received_ns)
            else:
                at = time_ns + skew.applied_ns
            if at > received_ns:
                at = received_ns
        if at < lane.last_at_ns:
            at = lane.last_at_ns
        else:
            lane.last_at_ns = at
        ordinal = lane.ordinal
        lane.ordinal = ordinal + 1
        last_key = self._last_key
        late = at <= last_key[0] and (at, lane.account, lane.region, ordinal) < last_key
        item: Released[T] = Released(
            at, lane.account, lane.region, ordinal, source, payload, received_ns, late
        )
        if late:
            # Those of its own source that came before it are released, or late before it.
            self._late.append(item)
        else:
            self._incoming.append(item)
            self._waiting.append(item)

    def drained(self, drained_ns: int, *, except_for: Mapping[SourceId, int]) -> None:
        """All live sources' sockets were found empty at `drained_ns`, by the received clock.

        `except_for`: those that were not, each with the last time it was (0: never).
        """
        if drained_ns > self._drained_ns:
            self._drained_ns = drained_ns
        for lane in [lane for lane in self._apart if lane.source not in except_for]:
            # Its entry stays among the fixed ones, not above its bound, until it comes up.
            lane.drained_ns = None
            del self._apart[lane]
        for source, empty_ns in except_for.items():
            lane = self._find(source)
            if not lane.live:
                continue
            empty_ns = min(empty_ns, self._drained_ns)
            if lane.drained_ns is None:
                lane.drained_ns = empty_ns
                self._apart[lane] = None
                self._enter(lane)
            else:
                lane.drained_ns = max(lane.drained_ns, empty_ns)

    def release(self, now_ns: int) -> list[Released[T]]:
        """Return what is due, in order, late items first."""
        self._sort_in()
        pending, waiting = self._pending, self._waiting
        lowest = self._lowest()
        if lowest is None:
            cut = len(pending)
        else:
            cut = bisect_left(pending, self._bound(lowest), self._start)
        overdue_ns = now_ns - self._max_hold_ns
        if waiting and waiting[0].received_ns <= overdue_ns:
            last = waiting.popleft()
            while waiting and waiting[0].received_ns <= overdue_ns:
                item = waiting.popleft()
                if item > last:
                    last = item
            cut = max(cut, bisect_left(pending, last, self._start) + 1)
        return self._cut(cut)

    def flush(self) -> list[Released[T]]:
        """Return everything, in order, late items first: the end."""
        self._sort_in()
        return self._cut(len(self._pending))

    def next_deadline_ns(self) -> int | None:
        """Return when `drained` and `release` may give something without a push; None: never.

        A time that is past means: now.
        """
        if self._late:
            return self._late[0].received_ns
        self._sort_in()
        if self._start == len(self._pending):
            return None
        head = self._pending[self._start]
        lane = self._lowest()
        if lane is None or head < self._bound(lane):
            return head.received_ns
        overdue_ns = self._waiting[0].received_ns + self._max_hold_ns
        if lane.drained_ns:
            return overdue_ns  # busy: time alone does not move its bound
        return min(overdue_ns, head.at_ns + lane.window_ns + 1)

    def take_offset_changes(self) -> list[tuple[SourceId, int]]:
        """Return the offsets (ns, added to a source's times) that changed since last asked."""
        changes = []
        for lane in self._retimed:
            offset_ns = lane.skew.applied_ns
            if offset_ns != lane.told_offset_ns:
                lane.told_offset_ns = offset_ns
                changes.append((lane.source, offset_ns))
        self._retimed.clear()
        return changes

    def guess_offset(self, source: SourceId, offset_ns: int) -> None:
        """Take a source's offset from an HTTP `Date`; live events know better."""
        lane = self._find(source)
        if lane.skew.guess(offset_ns):
            self._retimed[lane] = None

    def _find(self, source: SourceId) -> _Lane:
        lane = self._lanes.get(source)
        if lane is None:
            lane = _Lane(source, self._common_window_ns, Lateness(self._scale))
            at, account, region, ordinal = self._last_key
            if (account, region) == (lane.account, lane.region):
                # It goes on behind what it released before.
                lane.last_at_ns, lane.ordinal = at, ordinal + 1
            self._lanes[source] = lane
        return lane

    def _sort_in(self) -> None:
        """Move what came into the sorted list; most of it belongs near the end."""
        incoming = self._incoming
        if not incoming:
            return
        incoming.sort()
        pending = self._pending
        if not pending or pending[-1] < incoming[0]:
            pending.extend(incoming)
        else:
            place = bisect_left(pending, incoming[0], self._start)
            # Sorting walks over the whole tail, inserting only searches it.
            if len(pending) - place > 8 * len(incoming):
                for item in incoming:
                    insort(pending, item, place)
            else:
                tail = pending[place:]
                tail += incoming
                tail.sort()
                pending[place:] = tail
        incoming.clear()

    def _cut(self, cut: int) -> list[Released[T]]:
        """Release the late ones and what stands before `cut`."""
        released, self._late = self._late, []
        pending, start = self._pending, self._start
        if cut > start:
            released += pending[start:cut]
            last = pending[cut - 1]
            self._last_key = last.key
            waiting = self._waiting
            while waiting and waiting[0] <= last:
                waiting.popleft()
            if cut == len(pending):
                self._pending, cut = [], 0
            elif cut > _TRIM and cut * 2 > len(pending):
                del pending[:cut]
                cut = 0
            self._start = cut
        return released

    def _bound(self, lane: _Lane) -> Key:
        """Return the least key that a live source's next item can have."""
        drained_ns = self._drained_ns if lane.drained_ns is None else lane.drained_ns
        bound_ns = max(lane.last_at_ns, drained_ns - lane.window_ns)
        return (bound_ns, lane.account, lane.region, lane.ordinal)

    def _lowest(self) -> _Lane | None:
        """Return the live source with the lowest bound."""
        calm, fixed, drained_ns = self._calm, self._fixed, self._drained_ns
        while True:
            while calm and calm[0][3] != calm[0][4].entry:
                heapq.heappop(calm)
            while fixed and fixed[0][3] != fixed[0][4].entry:
                heapq.heappop(fixed)
            if calm and (
                not fixed or (drained_ns + calm[0][0], calm[0][1], calm[0][2]) < fixed[0][:3]
            ):
                lane = calm[0][4]
                if lane.last_at_ns <= drained_ns - lane.window_ns:
                    return lane
                heapq.heappop(calm)
            elif fixed:
                lane = fixed[0][4]
                calmed = lane.drained_ns is None and lane.last_at_ns <= drained_ns - lane.window_ns
                if not calmed and self._bound(lane)[0] == fixed[0][0]:
                    return lane
                heapq.heappop(fixed)
            else:
                return None
            self._enter(lane)

    def _enter(self, lane: _Lane) -> None:
        """Enter a live source's bound where it belongs; its other entry is invalid from now on."""
        self._numbers += 1
        lane.entry = self._numbers
        bound_ns = self._bound(lane)[0]
        if lane.drained_ns is None and bound_ns == self._drained_ns - lane.window_ns:
            heap, bound_ns = self._calm, -lane.window_ns
        else:
            heap = self._fixed
        if len(heap) > 2 * self._live + 16:  # mostly invalid entries
            heap[:] = [entry for entry in heap if entry[3] == entry[4].entry]
            heapq.heapify(heap)
        heapq.heappush(heap, (bound_ns, lane.account, lane.region, lane.entry, lane))

    def _tune(self, lane: _Lane, received_ns: int) -> None:
        """Look at a source's window anew, and at that of all."""
        lane.tune_ns = received_ns + TUNE_NS
        if received_ns >= self._common_tune_ns:
            self._common_tune_ns = received_ns + TUNE_NS
            enough = self._common.decay(received_ns) >= ENOUGH
            window_ns = self._common.window_ns()
            if not enough:
                window_ns = max(window_ns, self._scale.cold_ns)
            if window_ns != self._common_window_ns:
                self._common_window_ns = window_ns
                for other in self._lanes.values():
                    if not other.own_window:
                        self._set_window(other, window_ns)
        samples = lane.histogram.decay(received_ns)
        lane.own_window = samples >= (TOO_FEW if lane.own_window else ENOUGH)
        window_ns = lane.histogram.window_ns() if lane.own_window else self._common_window_ns
        self._set_window(lane, window_ns)

    def _set_window(self, lane: _Lane, window_ns: int) -> None:
        if lane.window_ns != window_ns:
            lane.window_ns = window_ns
            if lane.live:
                self._enter(lane)
