from __future__ import annotations

from random import Random

import hypothesis
import pytest
from hypothesis import strategies as st

from hypermux.core import backoff


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.integers(0, 10_000), st.integers())
def test_delays_stay_between_min_and_max(attempt: int, seed: int) -> None:
    delay = backoff.full_jitter(attempt, min_s=0.5, max_s=60.0, rng=Random(seed))
    assert 0.5 <= delay <= 60.0


@pytest.mark.parametrize(
    ("attempt", "ceiling"), [(0, 1.0), (1, 2.0), (5, 32.0), (6, 60.0), (99999, 60.0)]
)
def test_the_range_doubles_and_is_used_fully(attempt: int, ceiling: float) -> None:
    rng = Random(1)
    delays = [backoff.full_jitter(attempt, min_s=0.5, max_s=60.0, rng=rng) for _ in range(2000)]
    width = ceiling - 0.5
    assert min(delays) < 0.5 + 0.02 * width
    assert ceiling - 0.02 * width < max(delays) <= ceiling
    assert sum(delays) / len(delays) == pytest.approx((0.5 + ceiling) / 2, rel=0.05)


def test_a_max_below_the_first_range_is_kept() -> None:
    assert backoff.full_jitter(0, min_s=5.0, max_s=5.0, rng=Random(1)) == 5.0
    assert backoff.full_jitter(3, min_s=5.0, max_s=1.0, rng=Random(1)) == 5.0


@pytest.mark.parametrize(
    ("probe", "shortest"),
    [(0, 900.0), (1, 1800.0), (4, 14400.0), (5, 21600.0), (100_000, 21600.0)],
)
def test_probes_double_from_a_quarter_of_an_hour_to_six(probe: int, shortest: float) -> None:
    rng = Random(1)
    delays = [backoff.probe_delay(probe, rng=rng) for _ in range(200)]
    assert all(shortest <= delay <= min(shortest * 1.1, 6 * 3600.0) for delay in delays)
    assert len(set(delays)) == (1 if shortest == 21600.0 else 200)


@pytest.mark.parametrize(
    ("asked", "honoured"), [(-5.0, 0.0), (0.0, 0.0), (7.0, 7.0), (1e9, 3600.0)]
)
def test_retry_after_is_honoured_to_an_hour(asked: float, honoured: float) -> None:
    assert backoff.retry_after(asked) == honoured


def test_a_spread_is_drawn_from_its_range_and_cut_by_the_longest_backoff() -> None:
    drawn = [backoff.spread((5.0, 30.0), max_s=60.0, rng=Random(seed)) for seed in range(300)]
    assert 5.0 <= min(drawn) < 6.0
    assert 29.0 < max(drawn) <= 30.0
    cut = [backoff.spread((5.0, 30.0), max_s=10.0, rng=Random(seed)) for seed in range(300)]
    assert 5.0 <= min(cut) < 6.0
    assert 9.5 < max(cut) <= 10.0
    assert backoff.spread((5.0, 30.0), max_s=1.0, rng=Random(1)) == 1.0
