"""A service that is killed, stopped and started over one disk, and a server that comes and goes.

Something happens at every source four times a second, whoever is connected. What is written down
about it here is the truth that the journal is held against: each happening is recorded, or lies
within a gap.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio.testing
from attrs import define, evolve, field

from hypermux.config.settings import (
    Account,
    ConnectionSettings,
    LimitSettings,
    Settings,
    SocketSettings,
    Source,
)
from hypermux.core.clock import StreamClock
from hypermux.core.recording import parse_rfc3339
from hypermux.downstream.memory import MemoryStorage
from hypermux.emulator import router as emulator
from hypermux.emulator.connection import Goodbye, Message
from hypermux.emulator.faults import Target
from hypermux.emulator.handshake import Answer
from hypermux.model.accounts import Cap, CredentialSource, Endpoint, SourceId, Tls
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.service import Service
from hypermux.service.seams import Seams

T = TypeVar("T")
SECOND = 1_000_000_000
START_NS = 1_700_000_000 * SECOND
STATE = Path("/virtual/state")
# Between what happens and what the service's clock says of it lie a few turns of the scheduler.
SLACK_NS = 5_000_000
REGIONS = ("east", "west")


class Dead(Exception):
    """The process of this life is gone: its calls to the disk do nothing any more."""


@define(eq=False)
class Life:
    """One run of the service."""

    scope: trio.CancelScope
    clock: StreamClock
    shutdown: trio.Event = field(factory=trio.Event)
    ended: trio.Event = field(factory=trio.Event)
    dead: bool = False

    async def run_sync(self, function: Callable[..., T], *args: Any) -> T:
        """Stand in for a thread, while there is a process."""
        await trio.lowlevel.checkpoint()
        if self.dead:
            raise Dead
        return function(*args)


@define
class Happening:
    """Something that happened at a source, by the clock that gaps are measured with."""

    source: SourceId
    number: int
    at_ns: int


@define(eq=False)
class World:
    """All of it. `wall_off_ns` is how wrong the service's wall clock is."""

    seed: int
    nursery: trio.Nursery
    router: emulator.Router
    storage: MemoryStorage = field(factory=MemoryStorage)
    happenings: list[Happening] = field(factory=list)
    wall_off_ns: int = 0
    reachable: bool = True
    regions: tuple[str, ...] = REGIONS
    life: Life | None = None
    lives: int = 0
    died_ns: int = 0
    unattended: list[Happening] = field(factory=list)

    def true_ns(self) -> int:
        """Return the true time."""
        return START_NS + round(trio.current_time() * 1e9)

    def wall_ns(self) -> int:
        """Return the service's wall clock."""
        return self.true_ns() + self.wall_off_ns

    def service_ns(self) -> int:
        """Return what the running service takes for now; its wall clock where none runs."""
        return self.wall_ns() if self.life is None else self.life.clock.now_ns()

    # The network

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        """Connect to the router over memory, while it can be reached."""
        await trio.sleep(0.01)
        if not self.reachable:
            raise ConnectionFailed(Failure(FailureKind.CONNECT, "nothing listens there"))
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.router.serve_stream, theirs)
        return ours

    def cut(self, code: int | None = None) -> None:
        """End all connections: by a close frame, or by none."""
        for connection in self.router.connections.values():
            connection.end(Goodbye(code, "cut"))

    def server_down(self) -> None:
        """Cut all, and be unreachable."""
        self.reachable = False
        self.cut()

    def server_up(self) -> None:
        """Be reachable again."""
        self.reachable = True

    def step(self, seconds: float) -> None:
        """Step the wall clock; the server's goes along, it is no matter of signatures here."""
        self.wall_off_ns += int(seconds * SECOND)
        self.router.ahead_ns = self.wall_off_ns

    def refuse(self, status: int, count: int | None = None) -> None:
        """Refuse handshakes; 0: no more."""
        self.router.faults.refuse(Target(), Answer(status), count)

    async def happen(self) -> None:
        """Let something happen everywhere, for ever."""
        number = 0
        await trio.sleep(0.111)  # never at the moment of something else
        while True:
            await trio.sleep(0.25)
            number += 1
            for region in REGIONS:
                event = {"status": "start", "id": str(number), "timeNano": self.true_ns()}
                message = Message(json.dumps(event).encode())
                source = SourceId("acct-001", region)
                happening = Happening(source, number, self.service_ns())
                self.happenings.append(happening)
                if self.life is None:
                    self.unattended.append(happening)
                self.router.publish("acct-001", region, message, event)

    # The service

    async def start(self) -> None:
        """Start a service; returns when it runs."""
        assert self.life is None
        self.lives += 1
        life = Life(trio.CancelScope(), StreamClock(trio.current_time, self.wall_ns))
        await self.nursery.start(self._run, life)
        # A wall that was set back leaves the service's clock where the last record that is kept
        # was: what happened since then happened, by that clock, just now.
        now_ns = life.clock.now_ns()
        for happening in self.unattended:
            if happening.at_ns < self.died_ns:
                happening.at_ns = now_ns
        for happening in self.happenings:
            happening.at_ns = min(happening.at_ns, now_ns)
        self.unattended.clear()
        self.life = life

    async def _run(
        self, life: Life, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        rng = random.Random(f"{self.seed}/{self.lives}")
        epochs = iter(range(1000 * self.lives, 1000 * self.lives + 1000))
        seams = Seams(
            clock=life.clock,
            utc_ns=self.wall_ns,
            rng=rng,
            dialer=self,
            storage=self.storage,
            journal_runner=life.run_sync,
            reader_runner=life.run_sync,
            new_epoch=lambda: f"{next(epochs):08x}",
            boot="one",
        )

        service = Service(self.settings(), seams)
        try:
            with life.scope:
                async with trio.open_nursery() as nursery:
                    run = partial(service.run, life.shutdown, serve_socket=False)
                    await nursery.start(run)
                    task_status.started()
        except* Dead:
            pass
        life.ended.set()

    async def kill(self) -> None:
        """kill -9: what was written is there, synced or not."""
        await self._end()
        self.storage.kill()

    async def power_cut(self, keep: int = 0) -> None:
        """Only what was synced is there, and the first `keep` bytes of the rest."""
        life = self.life
        assert life is not None
        life.dead = True
        self.storage.crash(keep)
        await self._end()

    async def _end(self) -> None:
        life, self.life = self.life, None
        assert life is not None
        self.died_ns = life.clock.now_ns()
        life.dead = True
        life.scope.cancel()
        await life.ended.wait()

    async def stop(self) -> None:
        """SIGTERM."""
        life = self.life
        assert life is not None
        life.shutdown.set()
        await life.ended.wait()
        self.died_ns = life.clock.now_ns()
        self.life = None

    def settings(self) -> Settings:
        (account,) = self.router.accounts
        endpoint = Endpoint.parse("ws://router.test:80/events/ws")
        sources = tuple(
            Source(
                SourceId(account.name, region),
                "hyper",
                endpoint,
                CredentialSource(account.access_key, account.secret_key),
            )
            for region in self.regions
        )
        return Settings(
            file=Path("accounts.toml"),
            state_dir=STATE,
            socket=SocketSettings(STATE / "sock"),
            accounts=(Account(account.name, "hyper", sources, Path("accounts.toml")),),
            limits=evolve(LimitSettings(), per_account=Cap(), per_endpoint=Cap()),
            connection=ConnectionSettings(),
        )

    # What the journal says

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every record of the journal."""
        files = sorted(p for p in self.storage.files if p.suffix == ".ndjson")
        lines = b"".join(bytes(self.storage.files[path].data) for path in files).splitlines()
        return [json.loads(line) for line in lines]

    def gaps(self, region: str = "east") -> list[dict[str, Any]]:
        """The gaps of a source, in the order of the journal."""
        return [r for r in self.records if r["kind"] == "gap" and r["region"] == region]

    def causes(self, region: str = "east") -> list[str]:
        """The causes of a source's gaps."""
        return [gap["cause"] for gap in self.gaps(region)]

    def check(self) -> None:
        """Hold the journal against the truth; call it behind the last stop."""
        records = self.records
        for region in self.regions:
            mine = [r for r in records if r.get("region") == region]
            numbers = [int(r["event"]["id"]) for r in mine if r["kind"] == "event"]
            assert len(numbers) == len(set(numbers)), "nothing twice"
            recorded = set(numbers)
            gaps = [
                (parse_rfc3339(g["from"]), parse_rfc3339(g["to"]))
                for g in mine
                if g["kind"] == "gap"
            ]
            assert all(begin <= end for begin, end in gaps)
            for (_, end), (begin, _) in pairwise(gaps):
                assert end <= begin, "no time is in two gaps"
            last = [r for r in mine if r["kind"] == "state" and r["state"] in ("up", "down")][-1]
            assert last["state"] == "down"
            # Before the first `down` it was not configured; behind the last one that says it all.
            began_ns = parse_rfc3339(mine[0]["from"])
            ended_ns = parse_rfc3339(last["from"])
            for happening in self.happenings:
                at_ns = happening.at_ns
                if happening.source.region != region or not began_ns <= at_ns <= ended_ns:
                    continue
                covered = any(b - SLACK_NS <= at_ns <= e + SLACK_NS for b, e in gaps)
                assert happening.number in recorded or covered, (
                    f"{happening} is neither recorded nor in one of {gaps}"
                )


@asynccontextmanager
async def world(seed: int = 1) -> AsyncIterator[World]:
    """Give a world in which things happen; check it at the end, when the service has stopped."""
    async with trio.open_nursery() as nursery:
        accounts = (emulator.Account.derive(str(seed), 1, REGIONS),)
        router = emulator.Router(
            emulator.RouterSettings(accounts, rate=0.0, seed=str(seed)),
            lambda: START_NS + round(trio.current_time() * 1e9),
        )
        w = World(seed, nursery, router)
        nursery.start_soon(w.happen)
        yield w
        if w.life is not None:
            w.server_up()
            w.refuse(200, 0)
            await trio.sleep(70)  # the longest backoff, and a dial
            await w.stop()
        nursery.cancel_scope.cancel()
    w.check()
