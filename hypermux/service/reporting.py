"""The document of `/status`, gathered from the parts of a running service."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import trio

from hypermux import __version__
from hypermux.config.settings import Settings
from hypermux.core.intake import Share
from hypermux.core.recording import rfc3339
from hypermux.downstream.horizon import Horizon
from hypermux.downstream.journal import Journal
from hypermux.downstream.sequencer import Sequencer
from hypermux.downstream.subscribers import Subscribers
from hypermux.model.accounts import SourceId
from hypermux.model.records import Cursor
from hypermux.model.status import (
    FORMAT,
    BufferStatus,
    JournalStatus,
    LimitStatus,
    ReloadStatus,
    SourceStatus,
    Status,
    SubscriberStatus,
    Throttled,
)
from hypermux.upstream.status import Flow
from hypermux.upstream.supervisor import Supervisor


def source_states(supervisor: Supervisor, sequencer: Sequencer) -> Iterator[SourceStatus]:
    """Yield the state of every source; see `Supervisor.statistics`."""
    shares, merger = sequencer.inbox.budget.shares, sequencer.merger

    def flow(source: SourceId) -> Flow:
        return Flow(shares.get(source) or Share(), merger.offset_ns(source))

    return supervisor.statistics(flow)


def report(
    *,
    settings: Settings,
    started_ns: int,
    journal: Journal,
    horizon: Horizon,
    sequencer: Sequencer,
    subscribers: Subscribers,
    supervisor: Supervisor,
    last_reload: ReloadStatus | None,
    sources: Sequence[SourceStatus],
) -> Status:
    """Return how the service fares at this moment. No part of it waits."""
    budget, merger = sequencer.inbox.budget, sequencer.merger
    now_ns = sequencer.clock.now_ns()
    oldest_ns = merger.oldest_received_ns
    readers = subscribers.statistics()
    return Status(
        format=FORMAT,
        version=__version__,
        pid=os.getpid(),
        at=rfc3339(now_ns),
        started=rfc3339(started_ns),
        uptime_seconds=(now_ns - started_ns) / 1e9,
        config_file=os.fspath(settings.file),
        states=dict(sorted(Counter(source.state for source in sources).items())),
        journal=JournalStatus(
            directory=os.fspath(journal.directory),
            epoch=horizon.epoch,
            cursor=str(Cursor(horizon.epoch, horizon.position.seq)),
            durable_seq=journal.durable_seq,
            refusal=sequencer.disk.refusal(),
        ),
        buffer=BufferStatus(
            used_bytes=budget.used,
            size_bytes=budget.size,
            per_source_bytes=budget.per_source,
            held_events=merger.held,
            oldest_seconds=0.0 if oldest_ns is None else max(0, now_ns - oldest_ns) / 1e9,
        ),
        subscribers=SubscriberStatus(
            active=readers.active,
            accepted=readers.accepted,
            refused=readers.refused,
            stalled=readers.stalled,
        ),
        limits=_limits(settings, supervisor),
        last_reload=last_reload,
        sources=tuple(sources),
        internal_faults=supervisor.internal_faults,
    )


def _limits(settings: Settings, supervisor: Supervisor) -> LimitStatus:
    limits, allocator = settings.limits, supervisor.gate.allocator
    return LimitStatus(
        max_connections=limits.max_connections,
        connect_rate_per_second=limits.connect_rate,
        slots_taken=allocator.held,
        sources_waiting=allocator.waiting,
        throttled=tuple(
            Throttled(
                account=pair.account,
                endpoint=pair.address,
                connect_rate_per_second=pair.rate,
            )
            for pair in allocator.rates(trio.current_time())
        ),
    )
