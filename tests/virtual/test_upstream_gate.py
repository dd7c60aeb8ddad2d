from __future__ import annotations

from itertools import pairwise

import pytest
import trio
import trio.testing

from hypermux.core.limiter import Allocator, Rank
from hypermux.model.accounts import Cap, Limits, SourceId
from hypermux.upstream.gate import Gate

A, B, C = (SourceId(name, "r") for name in "abc")


def gate(slots: int = 1, rate: float | None = None, burst: int = 1) -> Gate:
    return Gate(Allocator(Limits(Cap(slots, rate), burst), trio.current_time()))


async def test_a_freed_slot_goes_to_who_waits(autojump_clock: trio.testing.MockClock) -> None:
    one = gate()
    order: list[str] = []

    async def take(source: SourceId) -> None:
        await one.permit(source, "host:1", Rank.NEW)
        order.append(source.account)
        await trio.sleep(1)
        one.release(source)

    async with trio.open_nursery() as nursery:
        for source in (A, B, C):
            nursery.start_soon(take, source)
            await trio.testing.wait_all_tasks_blocked()
    assert order == ["a", "b", "c"]
    assert one.allocator.held == 0
    assert trio.current_time() == 3


async def test_who_is_cancelled_while_waiting_holds_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one = gate()
    await one.permit(A, "host:1", Rank.NEW)
    with trio.move_on_after(5) as scope:
        await one.permit(B, "host:1", Rank.NEW)
    assert scope.cancelled_caught
    assert (one.allocator.held, one.allocator.waiting) == (1, 0)
    one.release(A)
    assert one.allocator.held == 0


async def test_who_is_cancelled_at_the_moment_of_the_grant_gives_it_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one = gate()
    await one.permit(A, "host:1", Rank.NEW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.permit, B, "host:1", Rank.NEW)
        await trio.testing.wait_all_tasks_blocked()
        one.release(A)  # B is granted, and has not run yet
        nursery.cancel_scope.cancel()
    assert one.allocator.held in (0, 1)
    if one.allocator.held:  # trio let the wait succeed first: then B holds it, and knows
        one.release(B)
    assert (one.allocator.held, one.allocator.waiting) == (0, 0)


async def test_time_alone_grants_what_the_rate_holds_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    many = gate(slots=10, rate=0.5)
    times: list[float] = []

    async def take(source: SourceId) -> None:
        await many.permit(source, "host:1", Rank.NEW)
        times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(many.run)
        async with trio.open_nursery() as waiting:
            for source in (A, B, C):
                waiting.start_soon(take, source)
        nursery.cancel_scope.cancel()
    assert [b - a for a, b in pairwise(times)] == pytest.approx([2, 2])


async def test_a_handover_keeps_its_slot_whatever_becomes_of_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    one = gate(slots=1, rate=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        await one.permit(A, "host:1", Rank.NEW)
        await one.permit(A, "host:1", Rank.ROTATION, handover=True)
        assert one.allocator.held == 1
        with trio.move_on_after(0.5):
            await one.permit(A, "host:1", Rank.ROTATION, handover=True)
        assert (one.allocator.held, one.allocator.waiting) == (1, 0)
        nursery.start_soon(one.permit, B, "host:1", Rank.NEW)
        await trio.testing.wait_all_tasks_blocked()
        assert one.contested(A)
        one.release(A)
        await trio.sleep(1.0)
        assert one.allocator.held == 1
        nursery.cancel_scope.cancel()


async def test_other_limits_wake_who_waits(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    one = gate(slots=1)
    times: list[float] = []

    async def take(source: SourceId) -> None:
        await one.permit(source, "host:1", Rank.NEW)
        times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        for source in (A, B, C):
            nursery.start_soon(take, source)
        await trio.sleep(5.0)
        assert one.change(Limits(Cap(3, 1.0))) == []
        await trio.sleep(5.0)
        assert times == pytest.approx([0.0, 6.0, 7.0])
        assert len(one.change(Limits(Cap(1, 1.0)))) == 2
        caplog.set_level("INFO")
        one.throttled(A, trio.current_time(), None)
        assert "endpoint host:1 for account a asks for fewer connections" in caplog.text
        nursery.cancel_scope.cancel()
