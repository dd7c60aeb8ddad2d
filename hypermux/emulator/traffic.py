"""What happens of itself to one connection's containers, and when.

Every connection watches a small fleet of its own, made from the seed, the source and the
connection's place among that source's connections: what it is sent does not depend on who else
is connected.
"""

from __future__ import annotations

import math
import random
from collections import deque

from attrs import Factory, define, field

from hypermux.emulator.containers import Container, Dialect, EventText, Fleet

# As many containers as keep creations and removals in balance; enough for filters to tell apart.
FLEET_SIZE = 12

# Above a thousand events a second they go out in groups of a millisecond's worth: a timer each
# would cost more than the event.
TICK_S = 0.001

# How many of the stopped are started again: the making of a container's event texts costs more
# than all its events, so that lives are some five starts long.
RESTARTED = 0.8

_IMAGES = ("xjimmyshcn/busybox", "nginx:1.27", "registry.example:5000/team/api:2.4.1", "redis")
_SIZES = ("s1", "s2", "s4", "m1")
_TEAMS = ("blue", "green", "test3=test3")


@define(eq=False)
class Traffic:
    """One connection's own happenings at `rate` per second from `started_s` on.

    `rate` may be 0 (nothing) or infinite (whenever there is room); `limit` ends it after so many,
    None never. `dialect` is a, b or mixed (each container has one of the two).
    """

    rng: random.Random
    rate: float
    limit: int | None
    dialect: str
    started_s: float
    happened: int = 0
    _fleet: Fleet = field(init=False)
    _running_order: list[Container] = Factory(list)
    _pending: deque[EventText] = Factory(deque)
    _phase_s: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._fleet = Fleet(self.rng)
        # A thousand connections opened together are not to be in step.
        self._phase_s = self.rng.random() / self.rate if self.rate > 0 else 0.0

    def due(self, now_s: float, most: int) -> int:
        """Return how many events are due, at most `most`."""
        if self.rate <= 0:
            return 0
        if self.limit is not None:
            most = min(most, self.limit - self.happened)
        if math.isinf(self.rate):
            return most
        elapsed = (now_s - self.started_s - self._phase_s) * self.rate
        return max(0, min(most, math.floor(elapsed) + 1 - self.happened))

    def next_at(self, now_s: float) -> float:
        """Return when the next event is due (monotonic seconds); infinity when none is to come."""
        if self.rate <= 0 or (self.limit is not None and self.happened >= self.limit):
            return math.inf
        if self.due(now_s, 1):
            return now_s
        # Always a step ahead, or rounding could make a virtual clock stand still.
        due_at = self.started_s + self._phase_s + self.happened / self.rate
        return max(due_at, now_s + TICK_S)

    def resume(self, now_s: float) -> None:
        """Go on from now, after a time in which nobody was there to be told anything."""
        if 0 < self.rate < math.inf:
            self.started_s = now_s - self.happened / self.rate

    def take(self, count: int) -> list[EventText]:
        """Let `count` events happen."""
        self.happened += count
        pending = self._pending
        taken = []
        for _ in range(count):
            while not pending:
                pending.extend(self._step())
            taken.append(pending.popleft())
        return taken

    def _step(self) -> list[EventText]:
        rng, fleet, order = self.rng, self._fleet, self._running_order
        if len(order) < 3 or (len(order) < FLEET_SIZE and rng.random() < 0.2):
            container, texts = self._create()
            order.append(container)
            return texts
        at = int(rng.random() * len(order))
        container = order[at]
        if container.state == "running":
            return fleet.stop(container)
        if container.state == "created" or rng.random() < RESTARTED:
            return fleet.start(container)
        order[at] = order[-1]
        order.pop()
        return fleet.remove(container)

    def _create(self) -> tuple[Container, list[EventText]]:
        rng = self.rng
        dialect: Dialect = "b" if self.dialect == "b" else "a"
        if self.dialect == "mixed" and rng.random() < 0.5:
            dialect = "b"
        labels = {
            "": "",
            "com.example.team": rng.choice(_TEAMS),
            "sh_hyper_instancetype": rng.choice(_SIZES),
        }
        return self._fleet.create(
            rng.choice(_IMAGES),
            f"test{self._fleet.made + 1}",
            labels,
            dialect,
            exit_code=rng.choice((0, 0, 0, 1, 137)),
        )
