"""Virtual time, and what happens when outside hypermux: a heap of calls, one task to make them."""

from __future__ import annotations

import heapq
import random
from collections.abc import Awaitable, Callable, MutableSequence, Sequence
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
    _waiting: _Sleep | None = None

    def at(self, when: float, call: Call) -> None:
        """Call `call` at `when`, or now if that is past."""
        self._asked += 1
        if self._waiting is not None and (not self._heap or when < self._heap[0][0]):
            self._waiting.end()
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
            self._waiting = _Sleep(heap[0][0] if heap else inf)
            await self._waiting.over()
            self._waiting = None


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


class _Sleep:
    """What stands among trio's deadlines for a task that waits for a moment and nothing else.

    A cancel scope for each is a third of what an idle hour costs.
    """

    __slots__ = ("_registered_deadline", "_runner", "_task")

    def __init__(self, deadline: float) -> None:
        self._registered_deadline = deadline
        self._task: Any = trio.lowlevel.current_task()
        self._runner: Any = self._task._runner

    async def over(self) -> None:
        """Wait for the moment, or for `end`."""
        if self._registered_deadline < inf:
            self._runner.deadlines.add(self._registered_deadline, self)
        await trio.lowlevel.wait_task_rescheduled(self._abort)
        task: Any = trio.lowlevel.current_task()
        if task._cancel_status.effectively_cancelled:  # at the very same moment
            await trio.lowlevel.checkpoint()

    def end(self) -> None:
        """Wake the task."""
        if self._task is not None:
            self._forget()
            self._runner.reschedule(self._task)
            self._task = None

    def _cancel(self, reason: Any) -> None:
        """The moment has come: so trio tells a scope."""
        self.end()

    def _abort(self, raise_cancel: Any) -> trio.lowlevel.Abort:
        self._forget()
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _forget(self) -> None:
        if self._registered_deadline < inf:
            self._runner.deadlines.remove(self._registered_deadline, self)
            self._registered_deadline = inf


async def _sleep_until(deadline: float) -> None:
    if deadline <= trio.current_time():
        await trio.lowlevel.checkpoint()
    else:
        await _Sleep(deadline).over()


async def _sleep(seconds: float) -> None:
    await _sleep_until(trio.current_time() + seconds)


class _Order(random.Random):
    """Shuffles the tasks that can run. `batch`: those whose turn is still to come in this round."""

    batch: Sequence[Any] = ()

    def shuffle(self, x: MutableSequence[Any]) -> None:
        self.batch = x  # trio takes them from its end
        if len(x) > 1:
            super().shuffle(x)


def run_virtually(main: Callable[[], Awaitable[None]], seed: int) -> None:
    """Run `main` in virtual time, its tasks in an order that follows from `seed`.

    There is no input and no thread in it: what waits for one would wait for ever. A checkpoint at
    which nobody else could run is passed without a round of the scheduler: most are of that kind,
    and the rounds are half of what an hour costs. (The order of everything stays the same.)
    """
    internals: Any = trio._core._run
    # trio shuffles tasks on purpose; a run that must replay has to fix the order.
    internals._ALLOW_DETERMINISTIC_SCHEDULING = True
    order = internals._r = _Order(seed)
    context, checkpoint = internals.GLOBAL_RUN_CONTEXT, trio.lowlevel.checkpoint

    async def passing_checkpoint() -> None:
        if (
            order.batch
            or (runner := context.runner).runq
            or context.task._cancel_status.effectively_cancelled
            or runner.deadlines.next_deadline() <= runner.clock._now
        ):
            await checkpoint()

    manager: Any = internals.TheIOManager
    get_events = manager.get_events
    manager.get_events = lambda self, timeout: get_events(self, timeout) if timeout else []
    replaced = (
        (trio.lowlevel, "checkpoint", passing_checkpoint),
        (trio, "sleep", _sleep),
        (trio, "sleep_until", _sleep_until),
    )
    kept = [(where, name, getattr(where, name)) for where, name, _ in replaced]
    for where, name, new in replaced:
        setattr(where, name, new)
    try:
        trio.run(main, clock=_Clock())
    finally:
        for where, name, old in kept:
            setattr(where, name, old)
        manager.get_events = get_events
        internals._ALLOW_DETERMINISTIC_SCHEDULING = False
