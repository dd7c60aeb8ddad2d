"""What is remembered of one engine is not held against another."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from engine_world import FIRST, ID, OTHER, EngineWorld, configured, engine_world
from engines import volume
from trio.testing import MockClock

from hypermux.config.changes import compare


async def filled(w: EngineWorld) -> None:
    """Let both engines have had events, the first one's while it was listened to."""
    first, other = w.engine("first"), w.engine("other")
    for number in range(3):
        await first.happen(volume(f"first-{number}", first.now_ns()))
        await other.happen(volume(f"other-{number}", other.now_ns()))
    await trio.sleep(5)


@pytest.mark.parametrize(
    ("between", "names", "told"),
    [
        # Removed and added within one tick, or with a goodbye between: the other engine is new.
        ([configured(""), configured(OTHER)], [], ["down:reload", "GAP:reload", "up"]),
        ([configured(OTHER)], [], ["down:reload", "GAP:reload", "up"]),
        # The same engine: what it remembers of the pause is all that there was.
        ([configured(""), configured(FIRST)], ["missed"], ["down:reload", "up"]),
    ],
)
async def test_a_source_that_comes_back_in_a_reload(
    autojump_clock: MockClock,
    between: list[Any],
    names: list[str],
    told: list[str],
) -> None:
    async with engine_world() as w, w.running(configured()):
        await filled(w)
        before = len(w.told)
        supervisor = w.service.supervisor
        # Nothing of the source's task runs between them.
        for settings in between:
            supervisor.apply(compare(supervisor.settings, settings))
        for name in ("first", "other"):
            engine = w.engine(name)
            missed = "missed" if name == "first" else "not ours"
            await engine.happen(volume(missed, engine.now_ns()), live=False)
        await trio.sleep(20)
        assert w.names == ["first-0", "first-1", "first-2", *names]
        assert w.told[before:] == told
        assert ID in supervisor.connections


@pytest.mark.parametrize(
    ("after", "names", "gap"),
    [
        (configured(FIRST), ["missed"], []),
        (configured(OTHER), [], ["GAP:stopped"]),
        (configured(FIRST, redact=("first-[0-9]",)), [], ["GAP:stopped"]),
    ],
)
async def test_an_endpoint_that_was_changed_while_nothing_ran(
    autojump_clock: MockClock, after: Any, names: list[str], gap: list[str]
) -> None:
    async with engine_world() as w:
        async with w.running(configured()):
            await filled(w)
        before = len(w.told)
        w.engine("first").streams.clear()
        w.engine("other").streams.clear()
        for name in ("first", "other"):
            engine = w.engine(name)
            missed = "missed" if name == "first" else "not ours"
            await engine.happen(volume(missed, engine.now_ns()))
        async with w.running(after):
            await w.engine("other").happen(volume("next", w.engine("other").now_ns()))
            await trio.sleep(5)
            shown = ["next"] if after == configured(OTHER) else []
            assert w.names == ["first-0", "first-1", "first-2", *names, *shown]
            assert w.told[before:] == [*gap, "up"]


@pytest.mark.parametrize(("lost", "told"), [(300, ["GAP:audit"]), (200, [])])
async def test_a_stream_that_lost_a_ring_before_it_broke(
    autojump_clock: MockClock, lost: int, told: list[str]
) -> None:
    """What came last is remembered, and so is no proof that all before it came."""
    async with engine_world() as w, w.running(configured()):
        engine = w.engine("first")
        await filled(w)
        before = len(w.told)
        for number in range(lost):
            await engine.happen(volume(f"lost-{number}", engine.now_ns()), live=False)
        await engine.happen(volume("last", engine.now_ns()))
        await engine.cut()
        await trio.sleep(60)
        assert w.told[before:] == ["down:dropped", *told, "up"]
        assert len(w.names) == 4 + min(lost, 255)
        gaps = [r for r in w.records if r["kind"] == "gap"]
        assert len(gaps) == 1 + len(told)
        if told:
            times = [r["time"] for r in w.records if r["kind"] == "event"]
            assert gaps[-1]["from"] < times[0], "since the last look"
