"""When to ping a peer, so that one that fell silent is noticed.

A ping is due an interval after the last one was answered, and any byte answers it within the
timeout. A peer that falls silent right after an answer is noticed last: after a longest interval
and a timeout, 26.5 s with the defaults (15 s and 10 s). The interval is spread by a tenth, so that
connections that opened together do not ping together, nor are all lost in one moment.
"""

from __future__ import annotations

from random import Random

SPREAD = 0.1


def next_ping(interval_s: float, rng: Random) -> float:
    """Return how many seconds after the last answer to ping."""
    return interval_s * rng.uniform(1.0 - SPREAD, 1.0 + SPREAD)
