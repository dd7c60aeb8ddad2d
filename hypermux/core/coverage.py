"""What a journal says about every source: connected, in an outage since when, or neither.

It is computed twice and must agree: live, from the items as they are encoded, and at a start, by
reading the lines back. Beside each segment lies what was true before its first record, so that a
start reads one segment only.

Rules, for the records of one source in order:

    state up      connected; whatever outage was open is over (its gap came before, or a complete
                  replay made one needless)
    state down    an outage is open from its `from`; one that is open already keeps its first
                  `from`, over any number of restarts, and takes the new cause
    gap           reaching over the beginning of the open outage: what is left of the outage begins
                  at the gap's end, until `up` says that nothing is left. (Were the outage over, a
                  crash between the two records would hide what came after.) Causes in COUNTED
                  tell of events dropped while connected, and change nothing
    state config  removed or paused: neither connected nor in an outage, so not covered
    anything else changes nothing but the time of the last record

Of a source whose upstream remembers its events, what was recorded is remembered here too, from the
first `up` on that has an `anchor` until its coverage ends. No other source pays for it. Events that
are recorded in an open outage are what that memory held of it: until the gap behind them, or `up`,
is recorded too, they are no proof that nothing else is missing. When that memory was last looked
at, `up` says, and later on a checkpoint, of all that are up at once: of the one whose look is
oldest, for the names of all would make it long.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from attrs import define, field

from hypermux.core.recollection import Recollection, Stored
from hypermux.core.recording import BadLine, seal, unseal
from hypermux.model.accounts import SourceId
from hypermux.model.records import Checkpoint, Event, Gap, Item, StateChange, Unparsed

# Gaps that leave connectivity as it is: they count what a connected source lost.
COUNTED = frozenset({"overflow"})

_FORMAT = 2
# Its sources remember no events; but no record of its time told of an anchor either.
_EARLIER = 1


@define
class SourceCoverage:
    """One source's state. Times are nanoseconds since 1970.

    `since_ns` is when it came up, or when the outage began. `outage_from_ns` and `cause` are set
    while an outage is open; a source neither up nor in an outage is not covered. `last_at_ns` is
    the merge time of its last record. `recollection` is None where the upstream has no memory to
    compare it with, or none is known of.
    """

    up: bool = False
    since_ns: int = 0
    outage_from_ns: int | None = None
    cause: str | None = None
    last_at_ns: int = 0
    recollection: Recollection | None = None

    @property
    def in_outage(self) -> bool:
        """Whether the journal tells of an outage that has not ended."""
        return self.outage_from_ns is not None


class _StoredSource(msgspec.Struct):
    account: str
    region: str
    up: bool
    since: int
    outage_from: int | None
    cause: str | None
    last_at: int
    recollection: Stored | None = None


class _Stored(msgspec.Struct):
    format: int
    through: int
    service_at: int
    sources: list[_StoredSource]


@define
class Coverage:
    """Every source that the journal has heard of, and how far its checkpoints reach.

    `through_ns`: all messages received before it are journaled; 0 before the first checkpoint.
    """

    through_ns: int = 0
    sources: dict[SourceId, SourceCoverage] = field(factory=dict)
    _service_at_ns: int = 0

    def apply(self, source: SourceId | None, item: Item | Checkpoint, at_ns: int) -> None:
        """Take in the next record, whose merge time is `at_ns`; None: the service's own."""
        if source is None:
            if at_ns > self._service_at_ns:
                self._service_at_ns = at_ns
            if isinstance(item, Checkpoint):
                self.through_ns = item.through_ns
                if item.looked_ns is not None:
                    self._look(item.looked_ns)
            return
        try:
            known = self.sources[source]
        except KeyError:
            known = self.sources[source] = SourceCoverage()
        if at_ns > known.last_at_ns:
            known.last_at_ns = at_ns
        if isinstance(item, (Event, Unparsed)):
            if known.recollection is not None:
                known.recollection.note(item, proven=known.outage_from_ns is None)
            return
        if isinstance(item, StateChange):
            if item.state == "up":
                known.up, known.since_ns = True, at_ns
                known.outage_from_ns = known.cause = None
                if item.anchor is not None:
                    known.recollection = _anchored(known.recollection, item.anchor, at_ns)
                _believe(known.recollection)
            elif item.state == "down":
                if known.outage_from_ns is None:
                    known.outage_from_ns = at_ns if item.from_ns is None else item.from_ns
                known.up, known.since_ns = False, known.outage_from_ns
                known.cause = item.cause
            elif item.state == "config":
                known.up, known.since_ns = False, at_ns
                known.outage_from_ns = known.cause = known.recollection = None
        elif isinstance(item, Gap) and item.cause not in COUNTED:
            begun = known.outage_from_ns
            if begun is not None and item.from_ns <= begun <= item.to_ns:
                known.outage_from_ns = known.since_ns = item.to_ns
                _believe(known.recollection)

    def looked_ns(self, look: Callable[[SourceId], int | None]) -> int | None:
        """Return what a checkpoint can say of the memories of all that are up; None: nothing.

        `look` tells when a source's was last looked at, None when that is not known.
        """
        looks = [
            look(source)
            for source, known in self.sources.items()
            if known.up and known.recollection is not None
        ]
        told = [look_ns for look_ns in looks if look_ns is not None]
        return min(told) if told and len(told) == len(looks) else None

    def _look(self, looked_ns: int) -> None:
        for known in self.sources.values():
            if known.up and (kept := known.recollection) is not None:
                kept.looked_ns = max(kept.looked_ns, looked_ns)

    @property
    def wall_ns(self) -> int:
        """The latest merge time of any record: a new run's clock must not start before it."""
        last = max((s.last_at_ns for s in self.sources.values()), default=0)
        return max(last, self._service_at_ns)

    @property
    def last_key(self) -> tuple[int, str, str, int] | None:
        """The merge key of the last record of any source: at, account, region, ordinal.

        A source's merge times never fall, so the largest of its last ones is the last released.
        Ordinals begin anew with a process; -1 keeps every new one of the same time above it.
        """
        return max(
            ((s.last_at_ns, i.account, i.region, -1) for i, s in self.sources.items()), default=None
        )

    def to_bytes(self) -> bytes:
        """Return the content of a `.sources` file: one line with a checksum, in a fixed order."""
        stored = _Stored(
            _FORMAT,
            self.through_ns,
            self._service_at_ns,
            [
                _StoredSource(
                    source.account,
                    source.region,
                    state.up,
                    state.since_ns,
                    state.outage_from_ns,
                    state.cause,
                    state.last_at_ns,
                    None if state.recollection is None else state.recollection.stored(),
                )
                for source, state in sorted(self.sources.items(), key=lambda pair: pair[0])
            ],
        )
        return seal(msgspec.json.encode(stored)[:-1])

    @classmethod
    def from_bytes(cls, data: bytes) -> Coverage:
        """Read what `to_bytes` made. Raises BadLine when it is not whole or of another format."""
        try:
            stored = msgspec.json.decode(unseal(data) + b"}", type=_Stored)
        except msgspec.MsgspecError as exc:
            raise BadLine(str(exc)) from None
        if stored.format not in (_EARLIER, _FORMAT):
            raise BadLine(f"format {stored.format} is not known")
        try:
            sources = {SourceId(s.account, s.region): _covered(s) for s in stored.sources}
        except ValueError as exc:
            raise BadLine(str(exc)) from None
        return cls(stored.through, sources, stored.service_at)


def _believe(recollection: Recollection | None) -> None:
    """What was recorded of an outage has been told to its end."""
    if recollection is not None:
        recollection.seen.unproven = 0


def _covered(stored: _StoredSource) -> SourceCoverage:
    kept = stored.recollection
    recollection = None if kept is None else Recollection.of(kept)
    return SourceCoverage(
        stored.up, stored.since, stored.outage_from, stored.cause, stored.last_at, recollection
    )


def _anchored(recollection: Recollection | None, anchor: str, at_ns: int) -> Recollection:
    try:
        return Recollection.anchored(recollection, anchor, at_ns)
    except ValueError:
        raise BadLine("the record's anchor is no hexadecimal text") from None
