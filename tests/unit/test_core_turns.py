"""The lines and heaps behind the allocator; its tests have what they are for."""

from __future__ import annotations

from math import inf

from hypermux.core.limiter import Rank
from hypermux.core.rates import Gcra
from hypermux.core.turns import Line, Place, Turns
from hypermux.model.accounts import SourceId

A, B, C, D = (SourceId("a", region) for region in "wxyz")


def line(home: Place, rank: int = 0, *more: Place) -> Line:
    """Return a line of the account `home`, at an endpoint and a pair of its own, and at `more`."""
    endpoint, pair = Place("endpoint"), Place("pair")
    limits = (home, endpoint, pair, *more)
    return Line(rank, "h:1", home, limits, (home, endpoint), home, pair)


def turns(*lines: Line) -> Turns:
    made = Turns(0.0)
    for each in lines:
        made.add(each)
    return made


def join(made: Turns, waiting: Line, source: SourceId, ticket: int) -> None:
    waiting.join(source, ticket)
    made.joined(waiting, source)


def serve(made: Turns) -> list[SourceId]:
    """Serve all that can be served now."""
    served = []
    while (called := made.next()) is not None:
        served.append(called.head)
        del called.queue[called.head]
        made.served(called)
    return served


def test_an_older_ticket_stands_where_it_belongs() -> None:
    waiting = line(Place("account"))
    for source, ticket in ((B, 5), (C, 7), (D, 6), (A, 2)):
        waiting.join(source, ticket)
    assert list(waiting.queue) == [A, B, D, C]
    assert waiting.head == A


def test_slots_count_only_where_accounts_meet() -> None:
    waiting = line(Place("account", held=3))
    waiting.join(A, 4)
    _, endpoint, pair = waiting.limits
    assert waiting.order() == waiting.order(endpoint) == (0, 3, 4)
    same = {waiting.order(place)[1] for place in (waiting.home, waiting.account, pair)}
    assert len(same) == 1
    assert same != {3}


def test_invalid_entries_do_not_pile_up() -> None:
    home = Place("account", cap=0)
    first, second = line(home, 0), line(home, 1)
    made = turns(first, second)
    join(made, first, A, 0)
    join(made, second, B, 1)
    sizes = []
    for _ in range(200):
        made.released([first, second], ())
        made.released([second], ())
        sizes.append(len(home.parked))
        assert sum(number == each.entry for _, number, each in home.parked) == 2
    # As many valid ones as there are lines, as many others, and 16; and the one just entered.
    assert max(sizes) == 2 * 2 + 17
    home.cap = None
    made.opened(home)
    assert serve(made) == [A, B]
    assert made.next() is None


def test_what_is_left_of_the_entries_is_in_order() -> None:
    home = Place("account", cap=0)
    lines = [line(home, rank) for rank in (2, 4, 3, 9)]
    made = turns(*lines)
    for number, waiting in enumerate(lines):
        join(made, waiting, SourceId("a", str(number)), number)
    lines[0].queue.clear()
    lines[0].entry = None
    for _ in range(60):
        made._enter(lines[3], home)
    assert len(home.parked) <= 2 * 4 + 17
    home.cap = None
    made.opened(home)
    assert [source.region for source in serve(made)] == ["2", "1", "3"]


def test_who_joins_behind_the_head_changes_nothing() -> None:
    home = Place("account", cap=0)
    waiting = line(home)
    made = turns(waiting)
    join(made, waiting, A, 1)
    entry = waiting.entry
    join(made, waiting, B, 2)
    assert waiting.entry == entry
    join(made, waiting, C, 0)
    assert waiting.entry != entry
    home.cap = None
    made.opened(home)
    assert serve(made) == [C, A, B]
    assert waiting.entry is None


def test_a_timer_is_set_once_and_forgotten_with_those_it_was_for() -> None:
    home = Place("account", gate=Gcra(1.0, 1, 0.0))
    waiting = line(home)
    made = turns(waiting)
    join(made, waiting, A, 0)
    at = made.next_at()
    assert 0.9 < at <= 1.0
    made.opened(home)
    made.opened(home)
    assert (len(made._timers), home.timer) == (1, at)
    del waiting.queue[A]
    assert made.next_at() == inf
    assert (made._timers, home.timer) == ([], inf)
    join(made, waiting, B, 1)
    assert made.next_at() == at
    made.tick(at)
    assert (made.now, made.next_at()) == (at, at)
    assert serve(made) == [B]


def test_a_restart_forgets_what_was_parked_called_and_timed() -> None:
    home, late = Place("account"), Place("late", gate=Gcra(0.1, 1, 0.0))
    parked, called = line(home, 0, late), line(Place("other"), 1)
    made = turns(parked, called)
    join(made, parked, A, 0)
    join(made, called, B, 1)
    assert made.next() is called
    assert late.timer == made._timers[0][0]
    places = [*parked.limits, *called.limits]
    late.gate = None
    made.restart([parked], places)
    assert (made._timers, late.timer, late.parked, late.called) == ([], inf, [], None)
    assert made._lines == 1
    assert all(each is parked for _, _, each in made._candidates)
    assert serve(made) == [A]
    made.restart([called], places)
    assert serve(made) == [B]


def test_four_ranks_in_the_order_of_service() -> None:
    assert [rank.name for rank in sorted(Rank)] == ["LOST", "NEW", "ROTATION", "PROBE"]
