"""How many of the oldest segments are to go. The newest segment, which is written to, never does.

size        of all segments is over what is kept: the oldest go until it is not
age         a segment whose newest record is older goes
keep_free   less is free on the disk: the oldest go until that much more is, if there are as many
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen


@frozen
class Kept:
    """A closed segment: its first seq, its size in bytes, and when its newest record came.

    `newest_ns` is in nanoseconds since 1970, None when that is not known.
    """

    first_seq: int
    size: int
    newest_ns: int | None


def surplus(
    closed: Sequence[Kept], open_size: int, *, now_ns: int, size: int, age_ns: int, short: int
) -> int:
    """Return how many of `closed` (in order) are to go.

    `size` and `age_ns` are what is kept; `short` is how many bytes more should be free.
    """
    total = open_size + sum(kept.size for kept in closed)
    going = 0
    for kept in closed:
        old = kept.newest_ns is not None and kept.newest_ns < now_ns - age_ns
        if total <= size and not old and short <= 0:
            break
        total -= kept.size
        short -= kept.size
        going += 1
    return going
