"""The one signal that readers wait for: how far the journal may be shown."""

from __future__ import annotations

import trio
from attrs import define, field, frozen


@frozen
class Position:
    """A place in the journal: a segment (its first seq), a byte offset, the last seq before it."""

    segment: int
    offset: int
    seq: int


@frozen
class Newest:
    """What the last publication added: the bytes behind record `after`, up to `position`."""

    after: int
    position: Position
    data: bytes


@define(eq=False)
class Horizon:
    """The published end of the journal. Durable before visible: only the sequencer moves it.

    Readers keep no queue here: each reads the journal up to `position` and waits for the next.
    Those that have everything but the last publication share its bytes in memory (`newest`): a
    file read for each of a hundred readers, two hundred times a second, is most of a core.
    """

    epoch: str
    position: Position
    ended: bool = False
    newest: Newest | None = None
    _changed: trio.Event = field(factory=trio.Event)

    def publish(self, position: Position, data: bytes | None = None) -> None:
        """Show the journal up to `position` and wake every reader once.

        `data` is what lies between the last position and this one, if it is at hand and small.
        """
        self.newest = None if data is None else Newest(self.position.seq, position, data)
        self.position = position
        self._wake()

    def end(self) -> None:
        """Say that nothing more will come."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_beyond(self, seq: int) -> None:
        """Return when a record after `seq` is published, or when nothing more will come."""
        while self.position.seq <= seq and not self.ended:
            await self._changed.wait()
