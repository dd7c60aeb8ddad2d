"""Two links of one source while the second takes the first one's place: whose messages count.

`core.overlap` has the rule; this binds its two sides to links, and lets it go when what it counts
is not needed any longer.
"""

from __future__ import annotations

from math import inf

from attrs import define, field

from hypermux.core.overlap import Overlap
from hypermux.upstream.link import Link

# After the old link's end: a server that tells its subscribers one after another may bring the new
# one an event that much later.
REMEMBERED_S = 30.0


@define(eq=False)
class Succession:
    """One replacement of `old` by `new`. The counts begin when `new` sends its request."""

    old: Link
    new: Link
    _overlap: Overlap | None = None
    _forget_at_s: float = field(default=inf, init=False)
    _duplicates: int = field(default=0, init=False)

    @property
    def held(self) -> int:
        """How many messages of the new link are held."""
        return 0 if self._overlap is None else self._overlap.held

    @property
    def holding(self) -> bool:
        """Whether messages of the new link are held."""
        return self.held > 0

    def asking(self) -> None:
        """The new link's request is about to be sent.

        Of an old link that has ended meanwhile nothing is awaited: there is nothing to compare.
        """
        if not self.old.ended.is_set():
            self._overlap = Overlap()

    def over(self, now: float) -> bool:
        """Whether nothing is counted any longer."""
        return now >= self._forget_at_s

    def received(self, link: Link, messages: list[bytes]) -> list[bytes]:
        """Return what goes on of what a link brought."""
        overlap = self._overlap
        if overlap is None or (link is not self.new and link is not self.old):
            return messages
        return overlap.new(messages) if link is self.new else overlap.old(messages)

    def release(self) -> list[bytes]:
        """Hold nothing any longer; return what goes on of it."""
        return [] if self._overlap is None else self._overlap.release()

    def old_ended(self, now: float) -> list[bytes]:
        """The old link brings nothing more; return what goes on of what was held."""
        self._forget_at_s = min(self._forget_at_s, now + REMEMBERED_S)
        return [] if self._overlap is None else self._overlap.old_ended()

    def new_ended(self) -> None:
        """The new link came to nothing; the old one goes on as before."""
        if self._overlap is not None:
            self._overlap.new_ended()

    def take_duplicates(self) -> int:
        """Return how many deliveries were dropped since last asked."""
        if self._overlap is None:
            return 0
        known, self._duplicates = self._duplicates, self._overlap.duplicates
        return self._duplicates - known
