"""Waiting for a permit: the allocator decides, this wakes whom it chose."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import trio
from attrs import define, field

from hypermux.core.limiter import Allocator, Rank
from hypermux.model.accounts import Limits, SourceId
from hypermux.upstream.pacing import Pace

log = logging.getLogger("hypermux.limits")


@define(eq=False)
class Gate:
    """One allocator for all sources, and the tasks that wait at it.

    `pace` holds requests on the wire to the same rates.
    """

    allocator: Allocator
    pace: Pace = field(init=False)
    _waiting: dict[SourceId, trio.Event] = field(factory=dict)
    _changed: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.pace = Pace(self.allocator.pacer(trio.current_time()))

    async def permit(
        self, source: SourceId, address: str, rank: Rank, *, handover: bool = False
    ) -> None:
        """Return when `source` may dial `address`; its slot is held until `release`.

        With `handover` it goes on with the slot that it holds, and waits for the rates alone.
        Cancelled while waiting, it holds no more than before.
        """
        granted = self._waiting[source] = trio.Event()
        try:
            self.allocator.request(source, address, rank, trio.current_time(), handover=handover)
            self._grant()
            await granted.wait()
        except BaseException:  # cancelled, or a fault of ours
            if granted.is_set():
                if not handover:
                    self.release(source)
            elif self._waiting.get(source) is granted:
                del self._waiting[source]
                self.allocator.withdraw(source)
            raise

    def release(self, source: SourceId) -> None:
        """Give the slot of `source` back; who waits for it is woken at once."""
        self.allocator.release(source)
        self._grant()

    def dismiss(self, source: SourceId) -> None:
        """Take back all that a source waits for or holds: its task has ended by a fault of ours."""
        self._waiting.pop(source, None)
        self.allocator.dismiss(source)
        self._grant()

    def contested(self, source: SourceId) -> bool:
        """Say whether the slot of `source`, given back, would go to another that holds none."""
        return self.allocator.contested(source)

    def succeeded(self, source: SourceId) -> None:
        """Tell that the source's dial was accepted."""
        with self.changing() as allocator:
            told = allocator.succeeded(source, trio.current_time())
        if told is not None:
            log.info(told)

    def throttled(self, source: SourceId, dialed_at: float, retry_after_s: float | None) -> None:
        """Tell that the server asked for fewer dials; see `Allocator.throttled`."""
        with self.changing() as allocator:
            told = allocator.throttled(source, dialed_at, retry_after_s, trio.current_time())
        if told is not None:
            log.warning(told)

    def change(self, limits: Limits, *, leaving: Collection[SourceId] = ()) -> list[SourceId]:
        """Go on with other limits; return who must give back all the slots that it holds.

        Those `leaving` give theirs back anyway.
        """
        self.pace.change(limits)
        with self.changing() as allocator:
            return allocator.change(limits, trio.current_time(), leaving=leaving)

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
