"""A model of one connection being replaced by another, and the rules one might follow.

    .venv/bin/python tests/unit/overlaps.py [RUNS] [FIRST_SEED]

prints how many of 4,000 runs each rule gets right, and in how many it loses, doubles or reorders:

                                                               right    lost doubled reordered
    the rule of core.overlap                                    4000       0       0         0
    its counts, but new is not held                             3000       0       0      1000
    hold new; what the other has not brought: a set for each    2406    1594       0         0
    hold new; go on behind the last message of old              2046     217    1744         0
    old until new brings something, then new                     695    1119    2186         0
    hold new; what has not come yet: one set                     578    3422       0         0
    what has not come within 1 s                                 436    3422       0      1000
    what has not come within 0.1 s                               424    2995    2018       618
    everything of both                                           344       0    3599       126

In 154 runs ours moves a repeat, in 157 there is one that bytes cannot tell from a duplicate: no
rule is blamed for either. Both are far rarer outside, where a repeat has another time of its own.

A run: producers publish messages, at times the same bytes again. A publish takes a moment and
meets the server's subscribers in any order, so two sockets may carry concurrent messages in
different orders; one producer's, and those that do not meet, keep theirs. The client asks for a
second subscription while the first one lives; the server begins it when it handles the request,
and ends the first one when it handles the goodbye. Each direction of each socket has its delay,
its stall and its reads of several messages; the pong may take a second longer. In a third of the
runs old ends early, cut or by the server, at any moment.

The truth is the server's: each message once, of those that two sockets order alike in that order.
What the server put on old alone and a cut took is nobody's fault.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import NamedTuple, Protocol

from attrs import astuple, define, field, frozen

from hypermux.core.overlap import Overlap

NEVER = float("inf")


class Step(NamedTuple):
    """What the client sees next: a read of old or new, old's pong, or old's end."""

    at: float
    what: str
    messages: list[bytes]


class Place(NamedTuple):
    """Where a message stands in the server's two orders.

    One that only old has stands before all of new's, one that only new has behind all of old's.
    """

    old: float
    new: float


@frozen
class Run:
    """One replacement: what the client saw, and what is right."""

    steps: list[Step]
    # What has to come out, by message; a true repeat has several places.
    places: Mapping[bytes, list[Place]]
    # Repeats that bytes alone cannot tell from duplicates: see `core.overlap`.
    alike: Counter[bytes]


@define
class Wire:
    """One direction of a socket: first in, first out, late, with a stall, read in portions."""

    rng: Random
    delay: float
    jitter: float
    period: float
    stall_at: float
    stall: float
    last: float = -1.0

    @classmethod
    def random(cls, rng: Random) -> Wire:
        delay = rng.choice((0.001, 0.01, 0.05, 0.15)) * rng.uniform(0.5, 1.5)
        stall = rng.uniform(0.0, 0.5) if rng.random() < 0.3 else 0.0
        period = rng.choice((0.0, 0.005, 0.05))
        return cls(rng, delay, delay * rng.random(), period, rng.uniform(0.0, 0.5), stall)

    def arrival(self, sent: float) -> float:
        """Return when what was sent is read; to be asked in the order of sending."""
        at = sent + self.delay + self.jitter * self.rng.random()
        if self.stall_at <= at < self.stall_at + self.stall:
            at = self.stall_at + self.stall
        if self.period:
            at += self.period - at % self.period
        self.last = max(self.last, at)
        return self.last


@define(eq=False)
class Publish:
    """One message: when the server had it, and when it put it on each socket."""

    message: bytes
    start: float
    on_old: float
    on_new: float


def publishes(rng: Random, begins: float, until: float) -> list[Publish]:
    """Return what the producers publish; new's subscription `begins` on the way."""
    number = 0
    recent: list[bytes] = []
    rate = rng.choice((20.0, 100.0))
    repeats = rng.choice((0.02, 0.1, 0.3))
    published = []
    turns = [(-0.1 + rng.random() / 20, producer) for producer in range(rng.choice((1, 2, 4)))]
    heapq.heapify(turns)
    while turns[0][0] < until:
        start, producer = turns[0]
        if recent and rng.random() < repeats:
            message = rng.choice(recent[-6:])
        else:
            number += 1
            message = b"%d" % number
            recent.append(message)
        takes = rng.choice((0.0, 0.002, 0.02))
        if start < begins:  # a subscription waits for the publishes that are under way
            takes = min(takes, begins - start)
        on_old, on_new = (start + takes * rng.random() for _ in range(2))
        published.append(Publish(message, start, on_old, on_new if start >= begins else NEVER))
        heapq.heapreplace(turns, (start + takes + rng.expovariate(rate), producer))
    return published


def generate(rng: Random) -> Run:
    """Return a run that begins at 0, with the request for new."""
    up, down_old, down_new = (Wire.random(rng) for _ in range(3))
    begins = up.arrival(0.0)
    accepted = down_new.arrival(begins + rng.random() / 20)
    ponged = up.arrival(accepted) + (rng.random() if rng.random() < 0.2 else 0.0)
    published = publishes(rng, begins, ponged + 0.5)
    early = rng.random()
    cut = rng.uniform(0.0, ponged + 0.2) if early < 1 / 6 else NEVER  # seen by the client
    ends = rng.uniform(0.0, ponged + 0.2) if early > 5 / 6 else NEVER  # done by the server

    steps: list[Step] = []
    brought: set[Publish] = set()  # by old
    old: dict[Publish, float] = {}  # what the server put on it, numbered
    published.sort(key=lambda publish: publish.on_old)
    pong = Publish(b"", ponged, ponged, NEVER)
    for publish in heapq.merge(published, [pong], key=lambda publish: publish.on_old):
        if publish.on_old >= ends:
            continue
        arrival = down_old.arrival(publish.on_old)
        if publish is not pong:
            old[publish] = len(old)
        if arrival >= cut:
            continue
        if publish is not pong:
            brought.add(publish)
            steps.append(Step(arrival, "old", [publish.message]))
        else:
            steps.append(Step(arrival, "pong", []))
            ends = min(ends, up.arrival(arrival))  # the goodbye
    steps.append(Step(min(cut, max(ends, down_old.last)), "end", []))

    new: dict[Publish, float] = {}
    for publish in sorted(published, key=lambda publish: publish.on_new):
        if publish.on_new < NEVER:
            new[publish] = len(new)
            steps.append(Step(down_new.arrival(publish.on_new), "new", [publish.message]))

    steps.sort(key=lambda step: step.at)
    while steps[0].at < 0.0:
        steps.pop(0)  # before the request: nobody compares it with anything
    return Run(_reads(steps), *_truth(steps, brought, old, new))


def _reads(steps: list[Step]) -> list[Step]:
    """Put together what one read brings."""
    groups = itertools.groupby(steps, key=lambda step: (step.at, step.what))
    return [
        Step(at, what, [message for step in group for message in step.messages])
        for (at, what), group in groups
    ]


def _truth(
    steps: list[Step], brought: set[Publish], old: dict[Publish, float], new: dict[Publish, float]
) -> tuple[dict[bytes, list[Place]], Counter[bytes]]:
    """Return what has to come out, and which repeats are alike."""
    seen = {
        what: Counter(m for s in steps if s.what == what for m in s.messages)
        for what in ("old", "new")
    }
    # The first of old's came before the request.
    skipped = len(brought) - seen["old"].total()
    places: dict[bytes, list[Place]] = {}
    for publish, number in old.items():
        if publish in new:
            place = Place(number, new[publish])
        elif publish not in brought or number < skipped:
            continue
        else:
            place = Place(number, number - len(old))
        places.setdefault(publish.message, []).append(place)
    for publish, number in new.items():
        if publish not in old:
            place = Place(len(old) + number, number)
            places.setdefault(publish.message, []).append(place)
    due = Counter({message: len(where) for message, where in places.items()})
    return places, due - (seen["old"] | seen["new"])


class Faults(NamedTuple):
    """What is wrong with what came out of a run."""

    lost: bool
    doubled: bool
    reordered: bool
    moved: bool  # repeats alone, taken in the order in which they come out


def judge(run: Run, out: list[bytes]) -> Faults:
    """Compare what came out of a run with the truth."""
    times = Counter(out)
    lost = any(
        times[message] < len(where) - run.alike[message] for message, where in run.places.items()
    )
    doubled = any(count > len(run.places.get(message, ())) for message, count in times.items())
    single = [
        run.places[message][0]
        for message in out
        if times[message] == len(run.places.get(message, ())) == 1
    ]
    waiting = {message: sorted(where, reverse=True) for message, where in run.places.items()}
    every = [waiting[message].pop() for message in out if waiting.get(message)]
    reordered = not _in_order(single)
    return Faults(lost, doubled, reordered, not reordered and not _in_order(every))


def _in_order(places: list[Place]) -> bool:
    """Whether no message comes behind one that the server has behind it on both sockets."""
    furthest: list[Place] = []  # of those so far, the ones that no other is behind
    for place in places:
        if any(other.old > place.old and other.new > place.new for other in furthest):
            return False
        furthest = [x for x in furthest if x.old > place.old or x.new > place.new]
        furthest.append(place)
    return True


class Rule(Protocol):
    """What to do with what comes; each call returns what goes on. `now` is the time of a call."""

    now: float

    def old(self, messages: list[bytes]) -> list[bytes]: ...
    def new(self, messages: list[bytes]) -> list[bytes]: ...
    def pong(self) -> list[bytes]: ...
    def end(self) -> list[bytes]: ...


def play(run: Run, rule: Rule) -> list[bytes]:
    """Return what comes out of a run by a rule."""
    out: list[bytes] = []
    for step in run.steps:
        rule.now = step.at
        if step.what == "old":
            out += rule.old(step.messages)
        elif step.what == "new":
            out += rule.new(step.messages)
        else:
            out += rule.pong() if step.what == "pong" else rule.end()
    return out


@define
class Counted:
    """The rule of core.overlap."""

    now: float = 0.0
    overlap: Overlap = field(factory=Overlap)

    def old(self, messages: list[bytes]) -> list[bytes]:
        return self.overlap.old(messages)

    def new(self, messages: list[bytes]) -> list[bytes]:
        return self.overlap.new(messages)

    def pong(self) -> list[bytes]:
        return self.overlap.release()

    def end(self) -> list[bytes]:
        return self.overlap.old_ended()


@define
class CountedAtOnce(Counted):
    """Its counts, but new is not held."""

    def __attrs_post_init__(self) -> None:
        self.overlap.release()


@define
class Plain:
    """Everything of both, as it comes; what the simpler rules have in common."""

    now: float = 0.0

    def pick(self, messages: list[bytes], side: str) -> list[bytes]:
        return messages

    def old(self, messages: list[bytes]) -> list[bytes]:
        return self.pick(messages, "old")

    def new(self, messages: list[bytes]) -> list[bytes]:
        return self.pick(messages, "new")

    def pong(self) -> list[bytes]:
        return []

    def end(self) -> list[bytes]:
        return []


@define
class Switch(Plain):
    """Old until new brings something, then new alone."""

    switched: bool = False

    def pick(self, messages: list[bytes], side: str) -> list[bytes]:
        self.switched |= side == "new"
        return [] if self.switched and side == "old" else messages


@define
class Window(Plain):
    """What has not come within the last `window` seconds."""

    window: float = 1.0
    last: dict[bytes, float] = field(factory=dict)

    def pick(self, messages: list[bytes], side: str) -> list[bytes]:
        kept = []
        for message in messages:
            if self.now - self.last.get(message, -NEVER) > self.window:
                kept.append(message)
                self.last[message] = self.now
        return kept


@define
class Holding(Plain):
    """Everything of both, but new is held until old's pong or end."""

    held: list[bytes] | None = field(factory=list)

    def new(self, messages: list[bytes]) -> list[bytes]:
        if self.held is None:
            return self.pick(messages, "new")
        self.held += messages
        return []

    def pong(self) -> list[bytes]:
        held, self.held = self.held, None
        return self.pick(held or [], "new")

    def end(self) -> list[bytes]:
        return self.pong()


@define
class SetOfAll(Holding):
    """Hold new; what has not come yet: one set."""

    seen: set[bytes] = field(factory=set)

    def pick(self, messages: list[bytes], side: str) -> list[bytes]:
        fresh = [message for message in messages if message not in self.seen]
        kept = list(dict.fromkeys(fresh))
        self.seen.update(kept)
        return kept


@define
class SetOfOther(Holding):
    """Hold new; what the other one has not brought yet: a set for each."""

    seen: dict[str, set[bytes]] = field(factory=lambda: {"old": set(), "new": set()})

    def pick(self, messages: list[bytes], side: str) -> list[bytes]:
        other = self.seen["new" if side == "old" else "old"]
        self.seen[side].update(messages)
        return [message for message in messages if message not in other]


@define
class BehindLast(Holding):
    """Hold new; at the pong go on with it behind the last message that old has brought."""

    last: bytes = b""

    def pick(self, messages: list[bytes], side: str) -> list[bytes]:
        if side == "new":
            return messages
        if self.held is None:
            return []
        self.last = messages[-1]
        return messages

    def pong(self) -> list[bytes]:
        held, self.held = self.held or [], None
        if self.last in held:
            return held[len(held) - held[::-1].index(self.last) :]
        return held


RULES: Mapping[str, Callable[[], Rule]] = {
    "the rule of core.overlap": Counted,
    "its counts, but new is not held": CountedAtOnce,
    "hold new; what the other has not brought: a set for each": SetOfOther,
    "hold new; go on behind the last message of old": BehindLast,
    "old until new brings something, then new": Switch,
    "hold new; what has not come yet: one set": SetOfAll,
    "what has not come within 1 s": lambda: Window(window=1.0),
    "what has not come within 0.1 s": lambda: Window(window=0.1),
    "everything of both": Plain,
}


@define
class Tally:
    """How many runs a rule spoils, in each way."""

    right: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    moved: int = 0

    def add(self, faults: Faults) -> None:
        self.right += not (faults.lost or faults.doubled or faults.reordered)
        self.lost += faults.lost
        self.doubled += faults.doubled
        self.reordered += faults.reordered
        self.moved += faults.moved


def compare(runs: Iterable[Run], rules: Mapping[str, Callable[[], Rule]]) -> dict[str, Tally]:
    """Return each rule's tally."""
    tallies = {name: Tally() for name in rules}
    for run in runs:
        for name, rule in rules.items():
            tallies[name].add(judge(run, play(run, rule())))
    return tallies


def main(runs: int = 4000, first: int = 0) -> None:
    """Print the table."""
    generated = [generate(Random(seed)) for seed in range(first, first + runs)]
    print(f"{'':60} " + "".join(f"{x:>10}" for x in Tally().__annotations__))
    for name, tally in compare(generated, RULES).items():
        print(f"{name:60} " + "".join(f"{x:10}" for x in astuple(tally)))
    alike = sum(run.alike.total() > 0 for run in generated)
    print(f"runs with repeats that are not to be told from duplicates: {alike}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
