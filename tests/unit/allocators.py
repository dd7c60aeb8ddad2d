"""Short ways to write sources and allocators."""

from __future__ import annotations

from hypermux.core.limiter import Allocator, Rank
from hypermux.model.accounts import Cap, Limits, SourceId

HOST = "host:1"


def limits(
    max_connections: int | None = None,
    connect_rate: float | None = None,
    connect_burst: int = 1,
    per_account: Cap = Cap(),  # noqa: B008
    per_endpoint: Cap = Cap(),  # noqa: B008
    account_caps: dict[str, Cap] | None = None,
) -> Limits:
    whole = Cap(max_connections, connect_rate)
    return Limits(whole, connect_burst, per_account, per_endpoint, account_caps or {})


def allocator(
    max_connections: int | None = None,
    connect_rate: float | None = None,
    connect_burst: int = 1,
    per_account: Cap = Cap(),  # noqa: B008
    per_endpoint: Cap = Cap(),  # noqa: B008
    account_caps: dict[str, Cap] | None = None,
) -> Allocator:
    return Allocator(
        limits(
            max_connections, connect_rate, connect_burst, per_account, per_endpoint, account_caps
        ),
        0.0,
    )


def src(name: str) -> SourceId:
    """Return the source "account/region"."""
    account, _, region = name.partition("/")
    return SourceId(account, region)


def names(sources: list[SourceId]) -> list[str]:
    return [str(source) for source in sources]


def ask(
    limiter: Allocator,
    *wanted: str,
    rank: Rank = Rank.NEW,
    host: str = HOST,
    handover: bool = False,
    now: float = 0.0,
) -> None:
    for name in wanted:
        limiter.request(src(name), host, rank, now, handover=handover)
