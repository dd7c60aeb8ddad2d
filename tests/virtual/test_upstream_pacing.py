from __future__ import annotations

from itertools import pairwise

import pytest
import trio
import trio.testing
from attrs import define, field

from hypermux.core.pacing import Pacer
from hypermux.model.accounts import Cap, Endpoint, Limits, Tls
from hypermux.upstream.pacing import Pace, PacedDialer

ENDPOINT = Endpoint.parse("wss://router.test/events/ws")


@define
class SlowDialer:
    """Every connection is ready at the same moment, however early it was begun."""

    ready_s: float
    streams: list[trio.testing.MemoryReceiveStream] = field(factory=list)

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        await trio.sleep_until(self.ready_s)
        ours, theirs = trio.testing.memory_stream_pair()
        self.streams.append(theirs.receive_stream)
        return ours


def pace(now: float) -> Pace:
    return Pace(Pacer(Limits(Cap(connect_rate=2.0)), now))


async def test_connections_that_are_ready_at_once_are_used_at_the_rate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    dialer = PacedDialer(SlowDialer(10.0), pace(trio.current_time()), "prod")
    times: list[float] = []

    async def dial() -> None:
        await dialer.dial(ENDPOINT, Tls())
        times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(dial)
    assert times[0] == pytest.approx(10.0)
    assert [b - a for a, b in pairwise(times)] == pytest.approx([0.5] * 4, abs=1e-3)


async def test_who_is_cancelled_while_waiting_leaves_no_connection_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    below = SlowDialer(0.0)
    dialer = PacedDialer(below, pace(trio.current_time()), "prod")
    with trio.move_on_after(0.1) as scope:
        await dialer.dial(ENDPOINT, Tls())
    assert scope.cancelled_caught
    (peer,) = below.streams
    assert await peer.receive_some() == b""


@pytest.mark.parametrize(
    ("rate", "expected"), [(20.0, [10.0, 10.15, 10.2, 10.25]), (0.5, [10.0, 12.1, 14.1, 16.1])]
)
async def test_who_waits_asks_again_when_the_rate_changes(
    autojump_clock: trio.testing.MockClock, rate: float, expected: list[float]
) -> None:
    one = pace(trio.current_time())
    dialer = PacedDialer(SlowDialer(10.0), one, "prod")
    times: list[float] = []

    async def dial() -> None:
        await dialer.dial(ENDPOINT, Tls())
        times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(dial)
        await trio.sleep_until(10.1)
        one.change(Limits(Cap(connect_rate=2.0)))  # nothing else: nobody waits longer
        one.change(Limits(Cap(connect_rate=rate)))
    assert times == pytest.approx(expected, abs=1e-3)
