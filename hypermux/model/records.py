"""What travels through hypermux: items on their way in, and the words that records use.

An `Event` is made for every message, so it is a plain slotted class and its bytes are never
rebuilt; the others are rare.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeAlias

from attrs import define, frozen


class Kind(StrEnum):
    """The kinds of records."""

    EVENT = "event"
    GAP = "gap"
    STATE = "state"
    UNPARSED = "unparsed"
    CHECKPOINT = "checkpoint"


TimeFrom = Literal["timeNano", "time", "float", "received"]
Certainty = Literal["possible", "proven"]


@define
class Event:
    """One decoded upstream message.

    `raw` is printable ASCII JSON on one line, fit to be spliced into a record. `time_ns` is the
    event's own time in nanoseconds since 1970, None when it has no usable one; `time_from` says
    which field it came from. `action` is what local exclusions look at. `replayed`: it did not come
    as it happened. `synthetic`: the upstream never sent it; its state showed it afterwards.
    """

    raw: bytes
    time_ns: int | None
    time_from: TimeFrom
    action: str = ""
    replayed: bool = False
    synthetic: bool = False


@frozen
class Unparsed:
    """A message that is not an event: its text (capped) and its size in bytes.

    `replayed`: it did not come as it happened.
    """

    text: str
    size: int
    reason: str
    replayed: bool = False


@frozen
class Gap:
    """Possible or proven loss between two moments (nanoseconds since 1970).

    `lost` is the number of lost events where it was counted.
    """

    from_ns: int
    to_ns: int
    cause: str
    certainty: Certainty
    lost: int | None = None


@frozen
class StateChange:
    """A source's connectivity, or the service's: `state` is a word of the table below.

    up, down: a source's; quiet, active: no event came over an open connection for too long, and
    again one; clock: an offset or a step of the wall clock; epoch: a new epoch; disk: what the disk
    refused or lacks; start, stop: the service's own; config: a changed configuration. `from_ns` is
    when an outage or a quiet began, `cause` is the word the outage's gap will carry, `reason` is
    one plain sentence. `anchor` comes with the `up` of a source whose upstream remembers its
    events; see `core.resume`.
    """

    state: str
    reason: str | None = None
    verdict: str | None = None
    cause: str | None = None
    from_ns: int | None = None
    offset_ns: int | None = None
    anchor: str | None = None


Item: TypeAlias = Event | Unparsed | Gap | StateChange


@frozen
class Checkpoint:
    """All messages received before `through_ns` are journaled at or before this record.

    `looked_ns`: since then every upstream that is connected and remembers its events has been
    compared with what was received; None where that is not known.
    """

    through_ns: int
    looked_ns: int | None = None


@frozen
class Cursor:
    """The last record that a reader has: `epoch:seq`."""

    epoch: str
    seq: int

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read `epoch:seq`. Raises ValueError with the right form."""
        epoch, colon, seq = text.partition(":")
        if not colon or not epoch or not (seq.isascii() and seq.isdigit()) or len(seq) > 20:
            raise ValueError("a cursor is written EPOCH:SEQ, for example 3f9a2c41:1042")
        return cls(epoch, int(seq))

    def __str__(self) -> str:
        return f"{self.epoch}:{self.seq}"
