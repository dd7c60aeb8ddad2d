"""Waiting for a permit: the allocator decides, this wakes whom it chose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import define, field

from hypermux.core.limiter import Allocator, Rank
from hypermux.model.accounts import SourceId


@define(eq=False)
class Gate:
    """One allocator for all sources, and the tasks that wait at it."""

    allocator: Allocator
    _waiting: dict[SourceId, trio.Event] = field(factory=dict)
    _changed: trio.Event = field(factory=trio.Event)

    async def permit(self, source: SourceId, address: str, rank: Rank) -> None:
        """Return when `source` may dial `address`; its slot is held until `release`.

        Cancelled while waiting, it holds nothing.
        """
        granted = self._waiting[source] = trio.Event()
        self.allocator.request(source, address, rank, trio.current_time())
        self._grant()
        try:
            await granted.wait()
        except trio.Cancelled:
            if granted.is_set():
                self.release(source)
            else:
                del self._waiting[source]
                self.allocator.withdraw(source)
            raise

    def release(self, source: SourceId) -> None:
        """Give the slot of `source` back; who waits for it is woken at once."""
        self.allocator.release(source)
        self._grant()

    @contextmanager
    def changing(self) -> Iterator[Allocator]:
        """Give the allocator for a change that may let others go, or hold them longer."""
        yield self.allocator
        self._grant()

    def _grant(self) -> None:
        for source in self.allocator.grant(trio.current_time()):
            self._waiting.pop(source).set()
        self._changed.set()

    async def run(self) -> None:
        """Grant what only time grants; runs until cancelled."""
        while True:
            self._changed = trio.Event()
            at = self.allocator.next_at(trio.current_time())
            with trio.move_on_at(math.inf if at is None else at) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                self._grant()
