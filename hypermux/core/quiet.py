"""A stream that is open and brings nothing: when that is said, and when it is over.

A peer can answer every ping and have lost the stream. Nothing on the wire tells that from a source
where nothing happens; only somebody who knows the source can: `expect_event_within`. Rules:

- Counted is the time that the source was connected since its last message, over any number of
  connections: a server that cuts every half hour must not hide that nothing ever came.
- After `within_s` of it the source is quiet, which is said once; the next message ends that. It is
  due again each `within_s` that stay without one, for who wants to connect anew by it.
- A message is one that came, whatever it holds and whether or not it is kept.

Quiet changes nothing about coverage: the source is connected, its time is not an outage.
"""

from __future__ import annotations

from math import inf

from attrs import define, field


@define(eq=False)
class Quiet:
    """One source's quiet. `within_s` inf: never. Times are monotonic seconds, `_ns` stream time.

    `since_ns` is when the last message came, or the first connection opened; 0 before that.
    """

    within_s: float
    quiet: bool = field(default=False, init=False)
    since_ns: int = field(default=0, init=False)
    due_s: float = field(default=inf, init=False)
    _left_s: float = field(default=inf, init=False)

    def __attrs_post_init__(self) -> None:
        self._left_s = self.within_s

    def opened(self, now: float, now_ns: int) -> None:
        """The source is connected."""
        self.since_ns = self.since_ns or now_ns
        self.due_s = now + self._left_s

    def closed(self, now: float) -> None:
        """The source is not connected any more: its time stands still."""
        if self.due_s < inf:
            self._left_s = max(0.0, self.due_s - now)
            self.due_s = inf

    def heard(self, now: float, now_ns: int) -> bool:
        """A message came; return whether it ended a quiet."""
        self.since_ns = now_ns
        self._left_s = self.within_s
        if self.due_s < inf:
            self.due_s = now + self.within_s
        was, self.quiet = self.quiet, False
        return was

    def fell(self, now: float) -> bool:
        """`due_s` has come; return whether that is news. It is due again `within_s` later."""
        self.due_s = now + self.within_s
        was, self.quiet = self.quiet, True
        return not was

    def retime(self, within_s: float, now: float, *, connected: bool) -> None:
        """Go by another patience; the time without a message that was counted counts on."""
        left_s = self.due_s - now if self.due_s < inf else self._left_s
        silent_s = self.within_s - left_s if self.within_s < inf else 0.0
        self.within_s = within_s
        self._left_s = max(0.0, within_s - silent_s)
        self.due_s = now + self._left_s if connected else inf
        if within_s == inf:
            self.quiet = False
