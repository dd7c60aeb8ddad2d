"""The configuration as frozen values, with its defaults. Times are seconds, sizes are bytes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Literal

from attrs import Factory, field, frozen

from hypermux.core.filters import Filters
from hypermux.core.limiter import Allocator
from hypermux.core.signing import legacy_region
from hypermux.model.accounts import (
    Cap,
    CredentialSource,
    Endpoint,
    Limits,
    RegionSigning,
    Secret,
    SourceId,
    Tls,
    Upstream,
)

MIB = 1 << 20

# What to do about a source that is connected and quiet for too long.
OnQuiet = Literal["report", "redial"]


@frozen
class Source:
    """One configured stream: account x region, with all that a connection to it needs."""

    id: SourceId
    upstream: Upstream
    endpoint: Endpoint
    credential: CredentialSource | None = None
    filters: Filters = Factory(Filters)
    tls: Tls = Factory(Tls)
    region_signing: RegionSigning = "explicit"
    exclude_events: tuple[str, ...] = ()
    redact: tuple[str, ...] = field(default=(), repr=False)  # may spell out what it looks for
    expect_event_within_s: float = field(default=inf, kw_only=True)  # inf: nothing is expected
    on_quiet: OnQuiet = field(default="report", kw_only=True)

    @property
    def signing_region(self) -> str:
        """The region that requests are signed for."""
        if self.region_signing == "legacy":
            return legacy_region(self.endpoint.address)
        return self.id.region


@frozen
class Account:
    """A named holder of one credential (or of several Docker hosts), as configured."""

    name: str
    upstream: Upstream
    sources: tuple[Source, ...]
    file: Path
    enabled: bool = True
    cap: Cap = Factory(Cap)


@frozen
class LimitSettings:
    """`[limits]`: the whole process, then every account and every endpoint alike."""

    max_connections: int = 1000
    connect_rate: float = 10.0
    connect_burst: int = 5
    per_account: Cap = field(default=Cap(max_connections=64, connect_rate=5.0))
    per_endpoint: Cap = field(default=Cap(max_connections=500, connect_rate=10.0))


@frozen
class BackoffSettings:
    """`[connection] backoff`: full jitter between `min_s` and `max_s`.

    The attempt counter resets after `reset_after_s` of health, not when a connection opens.
    """

    min_s: float = 0.5
    max_s: float = 60.0
    reset_after_s: float = 60.0


@frozen
class ConnectionSettings:
    """`[connection]`: deadlines of one connection; `rotate_after_s` None is "never"."""

    dial_timeout_s: float = 10.0
    ping_interval_s: float = 15.0
    pong_timeout_s: float = 10.0
    backoff: BackoffSettings = BackoffSettings()
    rotate_after_s: float | None = 20 * 3600.0
    max_message_size: int = 256 * 1024


@frozen
class MergeSettings:
    """`[merge]`: how long an event may wait for others; `window_s` None is "auto"."""

    max_hold_s: float = 2.0
    window_s: float | None = None


@frozen
class BufferSettings:
    """`[buffer]`: bytes between a socket and the disk, in all and for one source."""

    size: int = 64 * MIB
    per_source: int = 8 * MIB


@frozen
class RetainSettings:
    """`[journal] retain`: closed segments go, oldest first, beyond either of these."""

    size: int = 10 * 1024 * MIB
    age_s: float = 30 * 86400.0


@frozen
class JournalSettings:
    """`[journal]`: `fsync` is "commit", "never", or the least number of seconds between syncs.

    A segment ends when it has `segment_size` or is `segment_age_s` old. While less than
    `keep_free` bytes are free, closed segments go before `retain` says so. `compress` is how closed
    ones are stored.
    """

    fsync: Literal["commit", "never"] | float = "commit"
    segment_size: int = 128 * MIB
    segment_age_s: float = 86400.0
    retain: RetainSettings = RetainSettings()
    keep_free: int = 1024 * MIB
    checkpoint_interval_s: float = 10.0
    compress: Literal["none", "zstd"] = "none"


@frozen
class SocketSettings:
    """`[socket]`: where subscribers connect. `group` None: the file has the process's own.

    Beside the service's user and root, the users `allow_uids` and the members of the groups
    `reader_gids` may read.
    """

    path: Path
    mode: int = 0o600
    max_subscribers: int = 1000
    stall_timeout_s: float = 30.0
    group: int | None = None
    allow_uids: tuple[int, ...] = ()
    allow_gids: tuple[int, ...] = ()

    @property
    def reader_gids(self) -> frozenset[int]:
        """Every group whose members may read."""
        return frozenset(self.allow_gids if self.group is None else (*self.allow_gids, self.group))


@frozen
class HttpSettings:
    """`[http]`: HTTP over TCP (`listen` None: not at all), and when `/readyz` says yes."""

    listen: str | None = None
    token: Secret | None = field(default=None, repr=False)
    ready_when: str = "all"

    @property
    def host(self) -> str:
        """The address of `listen`, without brackets."""
        return (self.listen or "").rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of `listen`."""
        return int((self.listen or "0").rpartition(":")[2])

    @property
    def loopback(self) -> bool:
        """Whether only this computer reaches it."""
        return ipaddress.ip_address(self.host).is_loopback


@frozen
class LogSettings:
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "json"] = "auto"


@frozen
class Settings:
    """A whole configuration. `accounts` holds disabled ones too; `sources` only what is to run."""

    file: Path
    state_dir: Path
    socket: SocketSettings
    accounts: tuple[Account, ...] = ()
    limits: LimitSettings = LimitSettings()
    connection: ConnectionSettings = ConnectionSettings()
    merge: MergeSettings = MergeSettings()
    buffer: BufferSettings = BufferSettings()
    journal: JournalSettings = JournalSettings()
    log: LogSettings = LogSettings()
    http: HttpSettings = HttpSettings()
    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every source of every enabled account, in the order of the file."""
        return tuple(s for a in self.accounts if a.enabled for s in a.sources)

    @property
    def connection_limits(self) -> Limits:
        """Every limit on connections, accounts' own ones included."""
        limits = self.limits
        return Limits(
            whole=Cap(limits.max_connections, limits.connect_rate),
            connect_burst=limits.connect_burst,
            per_account=limits.per_account,
            per_endpoint=limits.per_endpoint,
            account_caps=self.account_caps,
        )

    def allocator(self, now: float) -> Allocator:
        """Return the limits at work, from `now` on (monotonic seconds)."""
        return Allocator(self.connection_limits, now)

    @property
    def account_caps(self) -> Mapping[str, Cap]:
        """Each account's own limits, by name."""
        return {a.name: a.cap for a in self.accounts}
