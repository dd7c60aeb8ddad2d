"""Where the service meets what is outside of it: each seam is this machine's, or a test's."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from attrs import define

from hypermux.config.settings import Settings
from hypermux.core.clock import StreamClock
from hypermux.downstream.storage import DiskStorage, Storage, which_file
from hypermux.downstream.walk import RunSync
from hypermux.service.reloading import read_settings
from hypermux.upstream.dialing import SocketDialer
from hypermux.upstream.transport import Dialer

T = TypeVar("T")


def in_thread(limiter: trio.CapacityLimiter) -> RunSync:
    """Return a runner of blocking calls in threads of their own; such a call is never abandoned.

    Each kind of work has its own limiter: threads of the default one may all be waiting for a
    resolver that hangs.
    """

    def run_sync(function: Callable[..., T], *args: Any) -> Awaitable[T]:
        return trio.to_thread.run_sync(function, *args, limiter=limiter)

    return run_sync


@define(eq=False)
class Seams:
    """All that the service takes from outside itself: clocks, chance, network, disk, threads."""

    clock: StreamClock
    utc_ns: Callable[[], int]
    rng: random.Random
    dialer: Dialer
    storage: Storage
    journal_runner: RunSync
    reader_runner: RunSync
    new_epoch: Callable[[], str]
    boot: str = ""
    which: Callable[[Path], tuple[int, ...]] = lambda _: ()
    upkeep_runner: RunSync | None = None
    read_settings: Callable[[Path], Awaitable[Settings]] = read_settings

    @classmethod
    def real(cls, settings: Settings) -> Seams:
        """Return this machine's own; call it inside `trio.run`."""
        return cls(
            clock=StreamClock(trio.current_time, time.time_ns),
            utc_ns=time.time_ns,
            rng=random.Random(),
            dialer=SocketDialer(dial_timeout_s=settings.connection.dial_timeout_s),
            storage=DiskStorage(),
            journal_runner=in_thread(trio.CapacityLimiter(1)),
            reader_runner=in_thread(trio.CapacityLimiter(8)),
            upkeep_runner=in_thread(trio.CapacityLimiter(1)),
            new_epoch=partial(secrets.token_hex, 4),
            boot=_boot_id(),
            which=which_file,
        )


def _boot_id() -> str:
    """Return the name of the machine's present boot, empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
