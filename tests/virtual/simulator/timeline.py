"""Virtual time, and what happens when outside hypermux: a heap of calls, one task to make them."""

from __future__ import annotations

import heapq
import random
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import trio
from attrs import define, field

Call = Callable[[], None]


@define(eq=False)
class Timeline:
    """Calls by time (virtual seconds); of one moment, in the order they were asked for."""

    _heap: list[tuple[float, int, Call]] = field(factory=list)
    _asked: int = 0
    _sooner: trio.Event = field(factory=trio.Event)

    def at(self, when: float, call: Call) -> None:
        """Call `call` at `when`, or now if that is past."""
        self._asked += 1
        if not self._heap or when < self._heap[0][0]:
            self._sooner.set()
        heapq.heappush(self._heap, (when, self._asked, call))

    def after(self, delay_s: float, call: Call) -> None:
        """Call `call` in `delay_s` seconds."""
        self.at(trio.current_time() + delay_s, call)

    async def run(self) -> None:
        """Make the calls until cancelled."""
        heap = self._heap
        while True:
            while heap and heap[0][0] <= trio.current_time():
                heapq.heappop(heap)[2]()
            self._sooner = trio.Event()
            with trio.move_on_at(heap[0][0] if heap else inf):
                await self._sooner.wait()


class _Clock(trio.abc.Clock):
    """Jumps to the next deadline whenever nothing can run; it never asks the real one.

    trio's MockClock looks for input once more before it jumps: half of what an idle hour costs.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._idle = 0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if deadline == inf:
            # trio's own end comes by a socket of its own; anything else waits in vain.
            self._idle += 1
            if self._idle > 10:
                raise RuntimeError("nothing will ever happen any more")
            return 0.1
        self._now = max(self._now, deadline)
        return 0.0


def run_virtually(main: Callable[[], Awaitable[None]], seed: int) -> None:
    """Run `main` in virtual time, its tasks in an order that follows from `seed`.

    There is no input and no thread in it: what waits for one would wait for ever.
    """
    internals: Any = trio._core._run
    # trio shuffles tasks on purpose; a run that must replay has to fix the order.
    internals._ALLOW_DETERMINISTIC_SCHEDULING = True
    internals._r = random.Random(seed)
    manager: Any = internals.TheIOManager
    get_events = manager.get_events
    manager.get_events = lambda self, timeout: get_events(self, timeout) if timeout else []
    try:
        trio.run(main, clock=_Clock())
    finally:
        manager.get_events = get_events
        internals._ALLOW_DETERMINISTIC_SCHEDULING = False
