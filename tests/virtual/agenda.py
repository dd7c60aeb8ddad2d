"""Imagined time without trio: a heap of timed acts, and tasks that wait for moments and signals.

A task is a generator. It yields when it wants to go on: a time (monotonic seconds, `inf` for never)
and signals, the first of which counts. A thousand tasks over days of imagined time cost only what
happens in them, and the same seed does the same.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from functools import partial
from math import inf
from typing import TypeAlias

from attrs import define, field

Wait: TypeAlias = "tuple[float, tuple[Signal, ...]]"
Task: TypeAlias = Generator[Wait, None, None]


@define(eq=False)
class Agenda:
    """What is still to happen, the soonest first; at one moment in the order it was asked for."""

    now: float = 0.0
    _heap: list[tuple[float, int, Callable[[], None]]] = field(factory=list)
    _numbers: itertools.count[int] = field(factory=itertools.count)

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Do something then, or now if that is past."""
        heapq.heappush(self._heap, (max(when, self.now), next(self._numbers), act))

    def start(self, task: Task) -> None:
        """Begin a task now."""
        self.at(self.now, _Running(self, task).begin)

    def run(self, until: float) -> None:
        """Let time pass."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, act = heapq.heappop(heap)
            act()
        self.now = until


@define(eq=False)
class Signal:
    """Something that happens once; whoever waits for it goes on then."""

    happened: bool = False
    _waiting: list[Callable[[], None]] = field(factory=list)

    def fire(self) -> None:
        """Let it happen; a second time changes nothing."""
        self.happened = True
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` when it happens."""
        if self.happened:
            wake()
        else:
            self._waiting.append(wake)


def until(when: float, *signals: Signal) -> Wait:
    """Return what a task yields to go on then, or when a signal happens."""
    return when, signals


def signal(*signals: Signal) -> Wait:
    """Return what a task yields to go on when a signal happens."""
    return inf, signals


@define(eq=False)
class _Running:
    """A task, and which of its waits it is in: what wakes it from an earlier one comes too late."""

    agenda: Agenda
    task: Task
    wait: int = 0

    def begin(self) -> None:
        try:
            when, signals = next(self.task)
        except StopIteration:
            self.wait = -1
            return
        self.wait += 1
        if when < inf:
            self.agenda.at(when, partial(self.go_on, self.wait))
        for awaited in signals:
            awaited.watch(partial(self.wake, self.wait))

    def wake(self, wait: int) -> None:
        # Not from within whoever lets it happen.
        self.agenda.at(self.agenda.now, partial(self.go_on, wait))

    def go_on(self, wait: int) -> None:
        if wait == self.wait:
            self.begin()
