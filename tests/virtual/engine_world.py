"""A whole service over engines in memory, which may be killed, and started again over its disk."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing
from attrs import define, field
from engines import EPOCH_S, ScriptedEngine
from whole_service import run_directly

from hypermux.config.settings import (
    Account,
    LimitSettings,
    Settings,
    SocketSettings,
    Source,
)
from hypermux.core.clock import StreamClock
from hypermux.downstream.memory import MemoryStorage
from hypermux.model.accounts import Cap, Endpoint, SourceId, Tls
from hypermux.service import Service
from hypermux.service.seams import Seams

STATE = Path("/virtual/state")
FILE = Path("/virtual/accounts.toml")
ID = SourceId("ci", "build1")
FIRST, OTHER = "tcp://first.test:2375", "tcp://other.test:2375"


def configured(endpoint: str = FIRST, **changes: Any) -> Settings:
    """Return settings with one source at `endpoint`; without one: with another source only."""
    sources = [
        Source(SourceId("ci", "always"), "docker", Endpoint.parse("tcp://always.test:2375")),
    ]
    if endpoint:
        sources.append(Source(ID, "docker", Endpoint.parse(endpoint), **changes))
    return Settings(
        FILE,
        STATE,
        SocketSettings(STATE / "sock"),
        (Account("ci", "docker", tuple(sources), FILE),),
        limits=LimitSettings(100, 50.0, 5, Cap(), Cap()),
    )


@define(eq=False)
class EngineWorld:
    """Engines by host name, one disk, and the service that runs."""

    nursery: trio.Nursery
    storage: MemoryStorage = field(factory=MemoryStorage)
    engines: dict[str, ScriptedEngine] = field(factory=dict)
    service: Service = field(init=False)
    next: Settings = field(factory=configured)

    def engine(self, name: str = "first") -> ScriptedEngine:
        """Return the engine of a host."""
        return self.engines.setdefault(name, ScriptedEngine())

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        """Connect to an engine over memory."""
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.engine(endpoint.host.partition(".")[0]).serve, theirs)
        await trio.lowlevel.checkpoint()
        return ours

    @asynccontextmanager
    async def running(self, begun_with: Settings) -> AsyncIterator[Service]:
        """Run a service; it is stopped when the block is left."""

        def now_ns() -> int:
            return int((EPOCH_S + trio.current_time()) * 1e9)

        async def read(path: Path) -> Settings:
            return self.next

        seams = Seams(
            clock=StreamClock(trio.current_time, now_ns),
            utc_ns=now_ns,
            rng=random.Random(1),
            dialer=self,
            storage=self.storage,
            journal_runner=run_directly,
            reader_runner=run_directly,
            new_epoch=lambda: "0000abcd",
            boot="one",
            read_settings=read,
        )
        self.service = Service(begun_with, seams)
        shutdown = trio.Event()

        async def run(*, task_status: trio.TaskStatus[Service]) -> None:
            await self.service.run(shutdown, serve_socket=False, task_status=task_status)

        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            await trio.sleep(5)  # all are connected
            yield self.service
            shutdown.set()

    async def reload(self, *configurations: Settings) -> None:
        """Take up configurations one behind the other, with nothing between them."""
        for settings in configurations:
            self.next = settings
            await self.service.reload("me")

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every record of the source."""
        files = sorted(p for p in self.storage.files if p.suffix == ".ndjson")
        data = b"".join(bytes(self.storage.files[path].data) for path in files)
        found = [json.loads(line) for line in data.splitlines()]
        return [r for r in found if r.get("region") == ID.region]

    @property
    def names(self) -> list[str]:
        """The volumes of the source's events, in the journal's order."""
        return [r["event"]["Actor"]["ID"] for r in self.records if r["kind"] == "event"]

    @property
    def told(self) -> list[str]:
        """What the stream says of the source beside events."""
        return [
            f"GAP:{r['cause']}"
            if r["kind"] == "gap"
            else ":".join(filter(None, (r["state"], r.get("cause"))))
            for r in self.records
            if r["kind"] in ("gap", "state")
        ]


@asynccontextmanager
async def engine_world() -> AsyncIterator[EngineWorld]:
    """Give a world of engines."""
    async with trio.open_nursery() as nursery:
        yield EngineWorld(nursery)
        nursery.cancel_scope.cancel()
