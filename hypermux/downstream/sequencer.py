"""Where all sources meet: the inbox, the merge, the numbers and the commit.

One task does it all in rounds: take what arrived, merge it, number and encode what is released,
commit it, and only then show it. What arrives during a commit is the next round's, however long
the disk may take or refuse (`downstream.outlasting`).

How a socket is known to have been empty: every reader hands over what it read before it waits
again, so a reader that has run since `drained` and did not fill its read buffer has left nothing
older in its socket. A few passes of the scheduler after taking the time are enough for every
reader whose socket was readable by then to have run (`_pass_by_all`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import trio
from attrs import define, field

from hypermux.core.clock import StreamClock
from hypermux.core.intake import ITEM_OVERHEAD, Tally
from hypermux.core.merging import Merger, Released
from hypermux.core.recording import Encoder
from hypermux.downstream.horizon import Horizon, Position
from hypermux.downstream.inbox import Connectivity, Inbox
from hypermux.downstream.journal import Journal
from hypermux.downstream.outlasting import Outlasting
from hypermux.downstream.reading import BLOCK
from hypermux.downstream.walk import RunSync
from hypermux.model.accounts import SourceId
from hypermux.model.records import Checkpoint, Event, Item, StateChange

log = logging.getLogger("hypermux.sequencer")

# The shortest time between two rounds. Events wait tens of milliseconds for each other anyway;
# a round for each of many quiet sources would spend a core on system calls and syncs.
ROUND_S = 0.005
# On a busy loop rounds come less often, so that waking every reader does not fill it: a round
# every PACE times as long as the readers of the last one took.
PACE = 4.0
MAX_ROUND_S = 0.05
# The longest. How exactly the beginning of an outage is known on a quiet system: a socket that
# was empty and open in one round cannot have ended before it.
HEARTBEAT_S = 1.0
# Records encoded between two awaits: about 10 ms of work, so that pings are answered in time.
CHUNK = 4096


@define(eq=False)
class Sequencer:
    """Merges, numbers and commits; the only writer of the journal and of the horizon."""

    inbox: Inbox
    merger: Merger[Item]
    journal: Journal
    horizon: Horizon
    clock: StreamClock
    run_sync: RunSync
    checkpoint_interval_s: float
    # What the service itself has to say, in this order; first of all that it runs.
    told: list[StateChange] = field(factory=list)
    rng: random.Random = field(factory=random.Random)
    # When a source's upstream was last asked what it remembers, and all of it handed on before a
    # moment; None: not known. For the next start, on the checkpoints.
    looked_ns: Callable[[SourceId, int], int | None] = lambda source, through_ns: None
    disk: Outlasting = field(init=False)
    _encoder: Encoder = field(factory=Encoder)
    _checkpoint_at_s: float = 0.0
    _last_at_ns: int = 0
    _settling: dict[trio.Event, int] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.disk = Outlasting(
            self.journal, self.inbox, self.clock, self.run_sync, self.rng, _pass_by_all, self.told
        )

    async def run(self) -> None:
        """Work until the inbox is closed and everything in it is durable and shown.

        Raises DiskFault when the disk refuses to the end.
        """
        self._checkpoint_at_s = trio.current_time() + self.checkpoint_interval_s
        next_round_s = trio.current_time()
        await self._write_told()
        while not self.inbox.closing:
            with trio.move_on_at(self._next_wake_s()):
                await self.inbox.wait()
            # Rounds are paced; a shutdown waits MAX_ROUND_S for it at the most.
            await trio.sleep_until(next_round_s)
            await self._round()
            ended_s = trio.current_time()
            await _pass_by_all()
            pass_s = trio.current_time() - ended_s
            next_round_s = ended_s + min(max(ROUND_S, PACE * pass_s), MAX_ROUND_S)
        await self._write_told()
        self._take_arrivals()
        await self._write(self.merger.flush())
        await self._write_told()
        await self._write_own(StateChange("stop"))
        await self._write_own(Checkpoint(self.clock.now_ns()))
        self._show(await self.disk.call(self.journal.sync))

    def tell(self, change: StateChange) -> None:
        """Record what happened to the service itself, with the next round."""
        self.told.append(change)
        self.inbox.wake()

    async def settle(self, moment_ns: int) -> None:
        """Return when all that was received before `moment_ns` is shown, and not before then.

        A full disk or a source that is never read empty can make that long.
        """
        # A round that begins too early would be for nothing, and the next may be far.
        await trio.sleep(self.clock.seconds_until(moment_ns) + 0.001)
        settled = trio.Event()
        self._settling[settled] = moment_ns
        self.inbox.wake()
        try:
            await settled.wait()
        finally:
            del self._settling[settled]

    def _tell_settled(self, through_ns: int) -> None:
        if self.horizon.position.seq == self.journal.next_seq - 1:
            for settled, moment_ns in self._settling.items():
                if through_ns >= moment_ns:
                    settled.set()

    async def _write_told(self) -> None:
        while self.told:
            await self._write_own(self.told.pop(0))

    def _next_wake_s(self) -> float:
        wake = min(self._checkpoint_at_s, trio.current_time() + HEARTBEAT_S)
        deadline_ns = self.merger.next_deadline_ns()
        if deadline_ns is not None:
            wake = min(wake, trio.current_time() + self.clock.seconds_until(deadline_ns))
        sync_due_s = self.journal.sync_due_s
        return wake if sync_due_s is None else min(wake, sync_due_s)

    async def _round(self) -> None:
        # First of all: a machine that slept finds its clock behind when it wakes.
        step_ns = self.clock.check_wall()
        if step_ns is not None:
            reason = f"the wall clock was stepped by {step_ns / 1e9:+.3f} s"
            await self._write_own(StateChange("clock", reason, offset_ns=step_ns))
        await self._write_told()
        drained_ns = self.clock.now_ns()
        await _pass_by_all()
        self._take_arrivals()
        self.inbox.last_round_ns = drained_ns
        self.merger.drained(drained_ns, except_for=self.inbox.busy)
        released = self.merger.release(self.clock.now_ns())
        await self._write(released)
        self.inbox.tell_episodes(self.clock.now_ns())
        for source, offset_ns in self.merger.take_offset_changes():
            reason = f"its clock is {-offset_ns / 1e9:+.3f} s off ours; ordered accordingly"
            change = StateChange("clock", reason, offset_ns=offset_ns)
            self.inbox.feed(source).deliver([change], self.clock.now_ns())
        now_s = trio.current_time()
        sync_due_s = self.journal.sync_due_s
        if sync_due_s is not None and now_s >= sync_due_s:
            self._show(await self.disk.call(self.journal.sync, now_s))
        if now_s >= self._checkpoint_at_s:
            through_ns = self._through_ns(drained_ns)
            # One that goes back, for what is still to be told, makes every source's outage longer
            # after a crash: it is made good as soon as that is told.
            back = through_ns < self.journal.coverage.through_ns
            pause_s = HEARTBEAT_S if back else self.checkpoint_interval_s
            self._checkpoint_at_s = now_s + min(pause_s, self.checkpoint_interval_s)
            looked_ns = self.journal.coverage.looked_ns(lambda s: self.looked_ns(s, through_ns))
            await self._write_own(Checkpoint(through_ns, looked_ns))
            for told in await self.run_sync(self.journal.tend, self.clock.now_ns()):
                log.warning("%s", told)
                await self._write_own(StateChange("disk", told))
        if self._settling:
            self._tell_settled(self._through_ns(drained_ns))

    def _take_arrivals(self) -> None:
        merger = self.merger
        for arrival in self.inbox.take():
            source = arrival.source
            if isinstance(arrival, Connectivity):
                if arrival.live:
                    merger.opened(source)
                    if arrival.offset_ns is not None:
                        merger.guess_offset(source, arrival.offset_ns)
                else:
                    merger.closed(source)
                continue
            received_ns = arrival.received_ns
            for item in arrival.items:
                if isinstance(item, Event):
                    live = not item.replayed
                    merger.push(source, item, item.time_ns, received_ns, live=live)
                else:
                    merger.push(source, item, None, received_ns, live=False)

    def _through_ns(self, drained_ns: int) -> int:
        """Return the moment before which everything received is in the journal.

        After a crash the outage of a source that is up begins there: a loss or an outage that is
        not yet written must not lie before it.
        """
        moments = [drained_ns, *self.inbox.busy.values()]
        held_since = self.merger.oldest_received_ns
        lost_since = self.inbox.budget.oldest_episode_ns
        moments += [since for since in (held_since, lost_since) if since is not None]
        known = self.journal.coverage.sources
        for source, item in self.inbox.untold.values():
            if item.from_ns is None or (isinstance(item, StateChange) and item.state != "down"):
                continue  # it tells of no outage
            # A further `down` of an outage that the journal knows changes nothing.
            if not (source in known and known[source].in_outage):
                moments.append(item.from_ns)
        return min(moments)

    async def _write(self, released: list[Released[Item]]) -> None:
        for start in range(0, len(released), CHUNK):
            await self._commit(released[start : start + CHUNK])

    async def _commit(self, released: list[Released[Item]]) -> None:
        journal, encode, coverage = self.journal, self._encoder.encode, self.journal.coverage
        sources = coverage.to_bytes() if journal.rotation_due else b""
        first_seq = seq = journal.next_seq
        durable: int | None = journal.durable_seq
        lines = []
        tallies: dict[SourceId, Tally] = {}
        for r in released:
            source, item = r.source, r.payload
            lines.append(
                encode(
                    seq,
                    item,
                    source=source,
                    at_ns=r.at_ns,
                    received_ns=r.received_ns,
                    late=r.late,
                    durable=durable,
                )
            )
            coverage.apply(source, item, r.at_ns)
            tally = tallies.get(source)
            if tally is None:
                tally = tallies[source] = Tally()
            if isinstance(item, Event):  # Tally.add(), inline
                tally.events += 1
                tally.weight += ITEM_OVERHEAD + len(item.raw)
            else:
                tally.add(item)
            durable = None
            seq += 1
        self._last_at_ns = max(self._last_at_ns, released[-1].at_ns)
        ats = [r.at_ns for r in released]
        span = min(ats), max(ats)
        await self._commit_lines(b"".join(lines), first_seq, seq - 1, sources, span)
        for r in released if self.inbox.untold else ():
            self.inbox.untold.pop(id(r.payload), None)
        for source, tally in tallies.items():
            self.inbox.budget.recorded(source, tally)

    async def _write_own(self, item: StateChange | Checkpoint) -> None:
        """Write a record of the service itself; it takes the place behind the last released one."""
        journal = self.journal
        sources = journal.coverage.to_bytes() if journal.rotation_due else b""
        now_ns = self.clock.now_ns()
        seq, at_ns = journal.next_seq, self._last_at_ns or now_ns
        line = self._encoder.encode(
            seq,
            item,
            source=None,
            at_ns=at_ns,
            received_ns=now_ns,
            late=False,
            durable=journal.durable_seq,
        )
        journal.coverage.apply(None, item, at_ns)
        await self._commit_lines(line, seq, seq, sources, (at_ns, at_ns))

    async def _commit_lines(
        self, data: bytes, first_seq: int, last_seq: int, sources: bytes, span: tuple[int, int]
    ) -> None:
        now_s = trio.current_time()
        commit = self.journal.commit
        position = await self.disk.call(commit, data, first_seq, last_seq, sources, now_s, span)
        # Readers may share this batch only when it is exactly what is shown now.
        alone = self.horizon.position.seq == first_seq - 1 and position.seq == last_seq
        self._show(position, data if alone and len(data) <= BLOCK else None)

    def _show(self, position: Position, data: bytes | None = None) -> None:
        if position.seq > self.horizon.position.seq:
            self.horizon.publish(position, data)


async def _pass_by_all() -> None:
    """Let every task run that is ready now, or whose socket is readable now.

    One pass finds the sockets that are readable, the second runs their readers; over TLS the
    bytes come up through two more tasks' turns of the same reader.
    """
    for _ in range(4):
        await trio.lowlevel.checkpoint()
