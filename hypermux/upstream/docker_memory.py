"""What an engine remembers, against what was received: the resume of a connection, and its audits.

While a resume is under way the live stream is read and held: nothing is in neither of the two.
What cannot be found out (no connection free in time, no answer) makes the resume incomplete, never
longer: its gap says so. An audit asks again, now and then, whether the stream that looks so quiet
is whole; see `core.resume`. After a resume that is incomplete the engine's containers say what
they can of the outage; see `core.containers`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from random import Random

import trio
from attrs import define, field

from hypermux.config.settings import Source
from hypermux.core import containers
from hypermux.core.containers import Implied, Inspected
from hypermux.core.recollection import Recollection
from hypermux.core.resume import (
    AUDIT_EVENTS,
    RING,
    Audit,
    AuditTimes,
    Finding,
    Resume,
    compare,
    digest_of,
    find,
    first_anchor,
    lost_more,
)
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.model.records import Event, Unparsed
from hypermux.upstream import answers
from hypermux.upstream.aside import Aside, NoPermit
from hypermux.upstream.docker_engine import Engine, is_podman
from hypermux.upstream.docker_snapshot import Memory, Reading, Snapshot
from hypermux.upstream.sifting import excluded
from hypermux.upstream.transport import Listener, Resumption

log = logging.getLogger("hypermux.docker")

# How long a source waits for its second connection before it goes on with a gap. A slot that is
# not there now will hardly be there soon; a rate is kept by seconds.
RESUME_PATIENCE_S = 5.0
# An audit can come later as well.
AUDIT_PATIENCE_S = 5.0
# A ring takes 3 to 13 ms. An engine that needs that long for a ping is not well.
ANSWER_S = 10.0
# For the containers, 2 to 5 ms each: hundreds. The rest stays as the gap has it.
LIST_S = 10.0
# What is missing from a stream may be under way that long, over the slowest lines.
SECOND_LOOK_S = 5.0
# A live stream is held for a few answers of its engine; in bytes, many thousand events.
MAX_HELD = 4 << 20

_SECOND = 1_000_000_000
# A clock that a `Date`, which has whole seconds, shows to be that much off is corrected for.
_CLOCKS_AGREE_NS = 2 * _SECOND
# An event that was on its way when a connection broke is older than the outage.
_UNDER_WAY_NS = _SECOND // 2


@define(eq=False)
class Keeper:
    """Keeps one connection whole. `reading` decodes messages to what is recorded of them."""

    source: Source
    memory: Memory
    aside: Aside
    reading: Reading
    now_ns: Callable[[], int]
    rng: Random
    max_message_size: int
    _podman: bool = False
    _opened_ns: int = 0  # the engine's clock when it answered, up to a second less
    _offset_ns: int = 0  # what to take from our clock for the engine's; up to a second too much
    _held: list[bytes] = field(factory=list)
    _held_size: int = 0
    _hurry: trio.CancelScope = field(factory=trio.CancelScope)
    _times: AuditTimes = field(init=False)
    _many: trio.Event = field(factory=trio.Event)
    _audit: Audit | None = None
    _pings: bool = True
    # Since when the stream before this one may have lost events that nobody remembers.
    unsure_from_ns: int | None = None
    _looked: frozenset[bytes] | None = None  # what the last look saw; None: there was none
    _looked_ns: int = 0  # when that was, or when the engine answered

    def __attrs_post_init__(self) -> None:
        self._times = AuditTimes(self.rng)

    @property
    def _recollection(self) -> Recollection:
        return self.memory.recollection

    # The live stream.

    def heard(self, at_ns: int | None = None) -> None:
        """Note that the open connection lives, or was known to live at `at_ns`."""
        self.memory.heard_ns = self.now_ns() if at_ns is None else at_ns

    def hold(self, messages: list[bytes]) -> None:
        """Keep live messages until `release`; too many, and the resume ends with what it has."""
        self._held += messages
        self._held_size += sum(map(len, messages))
        if self._held_size > MAX_HELD:
            self.hurry()

    def hurry(self) -> None:
        """Have a resume end at once, with what it has."""
        self._hurry.cancel()

    def release(self) -> list[bytes]:
        """Return what was held, and hold nothing more."""
        held, self._held = self._held, []
        return held

    def arrived(self, messages: list[bytes]) -> list[bytes]:
        """Return those of the live messages that were not emitted before."""
        memory = self.memory
        memory.expected.forget(trio.current_time())
        kept = []
        for message, item in zip(messages, self.reading(messages), strict=True):
            digest = digest_of(item)
            if memory.expected.drops(digest):
                continue
            memory.recollection.note(item, digest)
            if self._audit is not None:
                self._audit.arrived(digest)
            kept.append(message)
        before = self._times.received_since
        self._times.received(len(messages))
        if before < AUDIT_EVENTS <= self._times.received_since:
            self._many.set()
        return kept

    # The resume.

    async def resume(self, headers: answers.Headers) -> Resumption:
        """Find out what the outage held; `headers` are those of the live stream's answer."""
        self._podman = is_podman(headers)
        date_ns = answers.date_ns(headers)
        self._looked_ns = self.now_ns()
        self._opened_ns = self.now_ns() if date_ns is None else date_ns
        self._offset_ns = self.now_ns() - self._opened_ns
        snapshot: Snapshot | None = None
        synthetic: list[bytes] = []
        why = "too much came meanwhile, or the stream ended"
        try:
            with self._hurry:
                async with self.aside(RESUME_PATIENCE_S, urgent=True) as stream:
                    why = "the engine did not answer"
                    engine = Engine(self.source, stream, self.max_message_size)
                    with trio.move_on_after(ANSWER_S):
                        snapshot = await self._snapshot(engine)
                    if snapshot is not None and self._recollection.seen.known:
                        found = self._compare(snapshot)
                        if not found.complete:
                            synthetic = await self._list(engine, snapshot, found)
        except (NoPermit, ConnectionFailed) as exc:
            why = str(exc)
        if snapshot is None:
            log.info("%s: what the engine remembers could not be read: %s", self.source.id, why)
            return Resumption()
        return self._settle(snapshot, synthetic)

    def _compare(self, snapshot: Snapshot) -> Resume:
        return compare(self._recollection.seen, snapshot.digests, whole=not self._podman)

    def _settle(self, snapshot: Snapshot, synthetic: list[bytes]) -> Resumption:
        """Take for told what is about to be."""
        recollection, seen = self._recollection, self._recollection.seen
        found = self._compare(snapshot)
        known, new = seen.known, set(found.new)
        looked_ns = recollection.looked_ns
        # Behind filters, what else the ring holds cannot be counted.
        full = self._full(snapshot) or bool(self.source.filters.query())
        if full and looked_ns and not self._podman:
            kept = [not excluded(self.source, item) for item in snapshot.items]
            if lost_more(found, kept, snapshot.times, looked_ns - self._offset_ns):
                self.unsure_from_ns = looked_ns
        left = seen.counts()
        for item in self.reading(synthetic):
            if isinstance(item, Event):
                item.synthetic = True
            recollection.note(item)
        settled = []
        for place, digest in enumerate(snapshot.digests):
            if place in new:
                _apply(recollection.implied, snapshot.items[place])
                settled.append(place)
            elif left[digest] > 0:
                left[digest] -= 1
                settled.append(place)
            elif not self._podman or not known:
                settled.append(place)  # from before our time
        times = snapshot.times
        seen.settle([snapshot.digests[p] for p in settled], [times[p] for p in settled])
        if known:
            seen.anchor = snapshot.digests[-1] if snapshot.digests else b""
        else:
            seen.anchor = first_anchor(snapshot.digests, snapshot.times, self._opened_ns)
            recollection.since_ns = self.now_ns()
        self.memory.expected.add((snapshot.digests[p] for p in found.new), trio.current_time())
        self._saw(snapshot)
        return Resumption(
            found.complete,
            [snapshot.messages[place] for place in found.new],
            synthetic,
            recollection.anchor(first=not known),
            snapshot.asked_ns,
        )

    async def _snapshot(self, engine: Engine) -> Snapshot:
        """Read what the engine remembers. Raises ConnectionFailed."""
        since_ns = self._recollection.seen.earliest_ns
        if since_ns is None:
            since_ns = self.memory.heard_ns - self._offset_ns
        asked_ns = self.now_ns()
        messages = await engine.events(podman=self._podman, since_ns=max(0, since_ns))
        items = self.reading(messages)
        if self._podman:  # it was asked by the second
            pairs = [
                (message, item)
                for message, item in zip(messages, items, strict=True)
                if not isinstance(item, Event) or (item.time_ns or since_ns) >= since_ns
            ]
            messages = [message for message, _ in pairs]
            items = [item for _, item in pairs]
        return Snapshot(asked_ns, messages, items, [digest_of(item) for item in items])

    def _saw(self, snapshot: Snapshot) -> None:
        self._looked, self._looked_ns = frozenset(snapshot.digests), snapshot.asked_ns
        self.memory.looked(snapshot.asked_ns, self.now_ns())

    def _full(self, snapshot: Snapshot) -> bool:
        return not self._podman and len(snapshot.digests) >= RING

    async def _list(self, engine: Engine, snapshot: Snapshot, found: Resume) -> list[bytes]:
        """Return events for what the containers show and neither journal nor ring tell."""
        base = self._recollection.implied.copy()
        for place in found.new:
            _apply(base, snapshot.items[place])
        agree = abs(self._offset_ns) <= _CLOCKS_AGREE_NS
        offset_ns = 0 if agree else self._offset_ns
        slack_ns = _UNDER_WAY_NS if agree else _CLOCKS_AGREE_NS
        outage = containers.Outage(
            max(self.memory.heard_ns - slack_ns, self._recollection.since_ns) - offset_ns,
            self._opened_ns + _SECOND,
        )
        before = base.copy()
        for item in self.reading(self._held):
            _apply(before, item)
        try:
            with trio.move_on_after(LIST_S) as slow:
                listed = await engine.containers()
                looks: dict[str, Inspected] = {}
                now_ns = self.now_ns() - offset_ns
                # No question is broken off: the connection takes another one behind it.
                until_s, too_many = trio.current_time() + LIST_S / 2, False
                for key in containers.to_inspect(
                    listed, before, from_ns=outage.from_ns, now_ns=now_ns
                ):
                    if too_many := trio.current_time() >= until_s:
                        break
                    look = await engine.inspect(key)
                    if look is not None:
                        looks[key] = look
                # Read after the list: what that shows is in here, or was lost before.
                after = await self._snapshot(engine)
        except ConnectionFailed as exc:
            log.warning("%s: its containers could not be listed: %s", self.source.id, exc)
            return []
        if slow.cancelled_caught or too_many:
            log.warning("%s: there was no time to look at all its containers", self.source.id)
        if slow.cancelled_caught:
            return []
        told, left = base.copy(), {*after.digests}
        for item in after.items:
            _apply(told, item)
        for item in self.reading(self._held):
            if digest_of(item) not in left:
                _apply(told, item)
        happenings = containers.missing(listed, looks, before, told, outage)
        present = {container.id for container in listed}
        for key in before.containers.keys() - present:
            # Gone, also where a filter keeps us from saying so.
            self._recollection.implied.containers.pop(key, None)
        return containers.selected(happenings, self.source.filters)

    # Audits.

    async def watch(self, listener: Listener) -> None:
        """Audit the open connection for ever. Raises ConnectionFailed when it is dead."""
        self._times.opened(trio.current_time())
        while True:
            while (due_s := self._times.due_s) > trio.current_time():
                self._many = trio.Event()
                with trio.move_on_at(due_s):
                    await self._many.wait()
            await self._look_again(listener)

    async def _look_again(self, listener: Listener) -> None:
        seen = self._recollection.seen
        audit = self._audit = Audit.begin(seen)
        try:
            try:
                snapshot = await self._question(listener)
            except NoPermit:
                self._times.put_off(trio.current_time())
                return
            missing = audit.look(snapshot.digests, whole=not self._podman)
            if missing and seen.known:
                await trio.sleep(SECOND_LOOK_S)
                missing = audit.look(snapshot.digests, whole=not self._podman)
        except ConnectionFailed as exc:
            if exc.failure.kind is FailureKind.SILENT:
                raise
            log.info("%s: could not be audited: %s", self.source.id, exc)
            self._times.put_off(trio.current_time())
            return
        finally:
            self._audit = None
        if not seen.known:
            # Nothing could be read when it opened: what is old is not told apart from what is not.
            self._settle_in(snapshot, missing, audit.arrivals)
            seen.anchor = snapshot.digests[-1] if snapshot.digests else b""
            self._recollection.since_ns = self.now_ns()
        else:
            if missing:
                self._tell(missing, snapshot, listener)
            self._settle_in(snapshot, missing, audit.arrivals)
        self._saw(snapshot)
        self._times.done(trio.current_time())

    def _tell(self, missing: tuple[int, ...], snapshot: Snapshot, listener: Listener) -> None:
        """Hand on what the stream did not bring; raises ConnectionFailed when it brings nothing."""
        count = len(missing)
        dead = find(count, self._times.received_since) is Finding.DEAD
        if dead and self._looked is not None:  # otherwise they are from before the connection
            text = f"the event stream is dead: the engine has {count} events that never came"
            raise ConnectionFailed(Failure(FailureKind.SILENT, text))
        log.warning("%s: %d events did not come over the stream", self.source.id, count)
        for place in missing:
            _apply(self._recollection.implied, snapshot.items[place])
        self.memory.expected.add((snapshot.digests[p] for p in missing), trio.current_time())
        turned = self._turned(snapshot)
        messages = [snapshot.messages[place] for place in missing]
        listener.recovered(messages, unsure_from_ns=self._looked_ns if turned else None)

    def _turned(self, snapshot: Snapshot) -> bool:
        """Say whether the ring has turned over since the last look: who knows what else is lost."""
        if self._looked:
            return self._looked.isdisjoint(snapshot.digests)
        # That one saw an empty ring, or there was none: does a full ring reach back to it?
        oldest_ns = snapshot.times[0]
        reaches = oldest_ns is not None and oldest_ns < self._looked_ns - self._offset_ns
        return self._full(snapshot) and not reaches

    def _settle_in(self, snapshot: Snapshot, missing: Sequence[int], newer: int) -> None:
        """Remember what an audit saw; `newer` events arrived since it began."""
        seen, times = self._recollection.seen, snapshot.times
        if not self._podman:
            seen.settle(snapshot.digests, times, newer=newer)
            return
        for place in missing:  # a backlog can be longer than this memory
            seen.add(snapshot.digests[place], times[place])

    async def _question(self, listener: Listener) -> Snapshot:
        """Read the engine's memory on a side connection, if it answers at all: `listener` hears so.

        Raises NoPermit, and ConnectionFailed: silent when it did not answer in time.
        """
        doing = "a connection"
        try:
            while True:
                async with self.aside(AUDIT_PATIENCE_S) as stream:
                    engine = Engine(self.source, stream, self.max_message_size)
                    doing = "a ping"
                    with trio.move_on_after(ANSWER_S) as deadline:
                        if self._pings:
                            self._pings = await engine.ping()
                            listener.replied()
                            if not self._pings:
                                # Behind some proxies a connection takes one question only.
                                continue
                        doing = "a question for its events"
                        snapshot = await self._snapshot(engine)
                        listener.replied()
                        return snapshot
                if deadline.cancelled_caught:
                    break
        except ConnectionFailed as exc:
            if exc.failure.kind is not FailureKind.TIMEOUT:
                raise
        text = f"the engine did not answer {doing} within {ANSWER_S:g} s"
        raise ConnectionFailed(Failure(FailureKind.SILENT, text))


def _apply(implied: Implied, item: Event | Unparsed) -> None:
    if isinstance(item, Event):
        implied.apply(item.raw)
