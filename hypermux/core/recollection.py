"""What is remembered of a source whose upstream remembers too: see `resume` and `containers`.

Kept twice, as coverage is: by the journal, of what is recorded, and by the running source, of what
was received; at a start the second begins as a copy of the first.
"""

from __future__ import annotations

import msgspec
from attrs import define, field

from hypermux.core.containers import Implied, Packed
from hypermux.core.resume import Seen, digest_of
from hypermux.model.records import Event, Unparsed

# Before the anchor of a source that nothing was known of: it is new, or has another engine now.
FIRST = "first:"


class Stored(msgspec.Struct):
    """A recollection as plain values, for a file."""

    since: int
    anchor: str
    events: str
    containers: list[Packed]
    unproven: int = 0


@define
class Recollection:
    """One source's last events, and the containers that all of them imply.

    `since_ns` is when the source was first up, on our clock: what is older is not ours to tell.
    """

    seen: Seen = field(factory=Seen)
    implied: Implied = field(factory=Implied)
    since_ns: int = 0

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
        return Recollection(self.seen.copy(), self.implied.copy(), self.since_ns)

    def stored(self) -> Stored:
        """Return it for a file."""
        anchor = self.seen.anchor or b""
        seen = self.seen
        return Stored(self.since_ns, anchor.hex(), seen.pack(), self.implied.pack(), seen.unproven)

    @classmethod
    def of(cls, stored: Stored) -> Recollection:
        """Read it from a file. Raises ValueError."""
        anchor = bytes.fromhex(stored.anchor)
        seen, implied = Seen.unpack(stored.events, anchor), Implied.unpack(stored.containers)
        seen.unproven = stored.unproven
        return cls(seen, implied, stored.since)
