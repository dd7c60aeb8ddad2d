"""What the emulator does wrong on request: whom it meets, and the rules that meet handshakes."""

from __future__ import annotations

import math

from attrs import define, field, frozen

from hypermux.emulator.handshake import Answer


@frozen
class Target:
    """Whom an order is for: an account, a region, one connection; None is any."""

    account: str | None = None
    region: str | None = None
    connection: int | None = None

    def covers(
        self, account: str | None, region: str | None, connection: int | None = None
    ) -> bool:
        """Whether it is for such a one; an account not known (None) is no named one."""
        return (
            self.account in (None, account)
            and self.region in (None, region)
            and self.connection in (None, connection)
        )


@define(eq=False)
class Refusal:
    """Refuse the next `left` handshakes of the target with this answer; None: all of them."""

    target: Target
    answer: Answer
    left: int | None


@define(eq=False)
class HandshakeFaults:
    """The rules in force; the latest that covers a handshake counts."""

    _refusals: list[Refusal] = field(factory=list)
    _delays: dict[Target, float] = field(factory=dict)

    def refuse(self, target: Target, answer: Answer, count: int | None) -> None:
        """Refuse `count` handshakes from now on, replacing the target's earlier rule; 0 ends it."""
        self._refusals = [rule for rule in self._refusals if rule.target != target]
        if count != 0:
            self._refusals.append(Refusal(target, answer, count))

    def delay(self, target: Target, seconds: float) -> None:
        """Answer the target's handshakes that late from now on; 0 ends it."""
        self._delays.pop(target, None)
        if seconds > 0:
            self._delays[target] = seconds

    def refusal(self, account: str | None, region: str | None) -> Answer | None:
        """Return the refusal that this handshake gets, and count it."""
        for rule in reversed(self._refusals):
            if rule.target.covers(account, region):
                if rule.left is not None:
                    rule.left -= 1
                    if rule.left <= 0:
                        self._refusals.remove(rule)
                return rule.answer
        return None

    def delay_of(self, account: str | None, region: str | None) -> float:
        """Return how many seconds late this handshake is answered."""
        for target, seconds in reversed(self._delays.items()):
            if target.covers(account, region):
                return seconds
        return 0.0


@define(eq=False)
class RateLimit:
    """A token bucket as its theoretical arrival time (GCRA): `rate` per second, `burst` at once."""

    rate: float
    burst: int
    _full_at_s: float = -math.inf

    def admit(self, now_s: float) -> float:
        """Return 0 when admitted, else the seconds until the next would be."""
        wait_s = self._full_at_s - (self.burst - 1) / self.rate - now_s
        # Rounding is not to refuse who comes exactly in time.
        if wait_s > 1e-9:
            return wait_s
        self._full_at_s = max(now_s, self._full_at_s) + 1 / self.rate
        return 0.0
