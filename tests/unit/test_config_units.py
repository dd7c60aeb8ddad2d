from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypermux.config import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("500ms", 0.5),
        ("0.1s", 0.1),
        ("250us", 0.00025),
        ("1d", 86400.0),
        ("20h", 72000.0),
        ("1.5h", 5400.0),
        ("2min", 120.0),
        ("2m", 120.0),
        ("10 s", 10.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20),
        ("10GB", 10**10),
        ("512B", 512),
        ("1.5KiB", 1536),
        ("1 tib", 1 << 40),
        ("3kB", 3000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "rate"), [("10/s", 10.0), ("30/min", 0.5), ("36/h", 0.01), ("0.5/s", 0.5)]
)
def test_rates(text: str, rate: float) -> None:
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1e3s", "inf s", "10x", "1h30m", "٣s", "1S", "9" * 400 + "s", "10s\n"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(units.UnitError, match='write "10s"'):
        units.parse_duration(text)


@pytest.mark.parametrize("text", ["", "10", "64 Mi", "1.0000000001B", "-1B", "1KiB2", "1\u212aiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(units.UnitError):
        units.parse_size(text)


@pytest.mark.parametrize("text", ["", "10", "10/d", "/s", "10 s", "10/0s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(units.UnitError):
        units.parse_rate(text)


def test_a_bare_number_shows_the_form_with_that_number() -> None:
    with pytest.raises(units.UnitError, match=r'^has no unit: write "15s"$'):
        units.parse_duration("15")
    with pytest.raises(units.UnitError, match=r'^has no unit: write "8MiB"$'):
        units.parse_size("8")
    with pytest.raises(units.UnitError, match=r'^has no unit: write "3/s"$'):
        units.parse_rate("3")


@given(st.floats(0, 1e9, allow_nan=False).map(lambda x: round(x, 6)))
def test_a_written_duration_reads_back(seconds: float) -> None:
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@given(st.integers(0, 10**14))
def test_a_written_size_reads_back(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@given(st.integers(1, 10**6), st.sampled_from(["s", "min", "h"]))
def test_a_written_rate_reads_back(count: int, unit: str) -> None:
    rate = units.parse_rate(f"{count}/{unit}")
    assert units.parse_rate(units.format_rate(rate)) == rate


def test_the_largest_unit_without_a_fraction() -> None:
    assert units.format_duration(72000) == "20h"
    assert units.format_duration(90) == "90s"
    assert units.format_duration(0) == "0s"
    assert units.format_size(64 << 20) == "64MiB"
    assert units.format_size(10**10) == "10GB"
    assert units.format_rate(0.5) == "30/min"
