"""The whole service in virtual time: real code but for sockets, disk, clock and threads.

`World.write` puts journal, manifest and accept log where `scripts/verify` can read them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio.testing
from attrs import define, field

from hypermux.config.settings import (
    Account,
    ConnectionSettings,
    JournalSettings,
    LimitSettings,
    Settings,
    SocketSettings,
    Source,
)
from hypermux.core.clock import StreamClock
from hypermux.downstream.memory import MemoryStorage
from hypermux.emulator import router as emulator
from hypermux.emulator.connection import Goodbye
from hypermux.model.accounts import Cap, CredentialSource, Endpoint, SourceId, Tls
from hypermux.service import Service
from hypermux.service.seams import Seams

T = TypeVar("T")

START_NS = 1_700_000_000_000_000_000
STATE = Path("/virtual/state")


async def run_directly(function: Callable[..., T], *args: Any) -> T:
    """Stand in for a thread: virtual time would jump while a real one works."""
    await trio.lowlevel.checkpoint()
    return function(*args)


@define
class MemoryDialer:
    """Connects each dial to the router over memory."""

    router: emulator.Router
    nursery: trio.Nursery

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.router.serve_stream, theirs)
        await trio.lowlevel.checkpoint()
        return ours


@define
class World:
    """A router, a service and a disk under one seed."""

    seed: int
    accounts: int = 10
    regions: int = 5
    events: int = 200
    rate: float = 20.0
    cuts: int = 20
    shared: bool = False
    rotate_after_s: float | None = None
    storage: MemoryStorage = field(factory=MemoryStorage)
    manifest: list[bytes] = field(factory=list)
    accepts: list[bytes] = field(factory=list)

    def run(self) -> None:
        """Run to the end of all traffic; deterministic in the seed."""
        # trio shuffles tasks on purpose; a run that must replay has to fix the order.
        internals: Any = trio._core._run
        internals._ALLOW_DETERMINISTIC_SCHEDULING = True
        internals._r.seed(self.seed)
        trio.run(self._main, clock=trio.testing.MockClock(autojump_threshold=0))

    def _now_ns(self) -> int:
        return START_NS + round(trio.current_time() * 1e9)

    async def _main(self) -> None:
        rng = random.Random(self.seed)
        regions = tuple(f"region-{n}" for n in range(self.regions))
        router = emulator.Router(
            emulator.RouterSettings(
                tuple(
                    emulator.Account.derive(str(self.seed), n, regions)
                    for n in range(1, self.accounts + 1)
                ),
                rate=self.rate,
                shared=self.shared,
                events=self.events,
                seed=str(self.seed),
            ),
            self._now_ns,
            manifest=self.manifest.append,
            accept_log=self.accepts.append,
        )
        async with trio.open_nursery() as network:
            clock = StreamClock(trio.current_time, self._now_ns)
            seams = Seams(
                clock=clock,
                utc_ns=self._now_ns,
                rng=random.Random(rng.getrandbits(64)),
                dialer=MemoryDialer(router, network),
                storage=self.storage,
                journal_runner=run_directly,
                reader_runner=run_directly,
                new_epoch=partial(_epoch, rng),
            )
            shutdown = trio.Event()
            async with trio.open_nursery() as nursery:
                service = Service(self._settings(router), seams)
                nursery.start_soon(partial(service.run, shutdown, serve_socket=False))
                for _ in range(self.cuts):
                    await trio.sleep(rng.expovariate(2.0))
                    if router.connections:
                        number = rng.choice(list(router.connections))
                        code = rng.choice([None, 1001, 1012])
                        router.connections[number].end(Goodbye(code, "cut"))
                # Long enough for the longest backoff and all of a connection's traffic.
                await trio.sleep(60 + self.events / self.rate + 5)
                shutdown.set()
            network.cancel_scope.cancel()

    def _settings(self, router: emulator.Router) -> Settings:
        endpoint = Endpoint.parse("ws://router.test:80/events/ws")
        return Settings(
            file=Path("accounts.toml"),
            state_dir=STATE,
            socket=SocketSettings(STATE / "sock"),
            accounts=tuple(
                Account(
                    account.name,
                    "hyper",
                    tuple(
                        Source(
                            SourceId(account.name, region),
                            "hyper",
                            endpoint,
                            CredentialSource(account.access_key, account.secret_key),
                        )
                        for region in account.regions
                    ),
                    Path("accounts.toml"),
                )
                for account in router.accounts
            ),
            limits=LimitSettings(100, 50.0, 5, Cap(), Cap()),
            connection=ConnectionSettings(rotate_after_s=self.rotate_after_s),
            journal=JournalSettings(segment_size=1 << 20),
        )

    def write(self, directory: Path) -> None:
        """Put journal, manifest and accept log where `scripts/verify` can read them."""
        for path, file in self.storage.files.items():
            target = directory / path.relative_to(STATE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(bytes(file.data))
        (directory / "manifest").write_bytes(b"".join(self.manifest))
        (directory / "accepts").write_bytes(b"".join(self.accepts))


def _epoch(rng: random.Random) -> str:
    return f"{rng.getrandbits(32):08x}"
