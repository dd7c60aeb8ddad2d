"""Which records a reader asked for.

Loss is never filtered away unasked. Without `kinds`:

    nothing selected        every record, checkpoints too, as blocks of bytes that nobody parses
    anything selected       events that match; every gap, state and unparsed record of a matching
                            account and region; no checkpoints

`filters` look at events alone: what was lost, or could not be read, might have matched. Records
without an account (the service's own) pass every account and region glob. `since` and `until`
compare `at`, both inclusive; a gap passes when any part of it lies between them, one of
the reader's own place (removed, rewritten) also when it ends before `since`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

import msgspec
from attrs import Factory, define, field, frozen

from hypermux.core import lines
from hypermux.core.filters import Filters
from hypermux.core.recording import parse_rfc3339
from hypermux.model.records import Kind

# Gaps that a reader gets because of its own place.
_OF_READERS = ("retention", "rewritten")
# What a reader sees who selects something but no kinds.
DEFAULT_KINDS = (Kind.EVENT, Kind.GAP, Kind.STATE, Kind.UNPARSED)


# Names whose answer is kept: there are as many as sources, and no reader holds more than 100 KiB.
_NAMES = 1000


@define(eq=False)
class _Globs:
    """Any of some globs. A request has room for thousands, so each name is looked at once."""

    pattern: re.Pattern[str]
    _known: dict[str, bool] = field(factory=dict)

    def match(self, name: str) -> bool:
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= _NAMES:
                self._known.clear()
            found = self._known[name] = self.pattern.match(name) is not None
        return found


def _compile(globs: Sequence[str]) -> _Globs | None:
    if not globs:
        return None
    return _Globs(re.compile("|".join(fnmatch.translate(g) for g in globs)))


@frozen
class Selection:
    """A reader's choice. Empty and None select everything; times are nanoseconds since 1970."""

    accounts: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    filters: Filters = Factory(Filters)
    since_ns: int | None = None
    until_ns: int | None = None
    _account: _Globs | None = field(
        init=False, repr=False, eq=False, default=Factory(lambda s: _compile(s.accounts), True)
    )
    _region: _Globs | None = field(
        init=False, repr=False, eq=False, default=Factory(lambda s: _compile(s.regions), True)
    )
    _kinds: dict[str, None] = field(
        init=False,
        repr=False,
        eq=False,
        default=Factory(lambda s: dict.fromkeys(s.kinds or DEFAULT_KINDS), True),
    )

    @property
    def everything(self) -> bool:
        """Whether blocks can pass unparsed."""
        return not self.kinds and not self._looks_inside

    @property
    def _looks_inside(self) -> bool:
        return bool(self.accounts or self.regions or self.filters) or (
            self.since_ns is not None or self.until_ns is not None
        )

    def matches(self, line: bytes) -> bool:
        """Tell whether the reader asked for this record line."""
        if self.everything:
            return True
        kind = lines.kind_of(line)
        if kind not in self._kinds:
            return False
        if not self._looks_inside:
            return True
        try:
            head = lines.head_of(line)
        except (msgspec.MsgspecError, RecursionError):
            return True  # what cannot be judged is shown, not swallowed
        if head.account is not None and self._account and not self._account.match(head.account):
            return False
        if head.region is not None and self._region and not self._region.match(head.region):
            return False
        if not self._in_time(head):
            return False
        if kind != Kind.EVENT or not self.filters:
            return True
        raw = lines.event_of(line)
        return raw is not None and self.filters.matches(lines.parse_event(raw))

    def _in_time(self, head: lines.Head) -> bool:
        if self.since_ns is None and self.until_ns is None:
            return True
        first = last = head.at or head.time
        if head.kind == Kind.GAP and head.from_ and head.to:
            first, last = head.from_, head.to
        try:
            after = self.since_ns is None or parse_rfc3339(last) >= self.since_ns
            # Of removed records only the first that is kept says when they ended, and there may
            # be none yet: a reader that comes upon them is to be told.
            after = after or (head.kind == Kind.GAP and head.cause in _OF_READERS)
            return after and (self.until_ns is None or parse_rfc3339(first) <= self.until_ns)
        except ValueError:
            return True

    def passed_until(self, line: bytes) -> bool:
        """Tell whether this line shows that `until` is over.

        It is when a checkpoint says that all received before `until` is above, or when a record
        in its place is beyond it. Late ones may still follow, as they always may.
        """
        if self.until_ns is None:
            return False
        try:
            head = lines.head_of(line)
            if head.kind == Kind.CHECKPOINT:
                return head.through is not None and parse_rfc3339(head.through) > self.until_ns
            return not head.late and parse_rfc3339(head.at or head.time) > self.until_ns
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return False


@define(eq=False)
class Selector:
    """One reader's selection at work on blocks of whole lines.

    `left` counts down a limit of records (None: no limit); `past_until` is set for good once
    `until` is known to be over.
    """

    selection: Selection
    left: int | None = None
    past_until: bool = False

    def select(self, block: bytes) -> tuple[bytes, int | None]:
        """Return what of `block` to send, and the seq of the line that reached the limit."""
        selection = self.selection
        if selection.everything and self.left is None:
            return block, None
        if self.left == 0:
            return b"", None
        chosen = []
        for line in block.splitlines(keepends=True):
            if not self.past_until and selection.passed_until(line):
                self.past_until = True
            if not selection.matches(line):
                continue
            chosen.append(line)
            if self.left is not None:
                self.left -= 1
                if self.left == 0:
                    return b"".join(chosen), lines.seq_of(line)
        return b"".join(chosen), None
