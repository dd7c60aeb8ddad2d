"""Taking up a changed configuration: read, check, compare, apply; one at a time.

A configuration that is not good, or that cannot be read, changes nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from attrs import define, field

from hypermux.config import accounts_file
from hypermux.config.changes import Changes, compare
from hypermux.config.settings import Settings
from hypermux.core.recording import rfc3339
from hypermux.downstream.walk import RunSync
from hypermux.model.errors import ConfigurationFault, Problem
from hypermux.model.status import ReloadStatus

log = logging.getLogger("hypermux.reload")

# Problems shown: a person mends the first few and asks again.
_PROBLEMS_SHOWN = 50
# Files are read in milliseconds; on a network disk that hangs whoever waits is told so.
READ_S = 30.0


async def read_settings(path: Path) -> Settings:
    """Read an accounts file in a thread of its own. Raises ConfigurationFault.

    Not in those that readers of the journal share: it may be on a network disk that hangs.
    """
    return await trio.to_thread.run_sync(
        accounts_file.load, path, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True
    )


@define(eq=False)
class Reloading:
    """What can be reloaded, and the last time that it was.

    `settings` are those in force. `apply` makes changes count; it does not wait and does not fail.
    """

    settings: Settings
    read: Callable[[Path], Awaitable[Settings]]
    apply: Callable[[Changes, str], None]
    now_ns: Callable[[], int]
    run_sync: RunSync
    last: ReloadStatus | None = None
    # How many were taken up (True), and how many were not.
    counts: Counter[bool] = field(factory=Counter)
    _one_at_a_time: trio.Lock = field(factory=trio.Lock)

    async def reload(self, who: str) -> ReloadStatus:
        """Take up the configuration as it is now; `who` asked for it."""
        async with self._one_at_a_time:
            try:
                new = await self._read()
            except ConfigurationFault as fault:
                return self._refused(who, tuple(map(str, fault.problems[:_PROBLEMS_SHOWN])))
            # Half a second for ten thousand sources: pings are answered meanwhile.
            changes = await self.run_sync(compare, self.settings, new)
            self.settings = changes.settings
            self.apply(changes, who)
            log.info("reload by %s: %s", who, changes.text)
            for warning in new.warnings:
                log.warning("%s", warning)
            self.last = self._outcome(
                who,
                accepted=True,
                changes=changes.sentences,
                needs_restart=changes.needs_restart,
            )
            return self.last

    async def _read(self) -> Settings:
        """Return the settings as the files have them. Raises ConfigurationFault."""
        file = self.settings.file
        try:
            with trio.fail_after(READ_S):
                new = await self.read(file)
        except trio.TooSlowError:
            message = f"could not be read within {READ_S:g} s"
        except OSError as error:
            message = error.strerror or str(error)
        else:
            if new.sources:
                return new
            message = "no account is enabled: nothing would be left to run"
        raise ConfigurationFault([Problem(str(file), "file", message)])

    def _refused(self, who: str, problems: tuple[str, ...]) -> ReloadStatus:
        log.error(
            "reload by %s: the configuration is not good, and nothing was changed: %s",
            who,
            "; ".join(problems),
        )
        self.last = self._outcome(who, accepted=False, problems=problems)
        return self.last

    def _outcome(self, who: str, *, accepted: bool, **found: tuple[str, ...]) -> ReloadStatus:
        self.counts[accepted] += 1
        return ReloadStatus(at=rfc3339(self.now_ns()), who=who, accepted=accepted, **found)
