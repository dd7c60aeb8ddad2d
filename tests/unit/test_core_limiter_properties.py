"""The allocator against the plainest rendering of its rules, and against what it promises."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import hypothesis
import pytest
from allocators import names
from attrs import define, field
from hypothesis import strategies as st
from plain_allocator import PROCESS, Ledger, Plain

from hypermux.core.limiter import Allocator, Rank
from hypermux.model.accounts import Cap, Limits, SourceId

SOURCES = [SourceId(account, region) for account in "abc" for region in "xyz"]
ADDRESSES = ["h:1", "h:2", "h:3"]

source = st.sampled_from(SOURCES)
caps = st.builds(
    Cap, st.one_of(st.none(), st.integers(1, 4)), st.sampled_from([None, 1.0, 5.0, 10.0])
)
all_limits = st.builds(
    Limits,
    caps,
    st.integers(1, 3),
    caps,
    caps,
    st.one_of(st.just({}), st.fixed_dictionaries({"a": caps})),
)
step = st.one_of(
    st.tuples(st.just("request"), source, st.sampled_from(ADDRESSES), st.sampled_from(Rank)),
    st.tuples(st.just("request"), source, st.sampled_from(ADDRESSES), st.just(Rank.NEW)),
    st.tuples(st.just("handover"), source, st.sampled_from(Rank)),
    st.tuples(st.just("withdraw"), source),
    st.tuples(st.just("release"), source),
    st.tuples(st.just("release"), source),
    st.tuples(
        st.just("throttled"),
        source,
        st.sampled_from([0.0, 0.2, 1.0]),
        st.sampled_from([None, None, 0.5, 30.0]),
    ),
    st.tuples(st.just("succeeded"), source, st.sampled_from([1, 20, 60])),
    st.tuples(st.just("crowd"), st.integers(2, 9), st.booleans()),
    st.tuples(st.just("change"), all_limits, st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.05, 0.1, 0.3, 1.0, 50.0, 125.0])),
    st.tuples(st.just("next")),
    st.tuples(st.just("next")),
)


@define(eq=False)
class Pairing:
    """The real one and the plain one, doing the same; what was given is written down."""

    limits: Limits
    real: Allocator = field(init=False)
    plain: Plain = field(init=False)
    now: float = 0.0
    ledgers: dict[str, Ledger] = field(factory=lambda: defaultdict(Ledger))
    throttled_ledgers: dict[tuple[str, str], Ledger] = field(factory=lambda: defaultdict(Ledger))

    def __attrs_post_init__(self) -> None:
        self.real, self.plain = Allocator(self.limits, 0.0), Plain(self.limits)
        self.write_rates()

    def do(self, name: str, *rest: Any) -> None:
        getattr(self, name)(*rest)
        # Not after each: several may wait.
        if name != "request" or rest[2] is Rank.NEW:
            self.grant()

    def request(self, source: SourceId, address: str, rank: Rank, handover: bool = False) -> None:
        self.plain.request(source, address, rank, self.now, handover)
        self.real.request(source, address, rank, self.now, handover=handover)

    def handover(self, source: SourceId, rank: Rank) -> None:
        if source in self.plain.holding:
            self.request(source, self.plain.holding[source][0][0], rank, True)

    def withdraw(self, source: SourceId) -> None:
        self.plain.waiting.pop(source, None)
        self.real.withdraw(source)

    def release(self, source: SourceId) -> None:
        if source in self.plain.holding:
            # Who passes on a slot holds it until it dials.
            wish = self.plain.waiting.get(source)
            if wish is not None and wish.handover:
                self.withdraw(source)
            self.plain.release(source)
            self.real.release(source)

    def throttled(self, source: SourceId, ago: float, retry_after: float | None) -> None:
        told = self.real.throttled(source, self.now - ago, retry_after, self.now)
        fell = self.plain.throttled(source, self.now - ago, retry_after, self.now)
        assert (told is not None) is fell

    def succeeded(self, source: SourceId, times: int) -> None:
        for _ in range(times):
            told = self.real.succeeded(source, self.now)
            assert (told is not None) is self.plain.succeeded(source, self.now)

    def crowd(self, number: int, again: bool) -> None:
        """Many are refused at once, each after it was accepted; or a second time."""
        for source in list(self.plain.last)[:number]:
            if not again:
                self.succeeded(source, 1)
            self.throttled(source, 0.0, None)

    def change(self, limits: Limits, obeyed: bool) -> None:
        self.plain.change(limits, self.now)
        surplus = self.real.change(limits, self.now)
        assert len(surplus) == len(set(surplus))
        assert not self.plain.over(set(surplus))
        # As many as it takes: without the last of them it would not do.
        assert not surplus or self.plain.over(set(surplus[:-1]))
        self.write_rates()
        for source in surplus if obeyed else ():
            while source in self.plain.holding:
                self.release(source)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def next(self) -> None:
        at = self.real.next_at(self.now)
        if at is not None:
            self.now = at

    def grant(self) -> None:
        asked, before = dict(self.plain.waiting), self.plain.held()
        expected = self.plain.grant(self.now)
        assert names(self.real.grant(self.now)) == names(expected)
        for source in expected:
            address = asked[source].address
            for name, _ in self.plain.caps(source, address):
                self.ledgers[name].taken.append(self.now)
            self.throttled_ledgers[source.account, address].taken.append(self.now)
            self.ledgers[f"all {address}"].taken.append(self.now)
        held = self.plain.held()
        for name, count in held.items():
            cap = self.plain.cap(name).max_connections
            assert cap is None or count <= max(cap, before[name])
        assert self.real.waiting == len(self.plain.waiting)
        assert self.real.held == held[PROCESS]
        for source in SOURCES:
            assert self.real.contested(source) is self.plain.contested(source, self.now)
        # It is quick to say when it will have something, and never asks to come again at once.
        at = self.real.next_at(self.now)
        assert at is None or at > self.now
        if self.plain.waiting and at is None:
            assert all(not self.plain.passes(s, held, self.now + 7200) for s in self.plain.waiting)
        self.write_rates()

    def write_rates(self) -> None:
        limits = self.plain.limits
        for name in (PROCESS, *(f"@{account}" for account in "abc"), *ADDRESSES):
            rate = self.plain.cap(name).connect_rate
            self.ledgers[name].rate(self.now, rate, limits.connect_burst)
        told = {(t.account, t.address): t for t in self.real.rates(self.now)}
        for address, crowd in self.plain.crowds.items():
            slowed = told.get((None, address))
            assert (slowed is not None) is (crowd.gate is not None)
            rate = None if slowed is None else slowed.rate
            self.ledgers[f"all {address}"].rate(self.now, rate, 1)
        for pair in [(account, address) for account in "abc" for address in ADDRESSES]:
            throttled = told.get(pair)
            slow = throttled is not None and self.plain.slow[pair].gate is not None
            rate = throttled.rate if throttled is not None and slow else None
            self.throttled_ledgers[pair].rate(self.now, rate, 1)

    def check(self) -> None:
        for ledger in (*self.ledgers.values(), *self.throttled_ledgers.values()):
            ledger.check()


def play(limits: Limits, steps: Iterable[tuple[Any, ...]]) -> None:
    pairing = Pairing(limits)
    for name, *rest in steps:
        pairing.do(name, *rest)
    # Nobody waits for ever, while slots come back.
    for _ in range(300):
        if not pairing.plain.waiting:
            break
        if pairing.real.next_at(pairing.now) is not None:
            pairing.do("next")
        else:
            for source in SOURCES:
                pairing.do("release", source)
    assert pairing.real.waiting == 0
    pairing.check()


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(all_limits, st.lists(step, max_size=60))
def test_it_grants_what_asking_everybody_would(limits: Limits, steps: list[Any]) -> None:
    play(limits, steps)


@pytest.mark.parametrize("seed", range(60))
def test_it_grants_what_asking_everybody_would_for_long(seed: int) -> None:
    """Far into a walk accounts hold much, many wait, and some have waited too long."""
    rng = random.Random(seed)
    play(some_limits(rng), (some_step(rng, seed % 2 == 0) for _ in range(150)))


def some_limits(rng: random.Random) -> Limits:
    def cap() -> Cap:
        most = rng.choice([None, None, 1, 2, 3, 4, 6])
        return Cap(most, rng.choice([None, None, 1.0, 5.0, 10.0]))

    own = {"a": cap()} if rng.random() < 0.5 else {}
    return Limits(cap(), rng.randint(1, 3), cap(), cap(), own)


def some_step(rng: random.Random, changing: bool) -> tuple[Any, ...]:
    source, address, rank = rng.choice(SOURCES), rng.choice(ADDRESSES), rng.choice(list(Rank))
    kinds = {"request": 30, "handover": 6, "withdraw": 4, "release": 14, "wait": 8, "next": 16}
    if changing:
        kinds |= {"throttled": 4, "succeeded": 3, "crowd": 1, "change": 2}
    (kind,) = rng.choices(list(kinds), list(kinds.values()))
    more: dict[str, tuple[Any, ...]] = {
        "request": (source, address, rank),
        "handover": (source, rank),
        "withdraw": (source,),
        "release": (source,),
        "wait": (rng.choice([0.0, 0.05, 0.1, 0.3, 1.0, 30.0, 125.0]),),
        "throttled": (source, rng.choice([0.0, 0.2, 1.0]), rng.choice([None, None, 0.5, 30.0])),
        "succeeded": (source, rng.choice([1, 20, 60])),
        "crowd": (rng.randint(2, 9), rng.random() < 0.5),
        "change": (some_limits(rng), rng.random() < 0.5) if kind == "change" else (),
    }
    return kind, *more.get(kind, ())


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.integers(2, 12), st.integers(0, 2**32), st.booleans())
def test_a_large_account_does_not_starve_behind_small_ones_that_fail(
    flapping: int, seed: int, handover: bool
) -> None:
    """Who waits longest gets every fourth permit at least, whatever its account holds."""
    rng = random.Random(seed)
    real = Allocator(Limits(Cap(None, 1.0)), 0.0)
    for number in range(20):
        real.request(SourceId("big", f"{number}"), "good:1", Rank.NEW, 0.0)
        assert real.grant(float(number + 1))
    now = 20.0
    lost = [SourceId("big", f"{n}") for n in range(3)]
    for source in lost:
        if not handover:
            real.release(source)
        real.request(source, "good:1", Rank.LOST, now, handover=handover)
    back_at = {SourceId(f"small{n}", "x"): now for n in range(flapping)}
    served: Counter[str] = Counter()
    while real.waiting or back_at:
        for source, at in list(back_at.items()):
            if at <= now:
                del back_at[source]
                real.request(source, "down:1", Rank.LOST, now)
        for source in real.grant(now):
            served[source.account] += 1
            if source.account != "big":
                real.release(source)
                back_at[source] = now + rng.uniform(0.5, 1.0)
        if served["big"] == len(lost):
            break
        now += 1.0
        assert now < 20.0 + 120.0 + 10.0 + 4 * (len(lost) + 1)
    assert now > 100.0 or flapping < 3
