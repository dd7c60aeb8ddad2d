"""Who may dial now: one allocator for every limit on connections and on the rate of dials.

Rules
- A permit needs a slot and a rate permit of the process, of the account and of the endpoint, and
  takes all of them at one instant or none: nothing is held while waiting (separate semaphores
  deadlock). A handover needs the rate permits alone: its source holds a slot, and passes it on.
- Order of service: by rank; within a rank the account that holds the fewest slots; then who has
  waited longest. Only those that a limit blocks are passed over.
- Whoever has waited `PATIENCE_S` counts as the first rank, so that sources that fail over and over
  do not starve the new ones. And every `FAVOUR`th permit goes to whoever has waited longest of
  these, however many slots its account holds, so that they do not starve a large account either:
  but never the last slot that an account with fewer waits for.
- A server may bring the rate of its endpoint down, for one account or for all: `core.throttling`.
- Limits may change at any time. What was used up stays used up, a new rate starts used up, a
  throttled rate stays the same part of what is configured. Where a count is lower than what is
  held nobody gets a slot, until those whom `core.yielding` names have given theirs back.

`core.turns` finds whose turn it is without asking all who wait.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection
from enum import IntEnum
from math import inf

from attrs import frozen

from hypermux.core import rates, yielding
from hypermux.core.pacing import Pacer
from hypermux.core.rates import Gcra, Limit
from hypermux.core.throttling import Pair, Throttled, Throttles
from hypermux.core.turns import Line, Place, Turns
from hypermux.core.yielding import Slot
from hypermux.model.accounts import Limits, SourceId
from hypermux.model.errors import HypermuxError

# Long enough that a thousand sources connecting at the default rate never get here.
PATIENCE_S = 120.0
# How often to look who has waited that long: the look goes over all who wait.
PATIENCE_CHECK_S = 10.0
# The part of all permits that those get: enough to end every wait, too little to undo the order.
FAVOUR = 4


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


@frozen
class _Dial:
    """The last permit that a source got."""

    pair: Pair
    granted_at: float


class Allocator:
    """Grants permits; the module's docstring has the rules. `now` is monotonic seconds."""

    def __init__(self, limits: Limits, now: float) -> None:
        """Start with every slot free and every burst used up."""
        self._limits = limits
        # From when on the rate of an account or endpoint that was not seen before is used up.
        self._since = now
        self._patience_due = now + PATIENCE_S
        self._permits = 0
        self._numbers = itertools.count()
        self._whole = Place("the process", limits.whole.max_connections)
        self._rate = Limit("the process", gate=self._gate(limits.whole.connect_rate))
        # By kind and name: slots, and the rate.
        self._places: dict[tuple[str, str], tuple[Place, Place]] = {}
        self._throttles = Throttles(limits)
        self._lines: dict[tuple[Rank, str, str, bool], Line] = {}
        self._account_lines: dict[str, list[Line]] = {}
        self._impatient: list[Line] = []
        self._requests: dict[SourceId, _Request] = {}
        self._last_dial: dict[SourceId, _Dial] = {}
        self._holding: dict[SourceId, deque[Slot]] = {}
        self._turns = Turns(now)

    def pacer(self, now: float) -> Pacer:
        """Return what holds requests on the wire to the same rates; see `core.pacing`."""
        return Pacer(self._limits, now)

    @property
    def waiting(self) -> int:
        """How many sources wait for a permit."""
        return len(self._requests)

    @property
    def held(self) -> int:
        """How many slots are taken."""
        return self._whole.held

    def request(
        self, source: SourceId, address: str, rank: Rank, now: float, *, handover: bool = False
    ) -> None:
        """Wait for a permit to dial `address`; takes the place of the source's earlier request.

        Its place in the queue is kept while it is for the same address. With `handover` the source
        takes no slot: it goes on with the one it holds. Raises HypermuxError when it holds none
        there: a fault of ours.
        """
        if handover and not any(s.line.address == address for s in self._holding.get(source, ())):
            raise HypermuxError(f"{source} passes on a slot that it does not hold")
        self._turns.now = now
        earlier = self._requests.get(source)
        line = self._line(rank, source.account, address, handover)
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
        line = holding.popleft().line
        if not holding:
            del self._holding[source]
        for place in line.slots:
            place.held -= 1
        self._turns.released(self._account_lines[source.account], line.slots)

    def dismiss(self, source: SourceId) -> None:
        """Have a source neither wait nor hold a slot any longer, whatever it did before."""
        self.withdraw(source)
        while source in self._holding:
            self.release(source)

    def contested(self, source: SourceId) -> bool:
        """Say whether the slot of `source`, given back, would go to another that holds none."""
        holding = self._holding.get(source)
        if holding is None:
            return False
        lines = (line for line in self._lines.values() if line.queue)
        return yielding.wanted(holding[0], lines, self._holding, self._turns.now)

    def grant(self, now: float) -> list[SourceId]:
        """Return who may dial now, in order of service; their permits are taken."""
        self._turns.tick(now)
        self._lose_patience(now)
        granted = []
        while self._rate.opens_at(now) <= now and (line := self._turns.next()) is not None:
            self._permits += 1
            favoured = self._favoured(now) if self._permits % FAVOUR == 0 else None
            granted.append(self._take(favoured or line, now))
            if favoured is None:
                self._turns.served(line)
        return granted

    def next_at(self, now: float) -> float | None:
        """Return when `grant` could give something by the passing of time alone; None: never."""
        if not self._requests:
            return None
        at = max(now, self._turns.next_at(), self._rate.opens_at(now))
        return None if at == inf else at

    def change(
        self, limits: Limits, now: float, *, leaving: Collection[SourceId] = ()
    ) -> list[SourceId]:
        """Go on with other limits; return who must give back all the slots that it holds.

        Empty while no count is lower than what is held. Those `leaving` give theirs back anyway.
        """
        self._turns.tick(now)
        self._limits, self._since = limits, now
        self._forget(now)
        burst = limits.connect_burst
        self._whole.cap = limits.whole.max_connections
        self._rate.gate = rates.changed(self._rate.gate, limits.whole.connect_rate, burst, now)
        for (kind, name), (slots, rate) in self._places.items():
            cap = limits.of_account(name) if kind == "account" else limits.per_endpoint
            slots.cap = cap.max_connections
            rate.gate = rates.changed(rate.gate, cap.connect_rate, burst, now)
        places = itertools.chain([self._whole], *self._places.values(), self._throttles.places)
        self._turns.restart(self._lines.values(), places)
        staying = {name: held for name, held in self._holding.items() if name not in leaving}
        return yielding.surplus(staying)

    def succeeded(self, source: SourceId, now: float) -> str | None:
        """The source's dial was accepted: its throttled rate, if it has one, recovers a little.

        Returns a sentence when it has recovered all of it.
        """
        self._turns.now = now
        dial = self._last_dial.get(source)
        if dial is None:
            return None
        told = self._throttles.accepted(dial.pair, dial.granted_at, now)
        for place in (dial.pair, dial.pair.crowd):
            self._turns.opened(place)
        return told

    def throttled(
        self, source: SourceId, dialed_at: float, retry_after_s: float | None, now: float
    ) -> str | None:
        """The server asked for fewer dials, in answer to one begun at `dialed_at`.

        `retry_after_s` is its own wish: honoured to an hour, whatever the rate. Returns a sentence
        when the rate fell.
        """
        self._turns.now = now
        dial = self._last_dial.get(source)
        if dial is None:
            return None
        return self._throttles.refused(dial.pair, dialed_at, retry_after_s, now)

    def rates(self, now: float) -> list[Throttled]:
        """Return every rate that is lower than configured, because its server asked for it."""
        return self._throttles.current(now)

    def why(self, source: SourceId) -> str:
        """Say in plain words what the source waits for, as of the last call that had a time."""
        request = self._requests.get(source)
        if request is None:
            return "holds a slot" if source in self._holding else "does not wait"
        reasons = (limit.blocks(self._turns.now) for limit in (*request.line.limits, self._rate))
        return next((reason for reason in reasons if reason is not None), "waits for its turn")

    def _gate(self, rate: float | None) -> Gcra | None:
        return rates.changed(None, rate, self._limits.connect_burst, self._since)

    def _place(self, kind: str, name: str) -> tuple[Place, Place]:
        known = self._places.get((kind, name))
        if known is None:
            limits = self._limits
            cap = limits.of_account(name) if kind == "account" else limits.per_endpoint
            title = f"{kind} {name}"
            known = (
                Place(title, cap.max_connections),
                Place(title, gate=self._gate(cap.connect_rate)),
            )
            self._places[kind, name] = known
        return known

    def _line(self, rank: Rank, account: str, address: str, handover: bool) -> Line:
        line = self._lines.get((rank, account, address, handover))
        if line is not None:
            return line
        account_slots, account_rate = self._place("account", account)
        endpoint_slots, endpoint_rate = self._place("endpoint", address)
        pair = self._throttles.pair(account, address)
        slots: tuple[Place, ...] = () if handover else (account_slots, endpoint_slots, self._whole)
        line = Line(
            rank=rank,
            address=address,
            account=account_slots,
            limits=(*slots, account_rate, endpoint_rate, pair.crowd, pair),
            slots=slots,
            home=account_rate,
            pair=pair,
        )
        self._turns.add(line)
        self._lines[rank, account, address, handover] = line
        self._account_lines.setdefault(account, []).append(line)
        return line

    def _join(self, source: SourceId, request: _Request) -> None:
        self.withdraw(source)
        self._requests[source] = request
        line = request.line
        line.join(source, request.ticket)
        self._turns.joined(line, source)

    def _take(self, line: Line, now: float) -> SourceId:
        """Take the head out of a line, and all its permits."""
        source = line.head
        del line.queue[source]
        del self._requests[source]
        self._rate.take(now)
        for limit in line.limits:
            limit.take(now)
        if line.slots:
            for place in line.slots:
                place.held += 1
            self._holding.setdefault(source, deque()).append(Slot(line, next(self._numbers)))
        pair = self._throttles.pair(source.account, line.address)
        pair.dials(now)
        self._last_dial[source] = _Dial(pair, now)
        return source

    def _lose_patience(self, now: float) -> None:
        """Give the first rank to those that have waited too long."""
        if now < self._patience_due:
            return
        self._patience_due = now + PATIENCE_CHECK_S
        lines: dict[Line, None] = {}
        for source, request in list(self._requests.items()):
            line = request.line
            if request.since + PATIENCE_S > now:
                continue
            if line.rank is not Rank.LOST:
                line = self._line(Rank.LOST, source.account, line.address, not line.slots)
                self._join(source, _Request(request.ticket, request.since, line))
            lines[line] = None
        self._impatient = list(lines)

    def _favoured(self, now: float) -> Line | None:
        """Return the line whose head has waited longest of those that have waited too long.

        None when limits block all of them, or a slot that they need is wanted more elsewhere.
        """
        able = (
            line
            for line in self._impatient
            if line.queue
            and self._requests[line.head].since + PATIENCE_S <= now
            and all(limit.opens_at(now) <= now for limit in line.limits)
            and not self._deprives(line, now)
        )
        return min(able, key=lambda line: line.queue[line.head], default=None)

    def _deprives(self, line: Line, now: float) -> bool:
        """Say whether it would take a last slot that an account with fewer waits for."""
        last = [place for place in line.slots if place.cap == place.held + 1]
        return bool(last) and any(
            other.queue
            and other.account.held < line.account.held
            and any(place in other.slots for place in last)
            and not any(place.full for place in other.slots)
            and other.pair.stopped_until <= now
            for other in self._lines.values()
        )

    def _forget(self, now: float) -> None:
        """Let go of accounts and endpoints that nobody waits for, holds, or was throttled at."""
        held = {slot.line for holding in self._holding.values() for slot in holding}
        self._lines = {key: line for key, line in self._lines.items() if line.queue or line in held}
        self._impatient = [line for line in self._impatient if line.queue]
        self._account_lines = {}
        for (_, account, _, _), line in self._lines.items():
            self._account_lines.setdefault(account, []).append(line)
        used = {(account, address) for _, account, address, _ in self._lines}
        self._throttles.change(self._limits, used, now)
        pairs = set(self._throttles.pairs)
        self._last_dial = {
            source: dial
            for source, dial in self._last_dial.items()
            if dial.pair in pairs and (source in self._holding or source in self._requests)
        }
        names = {("account", pair.account) for pair in pairs}
        names |= {("endpoint", pair.address) for pair in pairs}
        self._places = {key: places for key, places in self._places.items() if key in names}
