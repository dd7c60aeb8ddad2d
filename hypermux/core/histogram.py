"""Counting durations by size."""

from __future__ import annotations

from bisect import bisect_left

from attrs import define, field

# From a commit into the page cache to a disk that hangs.
BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


@define(eq=False)
class Histogram:
    """How many durations there were up to each of `bounds` (seconds, ascending), and their sum."""

    bounds: tuple[float, ...] = BOUNDS_S
    sum_s: float = 0.0
    _counts: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)

    def add(self, duration_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(self.bounds, duration_s)] += 1
        self.sum_s += duration_s

    def cumulative(self) -> list[tuple[float, int]]:
        """Return each bound, the last one infinite, with how many there were up to it."""
        found, total = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found
