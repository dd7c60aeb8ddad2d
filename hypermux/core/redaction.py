"""Taking out of events what must not be kept: each match of a pattern becomes `***`.

A pattern is a regular expression of Python's. It is looked for in every string of an event that is
a value, as the string reads (escapes undone), and in `key=value` for one that has a key, so that a
label can be redacted by its name. Of a match in `key=value` the value's part is taken out; keys,
numbers and all bytes outside a changed string stay as they were received. A changed string is
written anew in printable ASCII. Of a message that is no event the text is redacted as it stands.

Events come from strangers, and Python's expressions have no bound on their time. So patterns are
held to `core.patterns`, and what is longer than `MAX_EXAMINED` is not looked through but replaced
as a whole; so is a text of which only the beginning is there. What was not examined is not
recorded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from attrs import evolve, frozen

from hypermux.core.patterns import compiled
from hypermux.model.records import Event, Unparsed

MARK = "***"
# In characters. Time can grow by the square of it: some hundredths of a second at the worst.
MAX_EXAMINED = 2048

# A string of valid JSON, and whether it is a key.
_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)"( *:)?')


@frozen
class Redaction:
    """The patterns of one account."""

    _patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Redaction:
        """Make one of patterns that have no `core.patterns.fault`."""
        return cls(tuple(map(compiled, patterns)))

    def item(self, item: Event | Unparsed) -> Event | Unparsed:
        """Return an item without what is to be taken out; the same one when there is nothing."""
        if isinstance(item, Unparsed):
            # Its text may be cut; a character takes a byte at least.
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
