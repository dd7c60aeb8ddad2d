from __future__ import annotations

import pytest

from hypermux.core.exclusion import Exclusion


@pytest.mark.parametrize(
    ("globs", "action", "excluded"),
    [
        (["exec_*"], "exec_create: /bin/sh -c 'a\nb'", True),
        (["exec_*"], "exec_start", True),
        (["exec_*"], "exec_die", True),
        (["exec_*"], "start", False),
        (["exec_*"], "Exec_start", False),
        (["exec_create"], "exec_create: /bin/true ", True),
        (["exec_create: /bin/true*"], "exec_create: /bin/true ", True),
        (["exec_create: /bin/true*"], "exec_create: /bin/false", False),
        (["health_status"], "health_status: healthy", True),
        (["health_status: healthy"], "health_status: healthy", True),
        (["health_status: healthy"], "health_status: unhealthy", False),
        (["*: healthy"], "health_status: healthy", True),
        (["start"], "restart", False),
        (["start", "die"], "die", True),
        (["[sd]*"], "destroy", True),
        (["*"], "", True),
        (["?"], "", False),
        ([""], "x", False),
    ],
)
def test_which_actions_are_excluded(globs: list[str], action: str, excluded: bool) -> None:
    assert Exclusion.of(globs).matches(action) is excluded
