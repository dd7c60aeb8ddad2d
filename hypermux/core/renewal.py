"""When a key that expires is looked for anew."""

from __future__ import annotations

from random import Random

_SECOND = 1_000_000_000
# Long enough for a dial of every source of an account at a modest rate; of a key that lives for
# minutes it is a fifth, so that it is used for most of its life.
AHEAD_NS = 5 * 60 * _SECOND
AHEAD_PART = 0.2
# Accounts whose keys end at the same time ask for new ones up to half as much earlier still.
SPREAD = 0.5
# A program that goes on giving the same key is not asked more often than this.
LEAST_NS = _SECOND


def renew_at_ns(expires_ns: int, now_ns: int, *, rng: Random) -> int:
    """Return when to look for the successor of a key that ends at `expires_ns`; past `now_ns`."""
    ahead_ns = min(AHEAD_NS, (expires_ns - now_ns) * AHEAD_PART)
    ahead_ns *= 1.0 + SPREAD * rng.random()
    return max(now_ns + LEAST_NS, expires_ns - int(ahead_ns))
