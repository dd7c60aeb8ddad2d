"""The merge's rules on seeded traces, and how its windows follow the lateness."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from test_core_merging import SOURCES, A, B, C, Plain, check_order, merger, payloads, play

from hypermux.core.merging import Merger
from hypermux.model.accounts import SourceId

MS = 1_000_000
S = 1_000_000_000
NOW = 1_700_000_010 * S


def trace(rng: Random, length: int) -> list[Any]:
    """Return steps for `play`: bursts, sources that come and go, long waits between releases."""
    steps: list[Any] = []
    for _ in range(length):
        source = rng.choice(SOURCES)
        match rng.choice(("open", "push", "push", "push", "close", "round", "release", "deadline")):
            case "push":
                times = [rng.randrange(-40, 6) for _ in range(rng.randrange(1, 5))]
                steps.append(("push", source, times))
            case "round":
                busy = {s: rng.randrange(50) for s in rng.sample(SOURCES, rng.randrange(3))}
                steps.append(("round", rng.randrange(31), busy))
            case "release":
                steps.append(("release", rng.choice((0, 1, 10, 30, 60, 99))))
            case "deadline":
                steps.append(("deadline",))
            case name:
                steps.append((name, source))
    return steps


@pytest.mark.parametrize("seed", range(150))
def test_it_does_what_the_rules_say(seed: int) -> None:
    rng = Random(seed)
    window = rng.choice((0, 5, 30, 60))
    merge: Merger[int] = Merger(max_hold_ns=100, window_ns=window)
    check_order(play(merge, trace(rng, 120), Plain(100, window)))


# -- what is held, and until when


def test_all_that_is_overdue_goes_and_all_that_is_smaller() -> None:
    merge = merger()
    merge.opened(C)
    for payload, time, received in (("5", 5, 10), ("2", 2, 11), ("4", 4, 12), ("6", 6, 13)):
        merge.push(A if payload in "56" else B, payload, NOW + time, NOW + received)
    merge.push(SourceId("d", "r"), "1", NOW + 1, NOW + 2 * S)
    assert merge.held == 5
    assert merge.oldest_received_ns == NOW + 10
    assert merge.release(NOW + 2 * S + 9) == []
    assert merge.held == 5
    assert payloads(merge.release(NOW + 2 * S + 10)) == ["1", "2", "4", "5"]
    assert (merge.held, merge.oldest_received_ns) == (1, NOW + 13)
    assert merge.next_deadline_ns() == NOW + 6 + 100 * MS + 1
    merge.push(A, "7", NOW + 7, NOW + 3 * S)
    merge.drained(NOW + 3 * S, except_for={C: NOW})
    assert merge.next_deadline_ns() == NOW + 13 + 2 * S


def test_the_first_of_several_late_ones_is_due() -> None:
    merge = merger()
    merge.push(A, "x", NOW, NOW)
    merge.release(NOW)
    merge.push(B, "late", NOW - 5, NOW + 1)
    merge.push(C, "later", NOW - 5, NOW + 2)
    merge.opened(A)
    merge.push(A, "y", NOW + 3, NOW + 3)
    assert merge.held == 3
    assert merge.next_deadline_ns() == merge.oldest_received_ns == NOW + 1


def test_what_came_before_the_bound_is_due_at_once() -> None:
    merge = merger(window_ns=100 * MS)
    merge.opened(A)
    merge.opened(B)
    merge.drained(NOW + S, except_for={})
    merge.push(B, "x", NOW, NOW + S)
    merge.push(B, "y", NOW + 950 * MS, NOW + S)
    assert merge.next_deadline_ns() == NOW + S
    assert payloads(merge.release(NOW + S)) == ["x"]
    assert merge.next_deadline_ns() == NOW + 1050 * MS + 1


def test_the_offset_of_a_source_is_known() -> None:
    merge = merger()
    assert merge.offset_ns(A) == 0
    merge.guess_offset(A, 5 * S)
    assert (merge.offset_ns(A), merge.offset_ns(B)) == (5 * S, 0)
    merge.push(A, "x", NOW - 5 * S, NOW, live=False)
    (item,) = merge.flush()
    assert item.at_ns == NOW
    merge.push(A, "y", NOW - 5 * S - 1, NOW + 1, live=False)
    (item,) = merge.flush()
    assert item.at_ns == NOW  # never below the last one


def test_a_replayed_one_is_shifted_like_a_live_one() -> None:
    merge = merger()
    merge.guess_offset(A, -5 * S)
    merge.push(A, "x", NOW, NOW, live=False)
    (item,) = merge.flush()
    assert item.at_ns == NOW - 5 * S


def test_a_long_queue_is_kept_in_order_and_cut_off() -> None:
    merge: Merger[int] = Merger(max_hold_ns=10 * S, window_ns=0)
    merge.opened(C)
    for number in range(3000):
        merge.push(A, number, NOW + 2 * number, NOW + 10_000)
    assert merge.release(NOW + 10_000) == []
    merge.push(B, 9000, NOW + 3, NOW + 10_000)  # one, far from the end
    for number in range(1000):
        merge.push(B, 9001 + number, NOW + 3 + 2 * number, NOW + 10_000)
    merge.drained(NOW + 1500, except_for={})
    out = merge.release(NOW + 10_000)
    assert 1024 < len(out) < 2000
    assert merge._start == len(out)  # a third: not worth moving the rest
    merge.drained(NOW + 5000, except_for={})
    out += merge.release(NOW + 10_000)
    assert merge._start == 0
    assert merge.held == 4001 - len(out) == len(merge._pending)
    out += merge.flush()
    assert [x.key for x in out] == sorted(x.key for x in out)
    assert len(out) == 4001


# -- windows


def live(merge: Merger[str], source: Any, count: int, late_ms: int, at: int) -> None:
    """Push events that are received so late."""
    for number in range(count):
        merge.push(source, "x", at + number - late_ms * MS, at + number)
    merge.flush()


def window(merge: Merger[str], source: Any) -> int:
    return merge._lanes[source].window_ns // MS


def test_windows_follow_the_lateness_of_all_and_then_of_each() -> None:
    merge = merger(window_ns=None)
    merge.opened(A)
    merge.opened(B)
    assert window(merge, A) == window(merge, B) == 500  # nothing known
    live(merge, A, 900, 20, NOW)
    live(merge, A, 1, 20, NOW + S + S // 2)
    assert window(merge, A) == 500
    live(merge, A, 200, 20, NOW + S + S // 2 + 1)
    # From a thousand on, looked at once a second: the common one is that of all.
    live(merge, A, 1, 20, NOW + 3 * S)
    assert (window(merge, A), window(merge, B)) == (50, 50)
    # B is late, and too few yet: it goes by all; A by its own.
    live(merge, B, 600, 200, NOW + 4 * S)
    live(merge, B, 1, 200, NOW + 6 * S)
    assert window(merge, A) == 50
    assert 250 <= window(merge, B) <= 280
    assert merge._lanes[A].own_window
    assert not merge._lanes[B].own_window
    live(merge, C, 1, 20, NOW + 7 * S)
    assert window(merge, C) == window(merge, B)
    live(merge, B, 600, 900, NOW + 8 * S)
    live(merge, B, 1, 900, NOW + 10 * S)
    assert merge._lanes[B].own_window
    assert 1100 <= window(merge, B) <= 1300
    assert window(merge, C) != window(merge, A) == 50


def test_a_prompt_source_among_late_ones_has_a_short_window() -> None:
    merge = merger(window_ns=None)
    live(merge, B, 1100, 400, NOW)
    live(merge, B, 1, 400, NOW + 2 * S)
    live(merge, A, 5, 20, NOW + 4 * S)
    assert window(merge, A) > 490
    live(merge, A, 1100, 20, NOW + 6 * S)
    live(merge, A, 1, 20, NOW + 8 * S)
    assert window(merge, A) == 50


def test_a_thousand_is_enough() -> None:
    merge = merger(window_ns=None)
    live(merge, A, 1003, 20, NOW)  # the first four make an estimate of its clock
    assert sum(merge._common.counts) == 999
    live(merge, A, 1, 20, NOW + 2 * S)
    assert (window(merge, A), merge._lanes[A].own_window) == (50, True)


def test_a_source_keeps_its_own_window_until_it_has_less_than_half() -> None:
    merge = merger(window_ns=None)
    live(merge, A, 1010, 20, NOW)
    live(merge, A, 1, 20, NOW + 2 * S)
    assert merge._lanes[A].own_window
    live(merge, A, 1, 20, NOW + 121 * S)  # halved: 504
    assert merge._lanes[A].own_window
    live(merge, A, 1, 20, NOW + 242 * S)
    assert not merge._lanes[A].own_window


def test_windows_are_looked_at_once_a_second() -> None:
    merge = merger(window_ns=None)
    live(merge, A, 10, 20, NOW)
    due_ns = merge._lanes[A].tune_ns
    assert NOW + S <= due_ns <= NOW + S + 10
    live(merge, A, 2000, 20, NOW + S // 2)
    assert merge._lanes[A].tune_ns == due_ns
    assert window(merge, A) == 500
    merge.push(A, "x", due_ns, due_ns)
    assert merge._lanes[A].tune_ns == due_ns + S
    assert window(merge, A) == 50


def test_a_fixed_window_stays() -> None:
    merge = merger(window_ns=70 * MS)
    live(merge, A, 3000, 900, NOW)
    live(merge, A, 1, 900, NOW + 2 * S)
    assert window(merge, A) == 70
    assert sum(merge._common.counts) == 0


def test_an_event_from_the_future_is_believed_at_once() -> None:
    merge = merger()
    live(merge, A, 10, 20, NOW)
    merge.push(A, "x", NOW + S + 3 * S, NOW + S)
    assert merge.take_offset_changes() == [(A, -3 * S)]


def test_an_offset_that_comes_and_goes_unasked_is_not_told() -> None:
    merge = merger()
    merge.guess_offset(A, 5 * S)
    merge.push(A, "x", NOW, NOW)
    assert merge.take_offset_changes() == []


def test_what_is_told_again_is_only_what_changed() -> None:
    merge = merger()
    merge.guess_offset(A, 5 * S)
    merge.take_offset_changes()
    assert not merge._retimed
