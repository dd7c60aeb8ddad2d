"""Mutants that change nothing that anybody can see, and why: `scripts/mutate` does not count them.

By module: the line as it is, what mutants make of it, and the reason. Lines stand without their
indentation and comment. An entry whose line has changed no longer matches: its mutants count again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen


@frozen
class Same:
    """Mutants of one line that are the same as the line, to everybody outside."""

    where: str  # the function or class, with dots; empty: the module
    line: str
    mutants: Sequence[str]
    reason: str


EQUIVALENTS: Mapping[str, Sequence[Same]] = {
    "backoff": [
        Same(
            "",
            "_MAX_DOUBLINGS = 64",
            ["_MAX_DOUBLINGS = 63", "_MAX_DOUBLINGS = 65"],
            "it only keeps 2.0 ** n from overflowing; every delay is capped far below",
        ),
    ],
    "skew": [
        Same(
            "Skew.__init__",
            "self.low_ns = 0",
            ["self.low_ns = -1", "self.low_ns = 1"],
            "while `due_ns` is 0 every event is wanted, whatever is the least",
        ),
        Same(
            "Skew.__init__",
            "self._seen = 0",
            ["pass", "self._seen = -1", "self._seen = 1"],
            "the first `observe` sets it to 0: there are no lows then",
        ),
        Same(
            "Skew.wants",
            "return delay_ns < self.low_ns or received_ns >= self.due_ns",
            ["return delay_ns <= self.low_ns or received_ns >= self.due_ns"],
            "an event like the least of its bucket puts the same entry in the place of itself",
        ),
        Same(
            "Skew.observe",
            "while lows and lows[-1][1] >= delay_ns:",
            ["while lows and lows[-1][1] > delay_ns:"],
            "of two like samples the later one lasts longer, whether the earlier one goes or stays",
        ),
        Same(
            "Skew.observe",
            "if target > self.applied_ns and not settled and abs(target) <= CERTAIN_NS:",
            ["if target >= self.applied_ns and not settled and abs(target) <= CERTAIN_NS:"],
            "applying what is applied changes nothing and says so",
        ),
    ],
}


def listed(module: str) -> Mapping[tuple[str, str, str], str]:
    """Return the reason for each (where, line, mutant) of a module that is listed."""
    return {
        (same.where, same.line, mutant): same.reason
        for same in EQUIVALENTS.get(module, ())
        for mutant in same.mutants
    }
