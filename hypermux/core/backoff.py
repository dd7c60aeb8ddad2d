"""How long to wait after a failure.

The constants are chosen by the load they cause. A source that fails for good dials on average
every `(min + max) / 2`, about 30 s: a thousand such sources ask for 33 dials a second, of which
the limiter lets through what its rates allow. After one shared outage the first delays are spread
over half a second only, because there the limiter, not the jitter, is what keeps the rate.

Full jitter (a uniform draw over the whole range) rather than a fixed part plus noise: it spreads
sources that failed at the same moment best. Its floor is `min_s`, never zero, so that no single
source is ever retried hot.
"""

from __future__ import annotations

from random import Random

# A server's `Retry-After` is believed up to this; beyond it an outage by a typing error at the
# server would look like ours.
MAX_RETRY_AFTER_S = 3600.0

# Refused for a reason that time alone rarely mends (credentials, certificate, wrong address):
# one look every quarter of an hour, then ever fewer, four a day at the least.
PROBE_MIN_S = 15 * 60.0
PROBE_MAX_S = 6 * 3600.0
# Sources refused together drift apart by up to this part of the delay, and never probe early.
PROBE_SPREAD = 0.1

_MAX_DOUBLINGS = 64  # 2.0 ** 64 is far over any max_s, and far from overflow


def full_jitter(attempt: int, *, min_s: float, max_s: float, rng: Random) -> float:
    """Return the delay in seconds before the next attempt, from `min_s` up to `max_s`.

    `attempt` counts the failures in a row before this one: 0 for the first.
    """
    ceiling = min(max_s, min_s * 2.0 ** min(attempt + 1, _MAX_DOUBLINGS))
    return rng.uniform(min_s, max(min_s, ceiling))


def probe_delay(probe: int, *, rng: Random) -> float:
    """Return the delay in seconds before looking again at a refused source.

    `probe` counts the refusals in a row before this one: 0 for the first.
    """
    delay = PROBE_MIN_S * 2.0 ** min(probe, _MAX_DOUBLINGS)
    return min(PROBE_MAX_S, delay * (1.0 + PROBE_SPREAD * rng.random()))


def spread(range_s: tuple[float, float], *, max_s: float, rng: Random) -> float:
    """Return a delay in seconds drawn from `range_s`, which `max_s` cuts off."""
    least_s, most_s = range_s
    return rng.uniform(min(least_s, max_s), min(most_s, max_s))


def retry_after(asked_s: float) -> float:
    """Return what of a server's `Retry-After` (seconds) is honoured."""
    return min(max(asked_s, 0.0), MAX_RETRY_AFTER_S)
