"""Limits that change, slots that are passed on, and slots that are wanted elsewhere."""

from __future__ import annotations

import pytest
from allocators import HOST, allocator, ask, limits, names, src

from hypermux.core.limiter import PATIENCE_S, Rank
from hypermux.model.accounts import Cap
from hypermux.model.errors import HypermuxError

# -- handovers


def test_a_handover_takes_no_slot_and_keeps_the_rates() -> None:
    limiter = allocator(3, 1.0, 1, Cap(2), Cap(3))
    ask(limiter, "a/1", "a/2", "b/1", "a/3")
    granted = [names(limiter.grant(float(now))) for now in range(1, 6)]
    assert granted == [["a/1"], ["b/1"], ["a/2"], [], []]
    ask(limiter, "a/1", "a/2", rank=Rank.ROTATION, handover=True, now=5.0)
    assert limiter.why(src("a/2")) == "waits for its turn"
    assert names(limiter.grant(5.0)) == ["a/1"]
    assert limiter.why(src("a/2")) == "waits for the connect rate of the process"
    assert limiter.next_at(5.0) == pytest.approx(6.0)
    assert names(limiter.grant(6.0)) == ["a/2"]
    assert limiter.held == 3
    limiter.release(src("a/1"))
    assert limiter.held == 2


def test_a_handover_heeds_the_rates_of_its_account_and_endpoint_and_what_servers_ask() -> None:
    limiter = allocator(2, None, 1, Cap(None, 1.0), Cap(None, 0.5))
    ask(limiter, "a/1", "b/1", "z/1")
    assert names(limiter.grant(2.0)) == ["a/1"]
    assert names(limiter.grant(4.0)) == ["b/1"]
    ask(limiter, "a/1", "b/1", rank=Rank.ROTATION, handover=True, now=4.0)
    assert limiter.grant(5.9) == []
    assert names(limiter.grant(6.0)) == ["a/1"]
    limiter.throttled(src("b/1"), 4.0, 60.0, 6.0)
    assert limiter.grant(65.0) == []
    assert limiter.next_at(65.0) == 66.0
    assert names(limiter.grant(66.0)) == ["b/1"]
    assert limiter.waiting == 1


def test_a_handover_waits_in_the_order_of_all_and_not_for_ever() -> None:
    limiter = allocator(None, 1.0)
    ask(limiter, "old/1")
    limiter.grant(1.0)
    ask(limiter, "old/1", rank=Rank.ROTATION, handover=True, now=1.0)
    now, served = 1.0, 0
    while "old/1" not in names(granted := limiter.grant(now)):
        for source in granted:
            limiter.release(source)
        ask(limiter, *(f"lost/{n}" for n in range(5)), rank=Rank.LOST, now=now)
        now, served = now + 1.0, served + len(granted)
        assert now < PATIENCE_S + 30.0
    assert now >= PATIENCE_S
    assert served >= 100


def test_a_wait_for_a_spare_slot_becomes_a_handover_and_keeps_its_place() -> None:
    limiter = allocator(2, 1.0)
    ask(limiter, "a/1", "b/1")
    limiter.grant(1.0)
    limiter.grant(2.0)
    ask(limiter, "a/1", rank=Rank.ROTATION, now=2.0)
    ask(limiter, "b/1", rank=Rank.ROTATION, handover=True, now=2.5)
    ask(limiter, "a/1", rank=Rank.ROTATION, handover=True, now=2.6)
    assert limiter.waiting == 2
    assert names(limiter.grant(3.0)) == ["a/1"]
    limiter.withdraw(src("b/1"))
    assert limiter.grant(9.0) == []


def test_only_a_slot_that_is_held_there_is_passed_on() -> None:
    limiter = allocator()
    ask(limiter, "a/1")
    limiter.grant(0.0)
    for name, host in (("a/2", HOST), ("a/1", "other:1")):
        with pytest.raises(HypermuxError, match="does not hold"):
            ask(limiter, name, host=host, handover=True)


# -- slots that are wanted


def test_a_slot_is_contested_when_somebody_without_one_would_get_it() -> None:
    limiter = allocator(3)
    ask(limiter, "a/1", "a/2", "b/1")
    limiter.grant(0.0)
    assert not limiter.contested(src("a/1"))
    ask(limiter, "a/1", rank=Rank.ROTATION)  # holds one already
    assert not limiter.contested(src("a/2"))
    ask(limiter, "c/1")
    assert limiter.contested(src("a/1"))
    assert limiter.contested(src("b/1"))
    assert not limiter.contested(src("c/1"))
    limiter.withdraw(src("c/1"))
    ask(limiter, "a/3")
    assert limiter.contested(src("a/1"))
    assert not limiter.contested(src("b/1"))  # b would get its slot back: it holds fewer


def test_a_slot_is_not_contested_by_who_waits_for_something_else() -> None:
    limiter = allocator(4, None, 1, Cap(2), Cap(3))
    ask(limiter, "a/1", "a/2", "b/1")
    limiter.grant(0.0)
    ask(limiter, "a/3", host="other:1")  # for a slot of its account
    ask(limiter, "c/1")  # for a slot of the endpoint
    ask(limiter, "d/1", host="other:1")
    assert names(limiter.grant(0.0)) == ["d/1"]
    ask(limiter, "e/1", host="other:1")  # for one of the process
    limiter.withdraw(src("c/1"))
    limiter.withdraw(src("a/3"))
    assert limiter.contested(src("a/1"))
    limiter.release(src("d/1"))
    assert names(limiter.grant(0.0)) == ["e/1"]
    ask(limiter, "a/3", host="other:1")
    # The process is full as well, but b's slot would not be enough for a/3.
    assert not limiter.contested(src("b/1"))
    assert limiter.contested(src("a/1"))


def test_a_slot_alone_must_be_enough() -> None:
    limiter = allocator(4, account_caps={"a": Cap(1)})
    ask(limiter, "a/1", "big/1", "big/2", "big/3")
    limiter.grant(0.0)
    ask(limiter, "a/2")  # for one of its account as well
    assert not limiter.contested(src("big/1"))
    ask(limiter, "c/1")
    assert limiter.contested(src("big/1"))
    limiter.change(limits(3), 0.0)  # one too many is held: a slot given back is nobody's
    assert not limiter.contested(src("big/1"))


def test_a_slot_is_not_contested_by_whom_a_server_told_to_wait() -> None:
    limiter = allocator(1)
    ask(limiter, "b/1")
    limiter.grant(0.0)
    limiter.throttled(src("b/1"), 0.0, 30.0, 0.0)
    limiter.release(src("b/1"))
    ask(limiter, "a/1", "b/1")
    assert names(limiter.grant(0.0)) == ["a/1"]
    limiter.grant(29.9)
    assert not limiter.contested(src("a/1"))
    limiter.grant(30.0)
    assert limiter.contested(src("a/1"))


def test_a_slot_is_contested_by_one_of_several_who_wait() -> None:
    limiter = allocator(2)
    ask(limiter, "a/1", "b/1")
    limiter.grant(0.0)
    ask(limiter, "a/1", "a/2")  # the first holds one
    assert limiter.contested(src("a/1"))


# -- limits that change


def test_a_raised_count_lets_those_who_wait_go() -> None:
    limiter = allocator(1)
    ask(limiter, "a/1", "b/1", "c/1")
    limiter.grant(0.0)
    assert limiter.change(limits(2), 1.0) == []
    assert names(limiter.grant(1.0)) == ["b/1"]
    assert limiter.change(limits(), 1.0) == []
    assert names(limiter.grant(1.0)) == ["c/1"]


def test_a_lowered_count_is_given_back_by_the_account_that_holds_most_youngest_first() -> None:
    limiter = allocator(6)
    ask(limiter, "a/1", "b/1", "a/2", "a/3", "b/2", "c/1")
    limiter.grant(0.0)
    assert names(limiter.change(limits(3), 1.0)) == ["a/3", "b/2", "a/2"]
    ask(limiter, "d/1")
    assert limiter.grant(1.0) == []
    for name in ("a/3", "b/2", "a/2"):
        limiter.release(src(name))
        assert limiter.grant(2.0) == []  # still full
    limiter.release(src("a/1"))
    assert names(limiter.grant(2.0)) == ["d/1"]


def test_of_accounts_that_hold_as_many_the_youngest_slot_goes_first() -> None:
    limiter = allocator()
    for name in ("a/1", "b/1", "b/2", "a/2"):
        ask(limiter, name)
        limiter.grant(0.0)
    assert names(limiter.change(limits(3), 0.0)) == ["a/2"]
    limiter = allocator()
    ask(limiter, "a/1", "b/1", "c/1")
    limiter.grant(0.0)
    assert names(limiter.change(limits(1), 0.0)) == ["c/1", "b/1"]


def test_an_endpoint_that_is_full_and_no_more_is_not_over_its_count() -> None:
    limiter = allocator()
    ask(limiter, "a/1", "z/1", host="h:1")
    limiter.grant(0.0)
    ask(limiter, "a/2", host="h:2")
    limiter.grant(0.0)
    assert names(limiter.change(limits(None, None, 1, Cap(1), Cap(2)), 0.0)) == ["a/2"]


def test_counts_of_accounts_and_endpoints_are_lowered_with_as_few_as_it_takes() -> None:
    limiter = allocator()
    ask(limiter, "a/1", "a/2", "b/1", host="h:1")
    ask(limiter, "a/3", host="h:2")
    limiter.grant(0.0)
    # a/3 is the youngest, but it is not at the endpoint that is over its count.
    assert names(limiter.change(limits(3, None, 1, Cap(2), Cap(2)), 0.0)) == ["a/2"]
    assert names(limiter.change(limits(None, None, 1, Cap(2)), 0.0)) == ["a/3"]
    own = {"b": Cap(0)}
    assert names(limiter.change(limits(2, None, 1, Cap(2), Cap(), own), 0.0)) == ["a/3", "b/1"]


def test_a_source_that_holds_two_slots_gives_both_back() -> None:
    limiter = allocator(3)
    ask(limiter, "a/1", "b/1")
    limiter.grant(0.0)
    ask(limiter, "a/1", rank=Rank.ROTATION)
    limiter.grant(0.0)
    assert names(limiter.change(limits(1), 1.0)) == ["a/1"]


def test_what_was_used_up_stays_used_up() -> None:
    limiter = allocator(None, 1.0, 3)
    ask(limiter, *(f"a/{n}" for n in range(20)))
    assert len(limiter.grant(60.0)) == 3
    limiter.change(limits(None, 10.0, 3), 60.0)
    assert limiter.grant(60.05) == []
    assert len(limiter.grant(60.1)) == 1
    limiter.change(limits(None, 10.0, 1), 60.1)  # three used of one: two intervals more to wait
    assert limiter.next_at(60.1) == pytest.approx(60.4, abs=1e-3)
    limiter.change(limits(), 60.1)
    assert len(limiter.grant(60.1)) == 16
    ask(limiter, "a/1")
    limiter.change(limits(None, 10.0, 5), 70.0)  # a new rate starts used up
    assert limiter.grant(70.0) == []
    assert limiter.next_at(70.0) == pytest.approx(70.1)


def test_a_throttled_rate_stays_the_same_part_of_what_is_configured() -> None:
    limiter = allocator(None, 8.0)
    ask(limiter, "a/1")
    limiter.grant(1.0)
    told = limiter.throttled(src("a/1"), 1.0, None, 1.0)
    assert told == (
        "endpoint host:1 for account a asks for fewer connections: now 4/s, configured 8/s"
    )
    assert limiter.throttled(src("a/1"), 1.0, None, 1.0) is None
    limiter.release(src("a/1"))
    limiter.change(limits(None, 2.0), 1.0)  # nobody waits or holds: it is not forgotten
    ((throttled),) = limiter.rates(1.0)
    assert (throttled.account, throttled.address) == ("a", HOST)
    assert (throttled.rate, throttled.configured, throttled.stopped_until) == (1.0, 2.0, None)
    ask(limiter, "a/1", "a/2", now=1.0)
    assert names(limiter.grant(2.0)) == ["a/1"]
    assert limiter.grant(2.9) == []
    assert limiter.next_at(2.9) == pytest.approx(3.0)
    for _ in range(50):
        limiter.succeeded(src("a/1"), 2.0)
    assert limiter.rates(2.0) == []


def test_what_nobody_uses_is_forgotten_and_comes_back_used_up() -> None:
    limiter = allocator(None, None, 4, Cap(None, 1.0))
    ask(limiter, "a/1")
    limiter.grant(9.0)
    limiter.release(src("a/1"))
    limiter.change(limits(None, None, 4, Cap(None, 1.0)), 9.0)
    ask(limiter, "a/1", now=9.0)
    assert limiter.grant(9.0) == []
    assert limiter.next_at(9.0) == pytest.approx(10.0, abs=1e-3)


def test_an_account_s_own_limits_come_and_go() -> None:
    limiter = allocator(None, None, 1, Cap(1))
    ask(limiter, "a/1", "a/2", "b/1", "b/2")
    assert names(limiter.grant(0.0)) == ["a/1", "b/1"]
    limiter.change(limits(None, None, 1, Cap(1), Cap(), {"a": Cap(2)}), 0.0)
    assert names(limiter.grant(0.0)) == ["a/2"]
    assert names(limiter.change(limits(None, None, 1, Cap(1)), 0.0)) == ["a/2"]
