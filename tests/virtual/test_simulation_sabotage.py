"""The simulator itself: a service that breaks a promise is found out, by the oracle that is for it.

Each sabotage is a small change of the service's code, in this process, for a few seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from simulator import run

from hypermux.core import backoff
from hypermux.core.intake import Share
from hypermux.core.merging import Merger
from hypermux.core.rates import Gcra
from hypermux.downstream.inbox import Inbox
from hypermux.downstream.writing import Writer
from hypermux.model.errors import HypermuxError
from hypermux.model.records import Event
from hypermux.upstream.connection import Connection
from hypermux.upstream.diverting import DivertingStream
from hypermux.upstream.docker_memory import Keeper
from hypermux.upstream.telling import Outage, Teller

# Two that are known to bring much about, then whatever comes.
SEEDS = (6, 8, *range(40))
HOUR_S = 1800.0

Patch = pytest.MonkeyPatch
Sabotage = Callable[[Patch], None]


def _every(count: int, change: Callable[[list[Any]], list[Any]]) -> Sabotage:
    """Do something to the events of every so-manieth delivery."""

    def sabotage(patch: Patch) -> None:
        deliver, seen = Inbox.deliver, [0]

        def spoiled(self: Inbox, source: Any, items: list[Any], *rest: Any) -> None:
            if any(isinstance(item, Event) for item in items):
                seen[0] += 1
                items = change(items) if seen[0] % count == 0 else items
            deliver(self, source, items, *rest)

        patch.setattr(Inbox, "deliver", spoiled)

    return sabotage


def _turned_round(patch: Patch) -> None:
    cut = Merger._cut
    patch.setattr(Merger, "_cut", lambda self, at: cut(self, at)[::-1])


def _held_for_longer(patch: Patch) -> None:
    init = Merger.__init__

    def slow(self: Any, *, max_hold_ns: int, **options: Any) -> None:
        init(self, max_hold_ns=10 * max_hold_ns, **options)

    patch.setattr(Merger, "__init__", slow)


def _not_synced(patch: Patch) -> None:
    def shown_only(self: Writer) -> None:
        self.durable_seq = self.end.seq
        self.show()

    patch.setattr(Writer, "sync", shown_only)


def _outage_begins_now(patch: Patch) -> None:
    def fall(self: Teller, link: Any, cause: str) -> None:
        self.outage = Outage(self.clock.now_ns(), cause)
        self.feed.closed()

    patch.setattr(Teller, "_fall", fall)


def _outage_without_gap(patch: Patch) -> None:
    up = Teller.up

    def hidden(self: Teller, *args: Any, **options: Any) -> None:
        self.outage = None
        up(self, *args, **options)

    patch.setattr(Teller, "up", hidden)


def _no_rates(patch: Patch) -> None:
    patch.setattr(Gcra, "ready_at", lambda self, now: now)


def _pings_of_no_consequence(patch: Patch) -> None:
    async def ping(self: DivertingStream) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(DivertingStream, "ping", ping)


def _hot(patch: Patch) -> None:
    patch.setattr(backoff, "probe_delay", lambda probe, *, rng: 5.0)


def _miscounted(patch: Patch) -> None:
    overflow = Share.overflow
    patch.setattr(Share, "overflow", lambda self, count, at: overflow(self, count + 1, at))


def _never_audited(patch: Patch) -> None:
    async def watch(self: Keeper, listener: Any) -> None:
        await trio.sleep_forever()

    patch.setattr(Keeper, "watch", watch)


def _a_fault_that_is_survived(patch: Patch) -> None:
    judged, count = Connection._judged, [0]

    def failing(self: Connection, link: Any) -> Any:
        count[0] += 1
        if count[0] == 5:
            raise HypermuxError("a source cannot go from here to there")
        return judged(self, link)

    patch.setattr(Connection, "_judged", failing)


@pytest.mark.slow
@pytest.mark.internal_faults
@pytest.mark.parametrize(
    ("sabotage", "oracle"),
    [
        (_every(20, lambda items: items[:-1]), "lost"),
        (_every(20, lambda items: [*items, items[-1]]), "records"),
        (_every(5, lambda items: items[::-1]), "order"),
        (_turned_round, "order"),
        (_held_for_longer, "held"),
        (_not_synced, "journal"),
        (_outage_begins_now, "outages"),
        (_outage_without_gap, "outages"),
        (_outage_without_gap, "lost"),
        (_no_rates, "limits"),
        (_pings_of_no_consequence, "dead"),
        (_hot, "denied"),
        (_miscounted, "counters"),
        (_never_audited, "audits"),
        (_a_fault_that_is_survived, "logged"),
    ],
)
def test_a_broken_promise_is_found_out(monkeypatch: Patch, sabotage: Sabotage, oracle: str) -> None:
    sabotage(monkeypatch)
    for seed in SEEDS:
        problems = run.one(seed, HOUR_S).problems
        if any(problem.startswith(f"{oracle}:") for problem in problems):
            return
    pytest.fail(f"no seed's {oracle!r} noticed")
