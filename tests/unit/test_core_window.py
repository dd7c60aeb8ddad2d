from __future__ import annotations

from random import Random

import hypothesis
import pytest
from hypothesis import strategies as st

from hypermux.core.merging import Merger
from hypermux.core.window import HALF_LIFE_NS, SHORTEST_NS, Lateness, Scale
from hypermux.model.accounts import SourceId

MS = 1_000_000
S = 1_000_000_000
NOW = 1_700_000_000 * S


@pytest.mark.parametrize("max_hold_ms", [10, 50, 51, 2000, 60_000])
def test_windows_reach_from_the_shortest_to_max_hold(max_hold_ms: int) -> None:
    scale = Scale(max_hold_ms * MS)
    assert scale.windows[0] == min(SHORTEST_NS, max_hold_ms * MS)
    assert scale.windows[-1] == max_hold_ms * MS
    assert scale.windows == sorted(scale.windows)
    assert len(scale.windows) == len(scale.edges) + 1 < 100
    assert scale.cold_ns <= max_hold_ms * MS


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.lists(st.integers(-5 * MS, 3 * S), min_size=1, max_size=300))
def test_a_window_is_a_quarter_over_the_quantile(lateness: list[int]) -> None:
    scale = Scale(2 * S)
    histogram = Lateness(scale)
    for sample in lateness:
        histogram.add(sample)
    window = histogram.window_ns()
    # Under a thousand samples, the quantile is the largest.
    exact = max(SHORTEST_NS, min(2 * S, int(1.25 * max(lateness))))
    assert exact - 2 <= window <= min(2 * S, exact * 1.21 + 2)


def test_one_in_a_thousand_is_let_go() -> None:
    histogram = Lateness(Scale(2 * S))
    for _ in range(9_990):
        histogram.add(60 * MS)
    for _ in range(10):
        histogram.add(S)
    assert histogram.window_ns() < 100 * MS
    histogram.add(S)
    assert histogram.window_ns() > S


def test_counts_halve_every_half_life() -> None:
    histogram = Lateness(Scale(2 * S))
    for _ in range(1000):
        histogram.add(S)
    assert histogram.decay(NOW) == 1000
    assert histogram.decay(NOW + HALF_LIFE_NS - 1) == 1000
    assert histogram.decay(NOW + HALF_LIFE_NS) == 500
    assert histogram.decay(NOW + HALF_LIFE_NS + 1) == 500
    assert histogram.decay(NOW + 1000 * HALF_LIFE_NS) == 250


def windows(merge: Merger[int]) -> dict[str, int]:
    """Return the windows in use, in whole milliseconds."""
    return {str(source): lane.window_ns // MS for source, lane in merge._lanes.items()}


def run(merge: Merger[int], seconds: int, start: int, lateness: dict[str, tuple[int, int]]) -> int:
    """Push `rate` events a second, late by `ms`, per account; return the time at the end."""
    rng = Random(1)
    for second in range(seconds):
        for account, (rate, late) in lateness.items():
            for number in range(rate):
                now = start + second * S + number
                delay = int(late * MS * rng.uniform(0.9, 1.0))
                merge.push(SourceId(account, "r"), number, now - delay, now)
        merge.release(start + second * S + S)
    return start + seconds * S


def test_windows_follow_each_source_and_all_of_them_before() -> None:
    merge: Merger[int] = Merger(max_hold_ns=2 * S, window_ns=None)
    merge.opened(SourceId("quiet", "r"))
    assert windows(merge) == {"quiet/r": 500}
    load = {"far": (100, 300), "near": (100, 10), "quiet": (1, 10)}
    now = run(merge, 4, NOW, load)
    assert windows(merge)["near/r"] == 500  # too few yet
    now = run(merge, 12, now, load)
    seen = windows(merge)
    assert seen["near/r"] == 50
    assert 370 <= seen["far/r"] <= 460
    assert seen["quiet/r"] == seen["far/r"]  # a thousandth of all are as late as that
    # The lag grows, and goes.
    now = run(merge, 3, now, {"near": (100, 900)})
    assert windows(merge)["near/r"] > 1100
    now = run(merge, 1300, now, {"near": (30, 10)})
    assert windows(merge)["near/r"] == 50


def test_a_fixed_window_stays_and_replayed_events_say_nothing() -> None:
    merge: Merger[int] = Merger(max_hold_ns=2 * S, window_ns=70 * MS)
    run(merge, 20, NOW, {"a": (100, 900)})
    assert windows(merge) == {"a/r": 70}
    merge = Merger(max_hold_ns=2 * S, window_ns=None)
    for number in range(2000):
        now = NOW + number * 10 * MS
        merge.push(SourceId("a", "r"), number, now - 900 * MS, now, live=False)
    assert windows(merge) == {"a/r": 500}
