"""Seeds, from the outside: one here, or many in as many processes as there are cores."""

from __future__ import annotations

import concurrent.futures
import gc
import hashlib
import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType

from attrs import frozen

from simulator.judge import judge
from simulator.plan import Plan
from simulator.world import World

# A seed takes a second; one that takes this long goes round and round at one moment.
PATIENCE_S = 120
SHOWN = 5


@frozen
class Result:
    """What a seed came to. `digest` is of the journal's files and the trace; `cost_s` CPU time."""

    seed: int
    problems: tuple[str, ...]
    digest: str
    cost_s: float
    messages: int
    recorded: int
    gaps: int
    lives: int
    dials: int


class TooSlow(Exception):
    """A seed does not come to its end."""


def simulate(seed: int, hour: float = 3600.0) -> tuple[World, Result]:
    """Run a seed in this process, and judge it."""
    began = time.process_time()
    # To look for garbage all the while is a tenth of what a seed costs; `one` does it afterwards.
    gc.disable()
    try:
        return _simulate(seed, hour, began)
    finally:
        gc.enable()


def _simulate(seed: int, hour: float, began: float) -> tuple[World, Result]:
    world = World(Plan.of(seed, hour))
    world.run()
    problems = judge(world)
    digest = hashlib.sha256("\n".join(world.truth.trace).encode())
    lines = b""
    for path in sorted(world.disk.files):
        data = bytes(world.disk.files[path].data)
        digest.update(str(path).encode() + b"\0" + data)
        lines += data if path.suffix == ".ndjson" else b""
    return world, Result(
        seed,
        tuple(problems),
        digest.hexdigest(),
        time.process_time() - began,
        sum(map(len, world.truth.messages.values())),
        lines.count(b',"kind":"event",') + lines.count(b',"kind":"unparsed",'),
        lines.count(b',"kind":"gap",'),
        len(world.truth.lives),
        len(world.network.attempts),
    )


def one(seed: int, hour: float = 3600.0) -> Result:
    """Run a seed in this process; a fault of the simulation is a problem like any other."""

    def too_slow(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"no end after {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(PATIENCE_S)
    try:
        return simulate(seed, hour)[1]
    except Exception as error:
        return Result(seed, (f"world: {error!r}",), "", 0.0, 0, 0, 0, 0, 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        gc.collect()


def many(seeds: Iterable[int], jobs: int, hour: float = 3600.0) -> Iterator[Result]:
    """Run seeds in `jobs` processes; yield the results as they come."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, gc.freeze) as pool:
        running = [pool.submit(one, seed, hour) for seed in seeds]
        for done in concurrent.futures.as_completed(running):
            yield done.result()


def told(world: World, result: Result) -> Iterator[str]:
    """Yield a seed's whole story: its plan, what happened, its journal, what is wrong."""
    plan = world.plan
    yield f"seed {result.seed}: fsync {plan.fsync}, {', '.join(map(str, plan.sources))}"
    yield from world.truth.trace
    for path in sorted(world.disk.files):
        if path.suffix == ".ndjson":
            yield f"-- {path.name}"
            yield from bytes(world.disk.files[path].data).decode("latin-1").splitlines()
    yield f"-- digest {result.digest}"
    yield from result.problems
