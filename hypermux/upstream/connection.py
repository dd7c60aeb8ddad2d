"""One source's life: permit, key, dial, read, verdict, wait, again.

The decisions are `core.lifecycle`'s and `core.limiter`'s; this task carries them out and tells
the stream. Coverage is kept here: an outage begins when the last connection was last heard, or
when the source was configured, and ends with one gap record when a connection opens. Certainty
is `possible`: nobody can know whether there was anything to miss.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable
from typing import Protocol

import trio
from attrs import define, field, frozen

from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.decoding import decode_batch
from hypermux.core.intake import Feed
from hypermux.core.lifecycle import Lifecycle, State
from hypermux.core.limiter import Rank
from hypermux.core.verdicts import Judgement, Verdict, judge
from hypermux.model.accounts import Credential
from hypermux.model.errors import ConfigurationFault, ConnectionFailed, Failure, FailureKind
from hypermux.model.records import Event, Gap, Item, StateChange
from hypermux.upstream.dialing import trust_of
from hypermux.upstream.gate import Gate
from hypermux.upstream.transport import Listener, Opened

log = logging.getLogger("hypermux.connection")


@frozen
class Outage:
    """A time without a connection: since when, and the word for its gap.

    `recorded`: the journal has its `down` already. One that it has not must get it before the
    next checkpoint, or a second crash would shorten the outage.
    """

    from_ns: int
    cause: str
    recorded: bool = False


class Observer(Protocol):
    """Hears what happens to sources, beside the stream; calls never wait."""

    def dialing(self, source: Source) -> None:
        """A dial begins."""

    def opened(self, source: Source) -> None:
        """A connection is open."""

    def failed(self, source: Source, judgement: Judgement, failure: Failure) -> None:
        """A connection or a dial ended."""


class Keys(Protocol):
    """Where a source's credential comes from."""

    async def get(self, source: Source) -> Credential | None:
        """Return the credential, None where the upstream needs none. Raises ConfigurationFault."""

    def refused(self, source: Source, credential: Credential | None) -> None:
        """The server refused this one: read it anew next time."""


class Transport(Protocol):
    """One attempt at a source; ends by raising ConnectionFailed."""

    async def __call__(
        self,
        source: Source,
        credential: Credential | None,
        listener: Listener,
        sign_offset_s: float,
    ) -> None:
        """Dial, read until the end."""


@define
class Counters:
    """What a source did so far; received = delivered + filtered."""

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
    _outage: Outage | None
    utc_ns: Callable[[], int]
    counters: Counters = field(factory=Counters)
    _told: tuple[str, str] | None = None
    _heard_ns: int = 0
    _opened_ns: int = 0
    _sign_offset_s: float = 0.0
    _credential: Credential | None = field(default=None, repr=False)

    async def run(self) -> None:
        """Keep the source connected until cancelled."""
        rank = Rank.NEW
        outage = self._outage
        if outage is not None and not outage.recorded:
            down = StateChange("down", None, None, outage.cause, outage.from_ns)
            self.feed.deliver([down], self.clock.now_ns())
        try:
            while True:
                address = self.source.endpoint.address
                await self.gate.permit(self.source.id, address, rank)
                dialed_at = trio.current_time()
                try:
                    # The limiter hears of a refusal before the slot goes to the next in line.
                    delay_s = self._fell(await self._attempt(), dialed_at)
                finally:
                    self.gate.release(self.source.id)
                rank = Rank.PROBE if self.lifecycle.state in _PROBED else Rank.LOST
                await trio.sleep(delay_s)
                self.lifecycle.waiting(trio.current_time())
        finally:
            self._stopped()

    async def _attempt(self) -> Failure:
        self.lifecycle.dialing(trio.current_time())
        self.observer.dialing(self.source)
        try:
            self._credential = await self.keys.get(self.source)
            await self.transport(self.source, self._credential, self, self._sign_offset_s)
        except ConnectionFailed as error:
            return error.failure
        except ConfigurationFault as error:
            return Failure(FailureKind.CREDENTIAL, str(error))
        except Exception:
            # One source's fault must not end the others; it is told like any other failure.
            log.exception("%s: internal error", self.source.id)
            return Failure(FailureKind.PROTOCOL, "an internal error of hypermux; see its log")
        return Failure(FailureKind.EOF, "the stream ended")

    # Listener: what the transport tells, in plain calls.

    def opened(self, opened: Opened) -> None:
        """End the outage: one gap from its first moment to now, then `up`."""
        now_ns = self.clock.now_ns()
        self.lifecycle.opened(trio.current_time())
        with self.gate.changing() as allocator:
            allocator.succeeded(self.source.id, trio.current_time())
        items: list[Item] = []
        if self._outage is not None:
            items.append(Gap(self._outage.from_ns, now_ns, self._outage.cause, "possible"))
        items.append(StateChange("up", reason=_TRUST[opened.trust]))
        self._outage, self._told = None, None
        self._heard_ns = self._opened_ns = now_ns
        self.feed.deliver(items, now_ns)
        self.feed.opened(None if opened.date_ns is None else now_ns - opened.date_ns)
        self.observer.opened(self.source)

    def heard(self) -> None:
        """Note that the peer is alive; it is healthy when it has been for long enough."""
        self._heard_ns = self.clock.now_ns()
        healthy_at = self.lifecycle.healthy_at()
        if healthy_at is not None and trio.current_time() >= healthy_at:
            self.lifecycle.healthy(trio.current_time())

    def received(self, messages: list[bytes], *, more: bool) -> None:
        """Decode a read's messages and hand them on."""
        counters = self.counters
        counters.received += len(messages)
        items: list[Item] = list(decode_batch(messages))
        if self.source.exclude_events:
            kept = [item for item in items if not self._excluded(item)]
            counters.filtered += len(items) - len(kept)
            items = kept
        # Also when nothing is left: `more` is news of its own.
        self.feed.deliver(items, self.clock.now_ns(), more=more)

    def _excluded(self, item: Item) -> bool:
        return isinstance(item, Event) and any(
            fnmatch.fnmatchcase(item.action, pattern) for pattern in self.source.exclude_events
        )

    def _fell(self, failure: Failure, dialed_at: float) -> float:
        """Tell the stream and the limiter of a failure; return the seconds to wait."""
        now, now_ns = trio.current_time(), self.clock.now_ns()
        was_up = self._outage is None
        judgement = judge(
            failure,
            secure=trust_of(self.source.endpoint, self.source.tls) == "verified",
            # The time that it was signed with: a clock that was mended meanwhile is skewed anew.
            now_utc_ns=self.utc_ns() + round(self._sign_offset_s * 1e9),
            opened=was_up,
        )
        pause = self.lifecycle.failed(judgement, now, retry_after_s=failure.retry_after_s)
        if judgement.offset_ns is not None:
            self._sign_offset_s += judgement.offset_ns / 1e9
        if pause.state is State.DENIED:
            self.keys.refused(self.source, self._credential)
            self._sign_offset_s = 0.0
        if judgement.verdict is Verdict.THROTTLED:
            with self.gate.changing() as allocator:
                allocator.throttled(self.source.id, dialed_at, failure.retry_after_s, now)
        if was_up:
            known_ns = self._known_ns()
            from_ns = known_ns if failure.kind in _ORDERLY else min(self._heard_ns, known_ns)
            self._outage = Outage(from_ns, judgement.cause)
            self.feed.closed()
        elif self._outage is not None and self._outage.cause == "start":
            self._outage = Outage(self._outage.from_ns, judgement.cause)
        self._tell_down(judgement, now_ns)
        self.observer.failed(self.source, judgement, failure)
        return pause.delay_s

    def _known_ns(self) -> int:
        """Return a moment at which the connection was open and had nothing unread.

        Not now: this process may have stood still, and found the end long after it came.
        """
        return max(self.feed.empty_ns, self._opened_ns)

    def _tell_down(self, judgement: Judgement, now_ns: int) -> None:
        """Record `down` once for each new reason of an outage, not for every attempt."""
        told = (judgement.verdict, judgement.cause)
        if told == self._told or self._outage is None:
            return
        self._told = told
        change = StateChange(
            "down",
            reason=judgement.reason,
            verdict=judgement.verdict,
            cause=judgement.cause,
            from_ns=self._outage.from_ns,
        )
        self.feed.deliver([change], now_ns)

    def _stopped(self) -> None:
        """Record the end: a source that was up is down from now, by our own doing."""
        now_ns = self.clock.now_ns()
        if self._outage is None:
            from_ns = self._known_ns()
            self._outage = Outage(from_ns, "stopped")
            self.feed.closed()
            change = StateChange("down", "hypermux stopped", None, "stopped", from_ns)
            self.feed.deliver([change], now_ns)
        self.lifecycle.stopped(trio.current_time())


_TRUST = {"verified": None, "unverified": "TLS certificate not verified", "off": None}
# An end that came in its place behind all data: nothing sent before it is missing. Of all other
# ends only what was heard before them is certain.
_ORDERLY = frozenset({FailureKind.CLOSE, FailureKind.EOF, FailureKind.PROTOCOL})
_PROBED = frozenset({State.DENIED, State.UNTRUSTED, State.MISCONFIGURED})
