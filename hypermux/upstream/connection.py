"""One source's life: permit, link, verdict, wait, again.

A link is one connection (`upstream.link`). While one is open, another may take its place
(`upstream.replacing`). What a link tells of itself is taken in by `upstream.linked`.

The decisions are made in `core`; this task carries them out, and has the stream told of what it
means for the source (`upstream.telling`).
"""

from __future__ import annotations

import logging
from math import inf

import trio
from attrs import define

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core.lifecycle import Lifecycle, State
from hypermux.core.limiter import Rank
from hypermux.model.accounts import Credential
from hypermux.upstream.link import Link
from hypermux.upstream.replacing import Replacing
from hypermux.upstream.sifting import Sieve

log = logging.getLogger("hypermux.connection")


@define(eq=False)
class Connection(Replacing):
    """The task of one source."""

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

    def look_again(self) -> None:
        """What the source was refused for may be mended, or what a dial under way will be."""
        if self.given_up:
            self.renew()
        elif self.lifecycle.state is State.DIALING:
            self._mended = True

    def key_changed(self, credential: Credential | None, *, renewed: bool = False) -> None:
        """There is another key: use it, at once where one was or may have been refused.

        `renewed`: it took the place of one that was about to end. Whoever grants such keys by the
        hour grants them to the refused too, which are not to try by the hour.
        """
        self._key = credential
        link = self.link
        old = link is not None and link.open and link.credential != credential
        state = self.lifecycle.state
        waits = state is State.BACKING_OFF or self.given_up
        if old or (waits and not (renewed and state is State.DENIED)):
            self.renew()

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
        self._changed.set()

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

    async def _connected(self) -> Link:
        """Run a link, and those that take its place, until one ends without a successor."""
        async with trio.open_nursery() as nursery:
            link = self._dial(nursery)
            while await self._until_due(link):
                link = await self._replace(link, nursery)
            # A predecessor that still reads its end has nothing that this one did not bring.
            nursery.cancel_scope.cancel()
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

    def _stopped(self) -> None:
        """Record the end: a source that was up is down from now, by our own doing."""
        self._hand_on_held()
        if self.link is not None:  # otherwise it was never up
            self.teller.drained(self.link, *self.ending)
        self.lifecycle.stopped(trio.current_time())
