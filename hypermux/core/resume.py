"""What of an engine's memory of events is new, and whether it reaches back to what was seen.

An engine keeps its last events (Docker: 256 in a ring; Podman: a file) and gives them on request:
a snapshot. A source remembers its own last ones as digests of the bytes that are recorded, and
the two are compared as multisets, so that byte-identical repeats survive by count.

Rules of a resume (`compare`):

    known      snapshot holds       complete   new
    no         anything or nothing  no         nothing: it was never ours; a gap tells of the wait
    yes        something seen       yes        all that was not seen, and lies behind the anchor
    yes        nothing seen         no         all of it
    yes        nothing at all       no         nothing

- A snapshot is an unbroken run of events up to now. So one event in it that was seen proves that
  everything after that one is in it too; that none is proves nothing: the ring may have turned
  over, or the engine was restarted, or nothing ever happened.
- The anchor is the newest event of the snapshot when a source came up: everything up to it was
  seen, emitted or before our time. It is how a source knows its first snapshot, none of which it
  records. Empty: there was none. A source without one is not known.
- What was recorded in an outage that has not ended proves nothing: a life before this one was
  telling what it found, and was cut off before it could tell that more is missing.
- Of a backlog that was asked for by time, what lies before its first remembered event is older
  than the memory, and passed over: a time is not a place in it.
- What is emitted may come on the live stream too: it is dropped there, by count.
- A look is a snapshot all of which is accounted for: a resume's, an audit's. A new event before
  one that was seen shows that the stream lost some before it broke (`lost_more`). All of them are
  in a snapshot that reaches back to the last look; in another the oldest may be missing, from that
  look on, whatever it proves of what came behind. One without such an event is taken for whole, as
  an audit takes it. Excluded events are new after every restart, and show nothing.

Rules of an audit, over the snapshot and all that was accounted for meanwhile:

    missing   received since the last look   the stream
    none      any                            is whole
    some      some                           lost them: they are emitted, as replayed
    some      none                           is dead: it is to be dialed anew, and resumes

An event is missing only at a second look: at the first it may still be under way.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from math import inf
from random import Random

from attrs import define, field, frozen

from hypermux.model.records import Event, Unparsed

# What an engine's ring holds.
RING = 256
# How many of its own a source remembers. Twice the ring: what a ring's worth of events was found
# out late stands behind newer ones in the journal, and must not push them out.
REMEMBERED = 2 * RING

_DIGEST_SIZE = 8  # one false match in 10^16 comparisons of two rings
_TIME_SIZE = 8

# An audit is due after so much time or so many events: before a ring of events has gone by.
AUDIT_S = 60.0
AUDIT_EVENTS = 200
# A source busier than that is audited no more often.
AUDIT_MIN_S = 10.0
# What an audit counts at the most, in events: some megabytes.
AUDIT_BURST = 20_000
# When limits leave no room for audits, or they are refused, they come less and less often.
AUDIT_MAX_S = 600.0


def digest_of(item: Event | Unparsed) -> bytes:
    """Return what an item is remembered by: a digest of what is recorded of it."""
    if isinstance(item, Event):
        return hashlib.blake2b(item.raw, digest_size=_DIGEST_SIZE).digest()
    text = f"{item.size}:{item.text}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=_DIGEST_SIZE).digest()


@define
class Seen:
    """The last events of a source, as digests with their times (ns since 1970; 0: none).

    `anchor` is the digest of the newest event of a snapshot up to which nothing is new; empty when
    that snapshot was; None as long as the source is not known. The last `unproven` were recorded
    in an outage that has not ended.
    """

    anchor: bytes | None = None
    unproven: int = 0
    _digests: deque[bytes] = field(factory=lambda: deque(maxlen=REMEMBERED))
    _times: deque[int] = field(factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def known(self) -> bool:
        """Whether there is anything that a snapshot could be compared with."""
        return self.anchor is not None

    def add(self, digest: bytes, time_ns: int | None, *, proven: bool = True) -> None:
        """Remember the next event by its digest."""
        self._digests.append(digest)
        self._times.append(time_ns or 0)
        self.unproven = 0 if proven else min(self.unproven + 1, len(self._digests))

    def settle(
        self, snapshot: Sequence[bytes], times: Sequence[int | None], *, newer: int = 0
    ) -> None:
        """Remember a snapshot, all of which is accounted for, in its own order.

        What is remembered of it already takes its place there: whatever leaves the engine's memory
        first has to leave this one first. Only what came behind it, of the last `newer`, stays so.
        """
        left = Counter(snapshot)
        before: list[tuple[bytes, int | None]] = []
        behind: list[tuple[bytes, int | None]] = []
        old = len(self._digests) - newer
        for place, pair in enumerate(zip(self._digests, self._times, strict=True)):
            if left[pair[0]] > 0:
                left[pair[0]] -= 1
            else:
                (before if place < old else behind).append(pair)
        self._digests.clear()
        self._times.clear()
        for digest, time_ns in (*before, *zip(snapshot, times, strict=True), *behind):
            self.add(digest, time_ns)

    def counts(self) -> Counter[bytes]:
        """Return how often each digest is remembered."""
        return Counter(self._digests)

    def proofs(self) -> frozenset[bytes]:
        """Return the digests of which one in a snapshot proves all behind it to be there too."""
        proven = len(self._digests) - self.unproven
        digests = [*self._digests]
        return frozenset(digests[:proven]) - frozenset(digests[proven:])

    @property
    def earliest_ns(self) -> int | None:
        """The smallest time among the last RING events, None when none has a time."""
        recent = list(self._times)[-RING:]
        return min((time_ns for time_ns in recent if time_ns), default=None)

    def clear(self) -> None:
        """Forget everything: the source is not known any more."""
        self.anchor = None
        self.unproven = 0
        self._digests.clear()
        self._times.clear()

    def copy(self) -> Seen:
        """Return another one that remembers the same."""
        return Seen(self.anchor, self.unproven, self._digests.copy(), self._times.copy())

    def pack(self) -> str:
        """Return all digests and times as text."""
        times = b"".join(time.to_bytes(_TIME_SIZE, "big") for time in self._times)
        return base64.b64encode(b"".join(self._digests) + times).decode()

    @classmethod
    def unpack(cls, text: str, anchor: bytes | None) -> Seen:
        """Read what `pack` made. Raises ValueError when it is not whole."""
        data = base64.b64decode(text, validate=True)
        count, rest = divmod(len(data), _DIGEST_SIZE + _TIME_SIZE)
        if rest:
            raise ValueError("the remembered events are not whole")
        seen, times = cls(anchor), data[count * _DIGEST_SIZE :]
        for index in range(count):
            time = times[index * _TIME_SIZE : (index + 1) * _TIME_SIZE]
            digest = data[index * _DIGEST_SIZE : (index + 1) * _DIGEST_SIZE]
            seen.add(digest, int.from_bytes(time, "big"))
        return seen


@frozen
class Resume:
    """What a snapshot came to: which of its places are new, and whether nothing else is missing.

    `seen` is the place behind its last event that was seen, `anchored`: it holds the anchor.
    """

    new: tuple[int, ...]
    complete: bool
    seen: int = 0
    anchored: bool = False


def compare(seen: Seen, snapshot: Sequence[bytes], *, whole: bool) -> Resume:
    """Compare the digests of a snapshot, oldest first, with what was seen; see the rules above.

    `whole`: it is all that the engine has; otherwise a backlog from a time on.
    """
    if seen.anchor is None:
        return Resume((), complete=False)
    left, proofs = seen.counts(), seen.proofs()
    behind = _behind(seen.anchor, snapshot, left)
    complete = reached = behind > 0
    passed_over, last = 0, behind
    new: list[int] = []
    for place, digest in enumerate(snapshot):
        if left[digest] > 0:
            left[digest] -= 1
            if not reached and not whole:
                passed_over = len(new)
            reached, last = True, max(last, place + 1)
            complete = complete or digest in proofs
        elif place >= behind:
            new.append(place)
    return Resume(tuple(new[passed_over:]), complete, last, behind > 0)


def lost_more(
    found: Resume, kept: Sequence[bool], times: Sequence[int | None], looked_ns: int
) -> bool:
    """Say whether a stream lost events, of which the full ring may not hold all; see the rules.

    Of every place: `kept`, it is not excluded, and its time. `looked_ns` is when the last look
    was, on the engine's clock: earlier rather than later.
    """
    lost = any(kept[place] for place in found.new if place < found.seen)
    oldest_ns = next((time_ns for time_ns in times if time_ns is not None), looked_ns)
    return found.complete and lost and not found.anchored and oldest_ns >= looked_ns


def _behind(anchor: bytes, snapshot: Sequence[bytes], seen: Counter[bytes]) -> int:
    """Return the first place behind the anchor; 0 when the snapshot does not hold it."""
    if anchor not in snapshot:
        return 0
    behind = snapshot.index(anchor) + 1
    if not seen[anchor]:
        # From before our time, and its twins that came with it too.
        while behind < len(snapshot) and snapshot[behind] == anchor:
            behind += 1
    return behind


def first_anchor(digests: Sequence[bytes], times: Sequence[int | None], before_ns: int) -> bytes:
    """Return the anchor of a source's first snapshot, none of which it records.

    `before_ns` is a moment of the engine's clock before the live stream began: an event behind it
    may be on that stream as well, and must not count as told before it is.
    """
    for digest, time_ns in zip(reversed(digests), reversed(times), strict=True):
        if time_ns is not None and time_ns < before_ns:
            return digest
    return b""


@define
class Expected:
    """Events that were emitted and may still come on the live stream: each is dropped there once.

    What does not come within `keep_s` never will, and a later repeat is a repeat.
    """

    keep_s: float = 30.0
    _counts: Counter[bytes] = field(factory=Counter)
    _until_s: float = inf

    def add(self, digests: Iterable[bytes], now_s: float) -> None:
        """Expect these from now on (monotonic seconds)."""
        self.forget(now_s)
        self._counts.update(digests)
        self._until_s = now_s + self.keep_s

    def drops(self, digest: bytes) -> bool:
        """Say whether an arriving event was emitted already."""
        if not self._counts.get(digest):
            return False
        self._counts[digest] -= 1
        return True

    def forget(self, now_s: float) -> None:
        """Stop expecting what should have come by now."""
        if now_s >= self._until_s:
            self._counts.clear()


class Finding(Enum):
    """What an audit says of a stream."""

    WHOLE = auto()
    LOSSY = auto()
    DEAD = auto()


@define
class Audit:
    """One audit: a snapshot against all that was accounted for, from before its request on.

    It counts for itself what arrives meanwhile: the source's memory may go by in a burst. In a
    very long one it gives up: the ring has gone by many times, and the next audit is not far.
    """

    _accounted: Counter[bytes]
    _anchor: bytes = b""
    _arrived: int = 0

    @classmethod
    def begin(cls, seen: Seen) -> Audit:
        """Begin one, before the snapshot is asked for."""
        return cls(seen.counts(), seen.anchor or b"")

    def arrived(self, digest: bytes) -> None:
        """Take in what the live stream brought meanwhile."""
        self._arrived += 1
        if self._arrived <= AUDIT_BURST:
            self._accounted[digest] += 1

    @property
    def arrivals(self) -> int:
        """How many events the live stream brought since it began."""
        return self._arrived

    def look(self, snapshot: Sequence[bytes], *, whole: bool) -> tuple[int, ...]:
        """Return the places of `snapshot` that have not come so far.

        What lies before the anchor need not come: a memory that was read back from a journal has
        only what was recorded of it. `whole` is as in `compare`.
        """
        if self._arrived > AUDIT_BURST:
            return ()
        left = self._accounted.copy()
        missing: list[int] = []
        known_before = not whole
        behind = _behind(self._anchor, snapshot, left)
        for place, digest in enumerate(snapshot):
            if left[digest] > 0:
                left[digest] -= 1
                if known_before:
                    missing.clear()
                    known_before = False
            elif place >= behind:
                missing.append(place)
        return tuple(missing)


def find(missing: int, received: int) -> Finding:
    """Judge a stream: events missing at the second look, and received since the last audit."""
    if not missing:
        return Finding.WHOLE
    return Finding.LOSSY if received else Finding.DEAD


@define
class AuditTimes:
    """When a source is audited. Times are monotonic seconds; `rng` spreads sources apart."""

    rng: Random
    _interval_s: float = AUDIT_S
    _due_s: float = inf
    _earliest_s: float = inf
    _received: int = 0

    def opened(self, now_s: float) -> None:
        """Begin: the source is connected. Before, none is due."""
        self._next(now_s)

    def received(self, count: int) -> None:
        """Count events that arrived."""
        self._received += count

    @property
    def received_since(self) -> int:
        """How many events arrived since the last audit."""
        return self._received

    def done(self, now_s: float) -> None:
        """Go on after an audit that took place."""
        self._interval_s = AUDIT_S
        self._next(now_s)

    def put_off(self, now_s: float) -> None:
        """Go on after one that could not be: the limits left no room, or the engine refused."""
        received = self._received
        self._interval_s = min(2 * self._interval_s, AUDIT_MAX_S)
        self._next(now_s)
        self._earliest_s = self._due_s  # many events change nothing about that
        self._received = received

    def _next(self, now_s: float) -> None:
        self._due_s = now_s + self._interval_s * self.rng.uniform(0.75, 1.0)
        self._earliest_s = now_s + AUDIT_MIN_S
        self._received = 0

    @property
    def due_s(self) -> float:
        """When the next audit is due."""
        return self._earliest_s if self._received >= AUDIT_EVENTS else self._due_s
