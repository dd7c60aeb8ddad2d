"""What is remembered of a source whose upstream remembers too: see `resume` and `containers`.

Kept twice, as coverage is: by the journal, of what is recorded, and by the running source, of what
was received; at a start the second begins as a copy of the first.

It is of one engine, and as its events are recorded: what is remembered of another one, or in other
words, would be compared for nothing, and its containers taken for removed. An engine is known by
its endpoint, for Podman has no name of its own; by another way to the same engine it counts as
another, which costs a gap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
from attrs import define, field

from hypermux.core.containers import Implied, Packed
from hypermux.core.resume import Seen, digest_of
from hypermux.model.records import Event, Unparsed

# Before the anchor of a source that nothing was known of: it is new, or has another engine now.
FIRST = "first:"
# Between an anchor and its engine. Journals of earlier versions have none.
_OF = "@"
# Before the time of its look, nanoseconds in hexadecimal. Earlier journals have none either.
_LOOKED = "+"
_ENGINE_SIZE = 8


def engine_of(endpoint: str, redact: Iterable[str]) -> str:
    """Return what an engine is known by, as its events are recorded."""
    text = "\0".join((endpoint, *redact)).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=_ENGINE_SIZE).hexdigest()


class Stored(msgspec.Struct):
    """A recollection as plain values, for a file."""

    since: int
    anchor: str
    events: str
    containers: list[Packed]
    unproven: int = 0
    engine: str = ""
    looked: int = 0


@define
class Recollection:
    """One source's last events, and the containers that all of them imply.

    `since_ns` is when the source was first up, on our clock: what is older is not ours to tell.
    `engine` is whose events they are, by `engine_of`; empty where an earlier version remembered.
    `looked_ns` is when it was last asked what it remembers, all of which is known, on our clock;
    0 where no look is known. It may be earlier than that, never later.
    """

    seen: Seen = field(factory=Seen)
    implied: Implied = field(factory=Implied)
    since_ns: int = 0
    engine: str = ""
    looked_ns: int = 0

    def note(
        self, item: Event | Unparsed, digest: bytes | None = None, *, proven: bool = True
    ) -> None:
        """Take in the next event of the source; its `digest` if it is known.

        `proven`: it was not recorded in an outage that has not ended; see `resume`.
        A synthetic one was never the engine's, and is no part of its memory.
        """
        time_ns = None
        if isinstance(item, Event):
            self.implied.apply(item.raw)
            if item.synthetic:
                return
            time_ns = item.time_ns
        self.seen.add(digest_of(item) if digest is None else digest, time_ns, proven=proven)

    def copy(self) -> Recollection:
        """Return another one that holds the same."""
        seen, implied = self.seen.copy(), self.implied.copy()
        return Recollection(seen, implied, self.since_ns, self.engine, self.looked_ns)

    def anchor(self, *, first: bool) -> str:
        """Return the anchor as an `up` tells it. `first`: nothing was known before."""
        digest = (self.seen.anchor or b"").hex()
        engine = f"{_OF}{self.engine}" if self.engine else ""
        looked = f"{_LOOKED}{self.looked_ns:x}" if self.looked_ns else ""
        return f"{FIRST if first else ''}{digest}{engine}{looked}"

    @classmethod
    def anchored(cls, before: Recollection | None, anchor: str, at_ns: int) -> Recollection:
        """Return what is remembered behind an `up` with `anchor`. Raises ValueError."""
        text, _, looked = anchor.removeprefix(FIRST).partition(_LOOKED)
        digest, _, engine = text.partition(_OF)
        first = anchor.startswith(FIRST)
        kept = cls(since_ns=at_ns) if before is None or first else before
        kept.seen.anchor, kept.engine = bytes.fromhex(digest), engine
        kept.looked_ns = int(looked, 16) if looked else at_ns
        return kept

    def stored(self) -> Stored:
        """Return it for a file."""
        anchor = self.seen.anchor or b""
        packed = self.seen.pack(), self.implied.pack()
        unproven, looked_ns = self.seen.unproven, self.looked_ns
        return Stored(self.since_ns, anchor.hex(), *packed, unproven, self.engine, looked_ns)

    @classmethod
    def of(cls, stored: Stored) -> Recollection:
        """Read it from a file. Raises ValueError."""
        anchor = bytes.fromhex(stored.anchor)
        seen, implied = Seen.unpack(stored.events, anchor), Implied.unpack(stored.containers)
        seen.unproven = stored.unproven
        return cls(seen, implied, stored.since, stored.engine, stored.looked)
