"""From a seed to everything that will be: sources, settings, and what goes wrong when."""

from __future__ import annotations

import random
from typing import Literal

from attrs import define, evolve, field, frozen

from hypermux.model.accounts import SourceId

Fsync = Literal["commit", "never"] | float


@frozen
class Step:
    """Something that happens at `at`: to a source, or (None) to the service's own machine."""

    at: float
    what: str
    source: SourceId | None = None
    seconds: float = 0.0
    number: float = 0.0
    word: str = ""


@frozen
class Caps:
    """The limits that a configuration sets: connections at once, connects a second."""

    connections: int = 100
    account_connections: int | None = None
    rate: float = 5.0
    account_rate: float | None = None
    endpoint_rate: float | None = None
    burst: int = 5


@define(eq=False)
class Plan:
    """One seed's world. `hour` is its length in seconds."""

    seed: int
    hour: float = 3600.0
    sources: list[SourceId] = field(factory=list)
    steps: list[Step] = field(factory=list)
    # Settings of the service.
    fsync: Fsync = "commit"
    segment_size: int = 1 << 20
    buffer: int = 64 << 20
    per_source: int = 8 << 20
    caps: Caps = Caps()
    # What reloads make of them: step "limits" takes the next one up, by its number.
    later: list[Caps] = field(factory=list)
    rotate_s: float | None = None
    # The world's own.
    disk_s: float = 0.0
    delays: dict[SourceId, float] = field(factory=dict)
    kinds: dict[SourceId, str] = field(factory=dict)  # "hyper" or "docker"
    dialects: dict[SourceId, str] = field(factory=dict)
    clock_errors: dict[SourceId, float] = field(factory=dict)

    @classmethod
    def of(cls, seed: int, hour: float = 3600.0) -> Plan:
        """Return the plan of a seed."""
        plan = _Planner(cls(seed, hour), random.Random(f"plan {seed}")).made()
        _reload(plan, random.Random(f"{seed}/reload"))
        return plan

    @property
    def short(self) -> bool:
        """Whether there are at times fewer slots than sources."""
        return any(
            caps.connections < len(self.sources)
            or (caps.account_connections or len(self.sources)) < len(self.sources)
            for caps in (self.caps, *self.later)
        )


def slowest_s(plan: Plan) -> float:
    """Return the longest that a call to the disk takes."""
    return max((step.number for step in plan.steps if step.what == "slow"), default=plan.disk_s)


def refused_s(plan: Plan) -> float:
    """Return the longest that the disk may refuse."""
    return sum(step.seconds for step in plan.steps if step.what == "fault")


# What can happen to a source, and how often beside the others.
_TROUBLES = {
    "cut": 6,
    "close": 6,
    "reset": 3,
    "torn": 1,
    "noise": 1,
    "die": 4,
    "stall": 4,
    "deaf": 2,
    "restart": 3,
    "down": 2,
    "nameless": 1,
    "hole": 2,
    "refuse": 5,
    "throttle": 3,
    "clock": 2,
    "date": 1,
    "skip": 2,  # an engine alone remembers what it did not send
}
# The same of our own machine. "call": the end comes at a certain call of the disk.
_ENDS = {"crash": 6, "call": 3, "stop": 3, "wall": 2, "slow": 2, "fault": 1}
_REFUSALS = (401, 403, 404, 400, 500, 503, 302, "garbage", "eof", "mute", "wrong")
_CODES = (1000, 1001, 1011, 1012, 1013, 1008, 3000, 4001)
_CODE_WEIGHTS = (4, 4, 3, 4, 2, 1, 1, 1)


def _reload(plan: Plan, rng: random.Random) -> None:
    """Have one seed in four take up other limits while it runs, of which some leave sources out."""
    if rng.random() >= 0.25:
        return
    count = len(plan.sources)
    caps = plan.caps
    at = rng.expovariate(1 / 600.0)
    while at < plan.hour:
        change = rng.choice(["slots", "slots", "account slots", "rates"])
        if change == "slots":
            caps = evolve(caps, connections=rng.choice([1, count - 1, count, count + 2, 100]))
        elif change == "account slots":
            caps = evolve(caps, account_connections=rng.choice([None, 1, 2, count]))
        else:
            caps = evolve(
                caps,
                rate=rng.choice([0.2, 1.0, 5.0, 20.0]),
                account_rate=rng.choice([None, 0.2, 1.0]),
                endpoint_rate=rng.choice([None, 0.5, 2.0]),
            )
        plan.later.append(caps)
        plan.steps.append(Step(at, "limits", number=len(plan.later) - 1))
        at += rng.choice(
            [rng.uniform(0, 5), rng.expovariate(1 / 600.0), rng.expovariate(1 / 600.0)]
        )
    plan.steps.sort(key=lambda step: step.at)


@define
class _Planner:
    plan: Plan
    rng: random.Random

    def made(self) -> Plan:
        self._sources()
        self._settings()
        for source in self.plan.sources:
            self._life_of(source)
            self._traffic_of(source)
        self._machine()
        self.plan.steps.sort(key=lambda step: step.at)
        return self.plan

    def _sources(self) -> None:
        plan, rng = self.plan, self.rng
        accounts = rng.choice([1, 2, 3])
        engines = rng.random() < 0.7
        count = rng.choice([3, 3, 3, 4, 4, 5, 6, 8])
        for n in range(count):
            source = SourceId(f"a{n % accounts}", f"r{n // accounts}")
            plan.sources.append(source)
            # An account is of one kind: the second of two or three may be of engines.
            docker = n % accounts == 1 and engines
            plan.kinds[source] = "docker" if docker else "hyper"
            plan.delays[source] = rng.choice([0.001, 0.01, 0.05, 0.2])
            plan.dialects[source] = "docker" if docker else rng.choice(["a", "a", "b"])
            error = rng.choice([0.0, 0.0, 0.0, 0.3, -0.3, 3.0, -3.0, 600.0, -7200.0])
            plan.clock_errors[source] = error

    def _settings(self) -> None:
        plan, rng = self.plan, self.rng
        plan.fsync = rng.choice(["commit", "commit", "commit", "commit", "never", 2.0])
        plan.segment_size = rng.choice([4096, 65536, 1 << 20])
        if rng.random() < 0.3:
            plan.per_source = rng.choice([6000, 20_000])
            plan.buffer = plan.per_source * 2
        count = len(plan.sources)
        plan.caps = Caps(
            rng.choice([count, count + 1, 100, 100]),
            rng.choice([None, None, count]),
            rng.choice([0.2, 1.0, 5.0, 20.0]),
            rng.choice([None, 0.2, 1.0]),
            rng.choice([None, 0.5, 2.0]),
            rng.choice([1, 2, 5]),
        )
        plan.rotate_s = rng.choice([None, None, 300.0, 900.0])
        plan.disk_s = rng.choice([0.0, 0.0, 0.0, 0.004])

    def _life_of(self, source: SourceId) -> None:
        rng, hour = self.rng, self.plan.hour
        mean = rng.choice([200.0, 400.0, 800.0, 1e9])
        at = rng.expovariate(1 / mean)
        while at < hour:
            what = rng.choices(list(_TROUBLES), list(_TROUBLES.values()))[0]
            if what == "skip" and self.plan.kinds[source] == "hyper":
                what = "close"
            step = self._trouble(at, what, source)
            self.plan.steps.append(step)
            at += rng.expovariate(1 / mean) + (step.seconds if what != "stall" else 0.0)

    def _trouble(self, at: float, what: str, source: SourceId) -> Step:
        rng = self.rng
        seconds, number, word = 0.0, 0.0, ""
        if what == "close":
            number = rng.choices(_CODES, _CODE_WEIGHTS)[0]
        elif what == "skip":
            number = rng.choice([1, 3, 3, 300])
        elif what == "stall":
            seconds = rng.choice([rng.uniform(0.1, 3), rng.uniform(3, 30)])
        elif what in ("deaf", "down", "nameless", "hole", "restart"):
            seconds = rng.choice([rng.uniform(0.1, 5), rng.uniform(5, 120)])
        elif what == "refuse":
            word = str(rng.choice(_REFUSALS))
            seconds = rng.uniform(1, 300)
        elif what == "throttle":
            seconds = rng.uniform(1, 120)
            number = rng.choice([0, 0, rng.uniform(1, 200)])
        elif what in ("clock", "date"):
            number = rng.choice([0.0, 0.7, -0.7, 5.0, -5.0, 400.0, -400.0, 86400.0])
        return Step(at, what, source, seconds, number, word)

    def _traffic_of(self, source: SourceId) -> None:
        """Lone messages now and then, and bursts of them; some sources hardly speak."""
        rng, plan = self.rng, self.plan
        mean = rng.choice([40.0, 80.0, 160.0, 600.0])
        at = rng.expovariate(1 / mean)
        while at < plan.hour:
            if rng.random() < 0.1:
                count = rng.choice([5, 20, 60] if plan.kinds[source] == "hyper" else [20, 100, 300])
                plan.steps.append(Step(at, "burst", source, rng.choice([0.0, 0.0, 1.0]), count))
            else:
                if plan.kinds[source] == "docker" and rng.random() < 0.1:
                    plan.steps.append(Step(at, "skip", source, number=1))
                plan.steps.append(Step(at, "say", source, word=self._kind(source)))
            at += rng.expovariate(1 / mean)

    def _kind(self, source: SourceId) -> str:
        if self.plan.kinds[source] == "docker":
            kinds = ("event", "repeat", "old", "unicode", "huge")
            return self.rng.choices(kinds, (60, 8, 1, 2, 1))[0]
        odd = ("repeat", "old", "timeless", "unicode", "binary", "latin", "huge", "deep", "words")
        return self.rng.choices(("event", *odd), (60, 6, 3, 2, 4, 1, 1, 1, 1, 2))[0]

    def _machine(self) -> None:
        rng, plan = self.rng, self.plan
        mean = rng.choice([300.0, 700.0, 1500.0, 1e9])
        at = rng.expovariate(1 / mean)
        while at < plan.hour:
            what = rng.choices(
                ["crash", "call", "stop", "wall", "slow", "fault"], [6, 3, 3, 2, 2, 1]
            )[0]
            seconds = rng.choice([rng.uniform(0, 0.5), rng.uniform(0.5, 20), rng.uniform(20, 200)])
            fate = rng.choice(["killed", "killed", "lost", "prefix", "hole"])
            number = 0.0
            if what == "wall":
                number = rng.choice([0.5, -0.5, 2.0, -2.0, 90.0, -90.0, 3600.0, -3600.0])
            elif what == "call":
                number = rng.choice([rng.randint(0, 6), rng.randint(0, 60)])
            elif what == "slow":
                number = rng.choice([0.1, 0.5, 2.0, 5.0])
            plan.steps.append(Step(at, what, None, seconds, number, fate))
            if what in ("crash", "call") and rng.random() < 0.4:  # again, within one outage
                at += seconds + rng.choice([0.0, rng.uniform(0, 0.2), rng.uniform(0, 5)])
            else:
                at += rng.expovariate(1 / mean)
