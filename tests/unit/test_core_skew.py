from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from hypermux.core.skew import BUCKET_NS, BUCKETS, SETTLED, Skew

MS = 1_000_000
S = 1_000_000_000
NOW = 1_700_000_010 * S  # the beginning of a bucket
assert NOW % BUCKET_NS == 0


def feed(skew: Skew, delay_ns: int, *, at: int = NOW, times: int = SETTLED) -> list[int]:
    """Observe; return the offsets applied on the way."""
    applied = []
    for number in range(times):
        if skew.observe(delay_ns, at + number):
            applied.append(skew.applied_ns)
    return applied


@pytest.mark.parametrize("delay_ms", [-500, -499, 0, 1, 500])
def test_a_clock_that_is_nearly_right_is_left_alone(delay_ms: int) -> None:
    assert feed(Skew(), delay_ms * MS) == []


@pytest.mark.parametrize("delay_ms", [-9_000, -501, 501, 1_000, 3_000])
def test_a_wrong_clock_is_put_right(delay_ms: int) -> None:
    assert feed(Skew(), delay_ms * MS) == [delay_ms * MS]


def test_a_first_long_delay_may_be_just_that() -> None:
    skew = Skew()
    assert feed(skew, 900 * MS, times=SETTLED - 1) == []
    assert feed(skew, 30 * MS) == []


def test_what_is_far_too_long_for_a_delay_is_used_at_once() -> None:
    assert feed(Skew(), 3 * S, times=1) == [3 * S]


def test_a_smaller_sample_is_believed_at_once() -> None:
    skew = Skew()
    feed(skew, 3 * S)
    assert feed(skew, 2_950 * MS) == []  # not worth a record
    assert feed(skew, 2 * S, times=1) == [2 * S]
    assert feed(skew, 20 * MS, times=1) == [0]
    assert feed(skew, -S, times=1) == [-S]


def test_near_the_threshold_it_does_not_flap() -> None:
    skew = Skew()
    feed(skew, 520 * MS)
    assert feed(skew, 480 * MS) == []
    assert feed(skew, 450 * MS) == []
    assert feed(skew, 400 * MS) == [0]


def test_a_clock_put_right_is_noticed_when_the_old_samples_are_ten_minutes_old() -> None:
    skew = Skew()
    feed(skew, 20 * MS)
    changes = []
    for number in range(BUCKETS + 2):
        at = NOW + number * BUCKET_NS + 10
        changes += [(number, offset) for offset in feed(skew, 3 * S, at=at)]
    assert changes == [(BUCKETS, 3 * S)]


def test_five_events_make_an_estimate_out_of_a_sample() -> None:
    skew = Skew()
    assert [skew.observe(900 * MS, NOW + number) for number in range(5)] == [False] * 4 + [True]
    assert skew.applied_ns == 900 * MS


def test_two_seconds_can_still_be_a_delay() -> None:
    assert feed(Skew(), 2 * S, times=1) == []
    assert feed(Skew(), 2 * S + 1, times=1) == [2 * S + 1]


def test_a_used_offset_is_left_alone_until_it_is_wrong_by_a_tenth_of_a_second() -> None:
    skew = Skew()
    feed(skew, S)
    assert feed(skew, 901 * MS) == []
    assert feed(skew, 900 * MS, times=1) == [900 * MS]
    assert feed(skew, 800 * MS + 1) == []


def least_at(samples: dict[int, int], second: int) -> int:
    """Return the offset that comes of samples (second -> ms), with a clock 3 s slow after them."""
    skew = Skew()
    for at, delay_ms in samples.items():
        feed(skew, delay_ms * MS, at=NOW + at * S)
    feed(skew, 3 * S, at=NOW + second * S)
    return skew.applied_ns // MS


def test_a_sample_counts_for_ten_minutes() -> None:
    assert least_at({0: 20}, 599) == 0
    assert least_at({0: 20}, 600) == 3000
    assert least_at({0: 20, 29: 1000}, 599) == 0  # of a half minute, the least


def test_what_is_dropped_after_ten_minutes_is_the_oldest() -> None:
    samples = {0: 20, 300: 1000, 400: 2000}
    assert least_at(samples, 610) == 1000
    assert least_at(samples, 910) == 2000
    assert least_at(samples, 1010) == 3000


def test_a_smaller_sample_outlives_the_larger_ones_before_it() -> None:
    samples = {0: 20, 60: 2000, 120: 1000}
    assert least_at(samples, 600) == 1000
    assert least_at(samples, 719) == 1000
    assert least_at(samples, 720) == 3000


def test_the_same_sample_again_counts_from_then_on() -> None:
    assert least_at({0: 20, 300: 20}, 899) == 0
    assert least_at({0: 20, 300: 20}, 900) == 3000


def test_it_wants_what_can_change_something() -> None:
    skew = Skew()
    assert skew.due_ns == 0
    feed(skew, 20 * MS, times=4)
    assert skew.due_ns == 0  # unsettled
    assert skew.wants(3 * S, NOW)
    feed(skew, 20 * MS, times=1)
    assert skew.due_ns == NOW + 30 * S
    assert skew.wants(20 * MS - 1, NOW)
    assert not skew.wants(21 * MS, NOW + 30 * S - 1)
    assert skew.wants(21 * MS, NOW + 30 * S)


def test_after_a_long_silence_it_begins_anew() -> None:
    skew = Skew()
    feed(skew, 20 * MS)
    assert feed(skew, 900 * MS, at=NOW + 3600 * S, times=SETTLED - 1) == []
    assert feed(skew, 900 * MS, at=NOW + 3601 * S, times=1) == [900 * MS]


@pytest.mark.parametrize(("guess_ms", "used"), [(1999, False), (2000, False), (2001, True)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_guess_from_date_is_used_over_two_seconds(guess_ms: int, used: bool, sign: int) -> None:
    skew = Skew()
    assert skew.guess(sign * guess_ms * MS) is used
    assert skew.applied_ns == (sign * guess_ms * MS if used else 0)


def test_live_events_know_better_than_a_date() -> None:
    skew = Skew()
    skew.guess(5 * S)
    assert skew.guess(5 * S) is False
    assert feed(skew, 20 * MS, times=1) == [0]
    assert skew.guess(5 * S) is False
    skew = Skew()
    skew.guess(-5 * S)
    skew.guess(100 * MS)
    assert skew.applied_ns == 0


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    st.lists(
        st.tuples(st.integers(0, 4 * BUCKET_NS), st.integers(-3 * S, 3 * S)),
        min_size=1,
        max_size=80,
    )
)
def test_it_follows_the_least_of_the_last_ten_minutes(events: list[tuple[int, int]]) -> None:
    skew, plain = Skew(), Skew()
    now, seen = NOW, []
    for pause, delay in events:
        now += pause
        seen.append((now // BUCKET_NS, delay))
        first = now // BUCKET_NS - BUCKETS
        least = min(delay for bucket, delay in seen if bucket > first)
        # Those it does not want change nothing.
        if skew.wants(delay, now):
            skew.observe(delay, now)
        plain.observe(delay, now)
        assert skew._lows == plain._lows
        assert skew.applied_ns == plain.applied_ns
        assert skew._lows[0][1] == least
        assert len(skew._lows) <= BUCKETS
        if skew._seen >= SETTLED:
            error = abs(skew.applied_ns - least)
            assert error < 100 * MS or (skew.applied_ns == 0 and abs(least) <= 500 * MS)
