"""One gap for each outage, whatever happens to us: kills, power cuts, stops, stepped clocks."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from outages import SECOND, START_NS, World, world

from hypermux.core.recording import parse_rfc3339

CHECKPOINT_S = 10.0


def since_start(record: dict[str, Any], key: str) -> float:
    return (parse_rfc3339(record[key]) - START_NS) / SECOND


async def test_nothing_but_the_start(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        await w.start()
        await trio.sleep(60)
    assert w.causes("east") == w.causes("west") == ["start"]


async def test_a_clean_stop(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        await w.start()
        await trio.sleep(60)
        await w.stop()
        await trio.sleep(100)
        await w.start()
    assert w.causes() == ["start", "stopped"]
    gap = w.gaps()[1]
    assert 59 < since_start(gap, "from") < 61
    assert 160 < since_start(gap, "to") < 162


@pytest.mark.parametrize("how", ["kill", "power_cut"])
@pytest.mark.parametrize("after_s", [0.0, 0.2, 1.0, 9.9, 10.1, 65.0])
async def test_killed_while_connected(
    autojump_clock: trio.testing.MockClock, how: str, after_s: float
) -> None:
    async with world() as w:
        await w.start()
        await trio.sleep(after_s)
        await getattr(w, how)()
        await trio.sleep(30)
        await w.start()
    assert len(w.gaps()) in (1, 2)
    last = w.gaps()[-1]
    assert last["cause"] in ("start", "restart")
    # It begins a checkpoint and a moment early at the most.
    assert since_start(last, "from") >= after_s - CHECKPOINT_S - 1.5 or len(w.gaps()) == 1
    assert since_start(last, "to") < after_s + 32


@pytest.mark.parametrize("how", ["kill", "power_cut", "stop"])
async def test_several_restarts_within_one_outage(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    async with world() as w:
        await w.start()
        await trio.sleep(20)
        w.server_down()
        for pause_s in (0.05, 3, 11, 0.5, 40, 0.0, 25):
            await trio.sleep(pause_s)
            await getattr(w, how)()
            await trio.sleep(pause_s)
            await w.start()
        w.server_up()
    for region in ("east", "west"):
        assert len(w.gaps(region)) == 2, w.causes(region)
        gap = w.gaps(region)[1]
        assert 20 - CHECKPOINT_S - 1.5 <= since_start(gap, "from") <= 20.1
        assert since_start(gap, "to") > 20 + 2 * 79.5


async def test_never_connected_over_several_restarts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as w:
        w.server_down()
        for how in ("kill", "stop", "power_cut", "kill"):
            await w.start()
            await trio.sleep(7)
            await getattr(w, how)()
            await trio.sleep(3)
        await w.start()
        w.server_up()
    (gap,) = w.gaps()
    assert since_start(gap, "from") < 0.1, "covered since it was configured"
    assert since_start(gap, "to") > 40


async def test_a_crash_loop(autojump_clock: trio.testing.MockClock) -> None:
    """Each life is too short for a checkpoint, some for a connection."""
    async with world() as w:
        await w.start()
        await trio.sleep(15)
        for number in range(12):
            await w.kill()
            await w.start()
            await trio.sleep(0.1 * number)
    assert w.causes()[0] == "start"
    assert set(w.causes()[1:]) == {"restart"}


@pytest.mark.parametrize("step_s", [3600, -3600, 0.5, -0.5, 86_400 * 400])
@pytest.mark.parametrize("when", ["up", "down", "stopped", "killed"])
async def test_a_wall_clock_that_is_stepped(
    autojump_clock: trio.testing.MockClock, step_s: float, when: str
) -> None:
    async with world() as w:
        await w.start()
        await trio.sleep(30)
        if when == "down":
            w.server_down()
            await trio.sleep(5)
        elif when == "stopped":
            await w.stop()
        elif when == "killed":
            await w.kill()
        w.step(step_s)
        await trio.sleep(20)
        if w.life is None:
            await w.start()
        w.server_up()
        await trio.sleep(140)  # back for so long that the failures before are forgotten
        w.cut(1001)
        await trio.sleep(5)
        await w.kill()
        await w.start()
    expected = {"up": 3, "down": 4, "stopped": 4, "killed": 4}[when]
    assert len(w.gaps("east")) == len(w.gaps("west")) == expected


async def test_refused_over_a_restart(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        await w.start()
        await trio.sleep(30)
        w.refuse(401)
        w.cut(1008)
        await trio.sleep(30)
        await w.stop()
        await w.start()
        await trio.sleep(3600)
        await w.kill()
        w.refuse(401, 0)
        await w.start()
    assert w.causes() == ["start", "denied"]
    gap = w.gaps()[1]
    assert 29 < since_start(gap, "from") < 30.1
    assert since_start(gap, "to") > 3660


async def test_a_source_that_goes_and_comes_back(autojump_clock: trio.testing.MockClock) -> None:
    """What happened while it was not configured is nobody's loss."""
    async with world() as w:
        await w.start()
        await trio.sleep(30)
        await w.kill()
        w.regions = ("east",)
        await trio.sleep(10)
        await w.start()
        await trio.sleep(50)
        assert w.causes("west") == ["start", "restart"], "its last gap, to the start without it"
        await w.stop()
        await trio.sleep(10)
        w.regions = ("east", "west")
        await w.start()
        await trio.sleep(10)
        gap = w.gaps("west")[2]
        assert (gap["cause"], len(w.gaps("west"))) == ("start", 3)
        assert since_start(gap, "from") > 100
        assert w.causes("east") == ["start", "restart", "stopped"]
        w.regions = ("east",)  # the check is about those that were there all the time


async def meddle(w: World, rng: random.Random, steps: int) -> None:
    """Let whatever happen, and always one thing after another."""
    for _ in range(steps):
        await trio.sleep(rng.choice((0.0, 0.01, 0.3, 1.0, 5.0, 12.0, 70.0)) * rng.random())
        do = rng.choice(
            (
                "cut",
                "cut",
                "down",
                "down",
                "up",
                "up",
                "kill",
                "power",
                "stop",
                "start",
                "step",
                "refuse",
            )
        )
        if do == "cut":
            w.cut(rng.choice((None, 1001, 1011)))
        elif do == "down":
            w.server_down()
        elif do == "up":
            w.server_up()
            w.refuse(401, 0)
        elif do == "refuse":
            w.refuse(rng.choice((500, 401)), rng.choice((1, 3, None)))
        elif do == "step":
            w.step(rng.choice((-7200, -3, 3, 7200)) * rng.random())
        elif w.life is None:
            await w.start()
        elif do == "kill":
            await w.kill()
        elif do == "power":
            await w.power_cut(rng.choice((0, 0, rng.randrange(3000))))
        elif do == "stop":
            await w.stop()
    if w.life is None:
        await w.start()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_is_recorded_or_in_one_gap(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    async with world(seed) as w:
        await meddle(w, random.Random(seed), 40)
        w.refuse(401, 0)
        # Whoever was refused for good waits for a probe: start anew instead.
        await w.stop()
        await w.start()
    for region in w.regions:
        between = 0
        for record in w.records:
            if record.get("region") == region and record["kind"] == "gap":
                between += 1
            elif record.get("region") == region and record.get("state") == "up":
                assert between >= 1, "no connection without the gap before it"
                between = 0
