"""Rates that servers bring down: one account's, or all accounts' together."""

from __future__ import annotations

from math import inf

import pytest

from hypermux.core.throttling import Pair, Throttled, Throttles
from hypermux.model.accounts import Cap, Limits

WHOLE = Limits(Cap(None, 10.0), 5, Cap(None, 4.0))
HOST = "host:1"


def dial(throttles: Throttles, account: str, now: float, host: str = HOST) -> Pair:
    pair = throttles.pair(account, host)
    pair.dials(now)
    return pair


def refuse(throttles: Throttles, now: float, *accounts: str, host: str = HOST) -> list[str | None]:
    """Refuse a dial of each that begins now."""
    return [
        throttles.refused(dial(throttles, name, now, host), now, None, now) for name in accounts
    ]


def test_several_accounts_refused_at_once_bring_the_endpoint_down_for_all() -> None:
    throttles = Throttles(WHOLE)
    *_, told = refuse(throttles, 100.0, "a", "b", "c")
    assert told == (
        "endpoint host:1 for all asks for fewer connections: now 5/s, configured 10/s; "
        "endpoint host:1 for account c asks for fewer connections: now 2/s, configured 4/s"
    )
    crowd = throttles.pair("d", HOST).crowd
    assert crowd.blocks(100.0) == "waits for the connect rate of endpoint host:1 for all"
    assert throttles.current(100.0) == [
        Throttled(None, HOST, 5.0, 10.0, None),
        *(Throttled(name, HOST, 2.0, 4.0, None) for name in "abc"),
    ]
    assert throttles.pair("a", "other:1").crowd.opens_at(100.0) == 100.0
    told = None
    for number in range(51):  # fifty, and what adding up loses
        assert told is None
        told = throttles.accepted(dial(throttles, "d", 101.0 + number), 101.0, 101.0 + number)
    assert told == "endpoint host:1 for all accepts connections at 10/s again"
    assert [low.account for low in throttles.current(200.0)] == ["a", "b", "c"]


def test_a_wave_brings_the_endpoint_down_once() -> None:
    throttles = Throttles(WHOLE)
    # All dialed before the first of them was refused.
    pairs = [dial(throttles, f"a{number}", 99.5) for number in range(12)]
    for pair in pairs:
        throttles.refused(pair, 99.5, None, 100.0)
    assert throttles.current(100.0)[0] == Throttled(None, HOST, 5.0, 10.0, None)
    refuse(throttles, 101.0, "x", "y", "z")
    assert throttles.current(101.0)[0].rate == 2.5


def test_who_dialed_at_the_moment_of_the_decrease_is_of_its_wave() -> None:
    throttles = Throttles(WHOLE)
    refuse(throttles, 100.0, "a", "b", "c")
    for name in "xy":
        throttles.refused(dial(throttles, name, 100.0), 100.0, None, 103.0)
    refuse(throttles, 104.0, "z")
    assert throttles.current(104.0)[0].rate == 5.0


def test_a_decrease_begins_a_new_count() -> None:
    throttles = Throttles(WHOLE)
    refuse(throttles, 100.0, "a", "b", "c")
    refuse(throttles, 102.0, "d", "e")
    assert throttles.current(102.0)[0].rate == 5.0
    refuse(throttles, 103.0, "f")
    assert throttles.current(103.0)[0].rate == 2.5


@pytest.mark.parametrize(("last", "crowded"), [(109.9, True), (110.0, False)])
def test_accounts_that_are_refused_now_and_then_are_no_crowd(last: float, crowded: bool) -> None:
    throttles = Throttles(WHOLE)
    for name, at in (("a", 100.0), ("b", 105.0), ("c", last)):
        refuse(throttles, at, name)
    assert (throttles.current(last)[0].account is None) is crowded


def test_an_account_that_is_refused_over_and_over_says_nothing_of_the_others() -> None:
    throttles = Throttles(WHOLE)
    refuse(throttles, 0.0, "a", "b")
    for number in range(20):
        refuse(throttles, 100.0 + 2 * number, "a", "b", "a")
    assert throttles.pair("a", HOST).crowd.gate is None
    refuse(throttles, 200.0, "c")
    assert throttles.pair("a", HOST).crowd.gate is None
    for name in "ab":
        throttles.accepted(dial(throttles, name, 205.0), 205.0, 205.0)
    refuse(throttles, 207.0, "a", "b")
    assert throttles.pair("a", HOST).crowd.gate is not None


def test_accounts_that_are_refused_for_good_are_a_crowd_once() -> None:
    throttles = Throttles(WHOLE)
    for number in range(5):
        refuse(throttles, 20.0 * number, "a", "b", "c")
    assert throttles.current(100.0)[0].rate == 5.0


@pytest.mark.parametrize(("apart", "crowded"), [(0.99, False), (1.0, True)])
def test_accounts_that_dial_often_may_be_over_their_own_rates(apart: float, crowded: bool) -> None:
    throttles = Throttles(WHOLE)
    for name in "abc":
        dial(throttles, name, 100.0)
    refuse(throttles, 100.0 + apart, "a", "b", "c")
    assert (throttles.current(102.0)[0].account is None) is crowded


def test_a_stop_is_told_while_it_lasts() -> None:
    throttles = Throttles(WHOLE)
    throttles.refused(dial(throttles, "a", 100.0), -inf, 30.0, 100.0)
    assert [low.stopped_until for low in throttles.current(129.9)] == [130.0]
    assert throttles.current(130.0) == []
    refuse(throttles, 129.0, "a")
    assert [low.stopped_until for low in throttles.current(130.0)] == [None]
    throttles.accepted(dial(throttles, "b", 100.0), 100.0, 100.0)
    throttles.refused(dial(throttles, "b", 100.0), -inf, 30.0, 100.0)
    throttles.change(WHOLE, set(), 130.0)
    assert [pair.account for pair in throttles.pairs] == ["a"]


@pytest.mark.parametrize(
    ("configured", "told"),
    [
        (None, "now 5/s, configured 10/s"),
        (1.0, "now 0.5/s, configured 1/s"),
        (0.2, "now 0.1/s, configured 0.2/s"),
        (0.1, "now 3/min, configured 0.1/s"),
    ],
)
def test_rates_are_told_by_the_second_or_the_minute(configured: float | None, told: str) -> None:
    (sentence,) = refuse(Throttles(Limits(Cap(None, configured))), 1.0, "a")
    assert sentence is not None
    assert sentence.endswith(told)


def test_what_is_neither_used_nor_low_is_forgotten() -> None:
    throttles = Throttles(WHOLE)
    refuse(throttles, 100.0, "a")
    throttles.pair("b", HOST)
    throttles.refused(dial(throttles, "c", 100.0), -1e9, 30.0, 100.0)
    used = throttles.pair("d", "other:1")
    throttles.change(Limits(Cap(None, 2.0)), {("d", "other:1")}, 101.0)
    assert {(pair.account, pair.address) for pair in throttles.pairs} == {
        ("a", HOST),
        ("c", HOST),
        ("d", "other:1"),
    }
    assert throttles.pair("d", "other:1") is used
    assert [(low.account, low.rate) for low in throttles.current(101.0)] == [("a", 1.0), ("c", 1.0)]
    throttles.change(Limits(), set(), 131.0)
    assert {pair.account for pair in throttles.pairs} == {"a", "c"}
    refuse(throttles, 140.0, "x", "y", "z")
    throttles.change(Limits(Cap(None, 4.0)), set(), 150.0)
    assert throttles.current(150.0)[0] == Throttled(None, HOST, 2.0, 4.0, None)
    assert len(list(throttles.places)) == len(throttles.pairs) + 1
