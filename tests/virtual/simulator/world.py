"""One world: upstreams, wires, a disk, and the service's lives in it, one after another."""

from __future__ import annotations

import errno
import logging
import random
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from attrs import define, field

from hypermux.config.settings import (
    Account,
    BufferSettings,
    ConnectionSettings,
    JournalSettings,
    LimitSettings,
    Settings,
    SocketSettings,
    Source,
)
from hypermux.core.clock import StreamClock
from hypermux.model.accounts import (
    Cap,
    Credential,
    CredentialSource,
    Endpoint,
    Secret,
    SourceId,
    Tls,
)
from hypermux.model.errors import DiskFault, Undelivered
from hypermux.service import Service
from hypermux.service.seams import Seams
from simulator.disk import Disk
from simulator.docker import DockerUpstream
from simulator.hyper import HyperUpstream
from simulator.messages import Maker
from simulator.network import Network, WireDialer, label
from simulator.plan import Caps, Plan, Step, slowest_s
from simulator.timeline import Timeline, run_virtually
from simulator.truth import Life, Truth
from simulator.upstream import Upstream

T = TypeVar("T")

START_NS = 1_700_000_000_000_000_000
STATE = Path("/virtual/state")
MAX_MESSAGE = 16 * 1024
# A supervisor's patience before it starts a service again that ended by a fault of the disk.
RESTART_S = 1.0
# A connection that gives its slot back says goodbye, and its server answers.
PARTED_S = 15.0


class Errors(logging.Handler):
    """What the service logs as an error: with nothing but upstreams at fault there is none."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.texts.append(logging.Formatter().format(record))


@define(eq=False)
class World:
    """The world of a plan. `problems` is what went wrong by itself; the judge finds the rest."""

    plan: Plan
    truth: Truth = field(factory=Truth)
    disk: Disk = field(factory=Disk)
    timeline: Timeline = field(factory=Timeline)
    network: Network = field(init=False)
    upstreams: dict[SourceId, Upstream] = field(factory=dict)
    problems: list[str] = field(factory=list)
    epochs: tuple[Any, ...] = ()
    _rng: random.Random = field(init=False)
    _wall_error_ns: int = 0
    _disk_s: float = 0.0
    _boot: int = 1
    _dialer: WireDialer | None = None
    _service: Service | None = None
    _scope: trio.CancelScope | None = None
    _shutdown: trio.Event | None = None
    _down_s: float = 0.0
    _fate: str = ""
    # The limits that the configuration has now, and what tells the service to take them up.
    _caps: Caps = field(init=False)
    _changed: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._rng = random.Random(f"world {self.plan.seed}")
        self.network = Network(
            self.timeline, delays=self.plan.delays.__getitem__, trace=self._trace
        )
        self._disk_s = self.plan.disk_s
        self._caps = self.plan.caps

    def run(self) -> None:
        """Run to the end of the plan; deterministic in it."""
        logger, errors = logging.getLogger("hypermux"), Errors()
        logger.addHandler(errors)
        logger.propagate, level = False, logger.level
        logger.setLevel(logging.ERROR)
        try:
            run_virtually(self._main, self.plan.seed)
        finally:
            logger.removeHandler(errors)
            logger.propagate = True
            logger.setLevel(level)
        self.problems += [f"logged: {text}" for text in errors.texts]

    def restarts(self, source: SourceId) -> list[float]:
        """Return when an engine was restarted."""
        upstream = self.upstreams[source]
        return upstream.restarts if isinstance(upstream, DockerUpstream) else []

    def well(self, source: SourceId, begin: float, end: float) -> bool:
        """Say whether nothing else happened to a source, or to us, between two moments."""
        return not any(
            begin < step.at + step.seconds and step.at < end
            for step in self.plan.steps
            if step.what not in ("say", "burst", "skip", "deaf") and step.source in (source, None)
        )

    # The world's clocks

    def wall_ns(self) -> int:
        """Our machine's wall clock."""
        return START_NS + round(trio.current_time() * 1e9) + self._wall_error_ns

    def _true_s(self) -> float:
        return START_NS / 1e9 + trio.current_time()

    def _trace(self, text: str) -> None:
        self.truth.trace.append(f"{trio.current_time():12.6f} {text}")

    def _sample(self) -> None:
        service = self._service
        if service is not None:
            self.truth.clock.sample(trio.current_time(), service.seams.clock.now_ns())

    # The run

    async def _main(self) -> None:
        for source in self.plan.sources:
            self._begin(source)
        for step in self.plan.steps:
            self.timeline.at(step.at, partial(self._do, step))
        self.timeline.at(self.plan.hour, self._stop)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.timeline.run)
            while trio.current_time() < self.plan.hour:
                await self._live()
                await trio.sleep(max(0.0, min(self._down_s, self.plan.hour - trio.current_time())))
            while self.truth.lives[-1].how != "stop":
                # A journal is judged after a recovery and an orderly end.
                self.timeline.after(20.0, self._stop)
                await self._live()
                await trio.sleep(self._down_s if self.truth.lives[-1].how == "fault" else 0.0)
            nursery.cancel_scope.cancel()

    def _begin(self, source: SourceId) -> None:
        plan = self.plan
        rng = random.Random(f"{plan.seed} {source}")
        docker = plan.kinds[source] == "docker"
        tag = f"{source.account}/{source.region}"
        maker = Maker(tag, rng, plan.dialects[source], plan.clock_errors[source])
        shared = (
            *(source, _endpoint(plan, source).address, self.truth, maker, rng),
            *(self._true_s, plan.delays[source]),
        )
        upstream: Upstream
        if docker:
            # One clock is behind an engine's events and its `Date`.
            upstream = DockerUpstream(*shared, date_error_s=maker.clock_error_s)
        else:
            upstream = HyperUpstream(*shared, secret=_key(source.account))
        self.upstreams[source] = self.network.servers[source] = upstream
        self.truth.messages[source] = []
        self.truth.sessions[source] = []

    async def _live(self) -> None:
        """One life of the service, from its start to its end."""
        life = Life(len(self.truth.lives) + 1, trio.current_time())
        self.truth.lives.append(life)
        self._trace(f"life {life.number} begins")
        self.disk.alive = True
        self._shutdown = trio.Event()
        self._down_s, self._fate = RESTART_S, "killed"
        self._dialer = WireDialer(self.network, life.number)
        self._service = None
        with trio.CancelScope() as self._scope:
            try:
                service = Service(_settings(self.plan, self._caps), self._seams())
                self._in_force(self._caps)
                await service.run(
                    self._shutdown, readers=[partial(self._watch, life)], serve_socket=False
                )
                self._ended(life, "stop")
            except BaseException as error:
                faults = _leaves(error)
                # A disk that takes seconds for each call cannot take a last commit in time.
                known = (DiskFault, Undelivered) if slowest_s(self.plan) >= 2.0 else DiskFault
                if life.ended is None and faults and all(isinstance(e, known) for e in faults):
                    self._ended(life, "fault")
                elif life.ended is None:
                    self._ended(life, "error")
                    self.problems.append(f"life {life.number} ended by {error!r}: {faults!r}")
                # What a dead life still says is of no interest, but trio has to hear of the end.
                if isinstance(error, BaseExceptionGroup):
                    cancelled, _ = error.split(trio.Cancelled)
                    if cancelled is not None:
                        raise cancelled from None
                elif isinstance(error, trio.Cancelled):
                    raise
        self._service = None
        if life.how == "error":
            raise RuntimeError("; ".join(self.problems))
        if life.how == "stop":
            self._fate = self._rng.choice(["killed", "lost"])
        if self._fate != "killed":
            self._boot += 1
        self.disk.end(self._fate, self._rng)

    def _ended(self, life: Life, how: str) -> None:
        """Note the end of a life, and let the system close what it held open."""
        self._sample()
        life.ended, life.how = trio.current_time(), how
        self._trace(f"life {life.number} ends: {how}")
        service = self._service
        if service is not None:
            place = service.horizon.position
            path = service.journal.directory / f"{place.segment:020}.ndjson"
            shown = bytes(self.disk.files[path].data[: place.offset])
            life.tail = path.name, place.offset, zlib.crc32(shown)
            shares = service.sequencer.inbox.budget.shares
            life.counted = {source: (s.received, s.lost) for source, s in shares.items()}
        assert self._dialer is not None
        self._dialer.crash()

    def _seams(self) -> Seams:
        assert self._dialer is not None
        seed = self._rng.getrandbits(64)
        return Seams(
            clock=StreamClock(trio.current_time, self.wall_ns),
            utc_ns=self.wall_ns,
            rng=random.Random(seed),
            dialer=self._dialer,
            storage=self.disk,
            journal_runner=self._run_journal,
            reader_runner=_run_directly,
            new_epoch=lambda: f"{self._rng.getrandbits(32):08x}",
            boot=f"boot-{self._boot}",
            read_settings=self._read_settings,
        )

    async def _read_settings(self, path: Path) -> Settings:
        await trio.lowlevel.checkpoint()
        return _settings(self.plan, self._caps)

    def _in_force(self, caps: Caps) -> None:
        """Note which limits count from now on."""
        self.truth.caps.append((trio.current_time(), caps))
        self.network.allowed = {"all": caps.connections, "account": caps.account_connections}

    async def _reload(self, service: Service) -> None:
        """Have the service take up its configuration whenever that changes."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            caps = self._caps
            status = await service.reload("the world")
            if not status.accepted:
                self.problems.append(f"reload: {status.problems}")
            self._in_force(caps)

    async def _run_journal(self, function: Callable[..., T], *args: Any) -> T:
        """Stand in for the journal's thread: virtual time would jump while a real one works."""
        if self._disk_s and self.disk.alive:
            await trio.sleep(self._disk_s)
        else:
            await trio.lowlevel.checkpoint()
        return function(*args)

    async def _watch(self, life: Life, service: Service) -> None:
        """Note what is shown and when, as a reader would see it."""
        self._service = service
        life.started = trio.current_time()
        self._sample()
        if not self.plan.later:
            await self._see(life, service)
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._reload, service)
                await self._see(life, service)
                nursery.cancel_scope.cancel()
        horizon = service.horizon
        life.shown.append((trio.current_time(), horizon.position.seq))
        self.epochs = service.journal.epochs

    async def _see(self, life: Life, service: Service) -> None:
        horizon = service.horizon
        while not horizon.ended:
            seq = horizon.position.seq
            life.shown.append((trio.current_time(), seq))
            self._sample()
            await horizon.wait_beyond(seq)

    # What happens

    def _do(self, step: Step) -> None:
        if step.source is not None:
            self._to_source(self.upstreams[step.source], step)
            return
        self._trace(f"{step.what} {step.number:g} {step.word}")
        match step.what:
            case "crash":
                self._crash(step)
            case "call":
                self.disk.on_call = partial(self._crash, step)
                self.disk.calls = int(step.number)
            case "stop":
                self._down_s = step.seconds
                self._stop()
            case "wall":
                self._wall_error_ns += round(step.number * 1e9)
            case "slow":
                self._disk_s = step.number
                self.timeline.after(min(step.seconds, 30.0), self._disk_as_usual)
            case "limits":
                self._caps = self.plan.later[int(step.number)]
                self._changed.set()
                self.timeline.after(PARTED_S, partial(self._parted, self._caps))
            case "fault":
                operation = self._rng.choice(["sync", "write"])
                if step.seconds < 0.5:
                    self.disk.fail(operation, errno.EIO)
                else:
                    self.disk.refuse(operation, errno.ENOSPC)
                    self.disk.refuse("rewrite", errno.ENOSPC)
                    self.timeline.after(step.seconds, self.disk.take_again)

    def _parted(self, caps: Caps) -> None:
        """Whoever was to give a slot back has done so, unless much else goes on."""
        if self._caps is caps and self._service is not None:
            self.network.count("still there", tuple(self.network.now))

    def _disk_as_usual(self) -> None:
        self._disk_s = self.plan.disk_s

    def _stop(self) -> None:
        life = self.truth.lives[-1]
        if self._shutdown is not None and life.ended is None and life.stopping is None:
            life.stopping = trio.current_time()
            self._trace(f"life {life.number} is stopped")
            self._shutdown.set()

    def _crash(self, step: Step) -> None:
        life = self.truth.lives[-1]
        if life.ended is not None or self._scope is None:
            return
        self._down_s, self._fate = step.seconds, step.word
        self.disk.alive = False
        self._ended(life, "kill" if step.word == "killed" else "power")
        self._scope.cancel()

    def _to_source(self, upstream: Upstream, step: Step) -> None:
        after = self.timeline.after
        if step.what not in ("say", "burst"):
            self._trace(
                f"{upstream.source} {step.what} {step.seconds:g} {step.number:g} {step.word}"
            )
        match step.what:
            case "say":
                # An engine's repeats come one behind the other: its times are nanoseconds.
                twins = upstream.remembers and step.word == "repeat"
                upstream.emit(["event", "repeat"] if twins else [step.word])
            case "burst":
                count = int(step.number)
                if step.seconds:
                    for n in range(count):
                        after(step.seconds * n / count, partial(upstream.emit, ["event"]))
                else:
                    upstream.emit(["event"] * count)
            case "cut":
                upstream.strike("eof")
            case "close":
                upstream.strike("close", code=int(step.number))
            case "reset" | "torn" | "noise" | "die":
                upstream.strike(step.what)
            case "stall":
                upstream.strike("stall", seconds=step.seconds)
            case "deaf":
                upstream.strike("deaf")
                after(step.seconds, partial(upstream.strike, "hears"))
            case "skip":
                upstream.skipping += int(step.number)
                upstream.strike("skip")
            case "restart":
                upstream.strike("eof")
                if isinstance(upstream, DockerUpstream):
                    upstream.restart()
                upstream.behave(dial="down")
                after(step.seconds, upstream.behave)
            case "down" | "nameless" | "hole":
                upstream.strike(self._rng.choice(["eof", "reset", "die"]))
                upstream.behave(dial=step.what)
                after(step.seconds, upstream.behave)
            case "refuse":
                upstream.strike(self._rng.choice(["eof", "reset"]))
                answer = int(step.word) if step.word.isdigit() else step.word
                upstream.behave(answer=answer)
                after(step.seconds, upstream.behave)
            case "throttle":
                upstream.strike("eof")
                upstream.behave(answer=429, retry_after_s=step.number or None)
                after(step.seconds, upstream.behave)
            case "clock" | "date":
                both = upstream.remembers
                if both or step.what == "clock":
                    upstream.maker.clock_error_s = step.number
                if both or step.what == "date":
                    upstream.date_error_s = step.number
            case _:
                raise AssertionError(step.what)


async def _run_directly(function: Callable[..., T], *args: Any) -> T:
    await trio.lowlevel.checkpoint()
    return function(*args)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


def _key(account: str) -> Credential:
    return Credential(f"AK{account}", Secret(f"secret of {account}"))


def _endpoint(plan: Plan, source: SourceId) -> Endpoint:
    if plan.kinds[source] == "docker":
        return Endpoint.parse(f"tcp://{source.region}.test:2376")
    return Endpoint.parse(f"wss://{source.region}.test:443/events/ws")


def _settings(plan: Plan, caps: Caps) -> Settings:
    accounts: dict[str, list[Source]] = {}
    for source in plan.sources:
        key = _key(source.account)
        docker = plan.kinds[source] == "docker"
        accounts.setdefault(source.account, []).append(
            Source(
                source,
                "docker" if docker else "hyper",
                _endpoint(plan, source),
                None if docker else CredentialSource(key.access_key, key.secret_key),
                tls=Tls(ca=label(source)),
            )
        )
    return Settings(
        file=Path("accounts.toml"),
        state_dir=STATE,
        socket=SocketSettings(STATE / "sock"),
        accounts=tuple(
            Account(name, sources[0].upstream, tuple(sources), Path("accounts.toml"))
            for name, sources in accounts.items()
        ),
        limits=LimitSettings(
            caps.connections,
            caps.rate,
            caps.burst,
            Cap(caps.account_connections, caps.account_rate),
            Cap(None, caps.endpoint_rate),
        ),
        connection=ConnectionSettings(max_message_size=MAX_MESSAGE, rotate_after_s=plan.rotate_s),
        buffer=BufferSettings(plan.buffer, plan.per_source),
        journal=JournalSettings(fsync=plan.fsync, segment_size=plan.segment_size),
    )
