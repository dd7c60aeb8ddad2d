"""Run seeds of the simulator in tests/virtual; see scripts/simulate."""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "virtual"))

import fleet_scenarios
from simulator import run


def _seeds(text: str) -> range:
    first, dots, last = text.partition("..")
    try:
        return range(int(first), int(last if dots else first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError("seeds are written A..B, or one number") from None


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=range(0), help="A..B, both included")
    parser.add_argument("--seed", type=int, help="one seed, in this process")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--hour", type=float, default=3600.0, help="virtual seconds of a seed")
    parser.add_argument("--trace", action="store_true", help="tell all that happens")
    parser.add_argument(
        "--fleet",
        nargs="?",
        const="all",
        choices=("all", *fleet_scenarios.SCENARIOS),
        help="the decisions of a whole fleet instead, in one scenario or in all",
    )
    parser.add_argument("--sources", type=int, default=1000, help="of a fleet")
    options = parser.parse_args()
    if options.fleet is not None:
        one = options.seed if options.seed is not None else 1
        return _fleets(options.fleet, options.seeds or range(one, one + 1), options)
    if options.seed is not None:
        return _one(options.seed, options.hour, trace=options.trace)
    if not options.seeds:
        parser.error("give --seeds A..B or --seed S")
    return _many(options.seeds, options.jobs, options.hour)


def _one(seed: int, hour: float, *, trace: bool) -> int:
    world, result = run.simulate(seed, hour)
    for line in run.told(world, result) if trace else result.problems:
        print(line)
    print(f"seed {seed}: {_figures([result])}", file=sys.stderr)
    return 1 if result.problems else 0


def _many(seeds: range, jobs: int, hour: float) -> int:
    began = told = time.monotonic()
    results: list[run.Result] = []
    for result in run.many(seeds, jobs, hour):
        results.append(result)
        for problem in result.problems[: run.SHOWN]:
            print(f"seed {result.seed}: {problem}", flush=True)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            left = (told - began) / len(results) * (len(seeds) - len(results))
            text = f"{len(results)} of {len(seeds)} seeds, {left:.0f} s to go"
            print(text, file=sys.stderr, flush=True)
    failed = sorted((r for r in results if r.problems), key=lambda r: r.seed)
    kinds = Counter(p.partition(":")[0] for r in failed for p in r.problems)
    print(f"{len(results)} seeds in {time.monotonic() - began:.0f} s: {_figures(results)}")
    if not failed:
        return 0
    text = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    print(f"{len(failed)} failed: {' '.join(str(r.seed) for r in failed)} ({text})")
    for line in run.told(*run.simulate(failed[0].seed, hour)):
        print(line)
    return 1


def _fleets(name: str, seeds: range, options: argparse.Namespace) -> int:
    names = list(fleet_scenarios.SCENARIOS) if name == "all" else [name]
    began, failed, runs = time.monotonic(), 0, len(names) * len(seeds)
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        running = {
            pool.submit(_fleet, name, seed, options.sources): (name, seed)
            for seed in seeds
            for name in names
        }
        for done in concurrent.futures.as_completed(running):
            report, (name, seed) = done.result(), running[done]
            figures = ", ".join(f"{key} {value:g}" for key, value in report.figures.items())
            failed += bool(report.violations)
            for text in report.violations or ["holds"]:
                print(f"{name} {seed}: {text} ({figures})", flush=True)
    print(f"{runs} fleets in {time.monotonic() - began:.0f} s, {failed} failed")
    return 1 if failed else 0


def _fleet(name: str, seed: int, sources: int) -> fleet_scenarios.Report:
    return fleet_scenarios.SCENARIOS[name](seed, sources)


def _figures(results: list[run.Result]) -> str:
    cost_s = sum(r.cost_s for r in results) / len(results)
    return (
        f"{cost_s:.2f} s of CPU a seed; {sum(r.messages for r in results)} messages sent,"
        f" {sum(r.recorded for r in results)} recorded, {sum(r.gaps for r in results)} gaps,"
        f" {sum(r.lives for r in results)} lives, {sum(r.dials for r in results)} dials"
    )


if __name__ == "__main__":
    sys.exit(main())
