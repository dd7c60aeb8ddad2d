r"""Whether a regular expression is bearable: strangers write the text that it is looked for in.

Python's expressions try one way after the other, and a text can be made that takes them for ever.
The form of a pattern alone decides here, more strictly than each case would need, so that the time
never grows beyond the square of the text's length. A repeat *goes back* when a shorter one is tried
after what follows has failed; possessive ones (`*+`, `++`) and atomic groups `(?>…)` do not.

- A repeat does not repeat what can match in several ways: `(a+)+` has 2ⁿ ways through n letters.
- Behind a repeat without a bound that goes back there is no other one without a bound: each tries
  again for each step back of the one before. So all but the last are written possessively, as in
  `token\s*+=\s*+\S+`.

- No repeat without a bound is within another, possessive or not: what fails at the end of each
  round, or looks ahead, is tried in each.
- Small choices (`?`, `{1,3}`) multiply to some hundred ways at the most.

Alternatives count for themselves. A reference to a group is a repeat without a bound, and so is one
with a bound of over `_FEW_TIMES`.
"""

from __future__ import annotations

import re
import warnings
from math import inf, log2

from attrs import define, field

# How many ways through a repeat are few: `(?:\d{1,3}\.){3}` has 27.
_FEW_WAYS = 128
_FEW_TIMES = 16

_QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d*)(?:(,)(\d*))?\})([+?]?)")
_GROUP = re.compile(r"\((?:\?(?:P<\w+>|P=\w+|\(\w+\)|<[=!]|[:=!>]|#[^)]*|[-\w]*:?))?")
# Groups that are not gone back into.
_ONCE = ("(?>", "(?=", "(?!", "(?<=", "(?<!")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)


def compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern, compiled. Raises re.error, RecursionError and OverflowError."""
    with warnings.catch_warnings():
        # Of what may mean something else in a later Python; the pattern would be in its text.
        warnings.simplefilter("ignore")
        return re.compile(pattern)


def fault(pattern: str) -> str | None:
    """Say what is wrong with a pattern, None when nothing is. The pattern is not shown."""
    try:
        made = compiled(pattern)
    except re.error as error:
        place = f" at character {error.pos + 1}" if error.pos else ""
        return f"is not a regular expression: {error.msg}{place}"
    except (RecursionError, OverflowError):
        return "is not a regular expression: it is too large"
    if made.flags & re.VERBOSE:
        return "has the flag x: write it without spaces and comments"
    if made.fullmatch(""):
        return "matches what is empty, and so anything: write + for *, or take the ? away"
    form = _Form(pattern)
    if form.endless:
        return (
            "may take for ever: it repeats what can match in several ways; "
            "write the outer repeat as ++ or *+, which does not go back"
        )
    if form.slow:
        return (
            "may take very long: a repeat without a bound may not be within another, and only the "
            "last one may go back; write those before it as *+ or ++"
        )
    return None


@define(eq=False)
class _Level:
    """A group that is being read.

    The ways through its alternatives so far, through what is read of this one, and through the
    last element, which a quantifier would be for; and whether something without a bound goes back:
    before the group, at the end of an alternative of it, before the last element, and now. `holds`:
    there is a repeat without a bound in it; `last_holds`: in its last element.
    """

    once: bool
    began: bool
    sum: float = 0.0
    product: float = 1.0
    last: float = 1.0
    ended: bool = False
    before: bool = False
    holds: bool = False
    last_holds: bool = False
    back: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.back = self.began

    def add(self, ways: float, back: bool, holds: bool = False) -> None:
        """Take the next element: the ways through it, and whether anything goes back behind it."""
        self.last_holds = holds
        self.holds = self.holds or holds
        self.product *= self.last
        self.last = ways
        self.before, self.back = self.back, back

    def alternative(self) -> None:
        """Take the end of an alternative."""
        self.sum += self.product * self.last
        self.product = self.last = 1.0
        self.ended = self.ended or self.back
        self.back = self.began

    @property
    def outcome(self) -> tuple[float, bool]:
        """The ways through the group, and whether anything goes back behind it."""
        if self.once:
            return 1.0, self.began
        return self.sum + self.product * self.last, self.ended or self.back


@define(eq=False)
class _Form:
    """Reads a pattern that compiles. It calls some `endless` or `slow` that are not."""

    pattern: str
    endless: bool = False
    slow: bool = False
    _choices: float = 1.0
    _levels: list[_Level] = field(factory=lambda: [_Level(once=False, began=False)])

    def __attrs_post_init__(self) -> None:
        at = 0
        while at < len(self.pattern):
            at = self._step(at)

    def _step(self, at: int) -> int:
        """Read one element of the pattern; return where the next one begins."""
        pattern, level = self.pattern, self._levels[-1]
        match pattern[at]:
            case "\\":
                if pattern[at + 1] in "123456789":
                    self._boundless(level.back)
                level.add(1.0, level.back)
                return at + 2
            case "[" if found := _CLASS.match(pattern, at):
                level.add(1.0, level.back)
                return found.end()
            case "(":
                found = _GROUP.match(pattern, at)
                assert found is not None
                if found[0].startswith(("(?#", "(?P=")) or pattern[found.end() :][:1] == ")":
                    # A comment, flags, a reference: nothing in it.
                    if found[0].startswith("(?P="):
                        self._boundless(level.back)
                    if not found[0].startswith("(?#"):
                        level.add(1.0, level.back)
                    return found.end() + 1
                self._levels.append(_Level(found[0] in _ONCE, level.back))
                return found.end()
            case "|":
                level.alternative()
            case ")" if len(self._levels) > 1:
                self._levels.pop()
                self._levels[-1].add(*level.outcome, level.holds)
            case "*" | "+" | "?" | "{" if found := _QUANTIFIER.match(pattern, at):
                self._repeat(level, found)
                return found.end()
            case _:
                level.add(1.0, level.back)
        return at + 1

    def _boundless(self, back: bool) -> None:
        """Take note of a repeat without a bound, before which one may go back."""
        self.slow = self.slow or back

    def _repeat(self, level: _Level, found: re.Match[str]) -> None:
        """Apply a quantifier to the last element."""
        sign, least, comma, most, mode = found.groups()
        if sign:
            low, high = {"*": (0, inf), "+": (1, inf), "?": (0, 1.0)}[sign]
        else:
            low = int(least or 0)
            high = float(most) if most else (inf if comma else float(low))
        ways, possessive = level.last, mode == "+"
        boundless = high - low > _FEW_TIMES
        self.slow = self.slow or (high > _FEW_TIMES and level.last_holds)
        if boundless:
            level.holds = level.last_holds = True
            self._boundless(level.before)
        elif not possessive:
            self._choices *= high - low + 1
            self.slow = self.slow or self._choices > _FEW_WAYS
        if possessive:
            level.last, level.back = 1.0, level.before
        elif high <= 1:
            level.last = ways + (low == 0)
        else:
            if ways > 1 and high * log2(ways) > log2(_FEW_WAYS):
                self.endless = True
            level.last = inf if ways > 1 else max(1.0, high - low + 1)
            level.back = level.back or boundless
