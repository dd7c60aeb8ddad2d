"""A task for each source under one nursery, and what they share: the gate, keys, transports."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping

import trio
from attrs import define, evolve, field

from hypermux.config.changes import Changes, SourceChange
from hypermux.config.settings import ConnectionSettings, Settings, Source
from hypermux.core.clock import StreamClock
from hypermux.core.correction import Corrections
from hypermux.core.intake import Feed
from hypermux.core.lifecycle import Lifecycle
from hypermux.core.recollection import Recollection
from hypermux.core.rotation import Rotation
from hypermux.model.accounts import Credential, SourceId
from hypermux.model.errors import ConnectionFailed
from hypermux.model.status import SourceStatus
from hypermux.upstream.aside import Asides
from hypermux.upstream.connection import Connection
from hypermux.upstream.counters import Counters
from hypermux.upstream.docker import stream_docker
from hypermux.upstream.docker_memory import Keeper
from hypermux.upstream.docker_snapshot import Memory
from hypermux.upstream.filewatch import FileWatch
from hypermux.upstream.gate import Gate
from hypermux.upstream.groups import is_cancellation
from hypermux.upstream.keys import KeyRing
from hypermux.upstream.link import Observer, Transport
from hypermux.upstream.pacing import PacedDialer
from hypermux.upstream.sifting import reading
from hypermux.upstream.status import Flow, source_status
from hypermux.upstream.telling import Outage
from hypermux.upstream.transport import Dialer, Listener
from hypermux.upstream.websocket import stream_websocket

log = logging.getLogger("hypermux.connection")


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
        memory = self.memories[source.id]
        keeper = Keeper(
            source=source,
            memory=memory,
            aside=Asides(source, self.gate, dialer),
            reading=reading(source),
            now_ns=self.clock.now_ns,
            rng=self.rng,
            max_message_size=self.settings.max_message_size,
        )
        try:
            await stream_docker(
                source, dialer=dialer, listener=listener, settings=self.settings, keeper=keeper
            )
        except ConnectionFailed:
            raise
        except BaseException as exc:
            if not is_cancellation(exc):
                # A fault of ours: what was remembered as handed on may not have been.
                memory.recollection = Recollection(engine=memory.recollection.engine)
                memory.forget_looks()
            raise

    def _paced(self, source: Source) -> Dialer:
        return PacedDialer(self.dialer, self.gate.pace, source.id.account)


@define(eq=False)
class _Tended:
    """One source while it is run: as it is to be, and what ends its connection.

    `removed`: when the connection has ended, the source is no more; otherwise it is begun anew.
    """

    source: Source
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    removed: bool = False


@define(eq=False)
class Supervisor:
    """Runs every source of a configuration, and takes up another one."""

    settings: Settings
    dialer: Dialer
    clock: StreamClock
    utc_ns: Callable[[], int]
    rng: random.Random
    observer: Observer
    feed: Callable[[SourceId], Feed]
    outages: Mapping[SourceId, Outage]
    recollections: Mapping[SourceId, Recollection] = field(factory=dict)
    connections: dict[SourceId, Connection] = field(init=False, factory=dict)
    keys: KeyRing = field(init=False)
    _certificates: FileWatch = field(init=False)
    gate: Gate = field(init=False)
    corrections: Corrections = field(init=False, factory=Corrections)
    _transports: Transports = field(init=False)
    _tended: dict[SourceId, _Tended] = field(init=False, factory=dict)
    # Also of sources that were removed: they go on counting when they come back.
    _counters: dict[SourceId, Counters] = field(init=False, factory=dict)
    _nursery: trio.Nursery | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.keys = KeyRing(self.utc_ns, self.rng, self._key_changed)
        self._certificates = FileWatch(self._certificate_changed)
        self.gate = Gate(self.settings.allocator(trio.current_time()))
        self._transports = Transports(
            self.dialer, self.gate, self.settings.connection, self.clock, self.utc_ns, self.rng
        )

    async def run(self) -> None:
        """Keep all sources connected until cancelled; no failure of an upstream ends it."""
        async with trio.open_nursery() as self._nursery:
            try:
                self._nursery.start_soon(self.gate.run)
                self._use_files()
                self._nursery.start_soon(self.keys.run)
                self._nursery.start_soon(self._certificates.run)
                for source in self.settings.sources:
                    self._begin(
                        source, self.outages.get(source.id), self.recollections.get(source.id)
                    )
                await trio.sleep_forever()
            finally:
                # At once, not when the last source has ended: a nursery takes nobody in any more
                # a moment before it is left, and a reload may come in it.
                self._nursery = None

    def statistics(self, flow: Callable[[SourceId], Flow]) -> Iterator[SourceStatus]:
        """Yield the state of every source; `flow` tells what became of its events.

        Each is of the moment that it is yielded at; sources may go and come in between.
        """
        for name in list(self.connections):
            connection = self.connections.get(name)
            if connection is not None and not self._tended[name].removed:
                yield source_status(connection, flow(name), trio.current_time())

    def looked_ns(self, name: SourceId, through_ns: int) -> int | None:
        """Return when it was last compared what a source's upstream remembers.

        All that this brought was handed on before `through_ns`. None: that is not known.
        """
        memory = self._transports.memories.get(name)
        return None if memory is None else memory.looked_before(through_ns)

    @property
    def internal_faults(self) -> int:
        """How often a fault of hypermux ended a connection."""
        return sum(counters.faults for counters in self._counters.values())

    def apply(self, changes: Changes) -> None:
        """Go over to another configuration, all at once: nothing here waits.

        What is ended for it says goodbye and tells the stream in its own time. Without effect
        before `run` has begun and after it was cancelled.
        """
        if self._nursery is None:
            return
        self.settings = changes.settings
        self._retime(changes.settings.connection)
        self._use_files()
        for name in changes.removed:
            self._tended[name].removed = True
            self._end(name)
        for change in changes.changed:
            self._change(change)
        for source in changes.added:
            self._add(source)
        if changes.limits:
            leaving = {*changes.removed}
            leaving |= {change.source.id for change in changes.changed if change.reconnects}
            limits = changes.settings.connection_limits
            for name in self.gate.change(limits, leaving=leaving):
                self.connections[name].part("yielded")
        self._nursery.start_soon(self.look_again)

    def _retime(self, settings: ConnectionSettings) -> None:
        """Have new connections, and the pauses before them, go by other timings."""
        self._transports.settings = settings
        for connection in self.connections.values():
            connection.retime(settings)

    def _change(self, change: SourceChange) -> None:
        name = change.source.id
        self._tended[name].source = change.source
        if change.reconnects:
            self._remember_engine(change.source)
            self._end(name)
            return
        connection = self.connections[name]
        connection.configure(change.source)
        if change.renews:
            connection.renew()

    def _add(self, source: Source) -> None:
        leaving = self._tended.get(source.id)
        if leaving is None:
            self._begin(source)
        else:
            # It was removed a moment ago and has not ended yet: it comes back instead.
            leaving.source, leaving.removed = source, False
            self._remember_engine(source)

    def _remember_engine(self, source: Source) -> None:
        """Forget what another engine remembers, or this one's events in other words."""
        memories, now_ns = self._transports.memories, self.clock.now_ns()
        before = memories[source.id]
        after = Memory.of(source, before.recollection, now_ns)
        if after.recollection.engine != before.recollection.engine:
            memories[source.id] = after
        before.forget_looks()  # through other filters it shows what was not asked for

    def _begin(
        self,
        source: Source,
        outage: Outage | None = None,
        recollection: Recollection | None = None,
    ) -> None:
        assert self._nursery is not None  # looked at before
        begun = outage or Outage(self.clock.now_ns(), "start")
        self._transports.memories[source.id] = Memory.of(source, recollection, begun.from_ns)
        self._tended[source.id] = _Tended(source)
        self.connections[source.id] = self._connection(source, begun, self._lifecycle())
        self._nursery.start_soon(self._tend, source.id, name=f"source {source.id}")

    def _end(self, name: SourceId) -> None:
        self.connections[name].ending = "reload", "the configuration has changed"
        self._tended[name].scope.cancel()

    async def _tend(self, name: SourceId) -> None:
        """Run a source until a reload removes it; anew whenever one, or a fault of ours, ends it.

        A fault costs that source a backoff and a gap, and no other source anything.
        """
        tended = self._tended[name]
        while True:
            before = self.connections[name]
            pause: tuple[Lifecycle, float] | None = None
            try:
                with tended.scope:
                    await before.run()
            except* Exception:
                log.exception("%s: internal error: it is begun anew", name)
                self.gate.dismiss(name)
                pause = before.faulted()
            if tended.removed:
                before.teller.forget("the source is no longer configured")
                del self._tended[name], self.connections[name], self._transports.memories[name]
                return
            assert before.teller.outage is not None  # it has ended
            outage = evolve(before.teller.outage, recorded=True)
            lifecycle, pause_s = pause or (self._lifecycle(), 0.0)
            self.connections[name] = self._connection(tended.source, outage, lifecycle, pause_s)
            tended.scope = trio.CancelScope()

    def _lifecycle(self) -> Lifecycle:
        timings = self.settings.connection.backoff
        lifecycle = Lifecycle(
            min_s=timings.min_s,
            max_s=timings.max_s,
            reset_after_s=timings.reset_after_s,
            rng=self.rng,
        )
        lifecycle.since_s = trio.current_time()
        return lifecycle

    def _connection(
        self, source: Source, outage: Outage, lifecycle: Lifecycle, pause_s: float = 0.0
    ) -> Connection:
        timings = self.settings.connection
        rotation = Rotation(
            timings.rotate_after_s,
            min_s=timings.backoff.min_s,
            max_s=timings.backoff.max_s,
            rng=self.rng,
        )
        return Connection(
            source=source,
            gate=self.gate,
            feed=self.feed(source.id),
            keys=self.keys,
            transport=self._transports.of(source),
            lifecycle=lifecycle,
            rotation=rotation,
            clock=self.clock,
            observer=self.observer,
            outage=outage,
            utc_ns=self.utc_ns,
            corrections=self.corrections,
            counters=self._counters.setdefault(source.id, Counters()),
            pause_s=pause_s,
        )

    async def look_again(self) -> None:
        """Read all keys anew, and let every source that was refused try at once."""
        await self.keys.refresh()
        for connection in self.connections.values():
            connection.look_again()

    def _use_files(self) -> None:
        """Hold the keys, and watch the certificates, of the sources that are configured."""
        sources = self.settings.sources
        self.keys.use(sources)
        self._certificates.watch({path for source in sources for path in source.tls.files})

    def _certificate_changed(self, path: str) -> None:
        """Let those try at once that were refused for what may stand in this file."""
        for connection in self.connections.values():
            if path in connection.source.tls.files:
                connection.look_again()

    def _key_changed(self, account: str, renewed: bool) -> None:
        """Let an account's refused sources try at once, and its open ones move to the new key."""
        credential = self.keys.current(account)
        for source, connection in self.connections.items():
            if source.account == account:
                connection.key_changed(credential, renewed=renewed)
