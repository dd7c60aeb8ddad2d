"""A fault of hypermux itself in one source's task: that source pays for it, and nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine_world import configured, engine_world
from engines import volume
from test_reload import UP, account, settings, world
from trio.testing import MockClock

from hypermux.config.settings import BackoffSettings, ConnectionSettings
from hypermux.core.limiter import Allocator
from hypermux.emulator.connection import Goodbye
from hypermux.model.accounts import SourceId
from hypermux.model.errors import HypermuxError
from hypermux.upstream.connection import Connection
from hypermux.upstream.sifting import Sieve

pytestmark = pytest.mark.internal_faults

VICTIM = SourceId("acct-001", "x")


class Fault:
    """Makes a method of one source's parts fail, as often as is ordered."""

    def __init__(self, patch: pytest.MonkeyPatch, of: type, method: str) -> None:
        self.left = 0
        original: Callable[..., Any] = getattr(of, method)

        def failing(part: Any, *args: Any, **options: Any) -> Any:
            name = args[0] if of is Allocator else part.source.id
            if self.left and name == VICTIM:
                self.left -= 1
                raise HypermuxError("a source cannot go from here to there; secret")
            return original(part, *args, **options)

        patch.setattr(of, method, failing)


@pytest.mark.parametrize(
    ("of", "method", "count"),
    [
        (Connection, "_dial", 3),
        (Connection, "_judged", 1),
        (Allocator, "request", 3),
        (Connection, "_until_due", 3),
    ],
)
async def test_it_heals_and_the_others_do_not_notice(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    of: type,
    method: str,
    count: int,
) -> None:
    fault = Fault(monkeypatch, of, method)
    async with world() as w, w.running(settings(account(1), account(2))):
        before = w.links
        fault.left = count
        number = before["acct-001/x"]
        w.router.connections[number].end(Goodbye(1001, "cut"))
        await trio.sleep(60)
        after = w.links
        assert fault.left == 0
        assert set(after) == set(before)
        del before["acct-001/x"], after["acct-001/x"]
        assert after == before
        source = w.source("acct-001/x")
        assert source.state in ("live", "proving")
        assert source.internal_faults == w.service.status().internal_faults == count
        assert source.last_failure is not None
        assert source.last_failure.cause == "internal"
        counts = source.events
        assert counts.received == counts.recorded + counts.lost + counts.in_flight > 100
        assert w.service.status().limits.slots_taken == 4
        told = w.told("acct-001/x")
        assert told[:3] == UP
        assert "down:internal" in told
        assert sum(text.startswith("GAP") for text in told) == 2, "one gap for the whole outage"
        assert told[-1] == "up"
        assert w.told("acct-002/x") == UP
        faults = [r for r in caplog.records if r.exc_info]
        assert [r.levelno for r in faults] == [logging.ERROR] * count
        assert "secret" not in str(w.records)


async def test_the_pauses_grow_and_health_ends_them(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(monkeypatch, Connection, "_dial")
    pauses = ConnectionSettings(backoff=BackoffSettings(min_s=1.0, max_s=32.0, reset_after_s=60.0))
    async with world() as w, w.running(settings(account(1), connection=pauses)):
        connection = w.service.supervisor.connections[VICTIM]
        fault.left = 8
        w.router.connections[w.links["acct-001/x"]].end(Goodbye(1001, "cut"))
        attempts = []
        while fault.left:
            await trio.sleep(0.01)
            now = w.service.supervisor.connections[VICTIM]
            if now is not connection:
                connection = now
                attempts.append((now.lifecycle.attempt, now.pause_s))
        status = w.source("acct-001/x")
        assert status.state == "backing-off"
        assert status.next_try is not None
        assert [attempt for attempt, _ in attempts] == list(range(2, 10))
        assert all(0 < pause <= min(32, 2**n) for n, pause in attempts)
        assert max(pause for _, pause in attempts) > 4
        await trio.sleep(120)
        assert w.source("acct-001/x").attempt == 0


async def test_a_source_that_is_removed_meanwhile_is_gone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(monkeypatch, Connection, "_dial")
    async with world() as w, w.running(settings(account(1), account(2))):
        fault.left = 1000
        w.router.connections[w.links["acct-001/x"]].end(Goodbye(1001, "cut"))
        await trio.sleep(5)
        await w.reload(settings(account(1, "y"), account(2)))
        await trio.sleep(5)
        assert w.told("acct-001/x")[-2:] == ["GAP:closed", "config"]
        assert w.service.status().limits.slots_taken == 3
        fault.left = 0
        await w.reload(settings(account(1), account(2)))
        await trio.sleep(5)
        assert w.told("acct-001/x")[-1] == "up"


@pytest.mark.parametrize("method", ["_switch", "_retire", "_settled"])
async def test_slots_come_back_from_the_middle_of_a_replacement(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fault = Fault(monkeypatch, Connection, method)
    async with world(rate=20) as w, w.running(settings(account(1), account(2))):
        fault.left = 1
        w.service.supervisor.connections[VICTIM].renew()
        await trio.sleep(30)
        assert fault.left == 0
        status = w.service.status()
        assert status.limits.slots_taken == 4
        assert [source.state for source in status.sources].count("backing-off") == 0
        counts = w.source("acct-001/x").events
        assert counts.received == (
            counts.recorded + counts.duplicate + counts.lost + counts.in_flight
        )
        assert w.told("acct-001/x") == [*UP, "down:internal", "GAP:internal", "up"]


async def test_what_it_swallowed_is_counted_and_in_the_gap(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(monkeypatch, Sieve, "hand_on")
    async with world() as w, w.running(settings(account(1))):
        fault.left = 2
        await trio.sleep(60)
        counts = w.source("acct-001/x").events
        assert fault.left == 0
        assert counts.lost >= 2
        assert counts.received == counts.recorded + counts.lost + counts.in_flight


async def test_an_engine_s_event_that_it_swallowed_is_not_taken_for_seen(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(monkeypatch, Sieve, "hand_on")
    monkeypatch.setattr("test_internal_faults.VICTIM", SourceId("ci", "build1"))
    async with engine_world() as w, w.running(configured()):
        engine = w.engine()
        await engine.happen(volume("a", engine.now_ns()))
        await trio.sleep(5)
        fault.left = 1
        await engine.happen(volume("swallowed", engine.now_ns()))
        await trio.sleep(60)
        await engine.happen(volume("b", engine.now_ns()))
        await trio.sleep(5)
        assert w.names == ["a", "b"]
        assert w.told == ["down:start", "GAP:start", "up", "down:internal", "GAP:internal", "up"]
