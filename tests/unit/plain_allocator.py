"""The allocator's rules in the plainest way: everybody who waits is asked, every time.

It shares the arithmetic of one rate (`Gcra`) with the real one, and nothing else; what a rate lets
through is checked by `Ledger`, by counting.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from math import inf

from attrs import define, field, frozen

from hypermux.core.limiter import FAVOUR, PATIENCE_CHECK_S, PATIENCE_S, Rank
from hypermux.core.rates import FLOOR_PER_S, RECOVERY, Gcra
from hypermux.core.throttling import CROWD, CROWD_S, SPARSE_S, UNLIMITED_PER_S
from hypermux.model.accounts import Cap, Limits, SourceId

PROCESS = "process"


@frozen
class Wish:
    rank: Rank
    ticket: int
    address: str
    handover: bool
    since: float


@define(eq=False)
class Slow:
    """What a server has brought dials at one endpoint down to: one account's, or all."""

    configured: float
    rate: float
    gate: Gcra | None = None
    decreased_at: float = -inf
    stopped_until: float = -inf
    denied: bool = False
    times: list[float] = field(factory=list)
    refused: list[tuple[float, str]] = field(factory=list)

    def halve(self, dialed_at: float, now: float) -> bool:
        if dialed_at <= self.decreased_at:
            return False
        before, self.rate = self.rate, max(self.rate / 2, min(FLOOR_PER_S, self.configured))
        self.gate, self.decreased_at = Gcra(self.rate, 1, now), now
        return self.rate < before

    def recover(self, dialed_at: float, now: float) -> bool:
        if self.gate is None or dialed_at <= self.decreased_at:
            return False
        self.rate = min(self.configured, self.rate + RECOVERY * self.configured)
        if self.rate < self.configured:
            self.gate.change(self.rate, now)
            return False
        self.gate = None
        return True

    def reconfigure(self, configured: float, now: float) -> None:
        part = self.rate / self.configured
        self.configured = self.rate = configured
        if self.gate is not None:
            self.rate = max(part * configured, min(FLOOR_PER_S, configured))
            self.gate.change(self.rate, now)


@define(eq=False)
class Plain:
    limits: Limits
    since: float = 0.0
    waiting: dict[SourceId, Wish] = field(factory=dict)
    # What each source holds, the oldest first: the address, and the when-th slot of all.
    holding: dict[SourceId, list[tuple[str, int]]] = field(factory=lambda: defaultdict(list))
    gates: dict[str, Gcra] = field(factory=dict)
    slow: dict[tuple[str, str], Slow] = field(factory=dict)
    crowds: dict[str, Slow] = field(factory=dict)
    last: dict[SourceId, tuple[tuple[str, str], float]] = field(factory=dict)
    impatient: set[tuple[str, str, bool]] = field(factory=set)
    look_at: float = PATIENCE_S
    permits: int = 0
    numbers: int = 0

    def __attrs_post_init__(self) -> None:
        self.gate(PROCESS, self.limits.whole)

    # -- what holds

    def caps(self, source: SourceId, address: str) -> list[tuple[str, Cap]]:
        return [
            (PROCESS, self.limits.whole),
            (f"@{source.account}", self.cap(f"@{source.account}")),
            (address, self.limits.per_endpoint),
        ]

    def cap(self, name: str) -> Cap:
        if name == PROCESS:
            return self.limits.whole
        if name[0] != "@":
            return self.limits.per_endpoint
        own, common = self.limits.account_caps.get(name[1:], Cap()), self.limits.per_account
        return Cap(
            own.max_connections if own.max_connections is not None else common.max_connections,
            own.connect_rate if own.connect_rate is not None else common.connect_rate,
        )

    def held(self) -> Counter[str]:
        return Counter(
            name
            for source, slots in self.holding.items()
            for address, _ in slots
            for name, _ in self.caps(source, address)
        )

    def configured(self, account: str | None) -> float:
        caps = [self.limits.whole, self.limits.per_endpoint]
        if account is not None:
            caps.append(self.cap(f"@{account}"))
        rates = (cap.connect_rate for cap in caps)
        return min((rate for rate in rates if rate is not None), default=UNLIMITED_PER_S)

    def gate(self, name: str, cap: Cap) -> Gcra | None:
        if cap.connect_rate is None:
            return None
        if name not in self.gates:
            self.gates[name] = Gcra(cap.connect_rate, self.limits.connect_burst, self.since)
        return self.gates[name]

    # -- requests

    def request(
        self, source: SourceId, address: str, rank: Rank, now: float, handover: bool
    ) -> None:
        pair = source.account, address
        own, common = self.configured(source.account), self.configured(None)
        self.slow.setdefault(pair, Slow(own, own))
        self.crowds.setdefault(address, Slow(common, common))
        for name, cap in self.caps(source, address):
            self.gate(name, cap)
        earlier = self.waiting.pop(source, None)
        if earlier is not None and earlier.address == address:
            ticket, since = earlier.ticket, earlier.since
        else:
            self.numbers += 1
            ticket, since = self.numbers, now
        self.waiting[source] = Wish(rank, ticket, address, handover, since)

    def release(self, source: SourceId) -> None:
        self.holding[source].pop(0)
        if not self.holding[source]:
            del self.holding[source]

    # -- grants

    def able(self, now: float) -> list[SourceId]:
        held = self.held()
        return [source for source in self.waiting if self.passes(source, held, now)]

    def passes(self, source: SourceId, held: Counter[str], now: float) -> bool:
        wish = self.waiting[source]
        slow = self.slow[source.account, wish.address]
        gates = [slow.gate, self.crowds[wish.address].gate]
        if slow.stopped_until > now or any(g is not None and g.ready_at(now) > now for g in gates):
            return False
        for name, cap in self.caps(source, wish.address):
            gate = self.gate(name, cap)
            if gate is not None and gate.ready_at(now) > now:
                return False
        return wish.handover or not self.full(source, wish.address, held)

    def full(self, source: SourceId, address: str, held: Counter[str]) -> bool:
        caps = self.caps(source, address)
        return any(c.max_connections is not None and held[n] >= c.max_connections for n, c in caps)

    def grant(self, now: float) -> list[SourceId]:
        self.lose_patience(now)
        granted = []
        while able := self.able(now):
            held = self.held()
            self.permits += 1
            favoured = self.favoured(able, held, now) if self.permits % FAVOUR == 0 else []
            source = min(favoured, default=None, key=lambda s: self.waiting[s].ticket) or min(
                able,
                key=lambda s: (self.waiting[s].rank, held[f"@{s.account}"], self.waiting[s].ticket),
            )
            wish = self.waiting.pop(source)
            for name, cap in self.caps(source, wish.address):
                gate = self.gate(name, cap)
                if gate is not None:
                    gate.take(now)
            pair = source.account, wish.address
            self.slow[pair].times.append(now)
            for slow in (self.slow[pair], self.crowds[wish.address]):
                if slow.gate is not None:
                    slow.gate.take(now)
            if not wish.handover:
                self.numbers += 1
                self.holding[source].append((wish.address, self.numbers))
            self.last[source] = pair, now
            granted.append(source)
        return granted

    def lose_patience(self, now: float) -> None:
        if now < self.look_at:
            return
        self.look_at = now + PATIENCE_CHECK_S
        self.impatient = set()
        for source, wish in self.waiting.items():
            if wish.since + PATIENCE_S <= now:
                first = Wish(Rank.LOST, wish.ticket, wish.address, wish.handover, wish.since)
                self.waiting[source] = first
                self.impatient.add((source.account, wish.address, wish.handover))

    def favoured(self, able: list[SourceId], held: Counter[str], now: float) -> list[SourceId]:
        return [
            source
            for source in able
            if (wish := self.waiting[source]).rank is Rank.LOST
            and (source.account, wish.address, wish.handover) in self.impatient
            and self.heads(source)
            and wish.since + PATIENCE_S <= now
            and (wish.handover or not self.deprives(source, held, now))
        ]

    def heads(self, source: SourceId) -> bool:
        """Whether nobody has waited longer for the same."""
        mine = self.waiting[source]
        return not any(
            other.ticket < mine.ticket
            and (s.account, other.rank, other.address, other.handover)
            == (source.account, mine.rank, mine.address, mine.handover)
            for s, other in self.waiting.items()
        )

    def deprives(self, source: SourceId, held: Counter[str], now: float) -> bool:
        last = {
            name
            for name, cap in self.caps(source, self.waiting[source].address)
            if cap.max_connections is not None and held[name] + 1 == cap.max_connections
        }
        return any(
            not wish.handover
            and held[f"@{other.account}"] < held[f"@{source.account}"]
            and last & {name for name, _ in self.caps(other, wish.address)}
            and not self.full(other, wish.address, held)
            and self.slow[other.account, wish.address].stopped_until <= now
            for other, wish in self.waiting.items()
        )

    # -- what servers ask for

    def throttled(self, source: SourceId, dialed_at: float, wait: float | None, now: float) -> bool:
        if source not in self.last:
            return False
        pair = self.last[source][0]
        slow, crowd = self.slow[pair], self.crowds[pair[1]]
        fell = False
        sparse = len(slow.times) < 2 or slow.times[-1] - slow.times[-2] >= SPARSE_S
        if sparse and not slow.denied and dialed_at > crowd.decreased_at:
            crowd.refused.append((now, pair[0]))
            lately = {account for at, account in crowd.refused if at + CROWD_S > now}
            if len(lately) >= CROWD:
                crowd.refused.clear()
                fell = crowd.halve(dialed_at, now)
        slow.denied = True
        fell |= slow.halve(dialed_at, now)
        if wait is not None:
            slow.stopped_until = max(slow.stopped_until, now + min(wait, 3600.0))
        return fell

    def succeeded(self, source: SourceId, now: float) -> bool:
        if source not in self.last:
            return False
        pair, granted_at = self.last[source]
        self.slow[pair].denied = False
        of_all = self.crowds[pair[1]].recover(granted_at, now)
        return self.slow[pair].recover(granted_at, now) or of_all

    # -- other limits

    def change(self, limits: Limits, now: float) -> None:
        self.limits, self.since = limits, now
        known = [*self.waiting, *self.holding]
        wanted = {(s.account, w.address) for s, w in self.waiting.items()}
        wanted |= {(s.account, a) for s, slots in self.holding.items() for a, _ in slots}
        self.slow = {
            pair: slow
            for pair, slow in self.slow.items()
            if pair in wanted or slow.gate is not None or slow.stopped_until > now
        }
        self.impatient &= {
            (source.account, wish.address, wish.handover)
            for source, wish in self.waiting.items()
            if wish.rank is Rank.LOST
        }
        self.last = {
            s: last for s, last in self.last.items() if s in known and last[0] in self.slow
        }
        names = {PROCESS, *(f"@{a}" for a, _ in self.slow), *(e for _, e in self.slow)}
        for name in names | set(self.gates):
            rate = self.cap(name).connect_rate
            if rate is None or name not in names:
                self.gates.pop(name, None)
            elif name in self.gates:
                self.gates[name].change(rate, now, limits.connect_burst)
            else:
                self.gates[name] = Gcra(rate, limits.connect_burst, now)
        addresses = {address for _, address in self.slow}
        self.crowds = {name: crowd for name, crowd in self.crowds.items() if name in addresses}
        for (account, _), slow in self.slow.items():
            slow.reconfigure(self.configured(account), now)
        for crowd in self.crowds.values():
            crowd.reconfigure(self.configured(None), now)

    def over(self, without: set[SourceId]) -> bool:
        """Whether a count is exceeded, when some have given back all they hold."""
        held = Counter(
            name
            for source, slots in self.holding.items()
            if source not in without
            for address, _ in slots
            for name, _ in self.caps(source, address)
        )
        caps = ((self.cap(name).max_connections, count) for name, count in held.items())
        return any(cap is not None and count > cap for cap, count in caps)

    def contested(self, source: SourceId, now: float) -> bool:
        """Whether, after `source` gave one slot back, another without any would be served."""
        if source not in self.holding:
            return False
        held = self.held()
        waiting = [
            (other, wish)
            for other, wish in self.waiting.items()
            if not wish.handover
            and other not in self.holding
            and self.slow[other.account, wish.address].stopped_until <= now
            and self.full(other, wish.address, held)
        ]
        for name, _ in self.caps(source, self.holding[source][0][0]):
            held[name] -= 1
        return any(
            held[f"@{other.account}"] <= held[f"@{source.account}"]
            and not self.full(other, wish.address, held)
            for other, wish in waiting
        )


@define(eq=False)
class Ledger:
    """What one rate gave, and what it was: over any span no more than it allowed then."""

    rates: list[tuple[float, float | None, int]] = field(factory=list)
    taken: list[float] = field(factory=list)

    def rate(self, now: float, rate: float | None, burst: int) -> None:
        if not self.rates or self.rates[-1][1:] != (rate, burst):
            self.rates.append((now, rate, burst))

    def check(self) -> None:
        assert all(t <= u for t, u in itertools.pairwise(self.taken))
        for first, start in enumerate(self.taken):
            for last in range(first, len(self.taken)):
                allowed = self.allowed(start, self.taken[last])
                assert last - first + 1 <= allowed + 1e-4, (start, self.taken[last], self.rates)

    def allowed(self, start: float, end: float) -> float:
        permits, burst = 0.0, 0
        ends = [at for at, _, _ in self.rates[1:]] + [inf]
        for (begun, rate, most), ended in zip(self.rates, ends, strict=True):
            # At the moment of a change itself a permit may be of before or of after it.
            if begun > end or ended < start:
                continue
            if rate is None:
                return inf
            permits += rate * max(0.0, min(end, ended) - max(start, begun))
            burst = max(burst, most)
        return permits + burst
