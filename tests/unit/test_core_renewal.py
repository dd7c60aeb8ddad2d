from __future__ import annotations

from random import Random

import hypothesis
import pytest
from hypothesis import strategies as st

from hypermux.core import renewal
from hypermux.core.renewal import renew_at_ns

S = 1_000_000_000
NOW = 1_700_000_000 * S


@pytest.mark.parametrize(
    ("left_s", "least_ahead_s", "most_ahead_s"),
    [(3600, 300, 450), (1500, 300, 450), (600, 120, 180), (10, 2, 3)],
)
def test_how_long_before_its_end_a_key_is_renewed(
    left_s: int, least_ahead_s: float, most_ahead_s: float
) -> None:
    ahead = [
        (NOW + left_s * S - renew_at_ns(NOW + left_s * S, NOW, rng=Random(seed))) / S
        for seed in range(300)
    ]
    assert least_ahead_s <= min(ahead) < max(ahead) <= most_ahead_s
    assert max(ahead) - min(ahead) > 0.9 * (most_ahead_s - least_ahead_s)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.integers(-(10**18), 10**18), st.integers(0, 1000))
def test_it_is_always_later_and_never_after_the_end_by_more_than_a_second(
    left_ns: int, seed: int
) -> None:
    at_ns = renew_at_ns(NOW + left_ns, NOW, rng=Random(seed))
    assert at_ns >= NOW + renewal.LEAST_NS
    assert at_ns <= max(NOW + left_ns, NOW + renewal.LEAST_NS)
