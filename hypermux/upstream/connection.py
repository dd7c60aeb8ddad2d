"""One source's life: permit, link, verdict, wait, again.

The decisions are `core.lifecycle`'s and `core.limiter`'s; this task carries them out and tells
the stream (`upstream.telling`). A link is one connection (`upstream.link`).
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable
from typing import Protocol

import trio
from attrs import define, field

from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.correction import Corrections
from hypermux.core.decoding import decode_batch
from hypermux.core.intake import Feed
from hypermux.core.lifecycle import Lifecycle, State
from hypermux.core.limiter import Rank
from hypermux.core.verdicts import Judgement, Verdict, judge
from hypermux.model.errors import Failure
from hypermux.model.records import Event, Item
from hypermux.upstream.dialing import trust_of
from hypermux.upstream.gate import Gate
from hypermux.upstream.link import Keys, Link, Transport
from hypermux.upstream.telling import Outage, Teller
from hypermux.upstream.transport import PROVEN, Opened

log = logging.getLogger("hypermux.connection")


class Observer(Protocol):
    """Hears what happens to sources, beside the stream; calls never wait."""

    def dialing(self, source: Source) -> None:
        """A dial begins."""

    def opened(self, source: Source) -> None:
        """A connection is open."""

    def failed(self, source: Source, judgement: Judgement, failure: Failure) -> None:
        """A connection or a dial ended."""


@define
class Counters:
    """What a source did so far; received = handed on + filtered."""

    received: int = 0
    filtered: int = 0


@define(eq=False)
class Connection:
    """The task of one source. `outage` is what the journal knew when it began."""

    source: Source
    gate: Gate
    feed: Feed
    keys: Keys
    transport: Transport
    lifecycle: Lifecycle
    clock: StreamClock
    observer: Observer
    outage: Outage | None
    utc_ns: Callable[[], int]
    corrections: Corrections = field(factory=Corrections)
    counters: Counters = field(factory=Counters)
    link: Link | None = None
    teller: Teller = field(init=False)
    _changed: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.teller = Teller(self.feed, self.clock, self.outage)

    async def run(self) -> None:
        """Keep the source connected until cancelled."""
        rank = Rank.NEW
        self.teller.begin()
        try:
            while True:
                await self.gate.permit(self.source.id, self._address, rank)
                try:
                    link = await self._connected()
                    # The limiter hears of a refusal before the slot goes to the next in line.
                    delay_s = self._fell(link)
                finally:
                    self.gate.release(self.source.id)
                rank = Rank.PROBE if self.lifecycle.state in _PROBED else Rank.LOST
                await trio.sleep(delay_s)
                self.lifecycle.waiting(trio.current_time())
        finally:
            self._stopped()

    async def _connected(self) -> Link:
        """Run a link to its end, and return it."""
        self.lifecycle.dialing(trio.current_time())
        self.observer.dialing(self.source)
        offset_ns = self.corrections.of(self._address)
        link = self.link = Link(self.source, self, trio.current_time(), offset_ns)
        await link.run(self.keys, self.transport)
        return link

    def _fell(self, link: Link) -> float:
        """Tell the stream and the limiter that a link has ended; return the seconds to wait."""
        failure, now = link.failure, trio.current_time()
        assert failure is not None  # it has ended
        judgement = judge(
            failure,
            secure=trust_of(self.source.endpoint, self.source.tls) in PROVEN,
            now_utc_ns=self.utc_ns(),
            signed_offset_ns=link.sign_offset_ns,
            opened=link.accepted is not None,
        )
        pause = self.lifecycle.failed(judgement, now, retry_after_s=failure.retry_after_s)
        if judgement.verdict is Verdict.DENIED or pause.state is State.DENIED:
            self.keys.refused(self.source, link.credential)
        if judgement.verdict is Verdict.THROTTLED:
            with self.gate.changing() as allocator:
                allocator.throttled(self.source.id, link.dialed_at, failure.retry_after_s, now)
        self.teller.down(link, judgement)
        if judgement.offset_ns is not None:
            self._corrected(self.corrections.refused(self._address, judgement.offset_ns))
        self.observer.failed(self.source, judgement, failure)
        return pause.delay_s

    def _corrected(self, news: bool) -> None:
        """Tell of a changed correction of our own clock, once for all sources that share it."""
        if news:
            offset_ns = self.corrections.of(self._address)
            log.warning("%s: %s", self.source.id, self.teller.correction(offset_ns))

    @property
    def _address(self) -> str:
        return self.source.endpoint.address

    def _stopped(self) -> None:
        """Record the end: a source that was up is down from now, by our own doing."""
        if self.link is not None:  # otherwise it was never up
            self.teller.drained(self.link, "stopped", "hypermux stopped")
        self.lifecycle.stopped(trio.current_time())

    # Owner: what links tell, in plain calls.

    def link_asking(self, link: Link) -> None:
        """See `Owner`."""

    def link_opened(self, link: Link, opened: Opened) -> None:
        """See `Owner`."""
        now = trio.current_time()
        self.lifecycle.opened(now)
        with self.gate.changing() as allocator:
            allocator.succeeded(self.source.id, now)
        link.opened_ns = link.heard_ns = self.clock.now_ns()
        self.teller.up(opened)
        if opened.date_ns is not None and opened.trust in PROVEN:
            offset_ns = opened.date_ns - self.utc_ns()
            self._corrected(self.corrections.accepted(self._address, offset_ns))
        self.observer.opened(self.source)

    def link_heard(self, link: Link) -> None:
        """See `Owner`. A peer is healthy when it has been alive for long enough."""
        link.heard_ns = self.clock.now_ns()
        healthy_at = self.lifecycle.healthy_at()
        if healthy_at is not None and trio.current_time() >= healthy_at:
            self.lifecycle.healthy(trio.current_time())

    def link_received(self, link: Link, messages: list[bytes]) -> None:
        """See `Owner`."""
        self.counters.received += len(messages)
        self._hand_on(messages, more=link.more)

    def link_ended(self, link: Link) -> None:
        """See `Owner`."""
        self._changed.set()

    def _hand_on(self, messages: list[bytes], *, more: bool) -> None:
        """Decode messages and deliver what is not excluded."""
        items: list[Item] = list(decode_batch(messages))
        if self.source.exclude_events:
            kept = [item for item in items if not self._excluded(item)]
            self.counters.filtered += len(items) - len(kept)
            items = kept
        # Also when nothing is left: `more` is news of its own.
        self.feed.deliver(items, self.clock.now_ns(), more=more)

    def _excluded(self, item: Item) -> bool:
        return isinstance(item, Event) and any(
            fnmatch.fnmatchcase(item.action, pattern) for pattern in self.source.exclude_events
        )


_PROBED = frozenset({State.DENIED, State.UNTRUSTED, State.MISCONFIGURED})
