"""What really happened, noted by the world alone; times are virtual seconds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from attrs import define, field

from hypermux.model.accounts import SourceId
from simulator.network import Wire
from simulator.plan import Caps


@define(eq=False)
class Message:
    """One message that a source sent: to every connection that it held open, or to nobody.

    `name` is in its bytes, and in those of no other message but true repeats. `due`: when it would
    have arrived. `skipped`: the server kept it from a connection that it held.
    """

    source: SourceId
    number: int
    name: str
    raw: bytes
    event: bool
    sent: float
    due: float
    skipped: bool = False
    read: float | None = None
    life: int | None = None  # that read it
    reads: list[float] = field(factory=list)  # an engine's memory may be read again and again

    def was_read(self, now: float, life: int) -> None:
        """A client read it."""
        self.reads.append(now)
        if self.read is None:
            self.read, self.life = now, life


@define(eq=False)
class Session:
    """One accepted connection: when the server said yes, and when the client had read that."""

    source: SourceId
    wire: Wire
    life: int
    accepted: float
    opened: float | None = None


@define(eq=False)
class Life:
    """One run of the service. `how` it ended: stop, kill or power."""

    number: int
    began: float
    started: float | None = None
    stopping: float | None = None
    ended: float | None = None
    how: str = ""
    # Of what was shown to readers: when, and up to which seq.
    shown: list[tuple[float, int]] = field(factory=list)
    # The journal as shown at the end: a segment's name, how many of its bytes, their checksum.
    tail: tuple[str, int, int] | None = None
    # What hypermux counted at the end, by source: received and lost.
    counted: dict[SourceId, tuple[int, int]] = field(factory=dict)


@define(eq=False)
class Refusal:
    """An answer that a client read: its status, and how long it was asked to stay away."""

    source: SourceId
    address: str
    life: int
    status: int
    read: float
    retry_after_s: float | None = None
    skewed: bool = False


@define(eq=False)
class ClockSamples:
    """What the service's stream clock showed, as far as it was seen; jumps lie between samples."""

    _times: list[float] = field(factory=list)
    _offsets: list[int] = field(factory=list)
    _seen: float = 0.0

    def sample(self, now: float, ns: int) -> None:
        """Note that the clock showed `ns` at `now`."""
        offset = ns - round(now * 1e9)
        # A float's rounding is no jump.
        if not self._offsets or abs(offset - self._offsets[-1]) > 1000:
            if self._offsets:
                self._times.append(self._seen)
                self._offsets.append(self._offsets[-1])
            self._times.append(now)
            self._offsets.append(offset)
        self._seen = now

    def between(self, t: float) -> tuple[int, int]:
        """Return the least and the most that the clock can have shown at `t`."""
        times, offsets = self._times, self._offsets
        before = max(bisect_left(times, t) - 1, 0)
        after = min(bisect_right(times, t), len(times) - 1)
        ns = round(t * 1e9)
        found = (ns + offsets[before], ns + offsets[after])
        return min(found) - 1000, max(found) + 1000


@define(eq=False)
class Truth:
    """All of it."""

    messages: dict[SourceId, list[Message]] = field(factory=dict)
    sessions: dict[SourceId, list[Session]] = field(factory=dict)
    lives: list[Life] = field(factory=list)
    refusals: list[Refusal] = field(factory=list)
    clock: ClockSamples = field(factory=ClockSamples)
    trace: list[str] = field(factory=list)
    # The limits in force, and since when.
    caps: list[tuple[float, Caps]] = field(factory=list)
