"""One source's life: permit, link, verdict, wait, again.

A link is one connection (`upstream.link`). While one is open, another may take its place: because
it is old (`core.rotation`), or because the credential is another. The two are read side by side
for a moment, and nothing is lost or doubled (`core.overlap`).

The decisions are made in `core`; this task carries them out, and has the stream told of what it
means for the source (`upstream.telling`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from math import inf

import trio
from attrs import define, field

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core.clock import StreamClock
from hypermux.core.correction import Corrections
from hypermux.core.intake import Feed
from hypermux.core.lifecycle import Lifecycle, State
from hypermux.core.limiter import Rank
from hypermux.core.quiet import Quiet
from hypermux.core.rotation import Rotation
from hypermux.core.verdicts import Verdict
from hypermux.model.accounts import Credential
from hypermux.model.records import Gap
from hypermux.upstream.counters import Counters
from hypermux.upstream.gate import Gate
from hypermux.upstream.incoming import Incoming
from hypermux.upstream.judging import Judge
from hypermux.upstream.link import Keys, Link, Observer, Transport
from hypermux.upstream.sifting import Sieve
from hypermux.upstream.succession import Succession
from hypermux.upstream.telling import PARTINGS, Outage, PartingCause, Teller
from hypermux.upstream.transport import Opened

log = logging.getLogger("hypermux.connection")

# How long the old link may take to answer before the new one is let go on all the same. Nothing is
# lost by that; a few events may stand in another order. Without it a server that sends events and
# never pongs would have a source hold two slots for ever.
PONG_PATIENCE_S = 10.0
# A server may answer a ping ahead of events that it has queued, and drops them when it is told
# goodbye. Meanwhile the old link brings all that happens, so waiting for them costs nothing.
OVERTAKEN_S = 1.0
# How long a source waits for the rates to hand its slot over before it looks around again: for a
# slot that came free, for one who has none and wants its own. Over the patience of the limiter, by
# whose order its turn comes before that unless a server has all but stopped the dials.
HANDOVER_PATIENCE_S = 600.0


@define(eq=False)
class Connection:
    """The task of one source. `outage` is what the journal knew when it began.

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
    _key: Credential | None = field(default=None, repr=False)  # the last that it was told of
    _changed: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.quiet = Quiet(self.source.expect_event_within_s)
        self.teller = Teller(self.feed, self.clock, self.outage)
        sieve = Sieve(self.source, self.feed, self.clock, self.counters)
        self.incoming = Incoming(sieve, self.counters)
        self._judge = Judge(
            self.gate, self.keys, self.corrections, self.counters, self.teller, self.utc_ns
        )

    async def run(self) -> None:
        """Keep the source connected until cancelled.

        Raises whatever a fault of ours raises: then `faulted` is to be called.
        """
        self.teller.begin()
        try:
            await self._keep_connected()
        except Exception:
            raise
        except BaseException:  # cancelled
            self._stopped()
            raise

    async def _keep_connected(self) -> None:
        rank = Rank.NEW
        if self.pause_s:
            rank = Rank.LOST
            await self._pause(self.pause_s)
        while True:
            await self.gate.permit(self.source.id, self._address, rank)
            try:
                link = await self._connected()
                # The limiter hears of a refusal before the slot goes to the next in line.
                delay_s, rank = self._judged(link)
                # What was asked of this one is not asked of the next.
                self._parted, self._parting = None, trio.Event()
            finally:
                self.gate.release(self.source.id)
            await self._pause(delay_s)

    def faulted(self) -> tuple[Lifecycle, float]:
        """Tell that a fault of ours has ended the task.

        Returns the lifecycle of the next one, and the seconds that it is to pause first.
        """
        judgement, failure = self._judge.fault()
        link, succession = self.link, self.incoming.succession
        if link is not None:
            # What it did to what came last nobody knows: what was heard before is certain.
            link.failure = failure
            try:
                self._hand_on_held()
            except Exception:
                log.exception("%s: internal error", self.source.id)
                if succession is not None and succession.new.accepted is not None:
                    link.heard_ns = min(link.heard_ns, succession.new.opened_ns)
        self.teller.down(link, judgement)
        self.observer.failed(self.source, judgement, failure)
        now = trio.current_time()
        lifecycle = self.lifecycle.anew(now)
        return lifecycle, lifecycle.failed(judgement, now).delay_s

    def renew(self) -> None:
        """Use the credential as it is now: in a new link that takes the open one's place.

        A source that is paused after a failure tries again at once.
        """
        self._hurried = True
        if self.link is not None and self.link.open:
            self.rotation.renew(trio.current_time())
        self._changed.set()

    def key_changed(self, credential: Credential | None) -> None:
        """There is another key: use it, at once where one was or may have been refused."""
        self._key = credential
        link = self.link
        old = link is not None and link.open and link.credential != credential
        if old or self.given_up or self.lifecycle.state is State.BACKING_OFF:
            self.renew()

    @property
    def given_up(self) -> bool:
        """Whether it was refused, and waits for a probe or for somebody to mend the cause."""
        return self.lifecycle.state in _PROBED

    def part(self, cause: PartingCause) -> None:
        """End the link for a reason of our own, and come back when a slot is free.

        Also one that is being dialed: it would hold its slot for hours. Only for a source that
        holds one.
        """
        if self._parted is None:
            self._parted = cause
            self._parting.set()
            self._changed.set()

    def configure(self, source: Source) -> None:
        """Go by another configuration: what is done with events at once, the rest when dialing."""
        before, self.source = self.source, source
        self.incoming.sieve = Sieve(source, self.feed, self.clock, self.counters)
        if source.expect_event_within_s != before.expect_event_within_s:
            connected = self.link is not None and self.link.open
            within_s = source.expect_event_within_s
            self.quiet.retime(within_s, trio.current_time(), connected=connected)
            self._changed.set()

    def retime(self, settings: ConnectionSettings) -> None:
        """Go by other timings from the next failure or connection on."""
        pauses = settings.backoff
        self.lifecycle.retime(pauses.min_s, pauses.max_s, pauses.reset_after_s)
        self.rotation.retime(settings.rotate_after_s, pauses.min_s, pauses.max_s)

    async def _pause(self, delay_s: float) -> None:
        """Wait to the end of a pause, or until `renew` cuts it short."""
        until_s = self.next_try_s = trio.current_time() + delay_s
        while trio.current_time() < until_s and not self._hurried:
            await self._wait_for_change(until_s)
        self.next_try_s = None
        if self._hurried:
            self.lifecycle.mended(trio.current_time())
        else:
            self.lifecycle.waiting(trio.current_time())

    async def _wait_for_change(self, until_s: float = inf) -> None:
        self._changed = trio.Event()
        with trio.move_on_at(until_s):
            await self._changed.wait()

    async def _connected(self) -> Link:
        """Run a link, and those that take its place, until one ends without a successor."""
        async with trio.open_nursery() as nursery:
            link = self._dial(nursery)
            while await self._until_due(link):
                link = await self._replace(link, nursery)
            # A predecessor that still reads its end has nothing that this one did not bring.
            nursery.cancel_scope.cancel()
        return link

    def _dial(self, nursery: trio.Nursery) -> Link:
        """Begin the only link of the source."""
        self.lifecycle.dialing(trio.current_time())
        self.observer.dialing(self.source)
        self.link = self._begin(nursery)
        return self.link

    def _begin(self, nursery: trio.Nursery) -> Link:
        offset_ns = self.corrections.of(self._address)
        link = Link(self.source, self, trio.current_time(), offset_ns)
        nursery.start_soon(link.run, self.keys, self.transport)
        return link

    async def _until_due(self, link: Link) -> bool:
        """Wait until a link is to be parted with, or replaced if open; False: it has ended."""
        while not link.ended.is_set():
            now = trio.current_time()
            if link.open and now >= self.quiet.due_s:
                self._fell_quiet()
            if self._parted is not None or (link.open and now >= self.rotation.due_s):
                return True
            due_s = min(self.rotation.due_s, self.quiet.due_s) if link.open else inf
            await self._wait_for_change(due_s)
        return False

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

    async def _replace(self, link: Link, nursery: trio.Nursery) -> Link:
        """Do what is due to a link; return the one that the source has now."""
        if self._parted is None and self.gate.contested(self.source.id):
            self._parted = "yielded"
        if self._parted is not None:
            await self._part(link, self._parted)
            return link
        # One after another: the one replaced last may still be reading its end.
        last = self.incoming.succession
        while last is not None and not last.old.ended.is_set():
            await self._wait_for_change()
        if link.control is None:
            # Nothing ends such streams at an age, and none can be replaced without a gap.
            self.rotation.opened(trio.current_time())
            return link
        if await self._permit(link, self.rotation.patient_until(trio.current_time())):
            return await self._succeed(link, nursery)
        if self._parted is None and link.open:
            until_s = trio.current_time() + HANDOVER_PATIENCE_S
            if await self._permit(link, until_s, handover=True):
                # The slot stays with the source: it passes from one link to the next.
                await self._part(link, "rotation")
                self.lifecycle.waiting(trio.current_time())
                return self._dial(nursery)
        if self._parted is None and link.open:
            # It is none the worse for its age: what is due is looked at anew.
            log.warning(
                "%s: its connection is due to be replaced, and limits leave no room for a dial:"
                " it stays",
                self.source.id,
            )
        return link

    async def _permit(self, link: Link, until_s: float, *, handover: bool = False) -> bool:
        """Wait for a permit beside an open link; False: the link ends, or it took too long."""
        granted = False

        async def wait() -> None:
            nonlocal granted
            await self.gate.permit(self.source.id, self._address, Rank.ROTATION, handover=handover)
            granted = True

        self.awaits_successor = True
        try:
            with trio.move_on_at(until_s):
                await _first_of(link.ended.wait, self._parting.wait, self._watch_quiet, wait)
        except BaseException:  # a nursery gives a cancellation in a group
            if granted and not handover:
                self.gate.release(self.source.id)
            raise
        finally:
            self.awaits_successor = False
        if granted and (not link.open or self._parted is not None):
            if not handover:
                self.gate.release(self.source.id)
            return False
        return granted

    async def _part(self, link: Link, cause: PartingCause) -> None:
        """End a link by our own doing, and read it to its end."""
        self.lifecycle.draining(trio.current_time())
        link.part()
        await link.ended.wait()
        self.teller.drained(link, cause, PARTINGS[cause])

    async def _succeed(self, old: Link, nursery: trio.Nursery) -> Link:
        """Have a new link take an open one's place, on a slot of its own; return what is left."""
        new = self._begin(nursery)
        succession = self.incoming.succession = Succession(old, new)
        try:
            alive = await self._settled(old, new)
        except BaseException:  # a nursery gives a cancellation in a group
            self.gate.release(self.source.id)
            raise
        if new.ended.is_set() and not old.ended.is_set():
            self._replacement_failed(new)
            self.incoming.given_up(succession)
            self.gate.release(self.source.id)
            return old
        self.link = new
        if new.accepted is None:
            # The old one ended first: an outage like any other, and a dial is under way.
            self._judged(old)
            self.lifecycle.waiting(trio.current_time())
            self.lifecycle.dialing(trio.current_time())
        else:
            self._switch(succession, alive=alive)
        nursery.start_soon(self._retire, succession)
        return new

    async def _settled(self, old: Link, new: Link) -> bool:
        """Return when it is known which of two links is to stay.

        Says whether the old one was alive when the new one had been opened.
        """
        while not (new.accepted or new.ended.is_set() or old.ended.is_set()):
            await self._wait_for_change()
        if not old.ended.is_set() and new.open:
            assert old.control is not None  # looked at before
            ping = old.control.ping
            answered = False

            async def hear() -> None:
                nonlocal answered
                await ping()
                answered = True

            with trio.move_on_after(PONG_PATIENCE_S):
                await _first_of(old.ended.wait, new.ended.wait, hear)
            with trio.move_on_after(OVERTAKEN_S):
                await _first_of(old.ended.wait, new.ended.wait)
            return answered or old.heard_ns > new.opened_ns
        return False

    def _switch(self, succession: Succession, *, alive: bool) -> None:
        """The new link is the source's one from now on: let go what was held of it."""
        old, new, now = succession.old, succession.new, trio.current_time()
        ended = old.ended.is_set()
        if ended:
            self.incoming.old_ended(succession, now)
        else:
            self.incoming.decided(succession)
        if ended or not alive:
            # Whether the server counted the new one in before the old one's end, nobody knows; nor
            # since when it is dead, if it was not heard any more.
            gap = Gap(old.heard_ns, max(old.heard_ns, new.opened_ns), "rotation", "possible")
            self.feed.deliver([gap], self.clock.now_ns(), more=new.more)
        self.lifecycle.replaced(now)
        self.rotation.opened(now)
        key, self._key = self._key, None
        if key is not None and key != new.credential:
            self.rotation.renew(now)  # it changed again while the new link was dialed
        self.observer.replaced(self.source)

    async def _retire(self, succession: Succession) -> None:
        """Read the old link to its end, and give its slot back."""
        try:
            succession.old.part()
            await succession.old.ended.wait()
            self.incoming.old_ended(succession, trio.current_time())
        finally:
            self.gate.release(self.source.id)

    def _replacement_failed(self, link: Link) -> None:
        """The old link stays. Tell the limiter, and when to try again."""
        now = trio.current_time()
        judgement, failure = self._judge.judge(link, self.source)
        denied = judgement.verdict is Verdict.DENIED
        another = self._judge.heed(link, self.source, judgement, failure, denied=denied)
        self.rotation.failed(judgement.verdict, now, retry_after_s=failure.retry_after_s)
        if another:
            self.rotation.renew(now)
        log.warning(
            "%s: a new connection did not take the old one's place, which stays: %s",
            self.source.id,
            judgement.reason,
        )

    def _judged(self, link: Link) -> tuple[float, Rank]:
        """Tell the stream and the limiter that a link has ended.

        Returns the seconds to wait and the rank of the next dial.
        """
        self.quiet.closed(trio.current_time())
        if self._parted is not None and self.lifecycle.state is State.DRAINING:
            return 0.0, Rank.NEW if self._parted == "yielded" else Rank.LOST
        self._hurried = False
        judgement, failure = self._judge.judge(link, self.source)
        now = trio.current_time()
        pause = self.lifecycle.failed(judgement, now, retry_after_s=failure.retry_after_s)
        denied = judgement.verdict is Verdict.DENIED or pause.state is State.DENIED
        self.teller.down(link, judgement)
        self._hurried |= self._judge.heed(link, self.source, judgement, failure, denied=denied)
        self.observer.failed(self.source, judgement, failure)
        return pause.delay_s, Rank.PROBE if self.given_up else Rank.LOST

    @property
    def _address(self) -> str:
        return self.source.endpoint.address

    def _stopped(self) -> None:
        """Record the end: a source that was up is down from now, by our own doing."""
        self._hand_on_held()
        if self.link is not None:  # otherwise it was never up
            self.teller.drained(self.link, *self.ending)
        self.lifecycle.stopped(trio.current_time())

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
            self.quiet.opened(now, link.opened_ns)
            self.teller.up(opened, self.incoming.remembered(opened))
            self.observer.opened(self.source)
        self._judge.accepted(link, self.source, opened)
        self._changed.set()

    def link_heard(self, link: Link) -> None:
        """See `Owner`. A peer is healthy when it has been alive for long enough."""
        link.heard_ns = self.counters.heard_ns = self.clock.now_ns()
        if link is self.link:
            healthy_at = self.lifecycle.healthy_at()
            if healthy_at is not None and trio.current_time() >= healthy_at:
                self.lifecycle.healthy(trio.current_time())

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


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when one of them has returned; the others are cancelled."""

    async def run(wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(run, wait)


_PROBED = frozenset({State.DENIED, State.UNTRUSTED, State.MISCONFIGURED})
