"""Noticing that a file was replaced or rewritten: a key, a certificate.

Looked at every few seconds, because nothing else tells of it everywhere: a rename, a symlink two
levels up that is swapped (as orchestrators mount secrets), a network disk. One thread looks at all;
on a disk that hangs it waits, and with it the watch, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import trio
from attrs import define, field

# An operator who has put a new key in place should not wait for it; a look costs a microsecond.
POLL_S = 3.0

RunSync: TypeAlias = Callable[..., Awaitable[Any]]
Stamp: TypeAlias = tuple[int, ...] | None


def stamp(path: str) -> Stamp:
    """Return what changes when a file does, None when there is none to be seen.

    The time of a change of mode is in it: a key that others could read is of use after a chmod.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def in_thread(threads: int) -> RunSync:
    """Return a runner of blocking calls that change nothing: a stop does not wait for them."""
    limiter = trio.CapacityLimiter(threads)
    return partial(trio.to_thread.run_sync, limiter=limiter, abandon_on_cancel=True)


@define(eq=False)
class FileWatch:
    """Calls `changed` with the path of each watched file that changed."""

    changed: Callable[[str], None]
    run_sync: RunSync = field(factory=lambda: in_thread(1))
    _stamps: dict[str, Stamp] = field(factory=dict)

    def watch(self, paths: Iterable[str]) -> None:
        """Watch these files and no others; what is known of those that stay is kept."""
        known = self._stamps
        # A new one has no stamp yet: its first look finds nothing changed.
        self._stamps = {path: known.get(path, ()) for path in paths}

    async def run(self) -> None:
        """Look until cancelled, first at once: what is read from now on is read after that."""
        while True:
            if self._stamps:
                await self.look()
            await trio.sleep(POLL_S)

    async def look(self) -> None:
        """Look once at every file."""
        try:
            seen = await self.run_sync(_stamps, tuple(self._stamps))
        except RuntimeError:
            return  # no thread is to be had now; the next look finds the same
        for path, now in seen.items():
            before = self._stamps.get(path, now)
            if path in self._stamps:
                self._stamps[path] = now
            if before not in (now, ()):
                self.changed(path)


def _stamps(paths: tuple[str, ...]) -> dict[str, Stamp]:
    return {path: stamp(path) for path in paths}
