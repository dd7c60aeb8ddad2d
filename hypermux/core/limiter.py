"""Who may dial now: one allocator for every limit on connections and on the rate of dials.

Rules
- A permit needs a slot and a rate permit of the process, of the account and of the endpoint, and
  takes all of them at one instant or none: nothing is held while waiting (separate semaphores
  deadlock).
- Order of service: by rank; within a rank the account that holds the fewest slots; then who has
  waited longest. Whoever has waited `PATIENCE_S` counts as the first rank, so that sources that
  fail over and over do not starve the new ones. Only those that a limit blocks are passed over.
- A throttled dial halves the rate that its account sees at its endpoint, once per wave: only dials
  begun after the last decrease count. Each success gives back a twentieth. `Retry-After` stops the
  account at that endpoint altogether.

`core.turns` finds whose turn it is without asking all who wait.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from enum import IntEnum
from math import inf

from attrs import frozen

from hypermux.core import rates
from hypermux.core.pacing import Pacer
from hypermux.core.rates import Gcra
from hypermux.core.turns import Line, Pair, Place, Turns
from hypermux.model.accounts import Cap, SourceId
from hypermux.model.errors import HypermuxError

# Long enough that a thousand sources connecting at the default rate never get here.
PATIENCE_S = 120.0
# How often to look who has waited that long: the look goes over all who wait.
PATIENCE_CHECK_S = 10.0
# What a throttled dial halves where no rate is configured at all.
UNLIMITED_PER_S = 10.0


class Rank(IntEnum):
    """The order of service."""

    LOST = 0
    NEW = 1
    ROTATION = 2
    PROBE = 3


@frozen
class _Request:
    """One source's wish to dial."""

    ticket: int
    since: float
    line: Line


class Allocator:
    """Grants permits; the module's docstring has the rules. `now` is monotonic seconds."""

    def __init__(
        self,
        *,
        max_connections: int | None,
        connect_rate: float | None,
        connect_burst: int,
        per_account: Cap,
        per_endpoint: Cap,
        account_caps: Mapping[str, Cap],
        now: float,
    ) -> None:
        """Start with every slot free and every burst used up.

        `account_caps` are accounts' own limits: a value set there replaces `per_account`'s.
        """
        self._burst = connect_burst
        self._per_account = per_account
        self._per_endpoint = per_endpoint
        self._account_caps = account_caps
        self._started = now
        self._patience_due = now + PATIENCE_S
        self._numbers = itertools.count()
        self._cap = Cap(max_connections, connect_rate)
        self._whole = self._place("the process", self._cap)
        self._accounts: dict[str, Place] = {}
        self._endpoints: dict[str, Place] = {}
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._lines: dict[tuple[Rank, str, str], Line] = {}
        self._account_lines: dict[str, list[Line]] = {}
        self._requests: dict[SourceId, _Request] = {}
        self._last_line: dict[SourceId, Line] = {}
        self._holding: dict[SourceId, deque[Line]] = {}
        self._turns = Turns(now)

    def pacer(self, now: float) -> Pacer:
        """Return what holds requests on the wire to the same rates; see `core.pacing`."""
        return Pacer(
            connect_rate=self._cap.connect_rate,
            connect_burst=self._burst,
            per_account=self._per_account,
            per_endpoint=self._per_endpoint,
            account_caps=self._account_caps,
            now=now,
        )

    @property
    def waiting(self) -> int:
        """How many sources wait for a permit."""
        return len(self._requests)

    @property
    def held(self) -> int:
        """How many slots are taken."""
        return self._whole.held

    def request(self, source: SourceId, address: str, rank: Rank, now: float) -> None:
        """Wait for a permit to dial `address`; takes the place of the source's earlier request.

        Its place in the queue is kept when only the rank changes.
        """
        self._turns.now = now
        earlier = self._requests.get(source)
        line = self._line(rank, source.account, address)
        if earlier is None or earlier.line.pair is not line.pair:
            self._join(source, _Request(next(self._numbers), now, line))
        elif earlier.line is not line:
            self._join(source, _Request(earlier.ticket, earlier.since, line))

    def withdraw(self, source: SourceId) -> None:
        """Stop waiting; nothing happens when the source does not wait."""
        request = self._requests.pop(source, None)
        if request is not None:
            # Its line may keep an entry that is too early now: put right when it comes up.
            del request.line.queue[source]

    def release(self, source: SourceId) -> None:
        """Give a slot back: the connection has ended. Of two slots the older one.

        Raises HypermuxError when the source holds none: a fault of ours.
        """
        holding = self._holding.get(source)
        if not holding:
            raise HypermuxError(f"{source} gives back a slot that it does not hold")
        line = holding.popleft()
        if not holding:
            del self._holding[source]
        self._whole.held -= 1
        for limit in line.limits:
            limit.held -= 1
        self._turns.released(self._account_lines[source.account], line.limits)

    def grant(self, now: float) -> list[SourceId]:
        """Return who may dial now, in order of service; their permits are taken."""
        self._turns.tick(now)
        self._lose_patience(now)
        granted = []
        while self._whole.opens_at(now) <= now and (line := self._turns.next()) is not None:
            granted.append(self._take(line, now))
            self._turns.served(line)
        return granted

    def next_at(self, now: float) -> float | None:
        """Return when `grant` could give something by the passing of time alone; None: never."""
        if not self._requests:
            return None
        at = max(now, self._turns.next_at(), self._whole.opens_at(now))
        return None if at == inf else at

    def succeeded(self, source: SourceId, now: float) -> None:
        """The source's dial was accepted: its throttled rate, if it has one, recovers a little."""
        self._turns.now = now
        line = self._last_line.get(source)
        if line is not None:
            line.pair.throttle.increase(line.pair, now)
            self._turns.opened(line.pair)

    def throttled(
        self, source: SourceId, dialed_at: float, retry_after_s: float | None, now: float
    ) -> None:
        """The server asked for fewer dials, in answer to one begun at `dialed_at`.

        `retry_after_s` is its own wish: honoured to an hour, whatever the rate.
        """
        self._turns.now = now
        line = self._last_line.get(source)
        if line is None:
            return
        line.pair.throttle.decrease(line.pair, dialed_at, now)
        if retry_after_s is not None:
            line.pair.throttle.stop(line.pair, retry_after_s, now)

    def why(self, source: SourceId) -> str:
        """Say in plain words what the source waits for, as of the last call that had a time."""
        request = self._requests.get(source)
        if request is None:
            return "holds a slot" if source in self._holding else "does not wait"
        reasons = (limit.blocks(self._turns.now) for limit in (*request.line.limits, self._whole))
        return next((reason for reason in reasons if reason is not None), "waits for its turn")

    def _place(self, name: str, cap: Cap) -> Place:
        rate = cap.connect_rate
        gate = None if rate is None else Gcra(rate, self._burst, self._started)
        return Place(name, cap.max_connections, gate)

    def _line(self, rank: Rank, account: str, address: str) -> Line:
        line = self._lines.get((rank, account, address))
        if line is not None:
            return line
        own, common = self._account_caps.get(account, Cap()), self._per_account
        cap = Cap(
            common.max_connections if own.max_connections is None else own.max_connections,
            common.connect_rate if own.connect_rate is None else own.connect_rate,
        )
        if account not in self._accounts:
            self._accounts[account] = self._place(f"account {account}", cap)
        if address not in self._endpoints:
            self._endpoints[address] = self._place(f"endpoint {address}", self._per_endpoint)
        pair = self._pairs.get((account, address))
        if pair is None:
            known = (x.connect_rate for x in (self._cap, cap, self._per_endpoint))
            rate = min((x for x in known if x is not None), default=UNLIMITED_PER_S)
            name = f"endpoint {address} for account {account}"
            pair = Pair(name, throttle=rates.Throttle(rate, rate))
            self._pairs[account, address] = pair
        line = Line(rank, address, self._accounts[account], self._endpoints[address], pair)
        self._turns.add(line)
        self._lines[rank, account, address] = line
        self._account_lines.setdefault(account, []).append(line)
        return line

    def _join(self, source: SourceId, request: _Request) -> None:
        self.withdraw(source)
        self._requests[source] = request
        line = request.line
        self._last_line[source] = line
        line.join(source, request.ticket)
        self._turns.joined(line, source)

    def _take(self, line: Line, now: float) -> SourceId:
        """Take the head out of a line, and all its permits."""
        source = line.head
        del line.queue[source]
        del self._requests[source]
        self._whole.take(now)
        for limit in line.limits:
            limit.take(now)
        self._holding.setdefault(source, deque()).append(line)
        return source

    def _lose_patience(self, now: float) -> None:
        """Give the first rank to those that have waited too long."""
        if now < self._patience_due:
            return
        self._patience_due = now + PATIENCE_CHECK_S
        for source, request in list(self._requests.items()):
            line = request.line
            if line.rank is not Rank.LOST and request.since + PATIENCE_S <= now:
                first = self._line(Rank.LOST, source.account, line.address)
                self._join(source, _Request(request.ticket, request.since, first))
