"""Put small faults into the modules that decide, one at a time, and see whether a test notices.

    scripts/mutate --module skew --least 90
    scripts/mutate --sample 50 --seed 3 --workers 1

A fault that no test notices has survived: a test is missing, or the fault changes nothing that
anybody can see. Those that change nothing stand in util_lib/equivalents.py with the reason and do
not count.

For each module the tests that know it (TESTS below) run once as they are, while it is written
down which test runs which lines. A mutant then gets the tests that reach it, the fastest first,
until one fails. It runs in a process of its own, forked after the libraries were loaded, with the
faulty source in place of the module; a mutant that takes far longer than the tests should, or far
more memory, is killed and counts as noticed. No file is changed.

The known tools do not fit. mutmut changes functions alone, and none with a decorator: half of what
matters here are tables, constants and properties. Cosmic Ray writes its faults into the working
tree and starts pytest anew for each, seconds where this takes tenths.

Exit status: 1 when a module is under --least, 2 when the tests fail without any fault.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import hypothesis
import pytest
import trio.testing  # noqa: F401  (loaded once, before the forks)
from attrs import define, field, frozen
from util_lib.equivalents import EQUIVALENTS, Same
from util_lib.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "hypermux" / "core"
_LIMITS = (
    "unit/test_core_limiter.py",
    "unit/test_core_limiter_changes.py",
    "unit/test_core_limiter_properties.py",
)
# The tests that know a module, each a file under tests/.
TESTS: Mapping[str, tuple[str, ...]] = {
    "backoff": ("unit/test_core_backoff.py", "unit/test_core_lifecycle.py"),
    "bounds": ("unit/test_core_bounds.py",),
    "correction": ("unit/test_core_correction.py",),
    "lifecycle": ("unit/test_core_lifecycle.py", "virtual/test_upstream_verdicts.py"),
    "limiter": ("unit/test_core_turns.py", *_LIMITS, "virtual/test_upstream_gate.py"),
    "merging": ("unit/test_core_merging_rules.py", "unit/test_core_merging.py"),
    "overlap": ("unit/test_core_overlap.py",),
    "quiet": ("unit/test_core_quiet.py",),
    "rates": ("unit/test_core_rates.py", *_LIMITS),
    "renewal": ("unit/test_core_renewal.py",),
    "resume": ("unit/test_core_resume.py",),
    "rotation": ("unit/test_core_rotation.py",),
    "skew": ("unit/test_core_skew.py",),
    "throttling": ("unit/test_core_throttling.py", *_LIMITS),
    "turns": ("unit/test_core_turns.py", *_LIMITS),
    "verdicts": ("unit/test_core_lifecycle.py", "virtual/test_upstream_verdicts.py"),
    "yielding": _LIMITS,
}
# How much longer a test may take than it took unharmed and traced, which alone makes it a few times
# as long. It is counted in processor time: others may use the machine too.
PATIENCE = 2.0
PATIENCE_S = 1.0
# To load the tests, in processor time.
LOADING_S = 15.0
# For a test that waits for what never comes.
IDLE_S = 60.0
# A fault can make a list grow without end. The whole of a test process is far below.
MEMORY = 2 << 30


@define
class Reach:
    """One test: how long it takes, and which lines of the module it runs."""

    seconds: float = 0.0
    lines: set[int] = field(factory=set)


@frozen
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    noticed: bool
    how: str


class Faulty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a text of ours, as if it stood in its file."""

    def __init__(self, name: str, path: Path, text: str) -> None:
        self._name, self._path, self._text = name, path, text

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Take this one module."""
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=str(self._path))

    def exec_module(self, module: ModuleType) -> None:
        """Run the text; nothing is cached beside the file."""
        exec(compile(self._text, str(self._path), "exec"), module.__dict__)


class Watch:
    """A pytest plugin: which test runs which lines of one file, and for how long."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self.reached: dict[str, Reach] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Trace one test."""
        reach = self.reached[item.nodeid] = Reach()
        lines, path = reach.lines, self._path

        def within(frame: FrameType, event: str, arg: object) -> Any:
            lines.add(frame.f_lineno)
            return within

        def calls(frame: FrameType, event: str, arg: object) -> Any:
            return within if frame.f_code.co_filename == path else None

        start = time.process_time()
        sys.settrace(calls)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            reach.seconds = time.process_time() - start


class Only:
    """A pytest plugin: these tests, in this order, each within its time, in seconds."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self._order = {name: place for place, name in enumerate(limits)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the others out."""
        order = self._order
        items[:] = sorted(
            (item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid]
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Have the process ended when its time is over: nobody catches this signal."""
        signal.setitimer(signal.ITIMER_PROF, self._limits[item.nodeid])


def run_tests(files: Sequence[str], plugin: object) -> int:
    """Run test files in this process, until one fails; return pytest's exit status."""
    # The same examples every time, and no search for the smallest: one failure is all it takes.
    hypothesis.settings.register_profile(
        "mutate",
        derandomize=True,
        database=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("mutate")
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    return int(pytest.main([*options, *files], plugins=[plugin]))


def forked(work: Any, output: int) -> int:
    """Call `work` in a fork, its output into a file; return the fork's pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()  # what a test starts can be ended with it
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = work()
    finally:
        sys.stdout.flush()
        os._exit(status)
    raise AssertionError("not reached")


class Module:
    """One module under mutation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = CORE / f"{name}.py"
        self.source = self.path.read_text()
        self.files = [f"tests/{file}" for file in TESTS[name] if (ROOT / "tests" / file).exists()]
        self.mutants = mutants(self.source)
        self.reached: dict[str, Reach] = {}
        self.equivalents = EQUIVALENTS.get(name, ())

    def look(self) -> str | None:
        """Run the tests as they are; return what they print when they fail."""
        with tempfile.TemporaryFile() as found, tempfile.TemporaryFile() as output:

            def work() -> int:
                watch = Watch(self.path)
                status = run_tests(self.files, watch)
                reached = {k: [v.seconds, sorted(v.lines)] for k, v in watch.reached.items()}
                os.write(found.fileno(), json.dumps(reached).encode())
                return status

            _, status = os.waitpid(forked(work, output.fileno()), 0)
            output.seek(0)
            if status or not self.files:
                return output.read().decode(errors="replace") or "there are no tests"
            found.seek(0)
            for name, (seconds, lines) in json.load(found).items():
                self.reached[name] = Reach(seconds, set(lines))
        return None

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Return the tests that could notice, the fastest first."""
        lines = mutant.lines
        names = [
            name
            for name, reach in self.reached.items()
            if lines is None or not reach.lines.isdisjoint(lines)
        ]
        return sorted(names, key=lambda name: self.reached[name].seconds)

    def excuse(self, mutant: Mutant) -> Same | None:
        """Return the entry that says why a mutant changes nothing; None: there is none."""
        change = mutant.where, *mutant.changes(self.source)
        return next((same for same in self.equivalents if same.covers(*change)), None)

    def start(self, mutant: Mutant, limits: Mapping[str, float], output: int) -> int:
        """Run tests against a mutant, each within its time; return the process."""
        files = list(dict.fromkeys(name.partition("::")[0] for name in limits))
        text = mutant.apply(self.source)

        def work() -> int:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.setitimer(signal.ITIMER_PROF, LOADING_S)
            name = f"hypermux.core.{self.name}"
            sys.meta_path.insert(0, Faulty(name, self.path, text))
            return run_tests(files, Only(limits))

        return forked(work, output)


@define
class Running:
    """A mutant whose tests run."""

    mutant: Mutant
    deadline: float


def judge(module: Module, chosen: Sequence[Mutant], workers: int) -> list[Outcome]:
    """Run the tests of each mutant, as many at once as there are workers."""
    waiting = list(chosen)[::-1]
    running: dict[int, Running] = {}
    outcomes: list[Outcome] = []
    with open(os.devnull, "wb") as output:
        while waiting or running:
            while waiting and len(running) < workers:
                mutant = waiting.pop()
                limits = {
                    name: PATIENCE_S + PATIENCE * module.reached[name].seconds
                    for name in module.tests_of(mutant)
                }
                if not limits:
                    outcomes.append(Outcome(mutant, False, "no test runs this line"))
                    continue
                deadline = time.monotonic() + 4 * sum(limits.values()) + IDLE_S
                running[module.start(mutant, limits, output.fileno())] = Running(mutant, deadline)
            time.sleep(0.01)
            before = len(outcomes)
            for pid, run in list(running.items()):
                if time.monotonic() > run.deadline:
                    os.killpg(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del running[pid]
                    outcomes.append(outcome(run.mutant, status))
            if sys.stderr.isatty() and len(outcomes) > before:
                print(
                    f"\r{module.name}: {len(outcomes)} of {len(chosen)} ", end="", file=sys.stderr
                )
    return sorted(outcomes, key=lambda outcome: outcome.mutant.span)


def outcome(mutant: Mutant, status: int) -> Outcome:
    """Read a process's end."""
    if os.WIFSIGNALED(status):
        return Outcome(mutant, True, f"ended by signal {os.WTERMSIG(status)}")
    code = os.WEXITSTATUS(status)
    return Outcome(mutant, code != 0, "a test failed" if code else "all tests passed")


def report(module: Module, outcomes: Sequence[Outcome]) -> float:
    """Print a module's line and its survivors; return the percentage that was noticed."""
    noticed = sum(outcome.noticed for outcome in outcomes)
    survivors = [outcome for outcome in outcomes if not outcome.noticed]
    unknown = [outcome for outcome in survivors if module.excuse(outcome.mutant) is None]
    counted = noticed + len(unknown)
    percent = 100.0 * noticed / counted if counted else 100.0
    print(
        f"{module.name:12}{counted:6} mutants{noticed:6} killed"
        f"{len(unknown):5} survived{percent:7.1f} %"
        f"{len(survivors) - len(unknown):5} equivalent"
    )
    for outcome in unknown:
        mutant = outcome.mutant
        was, becomes = mutant.changes(module.source)
        place = f"{module.path.relative_to(ROOT)}:{mutant.line}: {mutant.where}"
        print(f"  {place}: {mutant.kind}: {outcome.how}\n    - {was}\n    + {becomes}")
    if len(outcomes) == len(module.mutants):
        used = {module.excuse(outcome.mutant) for outcome in survivors}
        for same in module.equivalents:
            if same not in used:
                print(f"  listed as equivalent for nothing: {same.where}: {same.part}")
    sys.stdout.flush()
    return percent


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--module",
        action="append",
        choices=sorted(TESTS),
        metavar="NAME",
        help="one of " + ", ".join(sorted(TESTS)) + "; may be repeated",
    )
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants of each module")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which ones (0)")
    parser.add_argument(
        "--least",
        type=float,
        default=0.0,
        metavar="PERCENT",
        help="exit with 1 when a module is under this",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="mutants at once (all cores)",
    )
    parser.add_argument("--list", action="store_true", help="show the mutants, run nothing")
    options = parser.parse_args()
    os.chdir(ROOT)
    status = 0
    for name in options.module or sorted(TESTS):
        if not (CORE / f"{name}.py").exists():
            continue
        module = Module(name)
        chosen = module.mutants
        if options.sample is not None and options.sample < len(chosen):
            rng = random.Random(options.seed)
            chosen = sorted(rng.sample(chosen, options.sample), key=chosen.index)
        if options.list:
            for mutant in chosen:
                was, becomes = mutant.changes(module.source)
                print(f"{name}:{mutant.line}: {mutant.kind}\n    - {was}\n    + {becomes}")
            continue
        failed = module.look()
        if failed is not None:
            print(f"{name}: its tests fail without a fault\n{failed}", file=sys.stderr)
            status = 2
            continue
        if report(module, judge(module, chosen, options.workers)) < options.least:
            status = status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
