"""The lowest bound, against all bounds computed anew from the rules."""

from __future__ import annotations

from random import Random

import pytest
from attrs import define

from hypermux.core.bounds import FRESH_NS, Bounds, Key, Lane
from hypermux.model.accounts import SourceId

NAMES = [SourceId(account, region) for account in "abc" for region in "xy"]


@define
class Plain:
    """One source as the rules have it: its lane, and when its socket was last found empty."""

    lane: Lane
    live: bool = False
    # None: at the shared time
    drained_ns: int | None = None


@define
class Rules:
    """What Bounds does, without its heaps."""

    sources: list[Plain]
    drained_ns: int = 0

    def drained(self, drained_ns: int, except_for: dict[Lane, int]) -> None:
        self.drained_ns = max(self.drained_ns, drained_ns)
        for source in self.sources:
            if source.lane not in except_for:
                source.drained_ns = None
                continue
            empty_ns = min(except_for[source.lane], self.drained_ns)
            earlier = source.drained_ns
            source.drained_ns = empty_ns if earlier is None else max(earlier, empty_ns)

    def key(self, source: Plain) -> Key:
        drained_ns = self.drained_ns if source.drained_ns is None else source.drained_ns
        lane = source.lane
        bound_ns = max(lane.last_at_ns, drained_ns - lane.window_ns)
        return bound_ns, lane.source.account, lane.source.region, lane.ordinal

    def lowest(self) -> Key | None:
        return min((self.key(source) for source in self.sources if source.live), default=None)


def check(bounds: Bounds, rules: Rules) -> None:
    lane = bounds.lowest()
    assert (None if lane is None else bounds.key(lane)) == rules.lowest()
    for source in rules.sources:
        assert source.lane.live is source.live
        if source.live:
            assert bounds.key(source.lane) == rules.key(source)
            busy = source.drained_ns is not None and source.drained_ns != FRESH_NS
            assert source.lane.busy is busy


def step(bounds: Bounds, rules: Rules, rng: Random, now: int) -> None:
    """Do one thing to both."""
    source = rng.choice(rules.sources)
    lane = source.lane
    match rng.choice(("opened", "closed", "drained", "drained", "item", "item", "window")):
        case "opened":
            bounds.opened(lane)
            source.live, source.drained_ns = True, FRESH_NS
        case "closed":
            bounds.closed(lane)
            source.live = False
        case "drained":
            late = {
                other.lane: rng.choice((0, now - 40, now - 1, now + 3))
                for other in rng.sample(rules.sources, rng.randrange(len(rules.sources)))
            }
            drained_ns = rng.choice((now, now - 5))
            bounds.drained(drained_ns, late)
            rules.drained(drained_ns, {lane: at for lane, at in late.items() if lane.live})
        case "item":
            lane.last_at_ns = max(lane.last_at_ns, now - rng.randrange(60))
            lane.ordinal += 1
        case "window":
            window_ns = rng.choice((0, 1, 10, 20, 50))
            bounds.set_window(lane, window_ns)
            assert lane.window_ns == window_ns


@pytest.mark.parametrize("looks", [0.9, 0.5, 0.02])  # entries pile up between two looks
@pytest.mark.parametrize("seed", range(30))
def test_the_lowest_is_the_least_of_all(seed: int, looks: float) -> None:
    rng = Random(seed)
    bounds = Bounds()
    rules = Rules([Plain(Lane(name, 10)) for name in rng.sample(NAMES, rng.randrange(1, 6))])
    now = 1_000
    check(bounds, rules)
    for _ in range(100 if looks > 0.1 else 500):
        now += rng.choice((0, 1, 7, 30))
        step(bounds, rules, rng, now)
        if rng.random() < looks:
            check(bounds, rules)
    check(bounds, rules)


def opened(*windows_ns: int) -> tuple[Bounds, list[Lane]]:
    """Return as many live lanes, whose sockets were found empty at 100."""
    bounds = Bounds()
    lanes = [Lane(name, window) for name, window in zip(NAMES, windows_ns, strict=False)]
    for lane in lanes:
        bounds.opened(lane)
    bounds.drained(100, {})
    return bounds, lanes


def test_a_fresh_one_is_not_busy_and_a_closed_one_is_nothing() -> None:
    bounds = Bounds()
    lane = Lane(NAMES[0], 10)
    assert (lane.live, lane.busy, bounds.lowest()) == (False, False, None)
    bounds.opened(lane)
    assert (lane.live, lane.busy, bounds.lowest()) == (True, False, lane)
    assert bounds.key(lane) == (0, "a", "x", 0)
    bounds.drained(100, {lane: 0})
    assert lane.busy
    bounds.closed(lane)
    assert (lane.live, bounds.lowest()) == (False, None)
    bounds.closed(lane)
    bounds.opened(lane)
    assert not lane.busy


def test_idle_ones_move_on_together_and_the_longest_window_is_lowest() -> None:
    bounds, (short, long) = opened(10, 50)
    assert bounds.lowest() is long
    assert [bounds.key(lane)[0] for lane in (short, long)] == [90, 50]
    bounds.drained(200, {})
    assert bounds.lowest() is long
    assert [bounds.key(lane)[0] for lane in (short, long)] == [190, 150]


@pytest.mark.parametrize("busy", [0, 1])
def test_equal_bounds_go_by_the_name(busy: int) -> None:
    bounds, lanes = opened(10, 10)
    bounds.drained(200, {lanes[busy]: 200})
    assert bounds.key(lanes[0])[0] == bounds.key(lanes[1])[0] == 190
    assert bounds.lowest() is lanes[0]


def test_invalid_entries_do_not_pile_up() -> None:
    bounds, lanes = opened(*[10] * 5)
    sizes = []
    for number in range(200):
        bounds.opened(lanes[0])  # among the fixed
        bounds.set_window(lanes[1], number % 2)  # among the calm
        bounds.closed(lanes[2])
        bounds.closed(lanes[2])
        bounds.opened(lanes[2])
        sizes.append((len(bounds._calm), len(bounds._fixed)))
    # As many valid ones as there are sources, as many others, and 16; and the one just entered.
    assert (max(calm for calm, _ in sizes), max(fixed for _, fixed in sizes)) == (27, 27)
    assert bounds.lowest() is lanes[0]
    for lane in lanes[1:]:
        bounds.closed(lane)
    for _ in range(200):
        bounds.opened(lanes[0])
    assert len(bounds._fixed) <= 19


def test_what_is_left_of_the_entries_is_in_order() -> None:
    bounds, (first, second, third, other) = opened(1, 1, 1, 1)
    for lane, window_ns in ((first, 100), (second, 50), (third, 90)):
        bounds.set_window(lane, window_ns)
    bounds.closed(first)
    for number in range(40):
        bounds.set_window(other, number % 2)
    assert len(bounds._calm) < 30  # the invalid ones were thrown out
    assert bounds.lowest() is third


def test_none_has_a_time_of_its_own_for_longer_than_it_needs_one() -> None:
    bounds, lanes = opened(10, 10)
    assert not bounds._apart
    bounds.opened(lanes[0])
    bounds.closed(lanes[0])
    assert not bounds._apart


def test_a_round_without_news_enters_nothing() -> None:
    bounds, lanes = opened(*[10] * len(NAMES))
    bounds.lowest()
    before = len(bounds._calm), len(bounds._fixed), bounds._numbers
    for now in range(200, 300):
        bounds.drained(now, {})
        assert bounds.lowest() is lanes[0]
        bounds.set_window(lanes[0], 10)
    assert (len(bounds._calm), len(bounds._fixed), bounds._numbers) == before
