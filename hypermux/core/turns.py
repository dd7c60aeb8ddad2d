"""Whose turn it is, among those that wait at many limits: cheap however many wait.

Those waiting stand in lines, one per rank, account and endpoint. A line is parked at a limit,
first its account's rate. A limit that is open calls the best line parked there, and that line is a
candidate. When another limit blocks it, it is parked there; when it is served or parked, its
caller calls the next. So there is at most one candidate per limit, a limit that opens looks at
one line, and a blocked account is passed over as a whole.

An entry in a heap that is too early (its account gained a slot, its head left) is put right when
it comes up; one that has become too late is entered anew at once.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from math import inf
from typing import TypeAlias

from attrs import define, field

from hypermux.core import rates
from hypermux.model.accounts import SourceId

# rank, slots that the account holds, ticket of the head
Order: TypeAlias = tuple[int, int, int]


@define(eq=False)
class Place(rates.Limit):
    """A limit, and the lines that it blocks."""

    parked: list[Entry] = field(factory=list)
    # The one that it made a candidate.
    called: Line | None = None
    # When a timer will have it call; inf: none is set.
    timer: float = inf


@define(eq=False)
class Line:
    """Who waits in one rank for one account at one endpoint, for the same permits."""

    rank: int
    address: str
    # Whose slots decide the order.
    account: Place
    # What it must pass beside the process's own rate, in the order it is asked; of these `slots`
    # count who passes, and `home` is its account's alone: where it waits to be called.
    limits: tuple[Place, ...]
    slots: tuple[Place, ...]
    home: Place
    # Its account at its endpoint.
    pair: Place
    # source -> ticket, the smallest ticket first
    queue: dict[SourceId, int] = field(factory=dict)
    # The number of its one valid entry in a heap; None: it has none, nobody waits.
    entry: int | None = None
    # Where that entry is; None: among the candidates, called by `caller`.
    parked_at: Place | None = None
    caller: Place | None = None

    @property
    def head(self) -> SourceId:
        """Who has waited longest; only of a line in which somebody waits."""
        return next(iter(self.queue))

    def order(self, place: Place | None = None) -> Order:
        """Return when it is to be served, the smallest first, among those at `place`.

        Where all are of one account they hold the same slots: left out, entries stay in order.
        """
        alike = place is self.home or place is self.account or place is self.pair
        return self.rank, 0 if alike else self.account.held, self.queue[self.head]

    def join(self, source: SourceId, ticket: int) -> None:
        """Stand where the ticket belongs."""
        last = self.queue[next(reversed(self.queue))] if self.queue else -1
        self.queue[source] = ticket
        if ticket < last:  # it came from another line; rare
            self.queue = dict(sorted(self.queue.items(), key=lambda item: item[1]))


# a line's order, its entry's number, the line
Entry: TypeAlias = tuple[Order, int, Line]


class Turns:
    """The candidates, the parked and the timers. `now` is monotonic seconds."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._numbers = itertools.count()
        self._candidates: list[Entry] = []
        self._timers: list[tuple[float, int, Place]] = []
        self._lines = 0

    def add(self, line: Line) -> None:
        """Take part with a line in which nobody waits yet."""
        line.parked_at = line.home
        self._lines += 1

    def restart(self, lines: Iterable[Line], places: Iterable[Place]) -> None:
        """Begin anew with these lines and limits alone, whatever has changed about them."""
        self._candidates.clear()
        self._timers.clear()
        self._lines = 0
        for place in places:
            place.parked.clear()
            place.called, place.timer = None, inf
        for line in lines:
            line.entry = line.caller = None
            self.add(line)
            if line.queue:
                self._moved(line)

    def joined(self, line: Line, source: SourceId) -> None:
        """Somebody has joined a line."""
        if line.entry is None:
            line.parked_at = line.home
        elif line.head != source:
            return
        self._moved(line)

    def released(self, lines: list[Line], places: tuple[Place, ...]) -> None:
        """A slot came back at `places`; `lines` are all of the account that held it."""
        for line in lines:
            if line.entry is not None and line.queue:
                self._moved(line)
        for place in places:
            self.opened(place)

    def opened(self, place: Place) -> None:
        """A limit may let somebody through now, or earlier than it was going to."""
        self._call(place)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self.now = now
        while self._timers and self._timers[0][0] <= now:
            place = heapq.heappop(self._timers)[2]
            place.timer = inf
            self._call(place)

    def next(self) -> Line | None:
        """Return the line whose head is to be served next, None when every line is blocked.

        The caller takes the head out, and the permits, then calls `served`.
        """
        while (line := self._first()) is not None:
            blocking = next((x for x in line.limits if x.opens_at(self.now) > self.now), None)
            if blocking is None:
                return line
            self._park(line, blocking)
        return None

    def served(self, line: Line) -> None:
        """The head of the line that `next` returned is served."""
        self._park(line, line.home)

    def next_at(self) -> float:
        """Return when `next` may return something by the passing of time alone; inf: never."""
        if self._first() is not None:
            return self.now
        while self._timers and self._best(self._timers[0][2]) is None:
            heapq.heappop(self._timers)[2].timer = inf
        return self._timers[0][0] if self._timers else inf

    def _moved(self, line: Line) -> None:
        """Enter anew a line whose order is another; whoever calls it may want another one now."""
        self._enter(line, line.parked_at)
        place = line.caller if line.parked_at is None else line.parked_at
        if place is not None:
            self._call(place)

    def _enter(self, line: Line, place: Place | None) -> None:
        """Give a line its entry among those parked at `place`, or among the candidates."""
        heap = self._candidates if place is None else place.parked
        if len(heap) > 2 * self._lines + 16:  # mostly invalid entries
            heap[:] = [entry for entry in heap if entry[1] == entry[2].entry]
            heapq.heapify(heap)
        line.entry = next(self._numbers)
        line.parked_at = place
        heapq.heappush(heap, (line.order(place), line.entry, line))

    def _park(self, line: Line, place: Place) -> None:
        """Take the first candidate away to `place`; its caller calls the next one."""
        heapq.heappop(self._candidates)
        caller, line.caller, line.entry = line.caller, None, None
        if caller is not None:
            caller.called = None
        if line.queue:
            self._enter(line, place)
        self._call(place)
        if caller is not None and caller is not place:
            self._call(caller)

    def _first(self) -> Line | None:
        """Return the best candidate, its entry on top of the heap."""
        while self._candidates:
            order, number, line = self._candidates[0]
            if number != line.entry:
                heapq.heappop(self._candidates)
            elif line.queue and order == line.order():
                return line
            else:  # later than it was: its caller may have a better one
                self._park(line, line.caller or line.home)
        return None

    def _best(self, place: Place) -> Line | None:
        """Return the best of those parked at `place`, its entry on top of the heap."""
        heap = place.parked
        while heap:
            order, number, line = heap[0]
            if number != line.entry:
                heapq.heappop(heap)
            elif not line.queue:
                heapq.heappop(heap)
                line.entry = None
            elif order != (current := line.order(place)):
                heapq.heapreplace(heap, (current, number, line))
            else:
                return line
        return None

    def _call(self, place: Place) -> None:
        """Have a limit call its best line, in exchange for a worse one, or set its timer."""
        best = self._best(place)
        if best is None:
            return
        at = place.opens_at(self.now)
        if at > self.now:
            if at < place.timer:
                place.timer = at
                heapq.heappush(self._timers, (at, next(self._numbers), place))
            return
        called = place.called
        if called is not None:
            if called.queue and called.order() <= best.order():
                return
            called.caller = called.entry = None
        heapq.heappop(place.parked)
        place.called, best.caller = best, place
        self._enter(best, None)
        if called is not None and called.queue:
            self._enter(called, place)
