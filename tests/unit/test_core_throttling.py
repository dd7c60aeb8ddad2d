"""Rates that servers bring down: one account's, or all accounts' together."""

from __future__ import annotations

import pytest

from hypermux.core.throttling import CROWD_S, SPARSE_S, Pair, Throttled, Throttles
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


@pytest.mark.parametrize("apart", [CROWD_S, CROWD_S / 2])
def test_accounts_that_are_refused_now_and_then_are_no_crowd(apart: float) -> None:
    throttles = Throttles(WHOLE)
    for number, name in enumerate("abcdef"):
        refuse(throttles, 100.0 + number * apart, name)
    assert all(low.account is not None for low in throttles.current(100.0))


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


def test_accounts_that_dial_often_may_be_over_their_own_rates() -> None:
    throttles = Throttles(WHOLE)
    for name in "abc":
        dial(throttles, name, 100.0 - SPARSE_S / 2)
    refuse(throttles, 100.0, "a", "b", "c")
    assert [low.account for low in throttles.current(100.0)] == ["a", "b", "c"]
    for name in "abc":
        throttles.accepted(dial(throttles, name, 101.0), 101.0, 101.0)
    refuse(throttles, 101.0 + SPARSE_S, "a", "b", "c")
    assert throttles.current(102.0)[0].account is None


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
