"""Counts and rates: what a limit lets through, and how a throttled rate falls and recovers."""

from __future__ import annotations

from math import inf

from attrs import define

from hypermux.core import backoff

# After a throttled dial: the lowest rate, and what each success gives back of the configured one.
# Where a server lets in half of what is configured it refuses one dial in thirty then; were it five
# times as much, one in five, and nothing would be connected any sooner.
FLOOR_PER_S = 1.0 / 60.0
RECOVERY = 0.01

# A permit may come this part of an interval early: what adding up floats may be off by.
_ROUNDING = 1e-6


class Gcra:
    """A rate with a burst: over any span of t seconds at most `rate * t + burst` permits.

    The theoretical arrival time (TAT) runs ahead of the clock by one interval per permit; a permit
    is free while it is at most `(burst - 1) * interval` ahead, so that exactly `burst` fit at once.
    It starts with the burst used up, so that a process that crashes in a loop keeps the rate too.
    """

    __slots__ = ("_interval", "_spare", "_tat", "_tolerance")

    def __init__(self, rate_per_s: float, burst: int, now: float) -> None:
        """Permit `rate_per_s` and `burst`; raises ValueError when one of them permits nothing."""
        if rate_per_s <= 0 or burst < 1:
            raise ValueError("a rate is over 0 per second, and a burst at least 1")
        self._spare = burst - 1 + _ROUNDING
        self._interval = 1.0 / rate_per_s
        self._tolerance = self._spare * self._interval
        self._tat = now + burst * self._interval

    def ready_at(self, now: float) -> float:
        """Return when the next permit is free: `now`, or later."""
        return max(now, self._tat - self._tolerance)

    def take(self, now: float) -> None:
        """Take a permit that is free."""
        self._tat = max(now, self._tat) + self._interval

    def change(self, rate_per_s: float, now: float, burst: int | None = None) -> None:
        """Go on at another rate, and with another burst; what was used up stays used up.

        So a span over the change sees at most what each rate allows in its part of it, and the
        larger burst once.
        """
        if burst is not None:
            self._spare = burst - 1 + _ROUNDING
        interval = 1.0 / rate_per_s
        used = max(0.0, self._tat - now) / self._interval
        self._interval = interval
        self._tolerance = self._spare * interval
        self._tat = now + used * interval


def changed(gate: Gcra | None, rate_per_s: float | None, burst: int, now: float) -> Gcra | None:
    """Return what takes the place of `gate` at another rate; None: no limit.

    Where there was none nothing was counted: a new gate starts used up.
    """
    if rate_per_s is None:
        return None
    if gate is None:
        return Gcra(rate_per_s, burst, now)
    gate.change(rate_per_s, now, burst)
    return gate


@define(eq=False)
class Limit:
    """A count of slots and a rate of permits for one thing; None: no limit."""

    name: str
    cap: int | None = None
    gate: Gcra | None = None
    held: int = 0
    stopped_until: float = -inf

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return self.cap is not None and self.held >= self.cap

    def opens_at(self, now: float) -> float:
        """Return when it would let one more through, `now` or later; inf: when a slot is back."""
        if self.full:
            return inf
        ready = now if self.gate is None else self.gate.ready_at(now)
        return max(ready, self.stopped_until)

    def take(self, now: float) -> None:
        """Take a rate permit."""
        if self.gate is not None:
            self.gate.take(now)

    def blocks(self, now: float) -> str | None:
        """Say in plain words what it makes a source wait for; None: it lets one through."""
        if self.full:
            return f"waits for a slot of {self.name}"
        if self.stopped_until > now:
            return f"told by {self.name} to wait {self.stopped_until - now:.0f} s more"
        if self.opens_at(now) > now:
            return f"waits for the connect rate of {self.name}"
        return None


@define(eq=False)
class Throttle:
    """A rate that falls by half with every wave of throttled dials and recovers with successes."""

    configured: float
    rate: float
    decreased_at: float = -inf

    def decrease(self, limit: Limit, dialed_at: float, now: float) -> bool:
        """Halve the rate, unless the dial began before that was last done; return whether it fell.

        Those that were under way then say nothing about the lower rate.
        """
        if dialed_at <= self.decreased_at:
            return False
        before = self.rate
        self.rate = max(self.rate / 2.0, min(FLOOR_PER_S, self.configured))
        # A new gate starts used up, and a burst is not what a throttling server wants to see.
        limit.gate = Gcra(self.rate, 1, now)
        self.decreased_at = now
        return self.rate < before

    def increase(self, limit: Limit, dialed_at: float, now: float) -> bool:
        """Give back a part of the configured rate; return whether that was the last of it.

        Dials begun before the last decrease say nothing about the lower rate: a server at its
        limit accepts many of a wave, and they would undo the decrease at once.
        """
        if limit.gate is None or dialed_at <= self.decreased_at:
            return False
        self.rate = min(self.configured, self.rate + RECOVERY * self.configured)
        if self.rate == self.configured:
            limit.gate = None
            return True
        limit.gate.change(self.rate, now)
        return False

    def reconfigure(self, limit: Limit, configured: float, now: float) -> None:
        """Go on with another configured rate: a rate that is half of it now stays half of it."""
        part, self.configured = self.rate / self.configured, configured
        self.rate = configured
        if limit.gate is not None:
            self.rate = max(part * configured, min(FLOOR_PER_S, configured))
            limit.gate.change(self.rate, now)

    @staticmethod
    def stop(limit: Limit, retry_after_s: float, now: float) -> None:
        """Let nothing through before the server's own wish is over; it is honoured to an hour."""
        until = now + backoff.retry_after(retry_after_s)
        limit.stopped_until = max(limit.stopped_until, until)
