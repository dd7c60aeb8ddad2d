"""A source that brings nothing and is well: what is shown of it, and what is remembered for it."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
import trio
from attrs import define, evolve
from engine_world import ID, EngineWorld, configured, engine_world
from engines import EPOCH_S, ScriptedEngine, volume
from transports import Heard, PairDialer
from trio.testing import MockClock

from hypermux.config.settings import BackoffSettings, ConnectionSettings, Settings, Source
from hypermux.core.clock import StreamClock
from hypermux.core.decoding import decode_batch
from hypermux.core.limiter import Allocator, Rank
from hypermux.core.recollection import Recollection
from hypermux.core.resume import AUDIT_S
from hypermux.model.accounts import Cap, Endpoint, Limits, Tls
from hypermux.model.errors import HypermuxError
from hypermux.model.status import SourceStatus
from hypermux.upstream.docker_snapshot import Memory
from hypermux.upstream.gate import Gate
from hypermux.upstream.groups import is_cancellation, leaves
from hypermux.upstream.supervisor import Transports


def status(w: EngineWorld) -> SourceStatus:
    (found,) = [s for s in w.service.status().sources if s.region == ID.region]
    return found


def ago_s(moment: str | None) -> float:
    assert moment is not None
    text = f"{moment[:19]}+00:00"
    return EPOCH_S + trio.current_time() - datetime.fromisoformat(text).astimezone(UTC).timestamp()


async def test_an_idle_engine_is_live_and_answers(autojump_clock: MockClock) -> None:
    async with engine_world() as w, w.running(configured()):
        assert status(w).state == "proving"
        assert ago_s(status(w).last_answer) < 7
        link = w.service.supervisor.connections[ID].link
        assert link is not None
        heard_ns = link.heard_ns
        await trio.sleep(50)
        assert status(w).state == "proving"
        await trio.sleep(10)
        assert status(w).state == "live"
        assert ago_s(status(w).since) < 10
        for _ in range(100):
            await trio.sleep(60)
            assert status(w).state == "live"
            assert ago_s(status(w).last_answer) < 1.2 * AUDIT_S
        assert status(w).last_event is None
        assert link.heard_ns == heard_ns, "of the stream itself its own bytes tell alone"


async def test_health_is_forgotten_failures_whether_anything_comes_or_not(
    autojump_clock: MockClock,
) -> None:
    async with engine_world() as w, w.running(configured()):
        for _ in range(4):
            await w.engine().cut()
            await trio.sleep(10)
        assert (status(w).state, status(w).attempt) == ("proving", 4)
        await trio.sleep(60)
        assert (status(w).state, status(w).attempt) == ("live", 0)


def patient(reset_after_s: float) -> Settings:
    pauses = BackoffSettings(min_s=0.5, max_s=60.0, reset_after_s=reset_after_s)
    return evolve(configured(), connection=ConnectionSettings(backoff=pauses))


@pytest.mark.parametrize("after_s", [60.0, 1.0])
async def test_a_reload_moves_when_health_is_proved(
    autojump_clock: MockClock, after_s: float
) -> None:
    async with engine_world() as w, w.running(patient(3600.0)):
        await trio.sleep(5)
        await w.reload(patient(after_s))
        await trio.sleep(1)
        assert status(w).state == ("proving" if after_s == 60.0 else "live")
        await trio.sleep(60)
        assert status(w).state == "live"


# What is remembered when the task is cancelled.


@define(eq=False)
class Abrupt(trio.abc.Stream):
    """A stream that closes without waiting, as any may: no cancellation comes from that."""

    inner: trio.abc.Stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        pass


@define(eq=False)
class AbruptDialer(PairDialer):
    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        return Abrupt(await super().dial(endpoint, tls))


class Faulty(Heard):
    def received(self, messages: list[bytes], *, more: bool) -> None:
        raise HypermuxError("a fault of ours")


@pytest.mark.parametrize("fault", [False, True])
async def test_a_cancellation_is_no_reason_to_forget_and_a_fault_is(
    autojump_clock: MockClock, fault: bool
) -> None:
    def now_ns() -> int:
        return int((EPOCH_S + trio.current_time()) * 1e9)

    engine = ScriptedEngine()
    source = Source(ID, "docker", Endpoint.parse("tcp://first.test:2375"))
    memory = Memory(Recollection(), now_ns())
    for item in decode_batch([volume("seen")]):
        memory.recollection.note(item)
    before = memory.recollection
    await engine.happen(volume("seen"))
    async with trio.open_nursery() as nursery:
        gate = Gate(Allocator(Limits(Cap(5, None)), trio.current_time()))
        nursery.start_soon(gate.run)
        transports = Transports(
            AbruptDialer(nursery, engine.serve),
            gate,
            ConnectionSettings(),
            StreamClock(trio.current_time, now_ns),
            now_ns,
            random.Random(1),
            {ID: memory},
        )
        await gate.permit(ID, source.endpoint.address, Rank.NEW)
        listener = Faulty() if fault else Heard()
        ended: list[BaseException] = []
        with trio.move_on_after(10):
            async with trio.open_nursery() as around:
                around.start_soon(engine_talks, engine)
                try:
                    await transports.of(source)(source, None, listener, 0.0)
                except BaseException as exc:
                    ended.append(exc)
                    if is_cancellation(exc):
                        raise
                around.cancel_scope.cancel()
        (why,) = ended
        assert isinstance(why, BaseExceptionGroup), "otherwise this tests nothing"
        assert is_cancellation(why) is not fault
        assert any(isinstance(leaf, HypermuxError) for leaf in leaves(why)) is fault
        assert (memory.recollection is before) is not fault
        nursery.cancel_scope.cancel()


async def engine_talks(engine: ScriptedEngine) -> None:
    await trio.sleep(5)
    await engine.happen(volume("live"))
