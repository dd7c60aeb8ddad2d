"""Mutants that change nothing that anybody can see, and why: `scripts/mutate` does not count them.

By module: the line as it is, what mutants make of it, and the reason. Lines stand without their
indentation and comment. An entry whose line has changed no longer matches: its mutants count again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen


@frozen
class Same:
    """Mutants of one line that are the same as the line, to everybody outside."""

    line: str
    mutants: Sequence[str]
    reason: str


EQUIVALENTS: Mapping[str, Sequence[Same]] = {
    "backoff": [
        Same(
            "_MAX_DOUBLINGS = 64",
            ["_MAX_DOUBLINGS = 63", "_MAX_DOUBLINGS = 65"],
            "it only keeps 2.0 ** n from overflowing; every delay is capped far below",
        ),
    ],
    "skew": [
        Same(
            "self.low_ns = 0",
            ["self.low_ns = -1", "self.low_ns = 1"],
            "while `due_ns` is 0 every event is wanted, whatever is the least",
        ),
        Same(
            "self._seen = 0",
            ["pass", "self._seen = -1", "self._seen = 1"],
            "the first `observe` sets it to 0: there are no lows then",
        ),
        Same(
            "return delay_ns < self.low_ns or received_ns >= self.due_ns",
            ["return delay_ns <= self.low_ns or received_ns >= self.due_ns"],
            "an event like the least of its bucket puts the same entry in the place of itself",
        ),
        Same(
            "if target > self.applied_ns and not settled and abs(target) <= CERTAIN_NS:",
            ["if target >= self.applied_ns and not settled and abs(target) <= CERTAIN_NS:"],
            "applying what is applied changes nothing and says so",
        ),
    ],
}


def listed(module: str) -> Iterator[tuple[str, str]]:
    """Yield each line and mutant of a module that is listed."""
    for same in EQUIVALENTS.get(module, ()):
        for mutant in same.mutants:
            yield same.line, mutant


def reason(module: str, line: str, mutant: str) -> str | None:
    """Return why a mutant of a line is the same; None: it is not known to be."""
    for same in EQUIVALENTS.get(module, ()):
        if same.line == line and mutant in same.mutants:
            return same.reason
    return None
