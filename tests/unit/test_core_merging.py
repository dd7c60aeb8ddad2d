from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import hypothesis
import pytest
from attrs import define, field
from hypothesis import strategies as st

from hypermux.core.bounds import Key
from hypermux.core.merging import Merger, Released
from hypermux.model.accounts import SourceId

MS = 1_000_000
S = 1_000_000_000
NOW = 1_700_000_000 * S

A = SourceId("a", "r")
B = SourceId("b", "r")
C = SourceId("c", "r")


def merger(window_ns: int | None = 100 * MS, **more: Any) -> Merger[str]:
    return Merger(max_hold_ns=2 * S, window_ns=window_ns, **more)


def payloads(released: list[Released[str]]) -> list[str]:
    return [item.payload for item in released]


# -- the rules, one by one


def test_a_single_source_is_not_held() -> None:
    merge = merger()
    merge.opened(A)
    merge.drained(NOW, except_for={})
    for number in range(3):
        merge.push(A, str(number), NOW + number, NOW + 20 * MS)
    assert payloads(merge.release(NOW + 20 * MS)) == ["0", "1", "2"]
    assert merge.held == 0
    assert merge.oldest_received_ns is None
    assert merge.next_deadline_ns() is None


def test_an_idle_source_is_waited_for_by_its_window() -> None:
    merge = merger(window_ns=100 * MS)
    merge.opened(A)
    merge.opened(B)
    merge.drained(NOW, except_for={})
    merge.push(A, "later", NOW + 10 * MS, NOW + 20 * MS)
    assert merge.release(NOW + 20 * MS) == []
    assert merge.oldest_received_ns == NOW + 20 * MS
    assert merge.next_deadline_ns() == NOW + 110 * MS + 1
    merge.push(B, "earlier", NOW + 5 * MS, NOW + 30 * MS)
    merge.drained(NOW + 110 * MS, except_for={})
    assert payloads(merge.release(NOW + 110 * MS)) == ["earlier", "later"]


def test_a_busy_source_is_waited_for_until_max_hold() -> None:
    merge = merger(window_ns=100 * MS)
    merge.opened(A)
    merge.opened(B)
    merge.drained(NOW, except_for={})
    merge.push(A, "x", NOW + 1, NOW + 1)
    for later in (0.2, 1.0, 1.9):
        merge.drained(NOW + int(later * S), except_for={B: NOW})
        assert merge.release(NOW + int(later * S)) == []
        assert merge.next_deadline_ns() == NOW + 1 + 2 * S
    assert payloads(merge.release(NOW + 1 + 2 * S)) == ["x"]


def test_a_busy_source_found_empty_is_idle_again() -> None:
    merge = merger(window_ns=100 * MS)
    merge.opened(A)
    merge.opened(B)
    merge.drained(NOW, except_for={A: NOW, B: 0})
    merge.push(B, "x", NOW, NOW)
    assert merge.release(NOW) == []
    merge.drained(NOW + 100 * MS, except_for={})
    assert merge.release(NOW + 100 * MS) == []  # A may still bring an equal time, and goes first
    merge.drained(NOW + 100 * MS + 1, except_for={})
    assert payloads(merge.release(NOW + 100 * MS + 1)) == ["x"]


def test_ties_go_by_account_region_and_ordinal() -> None:
    merge = merger()
    first, second = SourceId("a", "east"), SourceId("a", "west")
    for source, text in ((B, "4"), (second, "2"), (first, "0"), (first, "1"), (second, "3")):
        merge.push(source, text, NOW, NOW)
    assert payloads(merge.release(NOW)) == ["0", "1", "2", "3", "4"]


def test_a_source_just_opened_blocks_until_a_round_has_seen_it() -> None:
    merge = merger(window_ns=0)
    merge.drained(NOW, except_for={})
    merge.opened(B, last_at_ns=NOW - S)
    merge.push(A, "x", NOW - 1, NOW)
    assert merge.release(NOW) == []
    deadline = merge.next_deadline_ns()
    assert deadline is not None
    assert deadline <= NOW
    merge.drained(NOW, except_for={})
    assert payloads(merge.release(NOW)) == ["x"]


def test_a_source_never_found_empty_does_not_ask_for_a_round_at_once() -> None:
    merge = merger(window_ns=0)
    merge.opened(B)
    merge.push(A, "x", NOW, NOW)
    merge.drained(NOW, except_for={B: 0})
    assert merge.release(NOW) == []
    assert merge.next_deadline_ns() == NOW + 2 * S


def test_a_closed_source_blocks_nobody_and_its_items_go_in_order() -> None:
    merge = merger()
    for source in (A, B, C):
        merge.opened(source)
    merge.push(B, "2", NOW + 2, NOW + 5)
    merge.push(A, "1", NOW + 1, NOW + 5)
    assert merge.release(NOW + 5) == []
    merge.closed(B)
    merge.closed(C)
    assert payloads(merge.release(NOW + 5)) == ["1"]  # A may still bring something before 2
    merge.closed(A)
    merge.closed(A)
    assert payloads(merge.release(NOW + 5)) == ["2"]
    merge.push(C, "3", NOW, NOW + 6)
    assert [(x.payload, x.late) for x in merge.release(NOW + 6)] == [("3", True)]


def test_late_items_are_flagged_and_go_first() -> None:
    merge = merger()
    merge.opened(A)
    merge.opened(B)
    merge.drained(NOW, except_for={})
    merge.push(A, "x", NOW, NOW)
    merge.drained(NOW + S, except_for={})
    assert payloads(merge.release(NOW + S)) == ["x"]
    merge.push(A, "y", NOW + S, NOW + S)
    merge.push(B, "late", NOW - 1, NOW + S)
    assert merge.next_deadline_ns() == NOW + S
    released = merge.release(NOW + S)
    assert [(x.payload, x.late, x.at_ns) for x in released] == [("late", True, NOW - 1)]
    assert [(x.payload, x.late) for x in merge.flush()] == [("y", False)]


def test_overdue_items_take_the_smaller_ones_with_them() -> None:
    merge = merger()
    merge.opened(C)
    merge.push(B, "2", NOW + 2, NOW + 10)
    merge.push(A, "1", NOW + 1, NOW + S)
    merge.push(A, "3", NOW + 3, NOW + S)
    assert merge.release(NOW + 2 * S) == []
    assert payloads(merge.release(NOW + 2 * S + 10)) == ["1", "2"]
    assert merge.oldest_received_ns == NOW + S


def test_at_is_never_after_received_and_never_falls() -> None:
    merge = merger()
    merge.push(A, "future", NOW + 9 * S, NOW, live=False)
    merge.push(A, "past", NOW - 9 * S, NOW + 1, live=False)
    merge.push(A, "unknown", None, NOW + 2)
    assert [x.at_ns for x in merge.flush()] == [NOW, NOW, NOW + 2]


def test_the_last_key_of_an_earlier_run_makes_late() -> None:
    merge = merger(last_key=(NOW, "b", "r", 7))
    merge.push(A, "behind", NOW, NOW)
    merge.push(B, "on", NOW - 5, NOW)
    merge.push(C, "ahead", NOW, NOW)
    released = merge.release(NOW)
    assert [(x.payload, x.late) for x in released] == [
        ("behind", True),
        ("on", False),
        ("ahead", False),
    ]
    assert released[1].key == (NOW, "b", "r", 8)


def test_a_reopened_source_goes_on_from_its_last_at() -> None:
    merge = merger()
    merge.opened(A, last_at_ns=NOW)
    merge.push(A, "x", NOW - S, NOW + 1)
    assert [x.at_ns for x in merge.release(NOW + 1)] == [NOW]


def test_offsets_are_told_once() -> None:
    merge = merger()
    merge.guess_offset(A, 5 * S)
    assert merge.take_offset_changes() == [(A, 5 * S)]
    assert merge.take_offset_changes() == []
    merge.push(A, "x", NOW - 5 * S, NOW)
    assert merge.take_offset_changes() == []
    merge.push(A, "y", NOW, NOW)  # events know better
    assert merge.take_offset_changes() == [(A, 0)]
    merge.push(B, "z", NOW - 9 * S, NOW, live=False)
    assert merge.take_offset_changes() == []


# -- against a plain rendering of the rules


@define(eq=False)
class PlainLane:
    source: SourceId
    queue: list[Released[int]] = field(factory=list)
    live: bool = False
    last_at: int = 0
    ordinal: int = 0
    drained: int = -1


@define(eq=False)
class Plain:
    """The merge as the design words it: heads, and bounds of the live sources without one."""

    max_hold: int
    window: int
    lanes: dict[SourceId, PlainLane] = field(factory=dict)
    last: Key = (0, "", "", 0)
    late: list[Released[int]] = field(factory=list)

    def lane(self, source: SourceId) -> PlainLane:
        return self.lanes.setdefault(source, PlainLane(source))

    def push(self, source: SourceId, payload: int, time: int, received: int) -> None:
        lane = self.lane(source)
        at = min(max(time, lane.last_at), received)
        key = (at, source.account, source.region, lane.ordinal)
        item = Released(*key, source, payload, received, key < self.last)
        (self.late if item.late else lane.queue).append(item)
        lane.last_at, lane.ordinal = at, lane.ordinal + 1

    def drained(self, now: int, except_for: Mapping[SourceId, int]) -> None:
        for lane in self.lanes.values():
            if lane.live:
                lane.drained = max(lane.drained, except_for.get(lane.source, now))

    def release(self, now: int) -> list[Released[int]]:
        released, self.late = self.late, []
        while heads := sorted(lane.queue[0] for lane in self.lanes.values() if lane.queue):
            bounds = [
                (
                    max(lane.last_at, lane.drained - self.window),
                    lane.source.account,
                    lane.source.region,
                    lane.ordinal,
                )
                for lane in self.lanes.values()
                if lane.live and not lane.queue
            ]
            overdue = [x for x in heads if x.received_ns <= now - self.max_hold]
            if not overdue and bounds and heads[0] >= min(bounds):
                break
            self.lane(heads[0].source).queue.pop(0)
            self.last = heads[0].key
            released.append(heads[0])
        return released


SOURCES = [SourceId(account, region) for account in "ab" for region in "xy"]
source = st.sampled_from(SOURCES)
tick = st.integers(0, 30)
step = st.one_of(
    st.tuples(st.just("open"), source),
    st.tuples(st.just("close"), source),
    st.tuples(st.just("push"), source, st.lists(st.integers(-40, 5), min_size=1, max_size=4)),
    st.tuples(st.just("round"), tick, st.dictionaries(source, st.integers(0, 50), max_size=2)),
    st.tuples(st.just("release"), tick),
    st.tuples(st.just("deadline")),
)
trace = st.lists(step, max_size=60)


def play(merge: Merger[int], steps: list[Any], plain: Plain | None) -> list[Released[int]]:
    """Run a trace; `plain` must give the same at each step."""
    now = drained = 1000
    empty = dict.fromkeys(SOURCES, 0)
    out: list[Released[int]] = []
    pushed = 0
    for name, *rest in steps:
        if name == "open":
            merge.opened(rest[0])
            empty[rest[0]] = 0
            if plain:
                lane = plain.lane(rest[0])
                lane.live, lane.drained = True, -1
        elif name == "close":
            merge.closed(rest[0])
            if plain:
                plain.lane(rest[0]).live = False
        elif name == "push":
            for ago in rest[1]:
                merge.push(rest[0], pushed, now + ago, now, live=False)
                if plain:
                    plain.push(rest[0], pushed, now + ago, now)
                pushed += 1
        elif name == "round":
            now += rest[0]
            busy = {s: max(empty[s], drained - ago) for s, ago in rest[1].items()}
            for s in SOURCES:
                empty[s] = busy.get(s, now)
            drained = now
            merge.drained(now, except_for=busy)
            if plain:
                plain.drained(now, busy)
        else:
            if name == "deadline":
                deadline = merge.next_deadline_ns()
                if deadline is None:
                    continue
                now = max(now, deadline)
            else:
                now += rest[0]
            got = merge.release(now)
            if plain:
                assert got == plain.release(now)
            out += got
            held = merge.oldest_received_ns
            assert held is None or held > now - 100
            assert merge.held == pushed - len(out)
    out += merge.flush()
    assert merge.held == 0
    return out


def check_order(out: list[Released[int]]) -> None:
    assert sorted(x.payload for x in out) == list(range(len(out)))
    in_time = [x.key for x in out if not x.late]
    assert in_time == sorted(in_time)
    for s in SOURCES:
        own = [x for x in out if x.source == s]
        assert [x.payload for x in own] == sorted(x.payload for x in own)
        assert [x.key for x in own] == sorted(x.key for x in own)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(trace, st.integers(0, 60))
def test_it_does_what_the_rules_say(steps: list[Any], window: int) -> None:
    merge: Merger[int] = Merger(max_hold_ns=100, window_ns=window)
    out = play(merge, steps, Plain(100, window))
    check_order(out)
    again: Merger[int] = Merger(max_hold_ns=100, window_ns=window)
    assert play(again, steps, None) == out


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(trace, st.integers(0, 60), st.data())
def test_called_at_its_deadlines_it_holds_nothing_longer_than_max_hold(
    steps: list[Any], window: int, data: st.DataObject
) -> None:
    merge: Merger[int] = Merger(max_hold_ns=100, window_ns=window)
    now = 1000
    for number, (name, *rest) in enumerate(steps):
        if name == "open":
            merge.opened(rest[0])
        elif name == "push":
            merge.push(rest[0], number, now + rest[1][0], now, live=False)
        else:
            until = now + data.draw(st.integers(0, 300))
            while (deadline := merge.next_deadline_ns()) is not None and deadline <= until:
                now = max(now, deadline)
                before = merge.held
                busy = data.draw(st.sampled_from([{}, {SOURCES[0]: 0}, {SOURCES[3]: now - 1}]))
                merge.drained(now, except_for=busy)
                for item in merge.release(now):
                    assert now - item.received_ns <= 100
                after = merge.next_deadline_ns()
                # Never asked to come again at once for nothing.
                assert merge.held < before or after is None or after > now
            now = until


# -- what it is for


@pytest.mark.parametrize("seed", [1, 2])
def test_fewer_than_one_late_in_a_thousand(seed: int) -> None:
    """Forty sources, delays with a tail, one clock 3 s slow and one 2.5 s fast, auto windows."""
    rng = random.Random(seed)
    sources = [SourceId(f"acc{number // 4:02}", f"r{number % 4}") for number in range(40)]
    clock = {sources[7]: -3 * S, sources[20]: 2 * S + S // 2}
    base = {s: rng.randrange(5, 120) * MS for s in sources}
    arrivals = []
    for s in sources:
        happened, ready = NOW, 0
        rate = rng.choice([2, 10, 40])
        while happened < NOW + 60 * S:
            happened += int(rng.expovariate(rate) * S)
            delay = base[s] + int(rng.lognormvariate(0, 1) * 10 * MS)
            ready = max(ready, happened + delay)  # a stream does not reorder
            arrivals.append((ready, happened + clock.get(s, 0), s))
    arrivals.sort(key=lambda arrival: (arrival[0], str(arrival[2])))
    merge: Merger[int] = Merger(max_hold_ns=2 * S, window_ns=None)
    for s in sources:
        merge.opened(s)
    out: list[Released[int]] = []
    longest = 0
    changes = []
    for number, (received, time, s) in enumerate(arrivals):
        # Rounds between the arrivals, as its deadlines ask for them.
        while (deadline := merge.next_deadline_ns()) is not None and deadline < received:
            merge.drained(deadline, except_for={})
            released = merge.release(deadline)
            longest = max([longest, *(deadline - x.received_ns for x in released)])
            out += released
        merge.push(s, number, time, received)
        merge.drained(received, except_for={})
        out += merge.release(received)
        changes += merge.take_offset_changes()
    out += merge.flush()
    assert len(out) == len(arrivals) > 20_000
    assert sum(x.late for x in out) * 1000 < len(out)
    assert longest < S
    # Each wrong clock is told of, not much more than once, and nearly right.
    told = dict(changes)
    assert told.keys() == clock.keys()
    assert len(changes) <= 8
    for s, offset in told.items():
        assert 0 <= offset + clock[s] < 250 * MS


def test_under_backlog_nothing_is_late_while_bounds_are_told() -> None:
    """Sockets fall behind up to 1.2 s; the merge waits for those that are not empty."""
    rng = random.Random(3)
    sources = [SourceId(f"acc{number}", "r") for number in range(10)]
    merge: Merger[int] = Merger(max_hold_ns=2 * S, window_ns=None)
    sockets: dict[SourceId, list[int]] = {s: [] for s in sources}
    empty = dict.fromkeys(sources, 0)
    for s in sources:
        merge.opened(s)
    out: list[Released[int]] = []
    pushed = 0
    for tick_number in range(3000):
        now = NOW + tick_number * 2 * MS
        for s in sources:
            if rng.random() < 0.9:
                sockets[s].append(now - rng.randrange(3 * MS, 30 * MS))
        # One read per tick: less than what comes while 500 < tick < 1100, more afterwards.
        turn = sources[tick_number % 10]
        size = 6 if 500 < tick_number < 1100 else 40
        for time in sorted(sockets[turn][:size]):
            merge.push(turn, pushed, time, now)
            pushed += 1
        del sockets[turn][:size]
        if not sockets[turn]:
            empty[turn] = now
        busy = {s: empty[s] for s in sources if sockets[s]}
        merge.drained(now, except_for=busy)
        out += merge.release(now)
    out += merge.flush()
    assert len(out) == pushed
    assert sum(x.late for x in out) * 1000 < len(out)


def test_a_thousand_sources_leave_no_stale_entries_behind() -> None:
    merge: Merger[int] = Merger(max_hold_ns=2 * S, window_ns=50 * MS)
    sources = [SourceId(f"acc{number}", "r") for number in range(100)]
    for s in sources:
        merge.opened(s)
    for number in range(5000):
        now = NOW + number * MS
        merge.push(sources[number % 100], number, now, now)
        merge.drained(now, except_for={sources[(number + 1) % 100]: now - MS})
        merge.release(now)
        if number % 10 == 0:
            merge.closed(sources[number % 7])
            merge.opened(sources[number % 7])
    bounds = merge._bounds
    assert len(bounds._calm) + len(bounds._fixed) <= 450
    assert merge.held < 200
