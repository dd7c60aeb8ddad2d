"""What one reader asked for: records chosen from the journal, from its place up to the horizon.

The same for all who read it from this process, whatever they speak. A stream has no queue: it
holds one block and one open file, and reads the next when its reader asks.

    stream = published.open()           stands where the journal is shown up to now
    await stream.ask(request)           goes where `request` begins
    while (chosen := await stream.next()) is not None:
        ...                             `stream.cursor` is behind them
        if stream.beat():               nothing was chosen for as long as `request.heartbeat_s`:
            ...                         time to say so, with the cursor
    stream.complete                     ended as was asked, not because nothing more will come

Who can send a part of a file takes `next_piece` instead (`downstream.stretches`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from math import inf

import trio
from attrs import define, field

from hypermux.core.request import Request
from hypermux.core.selection import Selector
from hypermux.core.subscription import Refusal
from hypermux.downstream.horizon import Horizon, Position
from hypermux.downstream.reading import Rewritten
from hypermux.downstream.stretches import Stretch
from hypermux.downstream.walk import OpenReader, RunSync, Walk
from hypermux.model.errors import HypermuxError
from hypermux.model.records import Cursor

log = logging.getLogger("hypermux.streaming")

Resolve = Callable[[Cursor], "int | Rewritten | str"]


class StreamRefused(Exception):
    """A stream cannot begin or go on: `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.error)


@define(eq=False)
class Published:
    """The journal as readers may see it.

    `open_reader(seq)` gives the journal behind record `seq`. `resolve` turns a cursor into such a
    seq, into what was cut off of it, or into a sentence that says why it cannot be; `oldest` gives
    the one before all records that are kept, `since` one before all records of a time or later (it
    blocks). `now_ns` is the time of day, which durations in requests count back from. `streams` are
    those that are open.
    """

    horizon: Horizon
    open_reader: OpenReader
    resolve: Resolve
    run_sync: RunSync
    oldest: Callable[[], int] = lambda: 0
    since: Callable[[int], int] = lambda at_ns: 0
    now_ns: Callable[[], int] = time.time_ns
    streams: set[Stream] = field(factory=set)

    def open(self) -> Stream:
        """Return a stream that stands at the end of what is shown at this moment."""
        return Stream(self)

    def walk(self, seq: int) -> Walk:
        """Return a way through the journal that begins behind record `seq`."""
        return Walk(self.horizon, self.open_reader, self.run_sync, seq)

    def cursor(self, seq: int) -> Cursor:
        """Return the cursor of record `seq`."""
        return Cursor(self.horizon.epoch, seq)


@define(eq=False)
class Stream:
    """One reader's way through what is published. Close it when done.

    After "live" nothing changes but the selection: live records go on behind the last one passed,
    so that a second request neither repeats nor skips any.
    """

    published: Published
    complete: bool = False
    _walk: Walk = field(init=False)
    _request: Request = field(init=False, factory=Request)
    _selector: Selector = field(init=False)
    _upto: Position = field(init=False)
    _end_seq: int | None = field(init=False, default=None)
    _first: bytes = field(init=False, default=b"")
    _beat_s: float = field(init=False, default=inf)
    _gave: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._walk = self.published.walk(self.published.horizon.position.seq)
        self._choose(self._request)
        self.published.streams.add(self)

    @property
    def cursor(self) -> Cursor:
        """The last record passed, shown or not: who goes on behind it misses nothing."""
        return self.published.cursor(self.seq)

    @property
    def seq(self) -> int:
        """The seq of the last record passed."""
        return self._walk.seq if self._end_seq is None else self._end_seq

    async def ask(self, request: Request) -> None:
        """Go where `request` begins, and choose what it asks for from there.

        Raises StreamRefused when there is no such place, or the journal does not read.
        """
        if request.after != "live":
            self._move(await self._place(request.after, request.selection.since_ns))
        self._choose(request)

    async def next(self) -> bytes | None:
        """Return the chosen lines of the next block, empty when it has none, None at the end.

        Waits until there is a block, or a heartbeat is due. May be cancelled and called again:
        nothing is passed over by that. Raises StreamRefused when the journal does not read.
        """
        chosen = await self._next(self._walk.read)
        assert not isinstance(chosen, Stretch)
        return chosen

    async def next_piece(self) -> bytes | Stretch | None:
        """Return what `next` does, or more lines as a stretch, good until the next call."""
        whole = self._request.selection.everything and self._request.limit is None
        return await self._next(self._walk.piece if whole else self._walk.read)

    async def _next(
        self, read: Callable[[Position], Awaitable[bytes | Stretch]]
    ) -> bytes | Stretch | None:
        horizon, selector = self.published.horizon, self._selector
        if self._end_seq is not None:
            self.complete = True
            return None
        if self._gave:
            # Counted from here: by now the reader has taken what it was given before.
            self._expect_beat()
        if self._first:
            line, self._first = self._first, b""
            chosen, self._end_seq = selector.select(line)
            self._gave = bool(chosen)
            return chosen
        while True:
            ended = horizon.ended
            if self._request.follow and not selector.past_until:
                self._upto = horizon.position
            try:
                block = await read(self._upto)
            except (OSError, HypermuxError) as error:
                log.error("a reader's journal read failed: %s", error)
                raise _unreadable(error) from error
            if isinstance(block, Stretch):
                self._gave = True
                return block
            if block:
                chosen, self._end_seq = selector.select(block)
                self._gave = bool(chosen)
                return chosen
            if not self._request.follow or selector.past_until:
                self.complete = True
                return None
            if ended:
                return None
            with trio.move_on_at(self._beat_s) as nap:
                await self._walk.wait()
            if nap.cancelled_caught:
                return b""

    def beat(self) -> bool:
        """Tell whether a heartbeat is due now; it is told once, and the next one counted anew."""
        due = not self._gave and trio.current_time() >= self._beat_s
        if due:
            self._expect_beat()
        return due

    def close(self) -> None:
        """Give back the open file."""
        self.published.streams.discard(self)
        self._walk.close()

    async def _place(self, after: Cursor | str, since_ns: int | None) -> int:
        published = self.published
        seq = published.resolve(after) if isinstance(after, Cursor) else published.oldest()
        if isinstance(seq, str):
            raise StreamRefused(Refusal("cursor", seq))
        self._first = b""
        if isinstance(seq, Rewritten):
            self._first = await self._told(seq)
            seq = seq.after
        if since_ns is None:
            return seq
        try:
            found = await published.run_sync(published.since, since_ns)
        except (OSError, HypermuxError) as error:
            raise _unreadable(error) from error
        # Behind what is shown there is nothing yet; before a cursor there is nothing new.
        found = min(found, published.horizon.position.seq)
        return max(seq, found) if isinstance(after, Cursor) else found

    async def _told(self, rewritten: Rewritten) -> bytes:
        """Return what a reader is told first whose records were cut off."""
        published = self.published
        walk = published.walk(max(0, rewritten.after - 1))
        try:
            around = await walk.read(published.horizon.position)
        except (OSError, HypermuxError) as error:
            raise _unreadable(error) from error
        finally:
            walk.close()
        return rewritten.line(around, published.now_ns())

    def _move(self, seq: int) -> None:
        self._walk.close()
        self._walk = self.published.walk(seq)

    def _choose(self, request: Request) -> None:
        self._request, self.complete, self._end_seq = request, False, None
        self._selector = Selector(request.selection, request.limit)
        self._upto = self.published.horizon.position
        self._expect_beat()

    def _expect_beat(self) -> None:
        self._gave, every_s = False, self._request.heartbeat_s
        self._beat_s = inf if every_s is None else trio.current_time() + every_s


def _unreadable(error: Exception) -> StreamRefused:
    return StreamRefused(Refusal("fault", f"the journal cannot be read: {error}"))
