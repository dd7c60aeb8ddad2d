"""What the stream is told of one source's connectivity: `down`, a gap, `up`.

An outage begins when the last connection was last heard, or when the source was configured, and
ends with one gap record when a connection opens, unless the upstream's own memory bridges it.
Certainty is `possible`: nobody can know whether there was anything to miss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Literal

from attrs import define, frozen

from hypermux.core.clock import StreamClock
from hypermux.core.intake import Feed
from hypermux.core.rendering import duration
from hypermux.core.verdicts import Judgement
from hypermux.model.errors import FailureKind
from hypermux.model.records import Gap, Item, StateChange
from hypermux.upstream.link import Link
from hypermux.upstream.transport import Opened, Resumption


@frozen
class Outage:
    """A time without a connection: since when, and the word for its gap.

    `recorded`: the journal has its `down` already. One that it has not must get it before the
    next checkpoint, or a second crash would shorten the outage.
    """

    from_ns: int
    cause: str
    recorded: bool = False


@define(eq=False)
class Teller:
    """One source's voice in the stream. `outage` is None while it is connected."""

    feed: Feed
    clock: StreamClock
    outage: Outage | None
    _told: tuple[str | None, str] | None = None

    def begin(self) -> None:
        """Tell of an outage that the journal does not have yet."""
        outage = self.outage
        if outage is not None and not outage.recorded:
            down = StateChange("down", None, None, outage.cause, outage.from_ns)
            self._deliver([down])

    def up(self, opened: Opened, remembered: Sequence[Item] = ()) -> None:
        """End the outage: what was remembered of it, a gap from its first moment to now, `up`."""
        now_ns = self.clock.now_ns()
        resumption = opened.resumption or Resumption()
        items = [*remembered]
        if self.outage is not None and not resumption.complete:
            items.append(Gap(self.outage.from_ns, now_ns, self.outage.cause, "possible"))
        items.append(StateChange("up", _TRUST[opened.trust], anchor=resumption.anchor))
        self.feed.deliver(items, now_ns)
        self.outage, self._told = None, None
        self.feed.opened(None if opened.date_ns is None else now_ns - opened.date_ns)

    def recovered(self, items: list[Item], unsure_from_ns: int | None) -> None:
        """Tell what an open connection had lost, and since when it may have lost more.

        That first: if only the beginning of it is recorded, what is found again later is no proof
        that nothing else is missing.
        """
        now_ns = self.clock.now_ns()
        gap = [] if unsure_from_ns is None else [Gap(unsure_from_ns, now_ns, "audit", "possible")]
        self._deliver([*gap, *items])

    def down(self, link: Link | None, judgement: Judgement) -> None:
        """Tell that a link ended, or that an outage goes on for another reason.

        `down` is recorded once for each new reason of an outage, not for every attempt. `link` is
        None before there was one: then there is an outage.
        """
        if self.outage is None:
            assert link is not None
            self._fall(link, judgement.cause)
        elif self.outage.cause in OUR_OWN:
            # What keeps it going is not what began it.
            self.outage = Outage(self.outage.from_ns, judgement.cause)
        self._tell(judgement.verdict, judgement.cause, judgement.reason)

    def drained(self, link: Link, cause: str, reason: str) -> None:
        """Tell of an outage by our own doing."""
        if self.outage is None:
            self._fall(link, cause)
            self._tell(None, cause, reason)

    def correction(self, offset_ns: int) -> str:
        """Tell that requests are signed with our time plus `offset_ns`; return the sentence."""
        reason = "our clock is right again: requests are signed with it"
        if offset_ns:
            way = "behind" if offset_ns > 0 else "ahead of"
            reason = (
                f"our clock is {abs(offset_ns) / 1e9:.0f} s {way} the server's:"
                " requests are signed with the server's time; set ours right"
            )
        self._deliver([StateChange("clock", reason)])
        return reason

    def fell_quiet(self, since_ns: int) -> str:
        """Tell that the source is connected and brings nothing; return the sentence."""
        reason = f"no event for {duration(self.clock.now_ns() - since_ns)}"
        self._deliver([StateChange("quiet", reason, from_ns=since_ns)])
        return reason

    def active(self, since_ns: int) -> str:
        """Tell that a quiet that began at `since_ns` is over; return the sentence."""
        reason = f"events come again, after {duration(self.clock.now_ns() - since_ns)}"
        self._deliver([StateChange("active", reason, from_ns=since_ns)])
        return reason

    def forget(self, reason: str) -> None:
        """End the coverage of a source that is no more, with its last gap."""
        now_ns = self.clock.now_ns()
        items: list[Item] = [StateChange("config", reason)]
        if self.outage is not None:
            items.insert(0, Gap(self.outage.from_ns, now_ns, self.outage.cause, "possible"))
        self.outage = None
        self.feed.deliver(items, now_ns)

    def _fall(self, link: Link, cause: str) -> None:
        known_ns = self._known_ns(link)
        orderly = link.failure is None or link.failure.kind in _ORDERLY
        dead_s = 0.0 if orderly else link.dead_s
        # That long ago its peer was alive, whether it was heard or not.
        alive_ns = link.heard_ns if dead_s == inf else known_ns - int(dead_s * 1e9)
        self.outage = Outage(min(max(link.heard_ns, alive_ns), known_ns), cause)
        self.feed.closed()

    def _known_ns(self, link: Link) -> int:
        """Return a moment at which the link was open and had nothing unread.

        Not now: this process may have stood still, and found the end long after it came.
        """
        return max(self.feed.empty_ns, link.opened_ns)

    def _tell(self, verdict: str | None, cause: str, reason: str) -> None:
        if (verdict, cause) == self._told or self.outage is None:
            return
        self._told = verdict, cause
        self._deliver([StateChange("down", reason, verdict, cause, self.outage.from_ns)])

    def _deliver(self, items: list[Item]) -> None:
        self.feed.deliver(items, self.clock.now_ns())


_TRUST = {
    "verified": None,
    "pinned": None,
    "unverified": "TLS certificate not verified",
    "off": None,
}
# An end that came in its place behind all data: nothing sent before it is missing. Of all other
# ends only what was heard before them is certain.
_ORDERLY = frozenset({FailureKind.CLOSE, FailureKind.EOF, FailureKind.PROTOCOL})
PartingCause = Literal["rotation", "yielded", "reload", "quiet"]

PARTINGS: Mapping[PartingCause, str] = {
    "rotation": "the connection is replaced, and there is no spare slot for two",
    "yielded": "gives its slot to a source that waits for one",
    "reload": "the configuration has changed",
    "quiet": "no event came for too long: connecting anew",
}
# Causes of outages that no failure began.
OUR_OWN = frozenset({"start", *PARTINGS})
