"""Times and durations in every form that readers may write."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.moments import duration_ns, moment_ns

SECOND = 10**9
NOW_NS = 1_479_859_200_123_456_789


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1476375774.255155116", 1476375774_255155116),
        ("1476375774", 1476375774 * SECOND),
        ("0.5", SECOND // 2),
        ("2016-10-13T16:22:54.255155116Z", 1476375774_255155116),
        ("2016-10-13T18:22:54+02:00", 1476375774 * SECOND),
        ("0s", NOW_NS),
        ("10m", NOW_NS - 600 * SECOND),
        ("1h30m", NOW_NS - 5400 * SECOND),
    ],
)
def test_moments(text: str, ns: int) -> None:
    assert moment_ns(text, NOW_NS) == ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "-10m",
        "1.",
        ".5h",
        "1.1234567890",
        "2016-10-13",
        "now",
        "9" * 13,
        "1e3",
        "99999999d",
    ],
)
def test_what_is_no_moment_is_told_every_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"2016-10-13T.*seconds\[.nanoseconds\].*1h30m"):
        moment_ns(text, NOW_NS)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("90s", 90 * SECOND),
        ("10min", 600 * SECOND),
        ("10 min", 600 * SECOND),
        ("1h 30m", 5400 * SECOND),
        ("2.5d", 216_000 * SECOND),
        ("1h1m1s1ms1us1ns", 3661_001001001),
        ("1µs2μs", 3000),
        ("0.000000001s", 1),
        ("0.3ns", 0),
        ("1.1s", 1_100_000_000),
    ],
)
def test_durations(text: str, ns: int) -> None:
    assert duration_ns(text) == ns


@pytest.mark.parametrize(
    "text", ["", "10", "m", "1h30", "1x", "1h ", "-1h", "1,5h", "1hm", "1 h m"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is written 90s, 10m or 1h30m"):
        duration_ns(text)


@given(st.integers(0, 10**20))
@settings(max_examples=100, deadline=None)
def test_durations_lose_no_nanosecond(ns: int) -> None:
    seconds, rest = divmod(ns, SECOND)
    assert duration_ns(f"{seconds}s{rest}ns") == ns


def test_long_text_takes_no_time() -> None:
    with pytest.raises(ValueError, match="a duration is written"):
        duration_ns("1h" * 30_000 + "x")
