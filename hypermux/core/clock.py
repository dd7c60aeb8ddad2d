"""The one clock that `received` times come from: it never goes back.

A wall clock that is stepped would reorder the stream and stop every hold, so the wall is read
once and the monotonic clock counts from there. A wall that has moved away by more than a second is
reported; a step forward is followed, a step back is not (following it would mean going back).
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

# Slewing by NTP stays far below this; a step is what an operator has to know of.
STEP_NS = 1_000_000_000


@define(eq=False)
class StreamClock:
    """Nanoseconds since 1970 that never decrease.

    `monotonic` gives seconds from an arbitrary start, `wall` nanoseconds since 1970.
    """

    monotonic: Callable[[], float]
    wall: Callable[[], int]
    _anchor_ns: int = field(init=False)
    _zero_s: float = field(init=False)
    _last_ns: int = field(init=False, default=0)
    _ignored_ns: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._anchor_ns = self.wall()
        self._zero_s = self.monotonic()

    def not_before(self, moment_ns: int) -> None:
        """Go on from `moment_ns` at the least: an earlier run's records reach to there.

        Raised at a start whose wall clock was set back; `check_wall` then tells by how much.
        """
        self._anchor_ns += max(0, moment_ns - self.now_ns())

    def now_ns(self) -> int:
        """Return the present moment."""
        now = self._anchor_ns + int((self.monotonic() - self._zero_s) * 1e9)
        if now > self._last_ns:
            self._last_ns = now
        return self._last_ns

    def seconds_until(self, moment_ns: int) -> float:
        """Return the seconds from now to `moment_ns`, 0 when it has passed."""
        return max(0.0, (moment_ns - self.now_ns()) / 1e9)

    def check_wall(self) -> int | None:
        """Return by how many nanoseconds the wall clock was stepped, None when it was not.

        A step is reported once.
        """
        ahead = self.wall() - self.now_ns()
        step = ahead - self._ignored_ns
        if abs(step) <= STEP_NS:
            return None
        if ahead > 0:
            self._anchor_ns += ahead
            self._ignored_ns = 0
        else:
            self._ignored_ns = ahead
        return step
