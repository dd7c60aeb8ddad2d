"""The two memories that a resume and an audit compare: ours of an engine, and the engine's own."""

from __future__ import annotations

from collections import deque
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
    """

    recollection: Recollection
    heard_ns: int
    expected: Expected = field(factory=Expected)
    # The last looks: when each was asked for, and when all that it brought was handed on.
    _looks: deque[tuple[int, int]] = field(factory=lambda: deque(maxlen=2))

    @classmethod
    def of(cls, source: Source, known: Recollection | None, heard_ns: int) -> Memory:
        """Begin with what is known of the engine of `source`, unless it is of another one."""
        engine = engine_of(str(source.endpoint), source.redact)
        if known is None or known.engine not in ("", engine):
            return cls(Recollection(engine=engine), heard_ns)
        recollection = known.copy()
        recollection.engine = engine
        return cls(recollection, heard_ns)

    def looked(self, asked_ns: int, done_ns: int) -> None:
        """Note a look, all of which is known and handed on."""
        self.recollection.looked_ns = asked_ns
        self._looks.append((asked_ns, done_ns))

    def looked_before(self, through_ns: int) -> int | None:
        """Return when the last look was of which nothing came after `through_ns`, if any."""
        return max((asked for asked, done in self._looks if done < through_ns), default=None)

    def forget_looks(self) -> None:
        """Count on no look any more."""
        self.recollection.looked_ns = 0
        self._looks.clear()


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
