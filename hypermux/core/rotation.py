"""When an open connection is to be replaced by a new one, before its server ends it.

A server that ends every connection at a fixed age would have those that began together come back
together, each with a gap. So each is replaced earlier, in peace, and at an age of its own.

Rules
- Due at an age drawn from the last `SPREAD` of `rotate_after`: a thousand connections of one
  moment are replaced over three hours, not at once.
- The old connection is kept while the new one is dialed, which takes a spare slot. Where none
  comes within `SPARE_PATIENCE` of `rotate_after`, the old one's own slot is handed over: one short
  gap. Waiting that long costs nothing, and a single spare slot serves one rotation after another.
- For a renewed credential the old connection is kept as long as its age allows: nobody knows yet
  whether the new key is accepted.
- A replacement that is refused leaves the old connection alone, and is tried again: with backoff,
  or, where only a change of the configuration helps, as rarely as any refused source.
"""

from __future__ import annotations

from math import inf
from random import Random
from typing import Literal

from attrs import define, field

from hypermux.core import backoff
from hypermux.core.verdicts import Verdict

SPREAD = 0.15
SPARE_PATIENCE = 0.02

Cause = Literal["rotation", "credential"]

# A clock that is still off after its correction passes no more than a wrong key does.
_PASSING = (Verdict.RETRY, Verdict.SKEWED, Verdict.THROTTLED)


@define(eq=False)
class Rotation:
    """One source's schedule. Times are monotonic seconds; `rotate_after_s` None: never by age."""

    rotate_after_s: float | None
    _min_s: float = field(kw_only=True)
    _max_s: float = field(kw_only=True)
    _rng: Random = field(kw_only=True)
    due_s: float = field(default=inf, init=False)
    cause: Cause = field(default="rotation", init=False)
    _old_s: float = field(default=inf, init=False)  # when its age alone is enough
    _failures: int = field(default=0, init=False)
    _skewed: bool = field(default=False, init=False)

    def opened(self, now: float) -> None:
        """A connection has opened: the next one is due when it is old."""
        self._failures = 0
        self._skewed = False
        self.cause = "rotation"
        if self.rotate_after_s is None:
            self._old_s = inf
        else:
            self._old_s = now + self.rotate_after_s * (1.0 - SPREAD * self._rng.random())
        self.due_s = self._old_s

    def retime(self, rotate_after_s: float | None, min_s: float, max_s: float) -> None:
        """Go by other times, from the next connection on."""
        self.rotate_after_s, self._min_s, self._max_s = rotate_after_s, min_s, max_s

    def renew(self, now: float) -> None:
        """Another credential is to be used: due now."""
        self.cause = "credential"
        self.due_s = now
        self._failures = 0

    def patient_until(self, now: float) -> float:
        """Return until when to wait for a spare slot; inf: the own slot is never handed over."""
        if self.rotate_after_s is None:
            return inf
        begun_s = max(now, self._old_s) if self.cause == "credential" else now
        return begun_s + SPARE_PATIENCE * self.rotate_after_s

    def failed(self, verdict: Verdict, now: float, *, retry_after_s: float | None = None) -> None:
        """The replacement was refused or broke: due again after a while."""
        again, self._skewed = self._skewed, verdict is Verdict.SKEWED
        if verdict in _PASSING and not (again and self._skewed):
            delay_s = backoff.full_jitter(
                self._failures, min_s=self._min_s, max_s=self._max_s, rng=self._rng
            )
            if retry_after_s is not None:
                delay_s += backoff.retry_after(retry_after_s)
        else:
            delay_s = backoff.probe_delay(self._failures, rng=self._rng)
        self._failures += 1
        self.due_s = now + delay_s
