from __future__ import annotations

import pytest

from hypermux.core.rates import FLOOR_PER_S, Limit, Throttle


def throttled(configured: float = 8.0, at: float = 100.0) -> tuple[Throttle, Limit]:
    """Return a throttle that has halved its rate once, and its limit."""
    throttle, limit = Throttle(configured, configured), Limit("x")
    assert throttle.decrease(limit, at - 1.0, at)
    assert throttle.rate == configured / 2
    return throttle, limit


def test_a_throttled_rate_has_no_burst() -> None:
    _, limit = throttled()
    assert limit.opens_at(100.0) == pytest.approx(100.25)
    assert limit.opens_at(1000.0) == 1000.0
    limit.take(1000.0)
    assert limit.opens_at(1000.0) == pytest.approx(1000.25)


def test_what_was_dialed_before_a_decrease_says_nothing() -> None:
    throttle, limit = throttled()
    assert throttle.decrease(limit, 100.0, 101.0) is False
    assert throttle.increase(limit, 100.0, 101.0) is False
    assert throttle.rate == 4.0
    throttle.increase(limit, 100.1, 101.0)
    assert throttle.rate == pytest.approx(4.08)
    assert throttle.decrease(limit, 100.1, 101.0) is True
    assert throttle.rate == pytest.approx(2.04)


def test_a_rate_at_the_floor_falls_no_further_and_says_so() -> None:
    throttle, limit = throttled(configured=FLOOR_PER_S * 3)
    assert throttle.decrease(limit, 101.0, 102.0) is True
    assert throttle.rate == FLOOR_PER_S
    assert throttle.decrease(limit, 103.0, 104.0) is False
    low, limit = Throttle(FLOOR_PER_S / 2, FLOOR_PER_S / 2), Limit("x")
    assert low.decrease(limit, 1.0, 2.0) is False
    assert low.rate == FLOOR_PER_S / 2


def test_another_configured_rate_is_halved_from_where_it_is() -> None:
    throttle, limit = Throttle(8.0, 8.0), Limit("x")
    throttle.reconfigure(limit, 2.0, 1.0)
    assert limit.gate is None
    throttle.decrease(limit, 2.0, 3.0)
    assert throttle.rate == 1.0
    throttle.reconfigure(limit, 6.0, 4.0)
    assert throttle.rate == 3.0
    throttle.reconfigure(limit, FLOOR_PER_S, 5.0)
    assert throttle.rate == FLOOR_PER_S


def test_a_stop_is_over_at_its_end() -> None:
    limit = Limit("the server")
    Throttle.stop(limit, 10.0, 100.0)
    Throttle.stop(limit, 1.0, 101.0)
    assert limit.blocks(100.0) == "told by the server to wait 10 s more"
    assert limit.blocks(109.0) == "told by the server to wait 1 s more"
    assert limit.blocks(110.0) is None
    assert limit.opens_at(105.0) == 110.0
