from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hypermux.core.intake import ITEM_OVERHEAD, Budget, Tally, weigh
from hypermux.model.accounts import SourceId
from hypermux.model.records import Event, Gap, Item, StateChange

A, B = SourceId("a", "r"), SourceId("b", "r")


def event(size: int = 0) -> Event:
    return Event(b"x" * size, 1, "timeNano")


def tally(items: list[Item]) -> Tally:
    total = Tally()
    for item in items:
        total.add(item)
    return total


def test_what_fits_is_admitted_and_given_back() -> None:
    budget = Budget(10 * ITEM_OVERHEAD, 10 * ITEM_OVERHEAD)
    items: list[Item] = [event(5)]
    assert budget.admit(A, items, 7) == items
    assert budget.used == weigh(items)
    budget.recorded(A, tally(items))
    assert budget.used == 0


def test_one_overflow_episode_is_one_gap_with_its_count() -> None:
    budget = Budget(ITEM_OVERHEAD, ITEM_OVERHEAD)
    assert budget.admit(A, [event()], 10)
    assert budget.admit(A, [event(), event()], 20) == []
    assert budget.admit(A, [event()], 30) == []
    budget.recorded(A, Tally(ITEM_OVERHEAD, 1))
    gap, last = budget.admit(A, [event()], 40)
    assert gap == Gap(20, 40, "overflow", "proven", 3)
    assert isinstance(last, Event)


def test_one_source_cannot_take_the_share_of_another() -> None:
    budget = Budget(10 * ITEM_OVERHEAD, 2 * ITEM_OVERHEAD)
    assert budget.admit(A, [event(), event()], 1)
    assert budget.admit(A, [event()], 2) == []
    assert budget.admit(B, [event()], 3)


def test_of_a_read_that_is_larger_than_the_room_the_first_part_is_kept() -> None:
    budget = Budget(3 * ITEM_OVERHEAD, 3 * ITEM_OVERHEAD)
    assert len(budget.admit(A, [event()] * 5, 10)) == 3
    assert budget.end_episodes(20, all_of_them=True) == [(A, Gap(10, 20, "overflow", "proven", 2))]


def test_a_source_that_falls_quiet_is_told_of_when_there_is_room_again() -> None:
    budget = Budget(2 * ITEM_OVERHEAD, 2 * ITEM_OVERHEAD)
    budget.admit(A, [event()] * 4, 10)
    assert budget.oldest_episode_ns == 10
    assert budget.end_episodes(15, all_of_them=False) == []
    budget.recorded(A, Tally(ITEM_OVERHEAD, 1))
    assert budget.end_episodes(20, all_of_them=False) == [(A, Gap(10, 20, "overflow", "proven", 2))]
    assert budget.oldest_episode_ns is None


def test_states_and_gaps_are_never_refused() -> None:
    budget = Budget(0, 0)
    change = StateChange("up")
    assert budget.admit(A, [event(), change], 1) == [change]


def test_an_episode_still_open_at_the_end_is_told() -> None:
    budget = Budget(0, 0)
    budget.admit(A, [event()], 5)
    assert budget.end_episodes(9, all_of_them=True) == [(A, Gap(5, 9, "overflow", "proven", 1))]
    assert budget.end_episodes(9, all_of_them=True) == []


@given(
    st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 4), st.booleans()), max_size=40),
)
def test_received_is_admitted_or_lost_and_the_limits_hold(
    steps: list[tuple[SourceId, int, bool]],
) -> None:
    size, share = 8 * ITEM_OVERHEAD, 5 * ITEM_OVERHEAD
    budget = Budget(size, share)
    held: list[tuple[SourceId, list[Item]]] = []
    admitted = told_lost = 0
    for moment, (source, count, give_back) in enumerate(steps):
        items = budget.admit(source, [event() for _ in range(count)], moment)
        admitted += sum(isinstance(item, Event) for item in items)
        told_lost += sum(item.lost or 0 for item in items if isinstance(item, Gap))
        held.append((source, items))
        # An ended episode's gap may go over the limit by its own weight.
        assert budget.used <= size + ITEM_OVERHEAD * 2
        if give_back:
            owner, taken = held.pop(0)
            budget.recorded(owner, tally(taken))
        for one in budget.shares.values():
            assert one.received == one.recorded.events + one.lost + one.in_flight
    told_lost += sum(gap.lost or 0 for _, gap in budget.end_episodes(99, all_of_them=True))
    received = sum(s.received for s in budget.shares.values())
    assert received == sum(count for _, count, _ in steps) == admitted + told_lost
