"""How a source's open link is replaced by a new one, or parted with.

A link is replaced because it is old (`core.rotation`), or because the credential is another. The
two are read side by side for a moment, and nothing is lost or doubled (`core.overlap`). That takes
a slot for the new one; where there is none, the old one's own is handed over, with a short gap.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio
from attrs import define

from hypermux.core.limiter import Rank
from hypermux.core.verdicts import Verdict
from hypermux.model.records import Gap
from hypermux.upstream.link import Link
from hypermux.upstream.linked import Linked
from hypermux.upstream.succession import Succession
from hypermux.upstream.telling import PARTINGS, PartingCause

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
class Replacing(Linked):
    """A source whose open link is replaced when that is due."""

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
            nursery.cancel_scope.cancel()
            await _gone(new)
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
        self._use_newer_key(new, now)
        self.observer.replaced(self.source)

    async def _retire(self, succession: Succession) -> None:
        """Read the old link to its end, and give its slot back."""
        old = succession.old
        try:
            old.part()
            await old.ended.wait()
            self.incoming.old_ended(succession, trio.current_time())
        except trio.Cancelled:
            await _gone(old)
            raise
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


async def _gone(link: Link) -> None:
    """Wait for the end of a link that is cut, whatever else is: a goodbye takes it seconds at most.

    To its server it is open until then, and so to the limits.
    """
    with trio.CancelScope(shield=True):
        await link.ended.wait()


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when one of them has returned; the others are cancelled."""

    async def run(wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(run, wait)
