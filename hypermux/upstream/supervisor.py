"""A task for each source under one nursery, and what they share: the gate, keys, transports."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import trio
from attrs import define, field

from hypermux.config.settings import ConnectionSettings, Settings, Source
from hypermux.core.clock import StreamClock
from hypermux.core.correction import Corrections
from hypermux.core.intake import Feed
from hypermux.core.lifecycle import Lifecycle
from hypermux.core.recollection import Recollection
from hypermux.core.rotation import Rotation
from hypermux.model.accounts import Credential, SourceId
from hypermux.upstream.aside import Asides
from hypermux.upstream.connection import Connection, Observer
from hypermux.upstream.docker import stream_docker
from hypermux.upstream.docker_memory import Keeper, Memory
from hypermux.upstream.gate import Gate
from hypermux.upstream.keys import KeyRing
from hypermux.upstream.link import Transport
from hypermux.upstream.pacing import PacedDialer
from hypermux.upstream.sifting import reading
from hypermux.upstream.telling import Outage
from hypermux.upstream.transport import Dialer, Listener
from hypermux.upstream.websocket import stream_websocket


@define(eq=False)
class Transports:
    """The transport of each kind of upstream, over one dialer."""

    dialer: Dialer
    gate: Gate
    settings: ConnectionSettings
    clock: StreamClock
    utc_ns: Callable[[], int]
    rng: random.Random
    memories: dict[SourceId, Memory] = field(factory=dict)

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
        dialer = self._paced(source)
        keeper = Keeper(
            source=source,
            memory=self.memories[source.id],
            aside=Asides(source, self.gate, dialer),
            reading=reading(source),
            now_ns=self.clock.now_ns,
            rng=self.rng,
            max_message_size=self.settings.max_message_size,
        )
        await stream_docker(
            source, dialer=dialer, listener=listener, settings=self.settings, keeper=keeper
        )

    def _paced(self, source: Source) -> Dialer:
        return PacedDialer(self.dialer, self.gate.pace, source.id.account)


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
    recollections: Mapping[SourceId, Recollection] = field(factory=dict)
    connections: dict[SourceId, Connection] = field(factory=dict)
    keys: KeyRing = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.keys = KeyRing(self.utc_ns, self.rng, self._key_changed)

    async def run(self) -> None:
        """Keep all sources connected until cancelled; no failure of an upstream ends it."""
        settings = self.settings
        gate = Gate(settings.allocator(trio.current_time()))
        self.keys.use(settings.sources)
        transports = Transports(
            self.dialer, gate, settings.connection, self.clock, self.utc_ns, self.rng
        )
        backoff = settings.connection.backoff
        corrections = Corrections()
        configured_ns = self.clock.now_ns()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.run)
            nursery.start_soon(self.keys.run)
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
                outage = self.outages.get(source.id, Outage(configured_ns, "start"))
                recollection = self.recollections.get(source.id)
                transports.memories[source.id] = Memory(
                    Recollection() if recollection is None else recollection.copy(), outage.from_ns
                )
                connection = Connection(
                    source=source,
                    gate=gate,
                    feed=self.feed(source.id),
                    keys=self.keys,
                    transport=transports.of(source),
                    lifecycle=lifecycle,
                    rotation=rotation,
                    clock=self.clock,
                    observer=self.observer,
                    outage=outage,
                    utc_ns=self.utc_ns,
                    corrections=corrections,
                )
                self.connections[source.id] = connection
                nursery.start_soon(connection.run, name=f"source {source.id}")

    async def look_again(self) -> None:
        """Read all keys anew, and let every source that was refused try at once."""
        await self.keys.refresh()
        for connection in self.connections.values():
            if connection.given_up:
                connection.renew()

    def _key_changed(self, account: str) -> None:
        """Let an account's refused sources try at once, and its open ones move to the new key."""
        credential = self.keys.current(account)
        for source, connection in self.connections.items():
            if source.account == account:
                link = connection.link
                old = link is not None and link.open and link.credential != credential
                if connection.given_up or old:
                    connection.renew()
