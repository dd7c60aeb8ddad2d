from __future__ import annotations

import pytest

from hypermux.core.retention import Kept, surplus

CLOSED = [Kept(1, 100, 10), Kept(5, 50, 20), Kept(9, 100, None), Kept(20, 30, 40)]


@pytest.mark.parametrize(
    ("size", "age_ns", "short", "going"),
    [
        (10_000, 10_000, 0, 0),
        (300, 10_000, 0, 0),  # 280 closed and 20 open
        (299, 10_000, 0, 1),
        (199, 10_000, 0, 2),
        (20, 10_000, 0, 4),
        (0, 10_000, 0, 4),
        (10_000, 90, 0, 0),  # the oldest is just 90 old
        (10_000, 89, 0, 1),
        (10_000, 79, 0, 2),  # of the third it is not known, and the fourth waits behind it
        (10_000, 0, 0, 2),
        (10_000, 10_000, 1, 1),
        (10_000, 10_000, 101, 2),
        (10_000, 10_000, 9_999, 4),
        (10_000, 79, 151, 3),
    ],
)
def test_the_oldest_go_beyond_size_age_and_for_room(
    size: int, age_ns: int, short: int, going: int
) -> None:
    found = surplus(CLOSED, 20, now_ns=100, size=size, age_ns=age_ns, short=short)
    assert found == going
