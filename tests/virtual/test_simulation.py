"""The real service in 300 simulated worlds of an hour each; see `simulator`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulator import run
from simulator.judge import judge
from simulator.plan import Caps, Plan, Step
from simulator.world import World

from hypermux.model.accounts import SourceId

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "simulate.py"


@pytest.mark.slow
def test_every_promise_holds_in_300_worlds() -> None:
    results = list(run.many(range(300), os.cpu_count() or 1))
    assert len(results) == 300
    failed = {r.seed: r.problems[:5] for r in results if r.problems}
    assert not failed, "see scripts/simulate --seed S --trace"
    # The worlds are what they are meant to be: much is sent, and much goes wrong.
    assert sum(r.messages for r in results) > 200_000
    assert sum(r.gaps for r in results) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2])
def test_a_dead_peer_that_is_replaced_before_it_is_noticed_leaves_a_gap(slots: int) -> None:
    """Over the whole span in which its replacement can be due; with and without a spare slot."""
    source = SourceId("a0", "r0")
    for died in range(225, 301, 3):
        plan = Plan(died, 400.0, [source], rotate_s=300.0, caps=Caps(slots))
        plan.kinds[source], plan.dialects[source] = "hyper", "a"
        plan.delays[source], plan.clock_errors[source] = 0.01, 0.0
        says = [Step(died + 0.1 * n, "say", source, word="event") for n in range(1, 400)]
        plan.steps += [Step(float(died), "die", source), *says]
        world = World(plan)
        world.run()
        assert judge(world) == []


@pytest.mark.slow
def test_a_life_that_ends_while_it_tells_what_an_engine_remembers_hides_no_loss() -> None:
    """More was lost than an engine remembers, and only part of what it does is recorded."""
    source = SourceId("a0", "r0")
    told = 0
    for calls in range(40, 1000, 160):
        plan = Plan(calls, 400.0, [source])
        plan.kinds[source] = plan.dialects[source] = "docker"
        plan.delays[source], plan.clock_errors[source] = 0.01, 0.0
        plan.steps += [
            Step(50.0, "say", source, word="event"),
            Step(100.0, "down", source, seconds=60.0),
            Step(110.0, "burst", source, number=300),
            Step(159.0, "call", None, 1.0, calls, "killed"),
        ]
        world = World(plan)
        world.disk.write_limit = 100
        world.run()
        assert judge(world) == []
        told += len(world.truth.lives) > 1
    assert told > 3


@pytest.mark.slow
def test_a_seed_tells_the_same_story_in_every_process() -> None:
    stories = set()
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, SCRIPT, "--seed", "9", "--hour", "900", "--trace"],
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": salt},
            timeout=120,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        stories.add(done.stdout)
    assert len(stories) == 1
    assert len(stories.pop()) > 10_000
