"""Mutants that change nothing that anybody can see, and why: `scripts/mutate` does not count them.

By module: where it is, the part of the line concerned, what mutants make of it, and the reason. An
entry excuses survivors only. One whose line has changed excuses none, and the tool says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen


@frozen
class Same:
    """Mutants of one line that are the same as the line, to everybody outside."""

    where: str  # the function or class, with dots; empty: the module
    part: str  # of the line; comments are not looked at
    mutants: tuple[str, ...]  # what becomes of the part
    reason: str

    def covers(self, where: str, line: str, becomes: str) -> bool:
        """Whether a mutant is one of these."""
        return (
            where == self.where
            and self.part in line
            and any(line.replace(self.part, mutant, 1) == becomes for mutant in self.mutants)
        )


EQUIVALENTS: Mapping[str, tuple[Same, ...]] = {
    "backoff": (
        Same(
            "",
            "_MAX_DOUBLINGS = 64",
            (
                "_MAX_DOUBLINGS = 63",
                "_MAX_DOUBLINGS = 65",
            ),
            "it only keeps 2.0 ** n from overflowing; every delay is capped far below",
        ),
    ),
    "bounds": (
        Same(
            "",
            "FRESH_NS = -1",
            ("FRESH_NS = -2",),
            "any time before 1970 will do: it lies below every last `at`",
        ),
        Same(
            "",
            "NEVER_NS = 0",
            (
                "NEVER_NS = -1",
                "NEVER_NS = 1",
            ),
            "no event is that old; less the window it lies below every last `at`",
        ),
        Same(
            "Lane.__init__",
            "self.entry = 0",
            (
                "pass",
                "self.entry = -1",
                "self.entry = 1",
            ),
            "it is set when a lane is first entered, and not asked before",
        ),
        Same(
            "Bounds.__init__",
            "self._numbers = 0",
            ("self._numbers = 1",),
            "numbers only differ from each other",
        ),
        Same(
            "Bounds._enter",
            "self._numbers += 1",
            (
                "self._numbers -= 1",
                "self._numbers += 2",
            ),
            "numbers only differ from each other",
        ),
        Same(
            "Bounds.closed",
            "lane.entry = 0",
            ("lane.entry = -1",),
            "any number will do that no entry has",
        ),
        Same(
            "Bounds.lowest",
            "*calm[0][1:3]) < fixed[0][:3]",
            (
                "*calm[0][1:4]) < fixed[0][:3]",
                "*calm[0][1:3]) <= fixed[0][:3]",
                "*calm[0][1:3]) < fixed[0][:4]",
            ),
            "the two are never alike as far as the name: one source has one valid entry",
        ),
        Same(
            "Bounds.lowest",
            "heapq.heappop(calm)",
            ("pass",),
            "of the second one: entering the lane anew makes that entry invalid",
        ),
        Same(
            "Bounds.lowest",
            "heapq.heappop(fixed)",
            ("pass",),
            "of the second one: entering the lane anew makes that entry invalid",
        ),
        Same(
            "Bounds._is_calm",
            "lane.last_at_ns <= self.drained_ns",
            ("lane.last_at_ns < self.drained_ns",),
            "where both are the same, the bound is the same in either heap",
        ),
    ),
    "limiter": (
        Same("Rank", "LOST = 0", ("LOST = -1",), "ranks are only compared"),
        Same("Rank", "PROBE = 3", ("PROBE = 4",), "ranks are only compared"),
        Same(
            "Allocator.grant",
            "self._permits += 1",
            ("self._permits -= 1",),
            "every fourth one is a fourth one in either direction",
        ),
    ),
    "merging": (
        Same(
            "",
            "_TRIM = 1024",
            ("_TRIM = 2048", "_TRIM = 512"),
            "when released items are cut off changes what it costs, not what comes out",
        ),
        Same(
            "Merger._cut",
            "cut > _TRIM",
            ("cut >= _TRIM",),
            "when released items are cut off changes what it costs, not what comes out",
        ),
        Same(
            "Merger._cut",
            "cut * 2 > len(pending)",
            ("cut * 2 >= len(pending)",),
            "when released items are cut off changes what it costs, not what comes out",
        ),
        Same(
            "_Lane.__init__",
            "self.tune_ns = 0",
            ("self.tune_ns = -1", "self.tune_ns = 1"),
            "every event comes after it",
        ),
        Same(
            "Merger.__init__",
            "self._common_tune_ns = 0",
            ("self._common_tune_ns = -1", "self._common_tune_ns = 1"),
            "every event comes after it",
        ),
        Same(
            "Merger.__init__",
            '(0, "", "", 0)',
            ('(-1, "", "", 0)', '(1, "", "", 0)', '(0, "", "", -1)', '(0, "", "", 1)'),
            "every event has a later time, and every source a name",
        ),
        Same(
            "Merger.opened",
            "last_at_ns: int = 0",
            ("last_at_ns: int = -1", "last_at_ns: int = 1"),
            "every event comes after it",
        ),
        Same(
            "Merger.push",
            "delay < skew.low_ns",
            ("delay <= skew.low_ns",),
            "an event like the least of its bucket changes nothing",
        ),
        Same(
            "Merger.push",
            "at > received_ns",
            ("at >= received_ns",),
            "where both are the same, either will do",
        ),
        Same(
            "Merger.push",
            "at < lane.last_at_ns",
            ("at <= lane.last_at_ns",),
            "where both are the same, either will do",
        ),
        Same(
            "Merger.push",
            "ordinal) < last_key",
            ("ordinal) <= last_key",),
            "no two items have one key",
        ),
        Same("Merger.release", "item > last", ("item >= last",), "no two items have one key"),
        Same(
            "Merger.next_deadline_ns",
            "head < self._bounds.key(lane)",
            ("head <= self._bounds.key(lane)",),
            "a bound has the ordinal of an item still to come: no head is like it",
        ),
        Same(
            "Merger._sort_in",
            "pending[-1] < incoming[0]",
            ("pending[-1] <= incoming[0]",),
            "no two items have one key",
        ),
        Same(
            "Merger._sort_in",
            "len(pending) - place > 8 * len(incoming)",
            (
                "len(pending) + place > 8 * len(incoming)",
                "len(pending) - place <= 8 * len(incoming)",
                "len(pending) - place >= 8 * len(incoming)",
                "len(pending) - place > 7 * len(incoming)",
                "len(pending) - place > 9 * len(incoming)",
                "len(pending) - place > 8 / len(incoming)",
            ),
            "both ways sort; which one is taken changes the cost alone",
        ),
        Same(
            "Merger._tune",
            "self._common_tune_ns = received_ns + TUNE_NS",
            ("pass", "self._common_tune_ns = received_ns - TUNE_NS"),
            "looking at the common window too often costs time and gives the same",
        ),
        Same(
            "Merger._tune",
            "received_ns >= self._common_tune_ns",
            ("received_ns > self._common_tune_ns",),
            "a nanosecond of a second",
        ),
    ),
    "overlap": (
        Same(
            "_Lead._forget", "break", ("continue",), "the condition stays true: it looks on in vain"
        ),
    ),
    "rates": (
        Same(
            "Gcra.change",
            "max(0.0, self._tat - now)",
            ("max(-1.0, self._tat - now)",),
            "a time before now counts as now wherever it is read",
        ),
    ),
    "resume": (
        Same(
            "_behind",
            "return 0",
            ("return -1",),
            "no place in a snapshot lies before its first",
        ),
    ),
    "skew": (
        Same(
            "Skew.__init__",
            "self.low_ns = 0",
            (
                "self.low_ns = -1",
                "self.low_ns = 1",
            ),
            "while `due_ns` is 0 every event is wanted, whatever is the least",
        ),
        Same(
            "Skew.__init__",
            "self._seen = 0",
            (
                "pass",
                "self._seen = -1",
                "self._seen = 1",
            ),
            "the first `observe` sets it to 0: there are no lows then",
        ),
        Same(
            "Skew.wants",
            "delay_ns < self.low_ns",
            ("delay_ns <= self.low_ns",),
            "an event like the least of its bucket puts the same entry in the place of itself",
        ),
        Same(
            "Skew.observe",
            "lows[-1][1] >= delay_ns",
            ("lows[-1][1] > delay_ns",),
            "of two like samples the later one lasts longer, whether the earlier one goes or stays",
        ),
        Same(
            "Skew.observe",
            "target > self.applied_ns",
            ("target >= self.applied_ns",),
            "applying what is applied changes nothing and says so",
        ),
    ),
    "turns": (
        Same(
            "Line.order",
            "0 if alike",
            ("-1 if alike", "1 if alike"),
            "any number will do that is the same for all",
        ),
        Same(
            "Line.join",
            "else -1",
            ("else (1)", "else -0", "else -2"),
            "sorting one that stands alone changes nothing",
        ),
        Same("Line.join", "ticket < last", ("ticket <= last",), "no two have one ticket"),
        Same(
            "Turns._park",
            "heapq.heappop(self._candidates)",
            ("pass",),
            "the line's entry is invalid from here on, and thrown out when it comes up",
        ),
        Same(
            "Turns._best",
            "heapq.heappop(heap)",
            ("pass",),
            "of the second one: the entry is invalid from here on, and thrown out next",
        ),
        Same(
            "Turns._call",
            "heapq.heappop(place.parked)",
            ("pass",),
            "the line is entered elsewhere: this entry is invalid, and thrown out when it comes up",
        ),
        Same(
            "Turns._call",
            "called.order() <= best.order()",
            ("called.order() < best.order()",),
            "no two have one ticket",
        ),
    ),
    "verdicts": (
        Same(
            "_row",
            "code = -1",
            ("code = (1)", "code = -0", "code = -2"),
            "any number will do that no row but the last one of all holds",
        ),
        Same(
            "_clock_words",
            "offset_ns > 0",
            ("offset_ns >= 0", "offset_ns > -1", "offset_ns > 1"),
            "it is minutes away from 0 by then",
        ),
    ),
    "yielding": (
        Same(
            "surplus",
            "held[place] <= place.cap",
            ("held[place] < place.cap",),
            "where both are the same nobody is chosen: the loop that follows is over at once",
        ),
    ),
}
