"""Which events an account does not want recorded, by their action.

A pattern is a glob over the whole action, upper and lower case as they are. Engines write a command
or a state behind the action's name (`exec_create: /bin/sh -c …`, `health_status: healthy`), so a
pattern that fits the name alone excludes it too: `exec_create` is meant for all of them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from attrs import frozen


@frozen
class Exclusion:
    """The patterns of one account, as one expression."""

    _pattern: re.Pattern[str]

    @classmethod
    def of(cls, globs: Iterable[str]) -> Exclusion:
        """Make one of glob patterns, of which there must be one at least."""
        return cls(re.compile("|".join(map(fnmatch.translate, globs))))

    def matches(self, action: str) -> bool:
        """Say whether an event with this action is excluded."""
        if self._pattern.match(action):
            return True
        name, colon, _ = action.partition(":")
        return bool(colon and self._pattern.match(name))
