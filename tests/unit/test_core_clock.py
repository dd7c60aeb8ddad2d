from __future__ import annotations

from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from hypermux.core.clock import STEP_NS, StreamClock

SECOND = 1_000_000_000


@define
class Hands:
    mono_s: float = 500.0
    wall_ns: int = 1_700_000_000 * SECOND

    def clock(self) -> StreamClock:
        return StreamClock(lambda: self.mono_s, lambda: self.wall_ns)

    def pass_s(self, seconds: float) -> None:
        self.mono_s += seconds
        self.wall_ns += round(seconds * SECOND)


def test_it_follows_the_monotonic_clock_from_the_wall_at_start() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.pass_s(2.5)
    assert clock.now_ns() == 1_700_000_002_500_000_000


def test_slewing_is_no_step() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.wall_ns += STEP_NS
    assert clock.check_wall() is None


def test_a_step_forward_is_followed_and_told_once() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.wall_ns += 3600 * SECOND
    assert clock.check_wall() == 3600 * SECOND
    assert clock.check_wall() is None
    assert clock.now_ns() == hands.wall_ns


def test_a_step_back_is_told_once_and_time_goes_on() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.pass_s(10)
    before = clock.now_ns()
    hands.wall_ns -= 3600 * SECOND
    assert clock.check_wall() == -3600 * SECOND
    assert clock.check_wall() is None
    hands.pass_s(1)
    assert clock.now_ns() == before + SECOND


def test_a_step_back_that_is_undone_is_told_again() -> None:
    hands = Hands()
    clock = hands.clock()
    hands.wall_ns -= 3600 * SECOND
    clock.check_wall()
    hands.wall_ns += 3600 * SECOND
    assert clock.check_wall() == 3600 * SECOND
    assert clock.now_ns() == hands.wall_ns


def test_a_start_behind_an_earlier_run_goes_on_from_it_and_tells() -> None:
    hands = Hands()
    clock = hands.clock()
    clock.not_before(hands.wall_ns + 3600 * SECOND)
    assert clock.now_ns() == hands.wall_ns + 3600 * SECOND
    assert clock.check_wall() == -3600 * SECOND
    clock.not_before(hands.wall_ns)
    assert clock.now_ns() == hands.wall_ns + 3600 * SECOND


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(-(10**13), 10**13))))
def test_it_never_goes_back(moves: list[tuple[float, int]]) -> None:
    hands = Hands()
    clock = hands.clock()
    last = clock.now_ns()
    for seconds, step_ns in moves:
        hands.pass_s(seconds)
        hands.wall_ns += step_ns
        clock.check_wall()
        assert clock.now_ns() >= last
        last = clock.now_ns()
