"""A bounded part of what `python tests/unit/broken_disks.py` goes through as a whole."""

from __future__ import annotations

import pytest
from broken_disks import CODES, Mode, crash_everywhere, fail_everywhere


@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("fsync", ["commit", 5.0, "never"])
def test_any_call_may_fail(fsync: Mode, *, for_ever: bool) -> None:
    for code in CODES:
        assert fail_everywhere(fsync, code, for_ever=for_ever, step=3) > 30


@pytest.mark.parametrize("fail_at", [None, 20, 33])
@pytest.mark.parametrize("fsync", ["commit", 5.0])
def test_the_power_may_go_after_any_call(fsync: Mode, fail_at: int | None) -> None:
    assert crash_everywhere(1, fsync, 6, fail_at=fail_at) > 100
