"""The way of one source's messages from its links into the stream.

Usually there is one link, and what it brings goes through the sieve. While one takes another's
place both bring the same, and the succession says what of it goes on.
"""

from __future__ import annotations

from attrs import define

from hypermux.model.records import Item
from hypermux.upstream.counters import Counters
from hypermux.upstream.link import Link
from hypermux.upstream.sifting import Sieve
from hypermux.upstream.succession import Succession
from hypermux.upstream.transport import Opened


@define(eq=False)
class Incoming:
    """One source's. `succession` is the last one, as long as anything of it counts."""

    sieve: Sieve
    counters: Counters
    succession: Succession | None = None

    @property
    def held(self) -> int:
        """How many messages wait for a succession to be decided."""
        return 0 if self.succession is None else self.succession.held

    def received(self, link: Link, messages: list[bytes], now: float) -> None:
        """Take what a link brought; `link.more` says whether its socket has more."""
        self.counters.received += len(messages)
        if self.succession is not None and self.succession.over(now):
            self.succession = None
        if self.succession is None:
            self.sieve.hand_on(messages, more=link.more)
        else:
            self._take_in(self.succession, self.succession.received(link, messages))

    def asking(self, link: Link) -> None:
        """A link's request is about to be sent."""
        if self.succession is not None and link is self.succession.new:
            self.succession.asking()

    def decided(self, succession: Succession) -> None:
        """The new link is the source's one: hold nothing of it any longer."""
        self._take_in(succession, succession.release())

    def old_ended(self, succession: Succession, now: float) -> None:
        """The old link brings nothing more, and nothing is held any longer."""
        self._take_in(succession, succession.old_ended(now))

    def given_up(self, succession: Succession) -> None:
        """The new link came to nothing: the old one brings all that it brought."""
        succession.new_ended()
        self.counters.duplicate += succession.take_duplicates()
        self.succession = None

    def remembered(self, opened: Opened) -> list[Item]:
        """Return what the upstream still knows of an outage that is over.

        What its state implies comes first: it is older than what it remembers.
        """
        resumption = opened.resumption
        if resumption is None:
            return []
        synthetic = self.sieve.synthetic(resumption.synthetic)
        return synthetic + self.sieve.replayed(resumption.replayed)

    def _take_in(self, succession: Succession, messages: list[bytes]) -> None:
        """Hand on what a succession let pass. What it holds counts as not yet read."""
        self.counters.duplicate += succession.take_duplicates()
        more = succession.old.more or succession.new.more or succession.holding
        self.sieve.hand_on(messages, more=more)
