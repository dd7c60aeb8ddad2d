"""How wrong our own clock is, by the word of servers: what is added to it for a signature.

A signature is refused when it is too old for the server's clock, so the server's clock is what
counts, and a 401 brings it in its `Date`. Rules:

- Only a server that has proved who it is has a word, and only about requests to its own endpoint:
  whoever can make us sign with a future date holds a signature that lasts. `core.verdicts` limits
  how far; here every endpoint has its own correction, which all its sources share, so that the
  second one does not have to be refused first.
- What was learned from a refusal is used until an accepted connection's `Date` shows that our clock
  is right again, or wrong by something else: a clock that is mended ends its correction.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

from hypermux.core.verdicts import MAX_SKEW_NS, SKEW_NS

# Half of what a refusal needs: what is left alone can grow as much again before it hurts.
_MATTERS_NS = SKEW_NS // 2


@define(eq=False)
class Corrections:
    """What to add to our clock, in nanoseconds, by endpoint address."""

    _by_address: dict[str, int] = field(factory=dict)

    def of(self, address: str) -> int:
        """Return what to add to our clock when signing for `address`, in nanoseconds."""
        return self._by_address.get(address, 0)

    @property
    def in_force(self) -> Mapping[str, int]:
        """The corrections that are not zero, by address."""
        return dict(self._by_address)

    def refused(self, address: str, offset_ns: int) -> bool:
        """Take the offset of a judgement `skewed`; return whether it is news for this endpoint."""
        return self._set(address, offset_ns)

    def accepted(self, address: str, offset_ns: int) -> bool:
        """Take the server's clock less ours from an accepted, verified answer.

        Returns whether a correction in force was changed by it, or ended.
        """
        if address not in self._by_address or abs(offset_ns) > MAX_SKEW_NS:
            return False
        return self._set(address, offset_ns)

    def _set(self, address: str, offset_ns: int) -> bool:
        known_ns = self.of(address)
        if abs(offset_ns) < _MATTERS_NS:
            self._by_address.pop(address, None)
            return known_ns != 0
        if abs(offset_ns - known_ns) < _MATTERS_NS:
            return False
        self._by_address[address] = offset_ns
        return True
