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
its last `at` is at or above its own items. `core.bounds` keeps the bounds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from hypermux.core import bounds
from hypermux.core.bounds import Key
from hypermux.core.skew import Skew
from hypermux.core.window import ENOUGH, TOO_FEW, Lateness, Scale
from hypermux.model.accounts import SourceId

T = TypeVar("T")

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


class _Lane(bounds.Lane):
    """What the merge knows of one source."""

    __slots__ = ("lateness", "own_window", "skew", "told_offset_ns", "tune_ns")

    def __init__(self, source: SourceId, window_ns: int, lateness: Lateness) -> None:
        super().__init__(source, window_ns)
        self.skew = Skew()
        self.told_offset_ns = 0
        self.lateness = lateness
        self.own_window = False
        self.tune_ns = 0


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
        self._bounds = bounds.Bounds()
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
        lane.last_at_ns = max(lane.last_at_ns, last_at_ns)
        self._bounds.opened(lane)

    def closed(self, source: SourceId) -> None:
        """The source is not live: nothing waits for it. What it has queued goes in order."""
        self._bounds.closed(self._find(source))

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
                    lane.lateness.counts[bucket] += 1
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
        lanes: dict[bounds.Lane, int] = {
            self._find(source): empty_ns for source, empty_ns in except_for.items()
        }
        self._bounds.drained(drained_ns, lanes)

    def release(self, now_ns: int) -> list[Released[T]]:
        """Return what is due, in order, late items first."""
        self._sort_in()
        pending, waiting = self._pending, self._waiting
        lowest = self._bounds.lowest()
        if lowest is None:
            cut = len(pending)
        else:
            cut = bisect_left(pending, self._bounds.key(lowest), self._start)
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
        lane = self._bounds.lowest()
        if lane is None or head < self._bounds.key(lane):
            return head.received_ns
        overdue_ns = self._waiting[0].received_ns + self._max_hold_ns
        if lane.busy:
            return overdue_ns
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

    def offset_ns(self, source: SourceId) -> int:
        """Return what is added to a source's times at present."""
        lane = self._lanes.get(source)
        return 0 if lane is None else lane.skew.applied_ns

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
                        self._bounds.set_window(other, window_ns)
        samples = lane.lateness.decay(received_ns)
        lane.own_window = samples >= (TOO_FEW if lane.own_window else ENOUGH)
        window_ns = lane.lateness.window_ns() if lane.own_window else self._common_window_ns
        self._bounds.set_window(lane, window_ns)
