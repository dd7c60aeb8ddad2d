"""What running a configuration means: how long connecting takes, and who stays without a slot.

The allocator itself is asked, in imagined time: what it would do is what it says.
"""

from __future__ import annotations

from collections import Counter

from attrs import frozen

from hypermux.config.settings import Settings
from hypermux.config.units import format_rate
from hypermux.core.limiter import Rank
from hypermux.model.accounts import SourceId

# One for a subscriber's socket, one for the segment that it reads.
_FILES_PER_SUBSCRIBER = 2
# The journal, its directory and lock, the sockets we listen on, DNS, dials under way, stdio.
_FILES_OF_OUR_OWN = 64
_LONG_AFTER_S = 1e6


@frozen
class Forecast:
    """When every source that gets a slot has been dialed (seconds from the start, if nothing
    fails), which rate decides it, who waits for a slot and why, and the open files it takes.
    """

    connected: int
    seconds: float
    slowest: str
    surplus: tuple[tuple[SourceId, str], ...]
    open_files: int


def forecast(settings: Settings) -> Forecast:
    """Return what starting `settings` would come to."""
    allocator = settings.allocator(0.0)
    for source in settings.sources:
        allocator.request(source.id, source.endpoint.address, Rank.NEW, 0.0)
    now = ended = 0.0
    dialed: set[SourceId] = set()
    while allocator.waiting:
        granted = allocator.grant(now)
        if granted:
            dialed.update(granted)
            ended = now
        at = allocator.next_at(now)
        if at is None:
            break
        # Whatever it says, time goes on.
        now = max(at, now + 1e-4)
    # Long after, when no rate is in the way any more: what is left waits for a slot.
    dialed.update(allocator.grant(now + _LONG_AFTER_S))
    surplus = tuple((s.id, allocator.why(s.id)) for s in settings.sources if s.id not in dialed)
    return Forecast(
        len(dialed),
        ended,
        _slowest(settings, dialed),
        surplus,
        len(dialed) + _FILES_PER_SUBSCRIBER * settings.socket.max_subscribers + _FILES_OF_OUR_OWN,
    )


def _slowest(settings: Settings, dialed: set[SourceId]) -> str:
    """Name the rate that takes longest for its share of the dials."""
    limits, caps = settings.limits, settings.account_caps
    accounts: Counter[str] = Counter()
    endpoints: Counter[str] = Counter()
    for source in settings.sources:
        if source.id in dialed:
            accounts[source.id.account] += 1
            endpoints[source.endpoint.address] += 1
    loads = [(len(dialed), limits.connect_rate, "the process")]
    for name, count in accounts.items():
        rate = caps[name].connect_rate or limits.per_account.connect_rate
        loads.append((count, rate or limits.connect_rate, f"account {name}"))
    for address, count in endpoints.items():
        rate = limits.per_endpoint.connect_rate
        loads.append((count, rate or limits.connect_rate, f"endpoint {address}"))
    # Of several as slow, the one named first: the widest.
    _, rate, what = max(loads, key=lambda load: load[0] / load[1])
    return f"{format_rate(rate)} of {what}"
