"""What a source did since the service started, over all its connections."""

from __future__ import annotations

from attrs import define, frozen

from hypermux.core.verdicts import Judgement
from hypermux.model.records import Event, Item


@frozen
class Fall:
    """A failure, and when it came (nanoseconds since 1970)."""

    at_ns: int
    judgement: Judgement


@define(eq=False)
class Counters:
    """Messages counted, and the newest of what happened.

    received = handed on + filtered + duplicate + held by a succession. `synthetic` were never
    received: an upstream's state implied them, and they were handed on. Of `redacted` ones a part
    was taken out, handed on or not. `event_ns` is when the newest event was received, `lag_ns` how
    long after its own time; `heard_ns` when anything was, also beside the stream.
    """

    received: int = 0
    filtered: int = 0
    duplicate: int = 0
    synthetic: int = 0
    redacted: int = 0
    faults: int = 0  # of hypermux itself
    event_ns: int | None = None
    lag_ns: int | None = None
    heard_ns: int | None = None
    fall: Fall | None = None

    def handed_on(self, items: list[Item], now_ns: int) -> None:
        """Remember the newest event of a read."""
        newest = items[-1] if items else None
        if isinstance(newest, Event):
            self.event_ns = now_ns
            if newest.time_ns is not None:
                self.lag_ns = now_ns - newest.time_ns
