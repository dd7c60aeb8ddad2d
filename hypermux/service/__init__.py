"""The composition root: which task lives in which nursery, and in what order they end.

    readers                 subscribers, console, files: end last, each at the end of the journal
      `- sequencer          ends when the inbox is closed and all of it is durable
           `- supervisor    a task per source; cancelled first, at shutdown

A drain walks that tree from the inside: no more upstream (a goodbye takes a transport a second
at most), the inbox closed, the last commit, then the readers, each with a deadline. A sync that
hangs in the kernel cannot be cut short from here: whoever asked for the shutdown holds a deadline
over all and ends the process by it (`cli.running`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

import trio
from attrs import define, field

from hypermux import __version__
from hypermux.config.changes import Changes
from hypermux.config.settings import Settings
from hypermux.config.units import format_duration
from hypermux.core.histogram import Histogram
from hypermux.core.intake import Budget
from hypermux.core.merging import Merger
from hypermux.downstream.activation import Passed
from hypermux.downstream.engine import SETTLE_S, Engine
from hypermux.downstream.horizon import Horizon
from hypermux.downstream.http import Routes
from hypermux.downstream.inbox import Inbox
from hypermux.downstream.journal import Journal
from hypermux.downstream.reading import JournalReader, Rewritten, resolve_cursor
from hypermux.downstream.sequencer import Sequencer
from hypermux.downstream.streaming import Published
from hypermux.downstream.subscribers import Subscribers
from hypermux.downstream.upkeep import compress_closed, keep_indexes
from hypermux.downstream.web import WebListener
from hypermux.model.accounts import SourceId
from hypermux.model.errors import Undelivered
from hypermux.model.records import Cursor, Gap, Item, StateChange
from hypermux.model.status import ReloadStatus, SourceStatus, Status
from hypermux.service.counting import CountingObserver, timed
from hypermux.service.metrics import Whole
from hypermux.service.notifying import Notifier
from hypermux.service.observing import LoggedObserver
from hypermux.service.reloading import Reloading
from hypermux.service.reporting import report, source_states
from hypermux.service.routes import own_table
from hypermux.service.seams import Seams
from hypermux.upstream.dialing import SocketDialer
from hypermux.upstream.link import Observer
from hypermux.upstream.supervisor import Supervisor
from hypermux.upstream.telling import Outage

log = logging.getLogger("hypermux.service")

# Shutdown, step by step: closing frames answered, then the last commit on a slow disk, then
# readers that are behind. Together below the 90 s that service managers wait by default.
UPSTREAM_END_S = 3.0
LAST_COMMIT_S = 20.0
READERS_END_S = 5.0

Reader: TypeAlias = Callable[["Service"], Awaitable[None]]


@define(eq=False)
class Service:
    """One running hypermux. `horizon` is there once `run` has started."""

    settings: Settings
    seams: Seams
    observer: Observer = field(factory=LoggedObserver)
    on_settings: Callable[[Settings], None] = lambda _: None
    passed: Sequence[Passed] = ()
    notifier: Notifier = field(factory=Notifier)
    horizon: Horizon = field(init=False)
    published: Published = field(init=False)
    journal: Journal = field(init=False)
    supervisor: Supervisor = field(init=False)
    sequencer: Sequencer = field(init=False)
    subscribers: Subscribers = field(init=False)
    web: WebListener | None = field(init=False, default=None)
    reloading: Reloading = field(init=False)
    counting: CountingObserver = field(init=False)
    commits: Histogram = field(factory=Histogram)
    _started_ns: int = field(init=False, default=0)

    def open_reader(self, after: int) -> JournalReader:
        """Return a reader of the journal that starts behind record `after`."""
        journal = self.journal
        return JournalReader(
            journal.directory,
            self.seams.storage,
            after=after,
            near=self.horizon.position,
            began_ns=journal.manifest.began_ns,
            indexes=journal.indexes,
        )

    def resolve(self, cursor: Cursor) -> int | Rewritten | str:
        """Return the seq that `cursor` stands for, or why a reader cannot go on from it."""
        journal = self.journal
        shown = self.horizon.position.seq
        return resolve_cursor(cursor, journal.epochs, shown + 1)

    def oldest(self) -> int:
        """Return the seq after which the records begin that are kept."""
        return self.journal.first_seq - 1

    def since(self, at_ns: int) -> int:
        """Return a record after which all are that have an `at` of `at_ns` or later.

        0 when some of them may be no longer kept, so that a reader tells it. Blocks; raises
        DiskFault.
        """
        journal = self.journal
        oldest_ns = journal.oldest_ns
        if journal.first_seq > 1 and (oldest_ns is None or at_ns < oldest_ns):
            return 0
        return journal.indexes.since(at_ns)

    async def run(
        self,
        shutdown: trio.Event,
        *,
        readers: Sequence[Reader] = (),
        serve_socket: bool = True,
        task_status: trio.TaskStatus[Service] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run until `shutdown` is set, then drain.

        Started when the journal is open and the socket accepts. Raises DamagedData, DiskFault,
        Unreachable (the state directory, socket or port is in use) and Undelivered.
        """
        seams = self.seams
        self.journal = await seams.journal_runner(
            partial(
                Journal.open,
                self.settings.state_dir / "journal",
                seams.storage,
                self.settings.journal,
                new_epoch=seams.new_epoch,
                now_ns=seams.clock.now_ns(),
                boot=seams.boot,
                which=seams.which,
            )
        )
        try:
            self._assemble()
            self._forget_removed()
            self._tell_start()
            async with trio.open_nursery() as nursery:
                if serve_socket:
                    await nursery.start(self.subscribers.run, self.passed)
                    if self.web is not None:
                        await nursery.start(self.web.run)
                for reader in readers:
                    nursery.start_soon(reader, self)
                upkeep = trio.CancelScope()
                nursery.start_soon(self._keep_up, upkeep)
                self.notifier.ready()
                task_status.started(self)
                await self._sequence(shutdown)
                upkeep.cancel()
                self.horizon.end()
                nursery.cancel_scope.deadline = trio.current_time() + READERS_END_S
            if nursery.cancel_scope.cancelled_caught:
                log.warning("some readers had not read everything by the end")
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_COMMIT_S):
                await seams.journal_runner(self.journal.close)

    async def _keep_up(self, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                indexes = self.journal.indexes
                nursery.start_soon(keep_indexes, indexes, self.seams.reader_runner)
                if self.settings.journal.compress == "zstd":
                    runner = self.seams.upkeep_runner or self.seams.reader_runner
                    nursery.start_soon(compress_closed, indexes, runner)
                states = partial(source_states, self.supervisor, self.sequencer)
                nursery.start_soon(self.notifier.run, states)

    async def _sequence(self, shutdown: trio.Event) -> None:
        inbox, clock = self.sequencer.inbox, self.seams.clock
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sequencer.run)
            with trio.CancelScope() as upstream:
                async with trio.open_nursery() as sources:
                    sources.start_soon(self.supervisor.run)
                    await shutdown.wait()
                    log.info("stopping: closing connections")
                    self.notifier.stopping()
                    upstream.cancel()
            inbox.close(clock.now_ns())
            nursery.cancel_scope.deadline = trio.current_time() + LAST_COMMIT_S
        if nursery.cancel_scope.cancelled_caught:
            raise Undelivered("stopped before everything received was written to the journal")

    def _assemble(self) -> None:
        """Build the stages from the settings and from what the journal remembers."""
        settings, seams, journal = self.settings, self.seams, self.journal
        merge, coverage = settings.merge, journal.coverage
        seams.clock.not_before(max(coverage.wall_ns, coverage.through_ns))
        self._started_ns = seams.clock.now_ns()
        self.horizon = Horizon(journal.epoch, journal.position)
        merger: Merger[Item] = Merger(
            max_hold_ns=int(merge.max_hold_s * 1e9),
            window_ns=None if merge.window_s is None else int(merge.window_s * 1e9),
            last_key=coverage.last_key,
        )
        self.counting = CountingObserver(self.observer)
        outages: dict[SourceId, Outage] = {}
        for source, covered in coverage.sources.items():
            merger.opened(source, last_at_ns=covered.last_at_ns)
            merger.closed(source)
            if covered.up:
                since_ns = max(coverage.through_ns, covered.since_ns)
                outages[source] = Outage(since_ns, "restart")
            elif covered.outage_from_ns is not None:
                cause = covered.cause or "restart"
                outages[source] = Outage(covered.outage_from_ns, cause, recorded=True)
        self.sequencer = Sequencer(
            inbox=Inbox(Budget(settings.buffer.size, settings.buffer.per_source)),
            merger=merger,
            journal=journal,
            horizon=self.horizon,
            clock=seams.clock,
            run_sync=timed(seams.journal_runner, self.commits),
            checkpoint_interval_s=settings.journal.checkpoint_interval_s,
            told=self._opening(),
            rng=seams.rng,
        )
        self.supervisor = Supervisor(
            settings=settings,
            dialer=seams.dialer,
            clock=seams.clock,
            utc_ns=seams.utc_ns,
            rng=seams.rng,
            observer=self.counting,
            feed=self.sequencer.inbox.feed,
            outages=outages,
            recollections={
                source: covered.recollection
                for source, covered in coverage.sources.items()
                if covered.recollection is not None
            },
        )
        self.sequencer.looked_ns = self.supervisor.looked_ns
        self.reloading = Reloading(
            settings,
            seams.read_settings,
            self._apply,
            seams.clock.now_ns,
            seams.reader_runner,
        )
        self.published = Published(
            self.horizon,
            self.open_reader,
            resolve=self.resolve,
            run_sync=seams.reader_runner,
            oldest=self.oldest,
            since=self.since,
            now_ns=seams.clock.now_ns,
        )
        self.subscribers = Subscribers(settings.socket, self.published)
        self.subscribers.http.routes = self._routes()
        if settings.http.listen is not None:
            self.web = WebListener(
                settings.http,
                settings.socket,
                self.horizon,
                self._routes(read_only=True),
                self.subscribers.stalled,
            )

    def _routes(self, *, read_only: bool = False) -> Routes:
        """Return what HTTP can ask for, on the socket and (`read_only`) over TCP."""
        fsync = self.settings.journal.fsync
        engine = Engine(
            self.published,
            self.subscribers,
            self.seams.clock.now_ns,
            self.sequencer.settle,
            SETTLE_S + (0.0 if isinstance(fsync, str) else fsync),
        )
        return own_table(self, read_only=read_only), engine.table

    @property
    def disk_fault(self) -> str | None:
        """What the disk refuses while records are held for it, None when all is well."""
        refusal = self.sequencer.disk.refusal()
        return None if refusal is None else refusal.reason

    @property
    def round_age_s(self) -> float:
        """How long ago the sequencer made its last round, or began to work."""
        last_ns = max(self.sequencer.inbox.last_round_ns, self._started_ns)
        return (self.seams.clock.now_ns() - last_ns) / 1e9

    def whole(self, status: Status) -> Whole:
        """Return what metrics say of no source, beside `status`."""
        journal, fsync = self.journal, self.settings.journal.fsync
        return Whole(
            status,
            self.commits,
            journal_bytes=journal.retention.size,
            oldest_ns=journal.oldest_ns,
            now_ns=self.seams.clock.now_ns(),
            fsync=fsync if isinstance(fsync, str) else format_duration(fsync),
            lags=[self.horizon.position.seq - stream.seq for stream in self.published.streams],
            reloads=self.reloading.counts,
        )

    def status(self) -> Status:
        """Return how it fares; not before `run` has started."""
        return self.report([*source_states(self.supervisor, self.sequencer)])

    def report(self, sources: Sequence[SourceStatus]) -> Status:
        """Return how it fares, with `sources` as they were gathered."""
        return report(
            settings=self.reloading.settings,
            started_ns=self._started_ns,
            journal=self.journal,
            horizon=self.horizon,
            sequencer=self.sequencer,
            subscribers=self.subscribers,
            supervisor=self.supervisor,
            last_reload=self.reloading.last,
            sources=sources,
        )

    async def reload(self, who: str) -> ReloadStatus:
        """Take up the accounts file and the keys as they are now; `who` is for people to read.

        Not before `run` has started. A configuration that is not good changes nothing.
        """
        self.notifier.reloading()
        try:
            return await self.reloading.reload(who)
        finally:
            self.notifier.ready()

    def _apply(self, changes: Changes, who: str) -> None:
        """Make changes count, all at once: nothing here waits."""
        self.supervisor.apply(changes)
        if isinstance(self.seams.dialer, SocketDialer):
            self.seams.dialer.dial_timeout_s = changes.settings.connection.dial_timeout_s
        self.subscribers.change(changes.settings.socket)
        if self.web is not None:
            self.web.change(changes.settings.http, changes.settings.socket)
        self.on_settings(changes.settings)
        self.sequencer.tell(StateChange("config", f"reload by {who}: {changes.text}"))

    def _forget_removed(self) -> None:
        """End the coverage of sources that the configuration no longer has, with their last gap."""
        configured = {source.id for source in self.settings.sources}
        now_ns = self.seams.clock.now_ns()
        for source, outage in self.supervisor.outages.items():
            if source not in configured:
                items: list[Item] = [
                    Gap(outage.from_ns, now_ns, outage.cause, "possible"),
                    StateChange("config", "the source is no longer configured"),
                ]
                self.sequencer.inbox.feed(source).deliver(items, now_ns)

    def _tell_start(self) -> None:
        settings, journal = self.settings, self.journal
        log.info(
            "%d sources of %d accounts; journal in %s, after %s:%d",
            len(settings.sources),
            sum(account.enabled for account in settings.accounts),
            journal.directory,
            journal.epoch,
            journal.durable_seq,
        )

    def _opening(self) -> list[StateChange]:
        """Return what the journal is told first: that we run, and what recovery had to cut."""
        journal = self.journal
        changes = [StateChange("start", f"hypermux {__version__}")]
        if journal.epoch_reason is not None:
            reason = f"epoch {journal.epoch}: {journal.epoch_reason}"
            changes.append(StateChange("epoch", reason))
        return changes
