"""How long to wait for what is still under way: a window that follows the observed lateness.

Lateness is how long after its own (corrected) time an event was received. A source found silent
at some moment has nothing older than that moment less its window, but for one event in a thousand.

The histogram halves its counts every two minutes, so that the window shrinks within a quarter of
an hour of a bad spell, and still stands on thousands of events. Its buckets are a tenth apart, and
begin where the shortest window does.
"""

from __future__ import annotations

from bisect import bisect_left

SHORTEST_NS = 50_000_000
QUANTILE = 0.999
MARGIN = 1.25

# Below so many samples a 99.9th percentile says nothing: a source goes by the lateness of all.
ENOUGH = 1000
# It goes back to that only well below, so that halving alone does not make it change sides.
TOO_FEW = 500
# And where all sources together are too few: rather a little slow than out of order.
COLD_NS = 500_000_000

HALF_LIFE_NS = 120_000_000_000
_GROWTH = 1.1


class Scale:
    """The buckets: upper edges of lateness, and the window that each of them asks for."""

    __slots__ = ("cold_ns", "edges", "windows")

    def __init__(self, max_hold_ns: int) -> None:
        """Reach from the shortest window, or `max_hold_ns` when that is less, to `max_hold_ns`."""
        shortest = min(SHORTEST_NS, max_hold_ns)
        windows = [shortest]
        while windows[-1] * _GROWTH < max_hold_ns:
            windows.append(int(windows[-1] * _GROWTH))
        windows.append(max_hold_ns)
        self.windows = windows
        # What is later than the last edge counts to the last bucket.
        self.edges = [int(window / MARGIN) for window in windows[:-1]]
        self.cold_ns = min(COLD_NS, max_hold_ns)


class Lateness:
    """A decaying histogram of lateness over the buckets of a `Scale`."""

    __slots__ = ("_halve_ns", "counts", "scale")

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.counts = [0] * len(scale.windows)
        self._halve_ns = 0

    def add(self, lateness_ns: int) -> None:
        """Count one event; the merge has this inline."""
        self.counts[bisect_left(self.scale.edges, lateness_ns)] += 1

    def decay(self, now_ns: int) -> int:
        """Halve the counts if it is time to; return how many there are."""
        if now_ns >= self._halve_ns:
            # Silence decays nothing but once: what was true before it is the best guess after it.
            if self._halve_ns:
                self.counts = [count >> 1 for count in self.counts]
            self._halve_ns = now_ns + HALF_LIFE_NS
        return sum(self.counts)

    def window_ns(self) -> int:
        """Return the window by which all but a thousandth of the events would be in time."""
        counts = self.counts
        over = int(sum(counts) * (1.0 - QUANTILE))
        index = len(counts) - 1
        while index and counts[index] <= over:
            over -= counts[index]
            index -= 1
        return self.scale.windows[index]
