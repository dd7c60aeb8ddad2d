"""Requests on the wire at the rates that permits were granted at.

A permit is for one request, but between the two lie TCP and TLS, which take one connection two
milliseconds and the next two hundred: requests granted evenly would reach the server in bunches,
and a server with the very same limit would refuse some. So each request passes the same rates
once more, right before it is sent. That waits for time alone, never for another source, so it
cannot deadlock with what the allocator holds.

Half of a burst is kept back for the way there: of requests that were sent in time, the later ones
may be carried faster, and a server that has just let a whole burst in would refuse them.

When a rate changes, what was promised at the old one holds no longer: whoever waits asks again,
and the new rate starts used up.
"""

from __future__ import annotations

from hypermux.core.rates import Gcra
from hypermux.model.accounts import Limits


class Pacer:
    """Tells each request when it may be sent. `now` is monotonic seconds."""

    def __init__(self, limits: Limits, now: float) -> None:
        """Start with every burst used up, as the allocator does."""
        self._limits = limits
        self._since = now
        self._whole = self._gate(limits.whole.connect_rate)
        self._gates: dict[tuple[str, str], Gcra | None] = {}

    def reserve(self, account: str, address: str, now: float) -> float:
        """Return when a request of `account` to `address` may be sent: `now`, or later.

        It holds until the next change.
        """
        account_rate = self._limits.of_account(account).connect_rate
        gates = [
            self._whole,
            self._known("account", account, account_rate),
            self._known("endpoint", address, self._limits.per_endpoint.connect_rate),
        ]
        limits = [gate for gate in gates if gate is not None]
        at = max((gate.ready_at(now) for gate in limits), default=now)
        for gate in limits:
            gate.take(at)
        return at

    def change(self, limits: Limits, now: float) -> bool:
        """Go on with other limits; return whether all who wait must ask again.

        Every gate is made anew, with nothing free: what was sent before is within the old rates,
        what comes is within the new ones, and those who wait are not counted twice.
        """
        if limits == self._limits:
            return False
        self._limits, self._since = limits, now
        self._whole = self._gate(limits.whole.connect_rate)
        self._gates.clear()
        return True

    def _known(self, kind: str, name: str, rate: float | None) -> Gcra | None:
        key = kind, name
        if key not in self._gates:
            self._gates[key] = self._gate(rate)
        return self._gates[key]

    def _gate(self, rate: float | None) -> Gcra | None:
        if rate is None:
            return None
        return Gcra(rate, (self._limits.connect_burst + 1) // 2, self._since)
