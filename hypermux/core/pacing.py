"""Requests on the wire at the rates that permits were granted at.

A permit is for one request, but between the two lie TCP and TLS, which take one connection two
milliseconds and the next two hundred: requests granted evenly would reach the server in bunches,
and a server with the very same limit would refuse some. So each request passes the same rates
once more, right before it is sent. That waits for time alone, never for another source, so it
cannot deadlock with what the allocator holds.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypermux.core.rates import Gcra
from hypermux.model.accounts import Cap


class Pacer:
    """Tells each request when it may be sent. `now` is monotonic seconds."""

    def __init__(
        self,
        *,
        connect_rate: float | None,
        connect_burst: int,
        per_account: Cap,
        per_endpoint: Cap,
        account_caps: Mapping[str, Cap],
        now: float,
    ) -> None:
        """Start with every burst used up, as the allocator does; None: no limit."""
        self._burst = connect_burst
        self._started = now
        self._per_account = per_account
        self._per_endpoint = per_endpoint
        self._account_caps = account_caps
        self._whole = self._gate(connect_rate)
        self._gates: dict[tuple[str, str], Gcra | None] = {}

    def reserve(self, account: str, address: str, now: float) -> float:
        """Return when a request of `account` to `address` may be sent: `now`, or later."""
        cap = self._account_caps.get(account, Cap())
        account_rate = cap.connect_rate or self._per_account.connect_rate
        gates = [
            self._whole,
            self._known("account", account, account_rate),
            self._known("endpoint", address, self._per_endpoint.connect_rate),
        ]
        limits = [gate for gate in gates if gate is not None]
        at = max((gate.ready_at(now) for gate in limits), default=now)
        for gate in limits:
            gate.take(at)
        return at

    def _known(self, kind: str, name: str, rate: float | None) -> Gcra | None:
        key = kind, name
        if key not in self._gates:
            self._gates[key] = self._gate(rate)
        return self._gates[key]

    def _gate(self, rate: float | None) -> Gcra | None:
        return None if rate is None else Gcra(rate, self._burst, self._started)
