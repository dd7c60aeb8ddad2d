"""Taking out of events what must not be kept: each match of a pattern becomes `***`.

A pattern is a regular expression of Python's. It is looked for in every string of an event that is
a value, as the string reads (escapes undone), and in `key=value` for one that has a key, so that a
label can be redacted by its name. Of a match in `key=value` the value's part is taken out; keys,
numbers and all bytes outside a changed string stay as they were received. A changed string is
written anew in printable ASCII. Of a message that is no event the text is redacted as it stands.

Events come from strangers, and Python's expressions have no bound on their time:

- A pattern whose time could grow without measure (a repeat of something that can be matched in
  several ways, as in `(a+)+`) is refused when the configuration is read.
- What is longer than `MAX_EXAMINED` is not looked through but replaced as a whole; so is a text of
  which only the beginning is there. What was not examined is not recorded.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from math import inf, log2

from attrs import define, evolve, field, frozen

from hypermux.model.records import Event, Unparsed

MARK = "***"
# In characters. Time may still grow by the square of it: some hundredths of a second.
MAX_EXAMINED = 4096
# How many ways through a repeat are few: `(?:\d{1,3}\.){3}` has 27.
_FEW_WAYS = 1000

# A string of valid JSON, and whether it is a key.
_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)"( *:)?')


@frozen
class Redaction:
    """The patterns of one account."""

    _patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Redaction:
        """Make one of patterns that have no `fault`."""
        return cls(tuple(map(_compiled, patterns)))

    def item(self, item: Event | Unparsed) -> Event | Unparsed:
        """Return an item without what is to be taken out; the same one when there is nothing."""
        if isinstance(item, Unparsed):
            # Its text is cut; a character takes a byte at least.
            text = MARK if item.size > MAX_EXAMINED else self.text(item.text)
            return item if text == item.text else evolve(item, text=text)
        raw = self.event(item.raw)
        return item if raw is item.raw else evolve(item, raw=raw)

    def event(self, raw: bytes) -> bytes:
        """Return an event's JSON, which is printable ASCII, likewise."""
        key = ""
        changed = False

        def redact(found: re.Match[str]) -> str:
            nonlocal key, changed
            if found[2]:
                key = found[1]
                return found[0]
            value = _read(found[1])
            shown = self.text(value, _read(key))
            if shown == value:
                return found[0]
            changed = True
            # DEL is the one character that is ASCII, not printable, and left alone by JSON.
            return json.dumps(shown).replace("\x7f", "\\u007f")

        text = _STRING.sub(redact, raw.decode("ascii"))
        return text.encode("ascii") if changed else raw

    def text(self, text: str, key: str = "") -> str:
        """Return a text likewise; `key` is the name that it stands under, if any."""
        if len(text) + len(key) > MAX_EXAMINED:
            return MARK
        for pattern in self._patterns:
            text = pattern.sub(_marked, text)
            if key:
                text = _redact_member(pattern, key, text)
        return text


def _read(written: str) -> str:
    return str(json.loads(f'"{written}"')) if "\\" in written else written


def _marked(found: re.Match[str]) -> str:
    # A match of nothing takes nothing out.
    return MARK if found[0] else ""


def _redact_member(pattern: re.Pattern[str], key: str, value: str) -> str:
    """Return `value` without what `pattern` finds of it in `key=value`."""
    start = len(key) + 1

    def redact(found: re.Match[str]) -> str:
        if found.end() <= start:
            return found[0]
        return found.string[found.start() : start] + _marked(found)

    return pattern.sub(redact, f"{key}={value}")[start:]


def _compiled(pattern: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        # Of what may mean something else in a later Python; the pattern would be in its text.
        warnings.simplefilter("ignore")
        return re.compile(pattern)


def fault(pattern: str) -> str | None:
    """Say what is wrong with a pattern, None when nothing is. The pattern is not shown."""
    try:
        compiled = _compiled(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        place = (
            f" at character {error.pos + 1}" if isinstance(error, re.error) and error.pos else ""
        )
        what = error.msg if isinstance(error, re.error) else "it is too large"
        return f"is not a regular expression: {what}{place}"
    if compiled.flags & re.VERBOSE:
        return "has the flag x: write it without spaces and comments"
    if compiled.fullmatch(""):
        return "matches what is empty, and so anything: write + for *, or take the ? away"
    if _Ways(pattern).endless:
        return (
            "may take for ever: it repeats what can match in several ways; "
            "write the outer repeat as ++ or *+, which does not go back"
        )
    return None


_QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d*)(?:(,)(\d*))?\})([+?]?)")
_GROUP = re.compile(r"\((?:\?(?:P<\w+>|P=\w+|\(\w+\)|<[=!]|[:=!>]|#[^)]*|[-\w]*:?))?")
# What is matched once, and not tried again in another way.
_ONCE = ("(?>", "(?=", "(?!", "(?<=", "(?<!")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)


@define(eq=False)
class _Level:
    """A group that is being read: the ways through its alternatives so far, and through this one.

    `last` is what a quantifier would be for.
    """

    once: bool
    sum: float = 0.0
    product: float = 1.0
    last: float = 1.0

    def add(self, ways: float) -> None:
        self.product *= self.last
        self.last = ways

    def alternative(self) -> None:
        self.sum += self.product * self.last
        self.product = self.last = 1.0

    def total(self) -> float:
        return 1.0 if self.once else self.sum + self.product * self.last


@define(eq=False)
class _Ways:
    """Counts the ways in which a pattern can match, as far as a repeat multiplies them.

    It looks at the pattern's form alone, and calls some `endless` that are not.
    """

    pattern: str
    endless: bool = False
    _levels: list[_Level] = field(factory=lambda: [_Level(once=False)])

    def __attrs_post_init__(self) -> None:
        at = 0
        while at < len(self.pattern):
            at = self._step(at)

    def _step(self, at: int) -> int:
        """Read one element of the pattern; return where the next one begins."""
        pattern, level = self.pattern, self._levels[-1]
        match pattern[at]:
            case "\\":
                level.add(1.0)
                return at + 2
            case "[" if found := _CLASS.match(pattern, at):
                level.add(1.0)
                return found.end()
            case "(":
                found = _GROUP.match(pattern, at)
                assert found is not None
                if found[0].startswith(("(?#", "(?P=")) or pattern[found.end() :][:1] == ")":
                    return self._whole(found)
                self._levels.append(_Level(once=found[0] in _ONCE))
                return found.end()
            case "|":
                level.alternative()
            case ")" if len(self._levels) > 1:
                self._levels.pop()
                self._levels[-1].add(level.total())
            case "*" | "+" | "?" | "{" if found := _QUANTIFIER.match(pattern, at):
                level.last = self._repeated(level.last, found)
                return found.end()
            case _:
                level.add(1.0)
        return at + 1

    def _whole(self, found: re.Match[str]) -> int:
        """Go past a group without alternatives of its own: a comment, flags, a reference."""
        if not found[0].startswith("(?#"):
            self._levels[-1].add(1.0)
        return found.end() + 1

    def _repeated(self, ways: float, found: re.Match[str]) -> float:
        """Return the ways through a repeat of what has `ways`."""
        sign, least, comma, most, mode = found.groups()
        low = {"*": 0, "+": 1, "?": 0}.get(sign) if sign else int(least or 0)
        if sign:
            high = 1.0 if sign == "?" else inf
        else:
            high = float(most) if most else (inf if comma else float(least or 0))
        assert low is not None
        if mode == "+":
            return 1.0  # possessive
        if high <= 1:
            return ways + (low == 0)
        if ways > 1 and high * log2(ways) > log2(_FEW_WAYS):
            self.endless = True
        return inf if ways > 1 else max(1.0, high - low + 1)
