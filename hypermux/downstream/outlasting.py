"""A disk that refuses is waited for: tries in between, what is said meanwhile, and when it ends.

The sequencer's call of the journal returns only when its records are written. So nothing behind
them is numbered; what arrives stays in the inbox, within its buffer, and what does not fit is
counted there for a gap as always. Afterwards a `state` record with the word `disk` says what was
refused, from when, for how long, and how many events found the buffer full.

It is given up, and the service ends with the disk's own exit code:

    at a stop, after LAST_TRIES_S      a shutdown has a deadline, and a full disk may have just been
                                       given room
    when OVERFULL times the buffer     what tells of losses is never refused a place: this is where
    is taken                           that ends
    when it cannot help                `ShownIsGone`

The next start finds what was shown, and tells a gap from the last checkpoint on.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from attrs import define, field

from hypermux.config.units import format_size
from hypermux.core.backoff import full_jitter
from hypermux.core.clock import StreamClock
from hypermux.core.recording import rfc3339
from hypermux.core.rendering import duration
from hypermux.downstream.horizon import Position
from hypermux.downstream.inbox import Inbox
from hypermux.downstream.journal import Journal
from hypermux.downstream.walk import RunSync
from hypermux.downstream.writing import ShownIsGone
from hypermux.model.errors import DiskFault
from hypermux.model.records import StateChange
from hypermux.model.status import Refusal

log = logging.getLogger("hypermux.disk")

# Between two tries: one costs a new file and, on a disk that hangs before it fails, a thread's
# patience. A full disk may have room again at any moment, so never longer than MAX.
RETRY_MIN_S, RETRY_MAX_S = 0.5, 10.0
LAST_TRIES_S = 3.0
OVERFULL = 2
# While it lasts it is said again: whoever looks at the log must find it.
REMIND_S = 60.0
# Sockets that were read to their end are noted so often, as in a round without work.
BEAT_S = 1.0


@define(eq=False)
class Outlasting:
    """Calls the journal for the sequencer. `pass_by_all` lets every reader of a socket run."""

    journal: Journal
    inbox: Inbox
    clock: StreamClock
    run_sync: RunSync
    rng: random.Random
    pass_by_all: Callable[[], Awaitable[None]]
    # What is to be recorded, now that it can be.
    told: list[StateChange] = field(factory=list)
    _reason: str = ""
    _since_ns: int = 0
    _tries: int = 0
    _lost_before: int = 0

    async def call(self, function: Callable[..., Position], *args: Any) -> Position:
        """Return what `function`, of the journal, returns; or what it shows when it works again.

        Raises DiskFault when the disk refuses to the end.
        """
        try:
            return await self.run_sync(function, *args)
        except ShownIsGone:
            raise
        except DiskFault as exc:
            self._begin(exc)
        try:
            return await self._outlast()
        finally:
            self._reason = ""

    def refusal(self) -> Refusal | None:
        """Return how it stands with a disk that refuses, None while none does."""
        if not self._reason:
            return None
        return Refusal(
            since=rfc3339(self._since_ns),
            reason=self._reason,
            tries=self._tries,
            waiting_records=self.journal.waiting,
            held_events=sum(share.in_flight for share in self.inbox.budget.shares.values()),
            lost_events=self._lost,
        )

    @property
    def _lost(self) -> int:
        lost = sum(share.lost for share in self.inbox.budget.shares.values())
        return lost - self._lost_before

    def _begin(self, fault: DiskFault) -> None:
        self._since_ns, self._tries = self.clock.now_ns(), 0
        self._lost_before = 0
        self._lost_before = self._lost
        self._say(fault)

    def _say(self, fault: DiskFault) -> None:
        self._reason = str(fault)
        log.warning(
            "%s; what arrives is held in memory, up to %s, until the disk takes it",
            fault,
            format_size(self.inbox.budget.size),
        )

    async def _outlast(self) -> Position:
        began_s = said_s = trio.current_time()
        last_try_s: float | None = None
        while True:
            await self._wait()
            now_s = trio.current_time()
            if self.inbox.closing and last_try_s is None:
                last_try_s = now_s + LAST_TRIES_S
            self._tries += 1
            try:
                position = await self.run_sync(self.journal.retry, now_s, self.clock.now_ns())
            except ShownIsGone:
                raise
            except DiskFault as exc:
                if last_try_s is not None and trio.current_time() >= last_try_s:
                    raise DiskFault(f"{exc}; {self._left_behind()}") from exc
                if self.inbox.budget.used > OVERFULL * self.inbox.budget.size:
                    raise DiskFault(f"{exc}, for too long; {self._left_behind()}") from exc
                if str(exc) != self._reason or now_s - said_s >= REMIND_S:
                    said_s = now_s
                    self._say(exc)
                    log.warning("so far %s", self._so_far(now_s - began_s))
                continue
            so_far = self._so_far(trio.current_time() - began_s)
            log.warning("the disk takes records again; %s", so_far)
            reason = f"{self._reason}; {so_far}"
            self.told.append(StateChange("disk", reason, from_ns=self._since_ns))
            return position

    async def _wait(self) -> None:
        """Wait for the next try. A stop is a reason to make it at once, and the next ones soon."""
        stopping = self.inbox.closing
        delay_s = full_jitter(
            0 if stopping else self._tries, min_s=RETRY_MIN_S, max_s=RETRY_MAX_S, rng=self.rng
        )
        until_s = trio.current_time() + delay_s
        while (left_s := until_s - trio.current_time()) > 0 and stopping == self.inbox.closing:
            with trio.move_on_after(min(left_s, BEAT_S)):
                if stopping:
                    await trio.sleep_forever()
                await self.inbox.closed.wait()
            # An outage that begins now is to begin now, though nothing is written.
            drained_ns = self.clock.now_ns()
            await self.pass_by_all()
            self.inbox.last_round_ns = drained_ns

    def _so_far(self, lasted_s: float) -> str:
        lost = self._lost
        text = f"nothing was written for {duration(round(lasted_s * 1e9))}"
        if lost:
            text += f", and {lost} events found the buffer full: each source's gap has its count"
        return text

    def _left_behind(self) -> str:
        refusal = self.refusal()
        assert refusal is not None
        return (
            f"since {refusal.since} nothing was written: neither {refusal.waiting_records} records "
            f"with a number, nor the {refusal.held_events} events in the buffer, nor the "
            f"{refusal.lost_events} that found it full; the next start tells a gap"
        )
