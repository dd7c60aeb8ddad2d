"""The rotation rule against a model of what a server and two sockets do; see `overlaps`."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from overlaps import (
    NEVER,
    RULES,
    Counted,
    Faults,
    Place,
    Run,
    Tally,
    compare,
    generate,
    judge,
    play,
)

from hypermux.core.overlap import Overlap


@pytest.mark.slow
def test_in_4000_runs_nothing_is_lost_doubled_or_reordered() -> None:
    for seed in range(4000):
        run = generate(Random(seed))
        faults = judge(run, play(run, Counted()))
        assert not any(faults._replace(moved=False)), seed


@pytest.mark.slow
def test_simpler_rules_lose_double_or_reorder() -> None:
    runs = 400
    tallies = compare((generate(Random(seed)) for seed in range(runs)), RULES)
    (ours, *others) = tallies.values()
    assert (ours.right, ours.lost, ours.doubled, ours.reordered) == (runs, 0, 0, 0)
    assert ours.moved < 0.1 * runs  # repeats only
    # The nearest ones spoil a fifth of the runs and more, the plain ones most.
    assert all(tally.right < 0.8 * runs for tally in others), tallies
    assert sum(tally.right < 0.5 * runs for tally in others) >= 5, tallies
    assert tallies["its counts, but new is not held"].reordered > 0.2 * runs


@pytest.mark.slow
def test_letting_go_early_costs_order_only() -> None:
    tally = Tally()
    for seed in range(400):
        run = generate(Random(seed))
        tally.add(judge(run, play(run, Counted(overlap=Overlap(hold_bytes=500)))))
    assert (tally.lost, tally.doubled) == (0, 0)
    assert tally.reordered > 0


@pytest.mark.slow
def test_counting_too_little_doubles_and_never_loses() -> None:
    tally = Tally()
    for seed in range(400):
        run = generate(Random(seed))
        tally.add(judge(run, play(run, Counted(overlap=Overlap(counted_bytes=1000)))))
    assert tally.lost == 0
    assert tally.doubled > 0


def test_what_the_model_sees() -> None:
    alone = len("abcd")
    places = {
        b"a": [Place(0, -alone)],  # old alone had it
        b"b": [Place(1, 1)],
        b"c": [Place(2, 0)],  # b and c were concurrent
        b"d": [Place(3, 2), Place(alone + 3, 3)],  # the second one came on new alone
    }
    run = Run([], places, Counter())

    def seen(out: str) -> Faults:
        return judge(run, [character.encode() for character in out])

    right = Faults(lost=False, doubled=False, reordered=False, moved=False)
    assert seen("abcdd") == seen("acbdd") == right
    assert seen("abdd") == seen("abcd") == right._replace(lost=True)
    assert seen("abcddd") == right._replace(doubled=True)
    assert seen("bacdd") == right._replace(reordered=True)
    assert seen("adbcd") == right._replace(moved=True)
    may_be_alike = Run([], places, Counter([b"d"]))
    assert judge(may_be_alike, [b"a", b"b", b"c", b"d"]) == right


def test_the_model_makes_what_it_says() -> None:
    runs = [generate(Random(seed)) for seed in range(200)]
    assert generate(Random(7)) == runs[7]
    ends_first = late_pong = repeats = concurrent = from_new_alone = 0
    for run in runs:
        kinds = [step.what for step in run.steps]
        assert kinds.count("end") == 1
        assert [step.at for step in run.steps] == sorted(step.at for step in run.steps)
        ends_first += "pong" not in kinds
        late_pong += "pong" in kinds and "new" in kinds[: kinds.index("pong")]
        places = sorted(place for where in run.places.values() for place in where)
        repeats += any(len(where) > 1 for where in run.places.values())
        concurrent += [x.new for x in places] != sorted(x.new for x in places)
        from_new_alone += "new" in kinds[kinds.index("end") :]
        assert all(place.old < NEVER and place.new < NEVER for place in places)
    assert min(ends_first, late_pong, repeats, concurrent, from_new_alone) > 20
