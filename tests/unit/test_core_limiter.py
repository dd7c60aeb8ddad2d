from __future__ import annotations

import itertools
from collections import Counter

import hypothesis
import pytest
from allocators import HOST, allocator, ask, names, src
from hypothesis import strategies as st

from hypermux.core import limiter as limiter_module
from hypermux.core.limiter import PATIENCE_S, Allocator, Rank
from hypermux.core.rates import Gcra
from hypermux.model.accounts import Cap
from hypermux.model.errors import HypermuxError

# -- Gcra


def test_a_gate_starts_with_its_burst_used_up() -> None:
    gate = Gcra(10.0, 5, now=100.0)
    assert gate.ready_at(100.0) == pytest.approx(100.1)
    times = []
    now = 100.0
    for _ in range(20):
        now = gate.ready_at(now)
        gate.take(now)
        times.append(now)
    assert times == pytest.approx([100.0 + 0.1 * n for n in range(1, 21)])


def test_a_rested_gate_gives_exactly_its_burst() -> None:
    gate = Gcra(10.0, 5, now=0.0)
    given = 0
    while gate.ready_at(60.0) == 60.0:
        gate.take(60.0)
        given += 1
    assert given == 5
    assert gate.ready_at(60.0) == pytest.approx(60.1)


def test_a_changed_rate_gives_no_new_burst() -> None:
    gate = Gcra(10.0, 5, now=0.0)
    gate.change(5.0, 0.0)
    assert gate.ready_at(0.0) == pytest.approx(0.2, rel=1e-5)
    gate.change(20.0, 0.0)
    assert gate.ready_at(0.0) == pytest.approx(0.05, rel=1e-5)


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 5), (-1.0, 5), (10.0, 0)])
def test_a_gate_that_permits_nothing_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="over 0"):
        Gcra(rate, burst, 0.0)


def check_rate(times: list[float], rate: float, burst: int) -> None:
    """Over any span at most rate x span + burst; the span that starts the world included."""
    assert all(t <= u for t, u in itertools.pairwise(times))
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= rate * (times[last] - start) + burst + 1e-5


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    st.floats(0.01, 50),
    st.integers(1, 6),
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 8), st.floats(0.1, 1.0)), max_size=20),
)
def test_a_gate_never_gives_more_than_its_rate_and_burst(
    rate: float, burst: int, steps: list[tuple[float, int, float]]
) -> None:
    gate = Gcra(rate, burst, 0.0)
    now, times = 0.0, []
    for pause, wanted, factor in steps:
        now += pause
        for _ in range(wanted):
            if gate.ready_at(now) <= now:
                gate.take(now)
                times.append(now)
        gate.change(rate * factor, now)  # lower rates on the way give nothing back
    check_rate(times, rate, burst)


# -- order of service


def test_ranks_go_first_then_fewest_slots_then_the_longest_wait() -> None:
    limiter = allocator(max_connections=2)
    ask(limiter, "a/1", "a/2")
    assert names(limiter.grant(0.0)) == ["a/1", "a/2"]
    ask(limiter, "a/3", "b/1", "c/1")
    ask(limiter, "d/1", rank=Rank.PROBE)
    ask(limiter, "a/4", rank=Rank.LOST)
    ask(limiter, "c/2", rank=Rank.ROTATION)
    served = []
    for holder in ("a/1", "a/2", "a/4", "b/1", "a/3", "c/1"):
        assert limiter.grant(0.0) == []
        limiter.release(src(holder))
        served += names(limiter.grant(0.0))
        assert limiter.held == 2
    assert served == ["a/4", "b/1", "a/3", "c/1", "c/2", "d/1"]


def test_a_freed_slot_goes_to_the_account_that_holds_fewest() -> None:
    limiter = allocator(max_connections=4)
    ask(limiter, "a/1", "a/2", "a/3", "b/1")
    limiter.grant(0.0)
    ask(limiter, "a/4", "b/2")
    limiter.release(src("b/1"))
    assert names(limiter.grant(0.0)) == ["b/2"]
    limiter.release(src("a/2"))
    assert names(limiter.grant(0.0)) == ["a/4"]


def test_the_slots_that_accounts_lose_and_gain_change_the_order_of_those_who_wait() -> None:
    limiter = allocator(per_endpoint=Cap(max_connections=1))
    ask(limiter, "z/0")
    limiter.grant(0.0)
    ask(limiter, "a/1", "b/1")  # both wait for the host's slot, a first
    for account in "ab":
        for number in range(2):
            ask(limiter, f"{account}/x{number}", host=f"other{account}{number}:1")
            limiter.grant(0.0)
    limiter.release(src("b/x0"))
    limiter.release(src("z/0"))
    assert names(limiter.grant(0.0)) == ["b/1"]
    limiter.release(src("a/x0"))
    limiter.release(src("a/x1"))
    limiter.release(src("b/1"))
    assert names(limiter.grant(0.0)) == ["a/1"]


def test_a_blocked_account_is_passed_over() -> None:
    limiter = allocator(per_account=Cap(max_connections=1))
    ask(limiter, *(f"a/{n}" for n in range(50)), "b/0")
    assert names(limiter.grant(0.0)) == ["a/0", "b/0"]
    assert limiter.waiting == 49
    assert limiter.next_at(0.0) is None
    assert limiter.why(src("a/7")) == "waits for a slot of account a"


def test_a_blocked_endpoint_is_passed_over() -> None:
    limiter = allocator(per_endpoint=Cap(max_connections=1))
    ask(limiter, "a/0", "a/1", "b/0")
    ask(limiter, "a/2", host="other:1")
    assert names(limiter.grant(0.0)) == ["a/0", "a/2"]
    assert limiter.why(src("a/1")) == "waits for a slot of endpoint host:1"
    limiter.release(src("a/0"))
    assert names(limiter.grant(0.0)) == ["b/0"]


def test_an_accounts_own_limits_replace_the_common_ones() -> None:
    limiter = allocator(
        per_account=Cap(max_connections=1, connect_rate=1.0),
        account_caps={"big": Cap(max_connections=3), "fast": Cap(connect_rate=100.0)},
    )
    ask(limiter, *(f"{name}/{n}" for name in ("big", "fast", "plain") for n in range(5)))
    granted = []
    for now in range(1, 20):
        granted += names(limiter.grant(float(now)))
    assert Counter(name.partition("/")[0] for name in granted) == {"big": 3, "fast": 1, "plain": 1}


def test_nobody_waits_for_good_behind_those_that_fail_over_and_over() -> None:
    limiter = allocator(connect_rate=1.0)
    ask(limiter, "new/1", rank=Rank.NEW)
    flapping = [src(f"lost/{n}") for n in range(5)]
    now = 0.0
    while "new/1" not in names(granted := limiter.grant(now)):
        for source in granted:
            limiter.release(source)
        for source in flapping:
            limiter.request(source, HOST, Rank.LOST, now)
        now += 1.0
        assert now < PATIENCE_S + 30.0
    assert now >= PATIENCE_S


# -- requests


def test_a_second_request_takes_the_place_of_the_first() -> None:
    limiter = allocator(max_connections=1)
    ask(limiter, "z/0")
    limiter.grant(0.0)
    ask(limiter, "a/1", "b/1")
    ask(limiter, "a/1", rank=Rank.LOST)
    assert limiter.waiting == 2
    ask(limiter, "a/1", rank=Rank.NEW)  # its place in the queue is kept
    limiter.release(src("z/0"))
    assert names(limiter.grant(0.0)) == ["a/1"]
    ask(limiter, "c/1")
    ask(limiter, "b/1", host="elsewhere:1")  # another endpoint: from the end
    limiter.release(src("a/1"))
    assert names(limiter.grant(0.0)) == ["c/1"]


def test_withdrawn_requests_are_forgotten() -> None:
    limiter = allocator(connect_rate=1.0)
    ask(limiter, "a/1", "a/2")
    limiter.withdraw(src("a/1"))
    limiter.withdraw(src("a/1"))
    assert limiter.waiting == 1
    assert limiter.why(src("a/1")) == "does not wait"
    assert names(limiter.grant(1.0)) == ["a/2"]
    assert limiter.why(src("a/2")) == "holds a slot"
    ask(limiter, "a/3")
    limiter.withdraw(src("a/3"))
    assert limiter.next_at(1.0) is None
    assert limiter.grant(9.0) == []


def test_a_slot_is_given_back_once() -> None:
    limiter = allocator()
    ask(limiter, "a/1")
    limiter.grant(0.0)
    limiter.release(src("a/1"))
    with pytest.raises(HypermuxError, match="does not hold"):
        limiter.release(src("a/1"))
    assert limiter.held == 0


def test_a_source_may_hold_two_slots_while_it_rotates() -> None:
    limiter = allocator(max_connections=2)
    ask(limiter, "a/1")
    limiter.grant(0.0)
    ask(limiter, "a/1", rank=Rank.ROTATION, host="new:1")
    assert names(limiter.grant(0.0)) == ["a/1"]
    assert limiter.held == 2
    limiter.release(src("a/1"))
    assert limiter.held == 1


# -- throttled dials


def next_dial(limiter: Allocator, now: float) -> float:
    """Return when a/9 can dial at the earliest."""
    limiter.request(src("a/9"), HOST, Rank.LOST, now)
    while not limiter.grant(now):
        at = limiter.next_at(now)
        assert at is not None
        assert at > now
        now = at
    limiter.release(src("a/9"))
    return now


@pytest.mark.parametrize(
    ("throttled", "expected"),
    [
        ([(10.0, 11.0)], 11.25),
        ([(10.0, 11.0), (10.125, 11.2)], 11.25),  # dialed before the rate fell: the same wave
        ([(10.0, 11.0), (11.0, 11.2)], 11.25),
        ([(10.0, 11.0), (11.05, 11.2)], 11.7),
        ([(10.0, 11.0), (11.05, 11.2), (11.3, 11.4)], 12.4),
    ],
)
def test_a_throttled_dial_halves_the_rate_once_per_wave(
    throttled: list[tuple[float, float]], expected: float
) -> None:
    limiter = allocator(connect_rate=8.0)
    ask(limiter, "a/1")
    assert limiter.grant(10.0) == [src("a/1")]
    for dialed_at, now in throttled:
        limiter.throttled(src("a/1"), dialed_at, None, now)
    assert next_dial(limiter, throttled[-1][1]) == pytest.approx(expected)


def test_the_throttled_rate_has_a_floor_and_recovers() -> None:
    limiter = allocator(connect_rate=8.0)
    ask(limiter, "a/1")
    limiter.grant(1.0)
    for number in range(40):
        limiter.throttled(src("a/1"), 2.0 + number, None, 2.5 + number)
    assert next_dial(limiter, 41.5) == pytest.approx(41.5 + 60.0)
    ask(limiter, "a/2")
    assert limiter.grant(103.0) == []
    assert limiter.why(src("a/2")) == "waits for the connect rate of endpoint host:1 for account a"
    assert limiter.next_at(103.0) == pytest.approx(161.5)
    # Dialed before the rate fell last: what comes of it says nothing about the lower rate.
    assert limiter.succeeded(src("a/1"), 103.0) is None
    assert limiter.next_at(103.0) == pytest.approx(161.5)
    limiter.succeeded(src("a/9"), 103.0)  # a hundredth of 8 per second more than the floor
    left = (161.5 - 103.0) / 60.0
    assert limiter.next_at(103.0) == pytest.approx(103.0 + left / (0.08 + 1 / 60))
    told = [limiter.succeeded(src("a/9"), 103.0) for _ in range(99)]
    assert told[:-1] == [None] * 98
    assert told[-1] == "endpoint host:1 for account a accepts connections at 8/s again"
    assert limiter.rates(103.0) == []
    assert names(limiter.grant(103.0)) == ["a/2"]


def test_throttling_is_one_accounts_at_one_endpoint() -> None:
    limiter = allocator()
    ask(limiter, "a/1")
    limiter.grant(0.0)
    limiter.throttled(src("a/1"), 0.0, 30.0, 1.0)
    limiter.throttled(src("never/seen"), 0.0, 30.0, 1.0)
    ask(limiter, "a/2", "b/1")
    ask(limiter, "a/3", host="other:1")
    assert sorted(names(limiter.grant(1.0))) == ["a/3", "b/1"]
    assert limiter.why(src("a/2")).startswith("told by endpoint host:1 for account a to wait 30 s")
    assert limiter.next_at(1.0) == 31.0
    assert names(limiter.grant(31.0)) == ["a/2"]


def test_retry_after_is_honoured_to_an_hour_and_never_shortened() -> None:
    limiter = allocator()
    ask(limiter, "a/1")
    limiter.grant(0.0)
    limiter.throttled(src("a/1"), 0.0, 1e9, 0.0)
    limiter.throttled(src("a/1"), 0.0, 1.0, 0.0)
    ask(limiter, "a/2")
    assert limiter.grant(0.0) == []
    assert limiter.next_at(0.0) == 3600.0


def test_a_thousand_who_wait_cost_no_more_than_a_few_looks_each() -> None:
    """Counts what is asked, not time: every order of a line that is worked out."""
    from hypermux.core import turns

    asked = 0
    plain_order = turns.Line.order

    def order(line: turns.Line, place: turns.Place | None = None) -> turns.Order:
        nonlocal asked
        asked += 1
        return plain_order(line, place)

    patch = pytest.MonkeyPatch()
    patch.setattr(turns.Line, "order", order)
    with patch.context():
        for accounts, hosts in ((1000, 1), (1000, 1000), (1, 1000), (30, 30)):
            limiter = allocator(
                connect_rate=10.0,
                connect_burst=5,
                per_account=Cap(connect_rate=5.0),
                per_endpoint=Cap(connect_rate=4.0),
            )
            asked = 0
            for number in range(1000):
                name = f"a{number % accounts}/{number}"
                ask(limiter, name, host=f"h{number % hosts}:1")
                limiter.grant(0.0)
            now, granted = 0.0, 0
            while granted < 100:
                at = limiter.next_at(now)
                assert at is not None
                now = at
                granted += len(limiter.grant(now))
            assert asked < 30 * 1000
    patch.undo()


def test_the_figures_that_the_promises_are_made_of() -> None:
    assert (limiter_module.PATIENCE_S, limiter_module.PATIENCE_CHECK_S, limiter_module.FAVOUR) == (
        120.0,
        10.0,
        4,
    )
    assert [rank.value for rank in Rank] == [0, 1, 2, 3]


def test_who_is_dismissed_neither_waits_nor_holds() -> None:
    limiter = allocator(max_connections=2)
    first, second, third = src("a/1"), src("a/2"), src("b/1")
    for source in (first, first, second, third):
        limiter.request(source, HOST, Rank.NEW, 100.0)
        limiter.grant(100.0)
    limiter.request(first, HOST, Rank.NEW, 100.0)
    assert limiter.held == 2
    limiter.dismiss(first)
    assert limiter.why(first) == "does not wait"
    assert sorted(limiter.grant(200.0)) == [second, third]
    limiter.dismiss(first)
    assert limiter.held == 2
