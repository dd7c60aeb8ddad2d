"""A disk that a process can be gone from at any call, and that keeps what was synced."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any

from attrs import define

from hypermux.downstream.memory import MemoryStorage

# What becomes of unsynced data: killed (all is kept; the system lives on), and after a power cut:
# lost, kept to a point, or with a page missing.
FATES = ("killed", "lost", "prefix", "hole")
_READING = frozenset(("names", "read", "open", "read_at", "lock", "prepare"))


@define(eq=False)
class Disk(MemoryStorage):
    """`calls`: after so many more that change something `on_call` is made, and the life over."""

    alive: bool = True
    calls: int | None = None
    on_call: Callable[[], None] = lambda: None

    def _fail_if_planned(self, operation: str) -> None:
        if operation not in _READING and self.calls is not None and self.alive:
            if self.calls == 0:
                self.calls = None
                self.on_call()
            else:
                self.calls -= 1
        if not self.alive:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        super()._fail_if_planned(operation)

    def end(self, fate: str, rng: random.Random) -> None:
        """Do to the disk what the end of a life does."""
        self.calls = None
        self._plan.clear()
        self.write_limit = rng.choice((None, None, 100))
        if fate == "killed":
            self.kill()
            return
        if fate == "hole":
            for file in self.files.values():
                unsynced = len(file.data) - file.synced
                start = file.synced + rng.randint(0, unsynced)
                stop = rng.randint(start, len(file.data))
                file.data[start:stop] = bytes(stop - start)
                file.synced = len(file.data)
        if fate == "prefix" and rng.random() < 0.5:
            for file in self.files.values():
                file.named = True
            self._synced_links: Any = dict(self.links)
        self.crash(rng.randint(0, 400) if fate == "prefix" else 0)
