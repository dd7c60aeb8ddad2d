"""What a stream lost, and its engine's ring no longer has, is a gap after a restart as well."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from engine_world import EngineWorld, configured, engine_world
from engines import ScriptedEngine, life, volume
from trio.testing import MockClock

from hypermux.core.recording import parse_rfc3339


async def many(engine: ScriptedEngine, name: str, count: int, *, live: bool = True) -> None:
    for number in range(count):
        await engine.happen(volume(f"{name}-{number}", engine.now_ns()), live=live)


async def interleaved(engine: ScriptedEngine) -> None:
    """Lose three of four; the oldest of the ring is one that came."""
    for number in range(100):
        await many(engine, f"lost-{number}", 3, live=False)
        await many(engine, f"came-{number}", 1)
    await many(engine, "last", 3)
    assert b"came-" in engine.ring[0]


def forget_sources(w: EngineWorld) -> None:
    """Leave the records only: what lies beside them is to be made again."""
    for path in [path for path in w.storage.files if path.suffix == ".sources"]:
        del w.storage.files[path]


async def restarted(w: EngineWorld, *, after_s: float = 5, **changes: Any) -> list[dict[str, Any]]:
    """Start anew; return what the new life tells beside events."""
    w.engine("first").streams.clear()
    before = len(w.records)
    await trio.sleep(after_s)
    async with w.running(configured(**changes)):
        await trio.sleep(20)
        return [r for r in w.records[before:] if r["kind"] != "event"]


def words(records: list[dict[str, Any]]) -> list[str]:
    return [str(r.get("cause") or r.get("state")) for r in records]


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("looks", [0, 3])
@pytest.mark.parametrize(("lost", "told"), [(300, ["audit", "up"]), (200, ["up"])])
async def test_a_stream_that_lost_a_ring_before_the_stop(
    autojump_clock: MockClock, lost: int, told: list[str], looks: int, scanned: bool
) -> None:
    """Told from the last look on, not from the beginning of a connection that was up for long."""
    async with engine_world() as w:
        engine = w.engine("first")
        async with w.running(configured()):
            up_ns = engine.now_ns()
            await many(engine, "before", 300 if looks else 3)
            await trio.sleep(5 + 60 * looks)
            began_ns = engine.now_ns()
            await many(engine, "lost", lost, live=False)
            await many(engine, "last", 1)
            await trio.sleep(1)
        names, stopped_ns = len(w.names), engine.now_ns()
        if scanned:
            forget_sources(w)
        found = await restarted(w)
        assert words(found) == told
        assert len(w.names) - names == min(lost, 255)
        if lost == 300:
            from_ns, to_ns = parse_rfc3339(found[0]["from"]), parse_rfc3339(found[0]["to"])
            assert found[0]["certainty"] == "possible"
            assert from_ns <= began_ns < stopped_ns < to_ns
            assert (from_ns > up_ns + 60 * 10**9) == bool(looks)
        assert words(await restarted(w)) == ["up"], "once"


async def test_what_came_in_between_is_no_proof(autojump_clock: MockClock) -> None:
    async with engine_world() as w:
        engine = w.engine("first")
        async with w.running(configured()):
            await interleaved(engine)
            await trio.sleep(1)
            await engine.cut()
            await trio.sleep(60)
            told = words([r for r in w.records if r["kind"] != "event"])
            assert told[-3:] == ["dropped", "audit", "up"]
            await interleaved(engine)
            await trio.sleep(1)
        assert words(await restarted(w)) == ["audit", "up"]


@pytest.mark.parametrize("scanned", [False, True])
async def test_an_ordinary_restart_has_no_gap(autojump_clock: MockClock, scanned: bool) -> None:
    """Few events, many since the last look, many that are excluded, and some while it was down."""
    excluding: dict[str, Any] = {"exclude_events": ("exec_*",)}
    async with engine_world() as w:
        engine = w.engine("first")
        for old in range(256):
            await engine.happen(volume(f"old-{old}", engine.now_ns()))
        await trio.sleep(5)
        async with w.running(configured(**excluding)):
            await many(engine, "few", 3)
            await trio.sleep(1)
        for rounds in range(3):
            if scanned:
                forget_sources(w)
            await many(engine, f"missed-{rounds}", 20, live=False)
            assert words(await restarted(w, **excluding)) == ["up"]
            assert w.names[-20:] == [f"missed-{rounds}-{n}" for n in range(20)]
            async with w.running(configured(**excluding)):
                for number in range(190):
                    await engine.happen(life("exec_start: sh", "c", engine.now_ns() + number))
                    await many(engine, f"busy-{rounds}-{number}", 1)
                await trio.sleep(1)
            engine.streams.clear()
