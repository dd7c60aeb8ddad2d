"""What running a configuration means: how long connecting takes, and who stays without a slot.

The allocator itself is asked, in imagined time: what it would do is what it says. A second slot is
needed for a moment when a WebSocket is replaced at `rotate_after`, and when an engine is asked what
it remembers; a limit that is filled to the last slot has none to spare.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from hypermux.config.settings import Settings, Source
from hypermux.config.units import format_rate
from hypermux.core.limiter import Rank
from hypermux.model.accounts import Cap, SourceId

# One for a subscriber's socket, one for the segment that it reads.
_FILES_PER_SUBSCRIBER = 2
# What a connection takes; an ssh process has three pipes and a handle that tells of its end.
_FILES_PER_SSH = 4
# The journal, its directory and lock, the sockets we listen on, DNS, dials under way, stdio.
_FILES_OF_OUR_OWN = 64
_LONG_AFTER_S = 1e6


@frozen
class Full:
    """A count without a slot to spare: whose it is, how many sources there are in all, and what
    kinds of connections they have.
    """

    name: str
    cap: int
    sources: int
    websockets: int
    engines: int


@frozen
class Forecast:
    """When every source that gets a slot has been dialed (seconds from the start, if nothing
    fails), which rate decides it, who waits for a slot and why, which counts are full then, and
    the open files it takes.
    """

    connected: int
    seconds: float
    slowest: str
    surplus: tuple[tuple[SourceId, str], ...]
    full: tuple[Full, ...]
    open_files: int


@frozen
class _Load:
    """A limit, how many sources are under it, and those of them that get a slot."""

    name: str
    cap: Cap
    sources: int
    dialed: tuple[Source, ...]


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
    loads = _loads(settings, dialed)
    files = _open_files(settings, loads[0].dialed)
    full = tuple(
        Full(load.name, cap, load.sources, len(load.dialed) - engines, engines)
        for load in loads
        if (cap := load.cap.max_connections) is not None and len(load.dialed) >= cap
        for engines in [sum(source.upstream == "docker" for source in load.dialed)]
    )
    return Forecast(len(dialed), ended, _slowest(loads), surplus, full, files)


def _loads(settings: Settings, dialed: set[SourceId]) -> list[_Load]:
    """Return every limit with its share of the sources, the widest first."""
    limits = settings.connection_limits
    shares: dict[str, tuple[Cap, list[Source]]] = {"the process": (limits.whole, [])}
    for source in settings.sources:
        account, address = source.id.account, source.endpoint.address
        shares.setdefault(f"account {account}", (limits.of_account(account), []))
        shares.setdefault(f"endpoint {address}", (limits.per_endpoint, []))
        for name in ("the process", f"account {account}", f"endpoint {address}"):
            shares[name][1].append(source)
    return [
        _Load(name, cap, len(sources), tuple(s for s in sources if s.id in dialed))
        for name, (cap, sources) in shares.items()
    ]


def _slowest(loads: list[_Load]) -> str:
    """Name the rate that takes longest for its share of the dials; of several, the widest."""
    timed = (
        (len(load.dialed) / rate, rate, load.name)
        for load in loads
        if (rate := load.cap.connect_rate) is not None
    )
    _, rate, name = max(timed, key=lambda timed: timed[0])
    return f"{format_rate(rate)} of {name}"


def _open_files(settings: Settings, sources: Sequence[Source]) -> int:
    """Return how many files there can be open at once: each source may hold a second connection."""
    each = [_FILES_PER_SSH if s.endpoint.scheme == "ssh" else 1 for s in sources]
    most = settings.limits.max_connections
    connections = sum(sorted(2 * each, reverse=True)[:most])
    readers = settings.socket.max_subscribers
    subscribers = _FILES_PER_SUBSCRIBER * readers
    if settings.http.listen is not None:  # as many connections again, but no more that read
        subscribers += readers
    return connections + subscribers + _FILES_OF_OUR_OWN
