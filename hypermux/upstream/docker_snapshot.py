"""The two memories that a resume and an audit compare: ours of an engine, and the engine's own."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen

from hypermux.config.settings import Source
from hypermux.core.recollection import Recollection, engine_of
from hypermux.core.resume import Expected
from hypermux.model.records import Event, Unparsed

Reading = Callable[[list[bytes]], list[Event | Unparsed]]


@define(eq=False)
class Memory:
    """What is known of one engine, over all its connections.

    `heard_ns` is when it was last heard, or when its outage began, on the stream's clock.
    `looked_ns` is when it was last asked what it remembers, all of which is known; 0: not yet.
    """

    recollection: Recollection
    heard_ns: int
    looked_ns: int = 0
    expected: Expected = field(factory=Expected)

    @classmethod
    def of(cls, source: Source, known: Recollection | None, heard_ns: int) -> Memory:
        """Begin with what is known of the engine of `source`, unless it is of another one."""
        engine = engine_of(str(source.endpoint), source.redact)
        if known is None or known.engine not in ("", engine):
            return cls(Recollection(engine=engine), heard_ns)
        recollection = known.copy()
        recollection.engine = engine
        return cls(recollection, heard_ns)


@frozen
class Snapshot:
    """The engine's memory at one moment, which is not before `asked_ns`, oldest first."""

    asked_ns: int
    messages: list[bytes]
    items: list[Event | Unparsed]
    digests: list[bytes]

    @property
    def times(self) -> list[int | None]:
        """The time of each, in nanoseconds since 1970."""
        return [item.time_ns if isinstance(item, Event) else None for item in self.items]
