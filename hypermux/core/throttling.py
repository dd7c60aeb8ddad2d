"""What servers ask for: the rates that their refusals bring dials down to.

Rules
- A throttled dial halves the rate that its account sees at its endpoint, once per wave: only dials
  begun after the last decrease count. Each success after it gives back a hundredth. `Retry-After`
  stops the account at that endpoint altogether.
- When a server refuses several accounts within seconds, none of which dials often or was refused
  before, it is not their rates that are too high but that of all together: the endpoint's is halved
  likewise. With many accounts each one's own part is too small for its halving to tell. An account
  that is refused over and over says nothing about the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import inf

from attrs import define, field, frozen

from hypermux.core.rates import Throttle
from hypermux.core.turns import Place
from hypermux.model.accounts import Limits

# How many accounts within how many seconds: two may share a bad moment, three hardly do.
CROWD = 3
CROWD_S = 10.0
# Who dials more often may well be over its own rate.
SPARSE_S = 1.0
# What a throttled dial halves where no rate is configured at all.
UNLIMITED_PER_S = 10.0


@frozen
class Throttled:
    """What a server has brought the dials at its endpoint down to, per second.

    Those of one account, or with None of all together. `stopped_until` is the end of its
    `Retry-After` (monotonic seconds), if it gave one.
    """

    account: str | None
    address: str
    rate: float
    configured: float
    stopped_until: float | None


@define(eq=False)
class Crowd(Place):
    """An endpoint as all accounts together see it: no limit until its server throttles several."""

    throttle: Throttle = field(kw_only=True)
    # The accounts that were refused lately, and when.
    refused: dict[str, float] = field(factory=dict)


@define(eq=False)
class Pair(Place):
    """An endpoint as one account sees it: no limit until its server throttles a dial."""

    account: str = field(kw_only=True)
    address: str = field(kw_only=True)
    throttle: Throttle = field(kw_only=True)
    crowd: Crowd = field(kw_only=True)
    # Whether its last answer was no.
    refused: bool = False
    # When it dialed last, and how long after the time before.
    dialed_at: float = -inf
    spacing_s: float = inf

    def dials(self, now: float) -> None:
        """A dial of this account begins."""
        self.spacing_s, self.dialed_at = now - self.dialed_at, now


class Throttles:
    """Every account at every endpoint. `now` is monotonic seconds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._crowds: dict[str, Crowd] = {}

    def pair(self, account: str, address: str) -> Pair:
        """Return an account at an endpoint."""
        pair = self._pairs.get((account, address))
        if pair is None:
            pair = Pair(
                f"endpoint {address} for account {account}",
                account=account,
                address=address,
                throttle=_throttle(self._configured(account)),
                crowd=self._crowd(address),
            )
            self._pairs[account, address] = pair
        return pair

    @property
    def pairs(self) -> Collection[Pair]:
        """Every account at every endpoint that it remembers."""
        return self._pairs.values()

    @property
    def places(self) -> Iterator[Place]:
        """All that may hold a dial back."""
        yield from self._pairs.values()
        yield from self._crowds.values()

    def change(self, limits: Limits, used: set[tuple[str, str]], now: float) -> None:
        """Go on with other limits; what is neither used nor lowered is forgotten."""
        self._limits = limits
        self._pairs = {k: pair for k, pair in self._pairs.items() if k in used or _low(pair, now)}
        addresses = {address for _, address in self._pairs}
        self._crowds = {k: crowd for k, crowd in self._crowds.items() if k in addresses}
        for (account, _), pair in self._pairs.items():
            pair.throttle.reconfigure(pair, self._configured(account), now)
        for crowd in self._crowds.values():
            crowd.throttle.reconfigure(crowd, self._configured(None), now)

    def accepted(self, pair: Pair, dialed_at: float, now: float) -> str | None:
        """A dial succeeded. Returns a sentence when a rate has recovered all of what it lost."""
        pair.refused = False
        crowd = pair.crowd
        told = [
            f"{place.name} accepts connections at {_rate(place.throttle.rate)} again"
            for place in (crowd, pair)
            if place.throttle.increase(place, dialed_at, now)
        ]
        return "; ".join(told) or None

    def refused(
        self, pair: Pair, dialed_at: float, retry_after_s: float | None, now: float
    ) -> str | None:
        """A dial was throttled. Returns a sentence when a rate fell."""
        crowd = pair.crowd
        fell: list[Crowd | Pair] = []
        if self._crowded(pair, dialed_at, now) and crowd.throttle.decrease(crowd, dialed_at, now):
            fell.append(crowd)
        if pair.throttle.decrease(pair, dialed_at, now):
            fell.append(pair)
        pair.refused = True
        if retry_after_s is not None:
            Throttle.stop(pair, retry_after_s, now)
        told = [
            f"{place.name} asks for fewer connections: now {_rate(place.throttle.rate)}, "
            f"configured {_rate(place.throttle.configured)}"
            for place in fell
        ]
        return "; ".join(told) or None

    def current(self, now: float) -> list[Throttled]:
        """Return every rate that is lower than configured, the endpoints' own first."""
        low: list[tuple[str | None, str, Crowd | Pair]] = [
            (None, address, crowd) for address, crowd in sorted(self._crowds.items())
        ]
        low += [(*key, pair) for key, pair in sorted(self._pairs.items(), key=lambda kv: kv[0])]
        return [
            Throttled(
                account,
                address,
                place.throttle.rate,
                place.throttle.configured,
                place.stopped_until if place.stopped_until > now else None,
            )
            for account, address, place in low
            if _low(place, now)
        ]

    @staticmethod
    def _crowded(pair: Pair, dialed_at: float, now: float) -> bool:
        """Note that a pair was refused; return whether that makes one too many."""
        crowd = pair.crowd
        alone = pair.refused or pair.spacing_s < SPARSE_S
        if alone or dialed_at <= crowd.throttle.decreased_at:
            return False
        lately = {name: at for name, at in crowd.refused.items() if at + CROWD_S > now}
        crowd.refused = lately | {pair.account: now}
        if len(crowd.refused) < CROWD:
            return False
        crowd.refused = {}
        return True

    def _crowd(self, address: str) -> Crowd:
        if address not in self._crowds:
            throttle = _throttle(self._configured(None))
            self._crowds[address] = Crowd(f"endpoint {address} for all", throttle=throttle)
        return self._crowds[address]

    def _configured(self, account: str | None) -> float:
        """Return the lowest rate that dials at one endpoint are configured to."""
        caps = [self._limits.whole, self._limits.per_endpoint]
        if account is not None:
            caps.append(self._limits.of_account(account))
        known = (cap.connect_rate for cap in caps)
        return min((rate for rate in known if rate is not None), default=UNLIMITED_PER_S)


def _throttle(configured: float) -> Throttle:
    return Throttle(configured, configured)


def _low(place: Place, now: float) -> bool:
    return place.gate is not None or place.stopped_until > now


def _rate(per_s: float) -> str:
    return f"{per_s:.3g}/s" if per_s >= 0.1 else f"{per_s * 60:.3g}/min"
