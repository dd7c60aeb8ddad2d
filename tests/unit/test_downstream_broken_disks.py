"""A bounded part of what `scripts/crashes` goes through as a whole."""

from __future__ import annotations

import errno

import pytest
from broken_disks import MODES, Mode, Trouble, crash_everywhere, fail_everywhere

FOREVER = float("inf")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("count", [1, 3, FOREVER])
@pytest.mark.parametrize("fsync", MODES)
def test_any_call_may_fail(fsync: Mode, count: float, *, late: bool) -> None:
    for forgetful in (False, True):
        tried = fail_everywhere(
            fsync, errno.EIO, count=count, late=late, forgetful=forgetful, step=5
        )
        assert tried > 30


@pytest.mark.parametrize(
    "trouble", [None, Trouble(20), Trouble(23, count=4), Trouble(33, late=True)]
)
@pytest.mark.parametrize("fsync", MODES)
def test_the_power_may_go_after_any_call(fsync: Mode, trouble: Trouble | None) -> None:
    assert crash_everywhere(1, fsync, 6, trouble) > 50
