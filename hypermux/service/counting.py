"""Counts of what happens to connections and commits, for `/metrics`; they never go back.

They are kept by account and region for as long as the process runs: a source that is removed and
comes back goes on where it was. What a server can name (a close code becomes a cause) is bounded:
beyond MAX_WORDS different words of one source the rest is "other".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
from attrs import define, field

from hypermux.config.settings import Source
from hypermux.core.histogram import Histogram
from hypermux.core.verdicts import Judgement
from hypermux.downstream.walk import RunSync
from hypermux.model.accounts import SourceId
from hypermux.model.errors import Failure
from hypermux.upstream.link import Observer

T = TypeVar("T")

MAX_WORDS = 40
# What ended a connection when no failure did.
ROTATION = "rotation"  # another one took its place
PARTED = "parted"  # we ended it ourselves: a reload, a turn of others, nothing came for too long


@define(eq=False)
class CountingObserver:
    """Counts dials by what came of them and ended connections by why; tells `next` all of it."""

    next: Observer
    dials: dict[SourceId, Counter[str]] = field(factory=dict)
    reconnects: dict[SourceId, Counter[str]] = field(factory=dict)
    _open: set[SourceId] = field(factory=set)

    def dialing(self, source: Source) -> None:
        """A dial begins: whatever was open before is not any more."""
        if source.id in self._open:
            self._open.discard(source.id)
            _count(self.reconnects, source.id, PARTED)
        self.next.dialing(source)

    def opened(self, source: Source) -> None:
        """A connection is open."""
        self._open.add(source.id)
        _count(self.dials, source.id, "opened")
        self.next.opened(source)

    def replaced(self, source: Source) -> None:
        """Another connection has taken the open one's place."""
        _count(self.dials, source.id, "opened")
        _count(self.reconnects, source.id, ROTATION)
        self.next.replaced(source)

    def failed(self, source: Source, judgement: Judgement, failure: Failure) -> None:
        """A connection or a dial ended."""
        if source.id in self._open:
            self._open.discard(source.id)
            _count(self.reconnects, source.id, judgement.cause)
        else:
            _count(self.dials, source.id, str(judgement.verdict))
        self.next.failed(source, judgement, failure)


def _count(counts: dict[SourceId, Counter[str]], source: SourceId, word: str) -> None:
    counter = counts.setdefault(source, Counter())
    counter[word if word in counter or len(counter) < MAX_WORDS else "other"] += 1


def timed(run_sync: RunSync, commits: Histogram) -> RunSync:
    """Return `run_sync` that adds to `commits` how long each commit and sync takes, waits included.

    What fails is counted too: a disk that hangs for a while and then refuses is slow.
    """

    async def run(function: Callable[..., T], *args: Any) -> T:
        if getattr(function, "__name__", "") not in ("commit", "sync"):
            return await run_sync(function, *args)
        begun_s = trio.current_time()
        try:
            return await run_sync(function, *args)
        finally:
            commits.add(trio.current_time() - begun_s)

    def call(function: Callable[..., T], *args: Any) -> Awaitable[T]:
        return run(function, *args)

    return call
