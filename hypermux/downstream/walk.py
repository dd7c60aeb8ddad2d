"""One reader's way through the journal, up to what is published.

Whoever shows records (subscribers, the console) walks: read a block, show it, read the next, and
wait at the horizon. A walk holds one block and one open file, whatever the reader's speed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import trio
from attrs import define, field

from hypermux.core.lines import last_seq
from hypermux.downstream.horizon import Horizon, Position
from hypermux.downstream.reading import BLOCK
from hypermux.downstream.stretches import Stretch
from hypermux.model.errors import DamagedData

T = TypeVar("T")


class RecordSource(Protocol):
    """A journal read forward from a place. Calls block; one at a time."""

    def read(self, upto: Position, max_bytes: int) -> bytes:
        """Return the next whole lines that lie before `upto`; empty when there are none left."""

    def piece(self, upto: Position, max_bytes: int) -> bytes | Stretch:
        """Return what `read` does, or more lines as a stretch, good until the next call."""

    def skip(self, to: Position) -> None:
        """Go on from `to`: what lies before it was read elsewhere. Does not block."""

    def close(self) -> None:
        """Give back the open file."""


class RunSync(Protocol):
    """Runs blocking work away from the event loop: a thread, or a plain call in virtual time.

    A call that has begun is not abandoned, and every call is a checkpoint.
    """

    def __call__(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        """Return what `function(*args)` returns."""


# Gives the journal behind a record, without blocking: opening waits for `read`.
OpenReader = Callable[[int], RecordSource]


@define(eq=False)
class Walk:
    """A reader that has everything up to `seq`. Close it when done.

    The source is taken at once, because one that starts at the horizon of this moment need not
    search for its place later.
    """

    horizon: Horizon
    open_reader: OpenReader
    run_sync: RunSync
    seq: int
    _source: RecordSource = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._source = self.open_reader(self.seq)

    async def read(self, upto: Position) -> bytes:
        """Return the next block of whole lines up to `upto`, empty when there is none.

        Raises OSError and DamagedData when the journal does not read.
        """
        block = await self._next(upto, self._source.read)
        assert isinstance(block, bytes)
        return block

    async def piece(self, upto: Position) -> bytes | Stretch:
        """Return what `read` does, or more lines as a stretch, good until the next call."""
        return await self._next(upto, self._source.piece)

    async def _next(
        self, upto: Position, read: Callable[[Position, int], bytes | Stretch]
    ) -> bytes | Stretch:
        if self.seq >= upto.seq:
            return b""
        newest = self.horizon.newest
        if newest is not None and newest.after == self.seq and newest.position == upto:
            await trio.lowlevel.checkpoint()
            self._source.skip(upto)
            self.seq = upto.seq
            return newest.data
        block = await self.run_sync(read, upto, BLOCK)
        if not block:
            # Never spin, and never pass a loss over: what is published has to be readable.
            raise DamagedData(f"the journal has no record after {self.seq}, but ends at {upto.seq}")
        self.seq = block.seq if isinstance(block, Stretch) else last_seq(block)
        return block

    async def wait(self) -> None:
        """Return when there is more to read, or when nothing more will come."""
        await self.horizon.wait_beyond(self.seq)

    def close(self) -> None:
        """Close the open file."""
        self._source.close()
