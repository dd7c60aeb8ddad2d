"""Going over to another configuration while the service runs, in virtual time."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from trio.testing import MockClock
from whole_service import START_NS, MemoryDialer, run_directly

from hypermux.config.changes import compare
from hypermux.config.settings import (
    Account,
    BufferSettings,
    ConnectionSettings,
    JournalSettings,
    LimitSettings,
    Settings,
    SocketSettings,
    Source,
)
from hypermux.core.clock import StreamClock
from hypermux.core.filters import HYPER_FIELDS, Filters
from hypermux.downstream.memory import MemoryStorage
from hypermux.emulator import router as emulator
from hypermux.emulator.connection import Goodbye
from hypermux.emulator.faults import Target
from hypermux.model.accounts import Cap, CredentialSource, Endpoint, Secret, SourceId
from hypermux.model.errors import ConfigurationFault, Problem
from hypermux.model.status import Counts, SourceStatus
from hypermux.service import Service
from hypermux.service.seams import Seams

STATE = Path("/virtual/state")
FILE = Path("/virtual/accounts.toml")
ENDPOINT = Endpoint.parse("ws://router.test:80/events/ws")
REGIONS = ("x", "y")
DIE = Filters.from_mapping({"event": ["die"]}, fields=HYPER_FIELDS)
ACCOUNTS = tuple(emulator.Account.derive("1", number, REGIONS) for number in (1, 2, 3))


def account(number: int, *regions: str, **changes: Any) -> Account:
    known = ACCOUNTS[number - 1]
    keys = CredentialSource(known.access_key, known.secret_key)
    sources = (
        evolve(Source(SourceId(known.name, region), "hyper", ENDPOINT, keys), **changes)
        for region in regions or REGIONS
    )
    return Account(known.name, "hyper", tuple(sources), FILE)


def settings(*accounts: Account, **changes: Any) -> Settings:
    base = Settings(
        FILE,
        STATE,
        SocketSettings(STATE / "sock"),
        accounts,
        limits=LimitSettings(100, 50.0, 5, Cap(), Cap()),
    )
    return evolve(base, **changes)


@define(eq=False)
class World:
    """A router, a service, its disk, and the configuration that it would find."""

    router: emulator.Router
    network: trio.Nursery
    next: Settings | Exception
    service: Service = field(init=False)
    storage: MemoryStorage = field(factory=MemoryStorage)
    read_s: float = 0.1
    shutdown: trio.Event = field(factory=trio.Event)

    async def read(self, path: Path) -> Settings:
        await trio.sleep(self.read_s)
        assert path == FILE
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    @asynccontextmanager
    async def running(self, begun_with: Settings) -> AsyncIterator[Service]:
        """Run a service; leaving the block kills it, as kill -9 does."""
        now_ns = self.router.now_ns
        seams = Seams(
            clock=StreamClock(trio.current_time, now_ns),
            utc_ns=now_ns,
            rng=random.Random(1),
            dialer=MemoryDialer(self.router, self.network),
            storage=self.storage,
            journal_runner=run_directly,
            reader_runner=run_directly,
            new_epoch=lambda: "epoch",
            read_settings=self.read,
        )
        self.service = Service(begun_with, seams)
        shutdown = self.shutdown = trio.Event()

        async def run(*, task_status: trio.TaskStatus[Service]) -> None:
            await self.service.run(shutdown, serve_socket=False, task_status=task_status)

        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            await trio.sleep(5)  # all are connected
            yield self.service
            shutdown.set()

    async def reload(self, new: Settings | Exception, who: str = "me") -> None:
        self.next = new
        await self.service.reload(who)

    @property
    def links(self) -> dict[str, int]:
        """The router's connections: source -> number."""
        return {
            f"{c.account}/{c.region}": number
            for number, c in self.router.connections.items()
            if not c.over
        }

    @property
    def records(self) -> list[dict[str, Any]]:
        files = sorted(p for p in self.storage.files if p.suffix == ".ndjson")
        data = b"".join(bytes(self.storage.files[path].data) for path in files)
        return [json.loads(line) for line in data.splitlines()]

    def told(self, source: str, *kinds: str) -> list[str]:
        """What the stream says of one source beside events: `down:reload`, `GAP:reload`, `up`."""
        return [
            f"GAP:{r['cause']}" if r["kind"] == "gap" else ":".join(
                filter(None, (r["state"], r.get("cause")))
            )
            for r in self.records
            if f"{r.get('account')}/{r.get('region')}" == source and r["kind"] in ("gap", "state")
        ]  # fmt: skip

    def source(self, name: str) -> SourceStatus:
        return next(s for s in self.service.status().sources if f"{s.account}/{s.region}" == name)


@asynccontextmanager
async def world(rate: float = 2.0) -> AsyncIterator[World]:
    def now_ns() -> int:
        return START_NS + round(trio.current_time() * 1e9)

    router = emulator.Router(emulator.RouterSettings(ACCOUNTS, rate=rate), now_ns)
    async with trio.open_nursery() as network:
        yield World(router, network, settings())
        network.cancel_scope.cancel()


UP = ["down:start", "GAP:start", "up"]


async def test_what_did_not_change_keeps_its_socket(autojump_clock: MockClock) -> None:
    async with world() as w, w.running(settings(account(1), account(2))):
        before = w.links
        assert len(before) == 4
        await w.reload(settings(account(1, "x"), account(2), account(3, "y")), "uid 7 (pid 8)")
        await trio.sleep(5)
        after = w.links
        assert set(after) == {"acct-001/x", "acct-002/x", "acct-002/y", "acct-003/y"}
        kept = set(before) & set(after)
        assert {name: before[name] for name in kept} == {name: after[name] for name in kept}
        assert w.told("acct-001/x") == UP
        assert w.told("acct-001/y") == [*UP, "down:reload", "GAP:reload", "config"]
        assert w.told("acct-003/y") == UP
        own = [r for r in w.records if r["kind"] == "state" and "account" not in r]
        assert [r["state"] for r in own] == ["start", "config"]
        assert own[1]["reason"] == ("reload by uid 7 (pid 8): added acct-003/y; removed acct-001/y")
        status = w.service.status()
        assert len(status.sources) == 4
        assert status.last_reload is not None
        assert status.last_reload.accepted
        assert status.last_reload.changes == ("added acct-003/y", "removed acct-001/y")
        assert status.limits.slots_taken == 4


async def test_a_changed_source_is_connected_anew_with_one_gap(autojump_clock: MockClock) -> None:
    async with world() as w, w.running(settings(account(1), account(2))):
        before = w.links
        await w.reload(settings(account(1, filters=DIE), account(2)))
        await trio.sleep(5)
        after = w.links
        assert set(after) == set(before)
        for region in REGIONS:
            assert after[f"acct-001/{region}"] != before[f"acct-001/{region}"]
            assert after[f"acct-002/{region}"] == before[f"acct-002/{region}"]
            assert w.told(f"acct-001/{region}") == [*UP, "down:reload", "GAP:reload", "up"]
            number = after[f"acct-001/{region}"]
            assert w.router.connections[number].filters == DIE


async def test_what_is_left_out_changes_without_a_new_connection(
    autojump_clock: MockClock,
) -> None:
    async with world() as w, w.running(settings(account(1))):
        before = w.links
        await w.reload(settings(account(1, exclude_events=("*",))))
        recorded = w.source("acct-001/x").events.recorded
        await trio.sleep(30)
        assert w.links == before
        counts = w.source("acct-001/x").events
        assert counts.filtered > 20
        assert counts.recorded - recorded <= 5  # those under way


async def test_a_source_expected_to_speak_is_quiet_and_then_is_not(
    autojump_clock: MockClock,
) -> None:
    async with world(rate=0.0001) as w, w.running(settings(account(1, "x"))):
        before = w.links
        await w.reload(settings(account(1, "x", expect_event_within_s=60.0)))
        await trio.sleep(61)
        status = w.source("acct-001/x")
        assert status.state == "quiet"
        assert status.since < w.service.status().at
        await w.reload(settings(account(1, "x")))
        assert w.source("acct-001/x").state == "live"
        assert w.links == before


async def test_a_reload_at_any_moment_of_a_stop_is_without_effect(
    autojump_clock: MockClock,
) -> None:
    before = settings(account(1))
    changes = compare(before, evolve(before, limits=LimitSettings(50, 50.0, 5, Cap(), Cap())))
    for turns in range(60):
        async with world() as w, w.running(before) as service:
            w.shutdown.set()
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            service.supervisor.apply(changes)


async def test_a_bad_file_changes_nothing_and_says_why(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as w, w.running(settings(account(1))):
        before = w.links
        problem = Problem("accounts.toml", "limits.x", "is no key")
        await w.reload(ConfigurationFault([problem]))
        await trio.sleep(5)
        assert w.links == before
        last = w.service.status().last_reload
        assert last is not None
        assert (last.accepted, last.problems) == (False, (str(problem),))
        assert "limits.x" in caplog.text
        await w.reload(settings())
        last = w.service.status().last_reload
        assert last is not None
        assert "no account is enabled" in last.problems[0]
        assert w.links == before
        assert [r["state"] for r in w.records if r["kind"] == "state" and "account" not in r] == [
            "start"
        ]


@pytest.mark.parametrize(
    ("found", "read_s", "told"),
    [(OSError(5, "Input/output error"), 0.1, "Input/output error"), (None, 1000.0, "within 30 s")],
)
async def test_a_disk_that_fails_or_hangs_changes_nothing(
    autojump_clock: MockClock, found: Exception | None, read_s: float, told: str
) -> None:
    async with world() as w, w.running(settings(account(1))):
        before = w.links
        w.read_s = read_s
        await w.reload(found or settings(account(2)))
        last = w.service.status().last_reload
        assert last is not None
        assert not last.accepted
        assert told in last.problems[0]
        assert w.links == before
        w.read_s = 0.1
        await w.reload(settings(account(1, "x")))
        assert w.service.status().last_reload != last


async def test_what_needs_a_restart_is_named_and_the_rest_counts(
    autojump_clock: MockClock,
) -> None:
    async with world() as w, w.running(settings(account(1))):
        limits = LimitSettings(7, 20.0, 5, Cap(), Cap())
        new = settings(account(1), limits=limits, journal=JournalSettings(fsync="never"))
        await w.reload(new)
        status = w.service.status()
        assert status.limits.max_connections == 7
        last = status.last_reload
        assert last is not None
        assert last.needs_restart == ('journal.fsync stays "commit": "never" takes a restart',)
        assert any("limits.max_connections = 7" in change for change in last.changes)


async def test_fewer_slots_are_given_back_and_more_are_taken(autojump_clock: MockClock) -> None:
    few, many = LimitSettings(2, 50.0, 5, Cap(), Cap()), LimitSettings(100, 50.0, 5, Cap(), Cap())
    async with world() as w, w.running(settings(account(1), account(2), limits=many)):
        before = w.links
        await w.reload(settings(account(1), account(2), limits=few))
        await trio.sleep(5)
        kept = w.links
        assert len(kept) == 2
        assert kept.items() <= before.items()
        waiting = [s for s in w.service.status().sources if s.state == "waiting"]
        assert len(waiting) == 2
        assert all("slot" in (s.waits_for or "") for s in waiting)
        await w.reload(settings(account(1), account(2), limits=many))
        await trio.sleep(5)
        assert len(w.links) == 4
        assert kept.items() <= w.links.items()


async def test_slots_that_come_free_are_not_asked_of_those_that_stay(
    autojump_clock: MockClock,
) -> None:
    few = LimitSettings(2, 50.0, 5, Cap(), Cap())
    async with world() as w, w.running(settings(account(1), account(2))):
        before = w.links
        await w.reload(settings(account(2), limits=few))
        await trio.sleep(5)
        assert w.links == {name: before[name] for name in ("acct-002/x", "acct-002/y")}


async def test_a_renewed_key_keeps_the_connection_until_it_is_accepted(
    autojump_clock: MockClock,
) -> None:
    wrong = CredentialSource(ACCOUNTS[0].access_key, Secret("wrong"))
    async with world() as w, w.running(settings(account(1, "x"))):
        first = w.links["acct-001/x"]
        await w.reload(settings(account(1, "x", credential=wrong)))
        await trio.sleep(60)
        assert w.links["acct-001/x"] == first
        assert w.told("acct-001/x") == UP
        await w.reload(settings(account(1, "x")))
        await trio.sleep(60)
        assert w.links["acct-001/x"] != first
        assert w.told("acct-001/x") == UP
        counts = w.source("acct-001/x").events
        assert counts.received == counts.recorded + counts.duplicate + counts.in_flight


async def test_a_refused_source_is_tried_at_once_with_its_new_key(
    autojump_clock: MockClock,
) -> None:
    wrong = CredentialSource(ACCOUNTS[0].access_key, Secret("wrong"))
    async with world() as w, w.running(settings(account(1, "x", credential=wrong), account(2))):
        assert w.source("acct-001/x").state == "denied"
        failure = w.source("acct-001/x").last_failure
        assert failure is not None
        assert failure.verdict == "denied"
        await w.reload(settings(account(1, "x"), account(2)))
        await trio.sleep(5)
        assert w.source("acct-001/x").state == "proving"
        assert w.told("acct-001/x") == ["down:start", "down:denied", "GAP:denied", "up"]


async def test_removed_and_back_before_it_has_ended(autojump_clock: MockClock) -> None:
    async with world() as w, w.running(settings(account(1), account(2))):
        w.next = settings(account(2))
        outcome = w.service.reloading
        await outcome.reload("one")
        w.next = settings(account(1), account(2))
        await outcome.reload("two")
        await trio.sleep(5)
        assert len(w.links) == 4
        told = w.told("acct-001/x")
        assert told[-1] == "up"
        assert told.count("up") == 2
        assert len(w.service.status().sources) == 4
        assert w.service.status().limits.slots_taken == 4


async def test_a_reload_that_is_killed_in_the_middle_leaves_no_time_uncovered(
    autojump_clock: MockClock,
) -> None:
    before, after = settings(account(1), account(2)), settings(account(2), account(3))
    async with world() as w:
        with trio.CancelScope() as kill:
            async with w.running(before):
                w.next = after
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(w.service.reload, "me")
                    await trio.sleep(0.1001)  # applied, and nothing of it has ended yet
                    kill.cancel()
        lost_at = len(w.records)
        async with w.running(after):
            pass
        told = {name: w.told(name) for name in ("acct-001/x", "acct-002/x", "acct-003/x")}
        assert told["acct-001/x"][-1] == "config"
        assert told["acct-001/x"][-2].startswith("GAP:")
        assert told["acct-003/x"].count("up") == 1
        assert lost_at


def check(counts: Counts) -> None:
    assert counts.received + counts.synthetic == (
        counts.recorded + counts.duplicate + counts.filtered + counts.lost + counts.in_flight
    )
    assert counts.in_flight >= 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_reloads_at_random_moments_lose_no_count_and_no_slot(
    autojump_clock: MockClock, seed: int
) -> None:
    """What came in = what came out, and a slot for each connection, whatever is changed when."""
    rng = random.Random(seed)
    # Connections are replaced all the time, and the buffer is too small for what they bring.
    base = {
        "connection": ConnectionSettings(rotate_after_s=rng.choice([1.0, 3.0])),
        "buffer": BufferSettings(8 << 10, 6 << 10),
    }
    few = LimitSettings(rng.choice([2, 3, 5]), 50.0, 5, Cap(), Cap())
    variants = [
        settings(account(1), account(2), **base),
        settings(account(1, filters=DIE), account(2), account(3), **base),
        settings(account(1, exclude_events=("start",)), account(2, "y"), **base),
        settings(account(2), account(3, "x"), limits=few, **base),
        settings(account(1), account(3, exclude_events=("*",)), **base),
    ]
    async with world(rate=10.0) as w, w.running(variants[0]):
        for _ in range(40):
            # A reload may find a connection half made, or two at once.
            w.router.faults.delay(Target(), rng.choice([0.0, 0.5]))
            await w.reload(rng.choice(variants))
            for _ in range(3):
                await trio.sleep(rng.expovariate(3.0))
                if rng.random() < 0.1 and w.router.connections:
                    number = rng.choice(list(w.router.connections))
                    w.router.connections[number].end(Goodbye(rng.choice([None, 1001, 1012]), "cut"))
                for source in w.service.status().sources:
                    check(source.events)
        w.router.faults.delay(Target(), 0.0)
        calm = settings(account(1), account(2), connection=ConnectionSettings())
        await w.reload(calm)
        await trio.sleep(60)
        status = w.service.status()
        assert len(w.links) == status.limits.slots_taken == 4
        recorded: dict[str, int] = {}
        lost: dict[str, int] = {}
        for r in w.records:
            name = f"{r.get('account')}/{r.get('region')}"
            recorded[name] = recorded.get(name, 0) + (r["kind"] in ("event", "unparsed"))
            lost[name] = lost.get(name, 0) + r.get("lost", 0)
        for source in status.sources:
            name = f"{source.account}/{source.region}"
            check(source.events)
            assert source.events.recorded == recorded[name]
            assert source.events.lost >= lost[name]  # an episode may still be going on
        assert sum(recorded.values()) > 1000
        assert sum(lost.values()) > 0
