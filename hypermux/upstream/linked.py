"""One source and its links: what they tell of themselves, and what that means for the source.

This is what the source's task (`upstream.connection`) works on; its methods without an underscore
in front are for everybody, the others for the classes that build on this one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf

import trio
from attrs import define, field

from hypermux.config.settings import Source
from hypermux.core.clock import StreamClock
from hypermux.core.correction import Corrections
from hypermux.core.intake import Feed
from hypermux.core.lifecycle import Lifecycle, State
from hypermux.core.limiter import Rank
from hypermux.core.quiet import Quiet
from hypermux.core.rotation import Rotation
from hypermux.core.verdicts import Verdict
from hypermux.model.accounts import Credential
from hypermux.upstream.counters import Counters
from hypermux.upstream.gate import Gate
from hypermux.upstream.incoming import Incoming
from hypermux.upstream.judging import Judge
from hypermux.upstream.link import Keys, Link, Observer, Transport
from hypermux.upstream.sifting import Sieve
from hypermux.upstream.telling import Outage, PartingCause, Teller
from hypermux.upstream.transport import Opened

log = logging.getLogger("hypermux.connection")


@define(eq=False)
class Linked:
    """A source as its links see it: their `Owner`. `outage` is what the journal knew at first.

    `pause_s` is how long it waits before its first dial, when the lifecycle it is given is in a
    pause. `awaits_successor`: its open connection is to be replaced, and waits for a permit to dial
    another. `ending` is the cause, and one plain sentence, that a source that is up is told down
    with when the task is cancelled. `next_try_s` is when a pause ends, monotonic seconds.
    """

    source: Source
    gate: Gate
    feed: Feed
    keys: Keys
    transport: Transport
    lifecycle: Lifecycle
    rotation: Rotation
    clock: StreamClock
    observer: Observer
    outage: Outage | None
    utc_ns: Callable[[], int]
    corrections: Corrections = field(factory=Corrections)
    counters: Counters = field(factory=Counters)
    pause_s: float = 0.0
    link: Link | None = None
    teller: Teller = field(init=False)
    quiet: Quiet = field(init=False)
    incoming: Incoming = field(init=False)
    ending: tuple[str, str] = ("stopped", "hypermux stopped")
    next_try_s: float | None = None
    awaits_successor: bool = False
    _judge: Judge = field(init=False)
    _parted: PartingCause | None = None  # why the link is ended by our own doing
    _parting: trio.Event = field(factory=trio.Event)
    _hurried: bool = False
    _mended: bool = False  # what may have been mended while it dialed is worth another look
    # The last that it was told of since it began to dial.
    _key: Credential | None = field(default=None, repr=False)
    _changed: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.quiet = Quiet(self.source.expect_event_within_s)
        self.teller = Teller(self.feed, self.clock, self.outage)
        sieve = Sieve(self.source, self.feed, self.clock, self.counters)
        self.incoming = Incoming(sieve, self.counters)
        self._judge = Judge(
            self.gate, self.keys, self.corrections, self.counters, self.teller, self.utc_ns
        )

    @property
    def given_up(self) -> bool:
        """Whether it was refused, and waits for a probe or for somebody to mend the cause."""
        return self.lifecycle.state in _PROBED

    @property
    def _address(self) -> str:
        return self.source.endpoint.address

    async def _wait_for_change(self, until_s: float = inf) -> None:
        """Wait for a change, or the end of a wait. Once a link proves healthy is a change, too.

        That is so when it has been open for long enough, whether it brings anything or not: the
        dead are found by pings and audits.
        """
        self._changed = trio.Event()
        healthy_at = self.lifecycle.healthy_at()
        with trio.move_on_at(until_s if healthy_at is None else min(until_s, healthy_at)):
            await self._changed.wait()
        healthy_at = self.lifecycle.healthy_at()
        if healthy_at is not None and trio.current_time() >= healthy_at:
            self.lifecycle.healthy(trio.current_time())

    def _dial(self, nursery: trio.Nursery) -> Link:
        """Begin the only link of the source."""
        self.lifecycle.dialing(trio.current_time())
        self.observer.dialing(self.source)
        self.link = self._begin(nursery)
        return self.link

    def _begin(self, nursery: trio.Nursery) -> Link:
        self._key = None
        offset_ns = self.corrections.of(self._address)
        link = Link(self.source, self, trio.current_time(), offset_ns)
        nursery.start_soon(link.run, self.keys, self.transport)
        return link

    def _fell_quiet(self) -> None:
        """No event came for too long over a connection that is open."""
        if self.quiet.fell(trio.current_time()):
            log.warning("%s: %s", self.source.id, self.teller.fell_quiet(self.quiet.since_ns))
        if self.source.on_quiet == "redial":
            self.part("quiet")

    async def _watch_quiet(self) -> None:
        """Go on noticing that no event comes, while something else is waited for."""
        while True:
            if trio.current_time() >= self.quiet.due_s:
                self._fell_quiet()
            await self._wait_for_change(self.quiet.due_s)

    def part(self, cause: PartingCause) -> None:
        """End the link for a reason of our own, and come back when a slot is free.

        Also one that is being dialed: it would hold its slot for hours. Only for a source that
        holds one.
        """
        if self._parted is None:
            self._parted = cause
            self._parting.set()
            self._changed.set()

    def _judged(self, link: Link) -> tuple[float, Rank]:
        """Tell the stream and the limiter that a link has ended.

        Returns the seconds to wait and the rank of the next dial.
        """
        self.quiet.closed(trio.current_time())
        if self._parted is not None and self.lifecycle.state is State.DRAINING:
            return 0.0, Rank.NEW if self._parted == "yielded" else Rank.LOST
        self._hurried, mended = False, self._mended
        self._mended = False
        judgement, failure = self._judge.judge(link, self.source)
        now = trio.current_time()
        pause = self.lifecycle.failed(judgement, now, retry_after_s=failure.retry_after_s)
        denied = judgement.verdict is Verdict.DENIED or pause.state is State.DENIED
        self.teller.down(link, judgement)
        self._hurried = mended and self.given_up
        self._hurried |= self._judge.heed(link, self.source, judgement, failure, denied=denied)
        self.observer.failed(self.source, judgement, failure)
        return pause.delay_s, Rank.PROBE if self.given_up else Rank.LOST

    def _use_newer_key(self, link: Link, now: float) -> None:
        """Have a link that has just opened replaced, if the key changed while it was dialed."""
        key, self._key = self._key, None
        if key is not None and key != link.credential:
            self.rotation.renew(now)

    def _hand_on_held(self) -> None:
        """What a succession held is received, and goes on like anything else that was."""
        if (succession := self.incoming.succession) is not None:
            self.incoming.old_ended(succession, trio.current_time())

    # Owner: what links tell, in plain calls.

    def link_asking(self, link: Link) -> None:
        """See `Owner`."""
        self.incoming.asking(link)

    def link_opened(self, link: Link, opened: Opened) -> None:
        """See `Owner`."""
        now = trio.current_time()
        link.opened_ns = link.heard_ns = self.clock.now_ns()
        resumption = opened.resumption
        if resumption is not None and resumption.complete and resumption.as_of_ns is not None:
            # There is no gap up to now, and the stream may have died while its engine was asked.
            link.heard_ns = resumption.as_of_ns
        if link is self.link:
            if self.lifecycle.state is not State.DRAINING:
                self.lifecycle.opened(now)
            # Otherwise it opened in the very moment in which it was parted with. What it brings
            # counts all the same: an engine's memory is told once.
            self.rotation.opened(now)
            self._use_newer_key(link, now)
            self._mended = False
            self.quiet.opened(now, link.opened_ns)
            self.teller.up(opened, self.incoming.remembered(opened))
            self.observer.opened(self.source)
        self._judge.accepted(link, self.source, opened)
        self._changed.set()

    def link_heard(self, link: Link) -> None:
        """See `Owner`."""
        link.heard_ns = self.counters.heard_ns = self.clock.now_ns()

    def link_replied(self, link: Link) -> None:
        """See `Owner`. When an outage began, the link's own bytes say alone."""
        self.counters.heard_ns = self.clock.now_ns()

    def link_received(self, link: Link, messages: list[bytes]) -> None:
        """See `Owner`."""
        if self.quiet.within_s < inf and messages:
            self._heard_event()
        self.incoming.received(link, messages, trio.current_time())

    def _heard_event(self) -> None:
        quiet = self.quiet
        since_ns = quiet.since_ns
        if quiet.heard(trio.current_time(), self.clock.now_ns()):
            log.info("%s: %s", self.source.id, self.teller.active(since_ns))

    def link_repeated(self, link: Link, count: int) -> None:
        """See `Owner`."""
        counters = self.counters
        counters.received += count
        counters.duplicate += count

    def link_recovered(self, link: Link, messages: list[bytes], unsure_from_ns: int | None) -> None:
        """See `Owner`."""
        self.teller.recovered(self.incoming.sieve.replayed(messages), unsure_from_ns)

    def link_ended(self, link: Link) -> None:
        """See `Owner`."""
        self._changed.set()


_PROBED = frozenset({State.DENIED, State.UNTRUSTED, State.MISCONFIGURED})
