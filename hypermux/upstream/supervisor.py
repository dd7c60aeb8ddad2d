"""A task for each source under one nursery, and what they share: the gate, keys, transports."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

import trio
from attrs import define, field

from hypermux.config import credentials
from hypermux.config.settings import ConnectionSettings, Settings, Source
from hypermux.core.clock import StreamClock
from hypermux.core.correction import Corrections
from hypermux.core.intake import Feed
from hypermux.core.lifecycle import Lifecycle
from hypermux.core.rotation import Rotation
from hypermux.model.accounts import Credential, CredentialSource, SourceId
from hypermux.upstream.connection import Connection, Observer
from hypermux.upstream.docker import stream_docker
from hypermux.upstream.gate import Gate
from hypermux.upstream.link import Keys, Transport
from hypermux.upstream.pacing import Pace, PacedDialer
from hypermux.upstream.telling import Outage
from hypermux.upstream.transport import Dialer, Listener
from hypermux.upstream.websocket import stream_websocket

# Key files may be on a network disk and credential processes may hang: they wait for each other
# here, never for the journal's thread.
_KEY_READERS = 4


@define(eq=False)
class KeyRing:
    """Credentials by account, read when first needed and again after a refusal."""

    _limiter: trio.CapacityLimiter = field(factory=partial(trio.CapacityLimiter, _KEY_READERS))
    _cached: dict[str, Credential] = field(factory=dict)
    _locks: dict[str, trio.Lock] = field(factory=dict)

    async def get(self, source: Source) -> Credential | None:
        """Return the credential of `source`. Raises ConfigurationFault."""
        if source.credential is None:
            return None
        account = source.id.account
        # One reads for all regions of an account; a program that hangs holds up its own account.
        async with self._locks.setdefault(account, trio.Lock()):
            if account not in self._cached:
                self._cached[account] = await self._read(source.credential)
            return self._cached[account]

    async def _read(self, source: CredentialSource) -> Credential:
        if source.secret_key is not None:
            return credentials.load(source)
        return await trio.to_thread.run_sync(
            credentials.load,
            source,
            limiter=self._limiter,
            abandon_on_cancel=True,  # reading changes nothing; a stop need not wait
        )

    def refused(self, source: Source, credential: Credential | None) -> None:
        """Forget a credential: a rotated secret is read at the next dial."""
        account = source.id.account
        # Another region may have read a newer one meanwhile.
        if credential is not None and self._cached.get(account) is credential:
            del self._cached[account]


@define(eq=False)
class Transports:
    """The transport of each kind of upstream, over one dialer."""

    dialer: Dialer
    pace: Pace
    settings: ConnectionSettings
    utc_ns: Callable[[], int]
    rng: random.Random

    def of(self, source: Source) -> Transport:
        """Return the transport for `source`."""
        return self._docker if source.upstream == "docker" else self._hyper

    async def _hyper(
        self,
        source: Source,
        credential: Credential | None,
        listener: Listener,
        sign_offset_s: float,
    ) -> None:
        assert credential is not None  # the configuration demands one for this upstream
        await stream_websocket(
            source,
            credential,
            dialer=self._paced(source),
            listener=listener,
            settings=self.settings,
            now_utc_s=lambda: self.utc_ns() / 1e9 + sign_offset_s,
            rng=self.rng,
        )

    async def _docker(
        self,
        source: Source,
        credential: Credential | None,
        listener: Listener,
        sign_offset_s: float,
    ) -> None:
        await stream_docker(
            source, dialer=self._paced(source), listener=listener, settings=self.settings
        )

    def _paced(self, source: Source) -> Dialer:
        return PacedDialer(self.dialer, self.pace, source.id.account)


@define(eq=False)
class Supervisor:
    """Runs every source of a configuration."""

    settings: Settings
    dialer: Dialer
    clock: StreamClock
    utc_ns: Callable[[], int]
    rng: random.Random
    observer: Observer
    feed: Callable[[SourceId], Feed]
    outages: Mapping[SourceId, Outage]

    async def run(self) -> None:
        """Keep all sources connected until cancelled; no failure of an upstream ends it."""
        settings = self.settings
        gate = Gate(settings.allocator(trio.current_time()))
        keys: Keys = KeyRing()
        transports = Transports(self.dialer, gate.pace, settings.connection, self.utc_ns, self.rng)
        backoff = settings.connection.backoff
        corrections = Corrections()
        configured_ns = self.clock.now_ns()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.run)
            for source in settings.sources:
                lifecycle = Lifecycle(
                    min_s=backoff.min_s,
                    max_s=backoff.max_s,
                    reset_after_s=backoff.reset_after_s,
                    rng=self.rng,
                )
                rotation = Rotation(
                    settings.connection.rotate_after_s,
                    min_s=backoff.min_s,
                    max_s=backoff.max_s,
                    rng=self.rng,
                )
                connection = Connection(
                    source=source,
                    gate=gate,
                    feed=self.feed(source.id),
                    keys=keys,
                    transport=transports.of(source),
                    lifecycle=lifecycle,
                    rotation=rotation,
                    clock=self.clock,
                    observer=self.observer,
                    outage=self.outages.get(source.id, Outage(configured_ns, "start")),
                    utc_ns=self.utc_ns,
                    corrections=corrections,
                )
                nursery.start_soon(connection.run, name=f"source {source.id}")
