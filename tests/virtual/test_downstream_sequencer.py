"""The sequencer over a disk in memory: nothing shown before its sync, nothing lost uncounted."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from hypermux.config.settings import JournalSettings, RetainSettings
from hypermux.core.clock import StreamClock
from hypermux.core.intake import ITEM_OVERHEAD, Budget
from hypermux.core.merging import Merger
from hypermux.downstream.horizon import Horizon
from hypermux.downstream.inbox import Inbox
from hypermux.downstream.journal import Journal
from hypermux.downstream.memory import MemoryStorage
from hypermux.downstream.reading import JournalReader
from hypermux.downstream.sequencer import Sequencer
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DiskFault
from hypermux.model.records import Event, Gap, Item, StateChange

T = TypeVar("T")
START_NS = 1_700_000_000_000_000_000
PLACE = Path("/journal")
A, B = SourceId("a", "r"), SourceId("b", "r")


class Bench:
    """A sequencer, its clock and its disk. `slow_s`: how long each call to the disk takes."""

    def __init__(
        self, *, slow_s: float = 0.0, buffer: int = 1 << 20, how: JournalSettings | None = None
    ) -> None:
        self.storage = MemoryStorage()
        self.clock = StreamClock(trio.current_time, lambda: START_NS)
        self.slow_s = slow_s
        journal = Journal.open(
            PLACE, self.storage, how or JournalSettings(), new_epoch=lambda: "e1", now_ns=START_NS
        )
        self.sequencer = Sequencer(
            inbox=Inbox(Budget(buffer, buffer)),
            merger=Merger(max_hold_ns=2 * 10**9, window_ns=10**8),
            journal=journal,
            horizon=Horizon(journal.epoch, journal.position),
            clock=self.clock,
            run_sync=self.run,
            checkpoint_interval_s=10.0,
        )

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        await trio.sleep(self.slow_s)
        return function(*args)

    def event(self, size: int = 0) -> Event:
        raw = b'{"x":"%b"}' % (b"y" * size)
        return Event(raw, self.clock.now_ns(), "timeNano")

    def shown(self) -> list[dict[str, Any]]:
        """Return what a reader gets."""
        reader = JournalReader(PLACE, self.storage, after=0)
        upto = self.sequencer.horizon.position
        data = b"".join(iter(lambda: reader.read(upto), b""))
        return [json.loads(line) for line in data.splitlines()]

    @property
    def records(self) -> list[dict[str, Any]]:
        files = sorted(p for p in self.storage.files if p.suffix == ".ndjson")
        data = b"".join(bytes(self.storage.files[path].data) for path in files)
        return [json.loads(line) for line in data.splitlines()]


async def test_shown_is_synced_and_the_end_is_complete(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench(slow_s=0.3)
    sequencer = bench.sequencer
    feed = sequencer.inbox.feed(A)
    seen: list[int] = []

    async def watch() -> None:
        horizon = sequencer.horizon
        while not horizon.ended:
            await horizon.wait_beyond(horizon.position.seq)
            path = PLACE / f"{horizon.position.segment:020}.ndjson"
            assert bench.storage.files[path].synced >= horizon.position.offset
            seen.append(horizon.position.seq)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(sequencer.run)
        feed.opened()
        for _ in range(20):
            feed.deliver([bench.event(), bench.event()], bench.clock.now_ns())
            await trio.sleep(0.05)
        sequencer.inbox.close(bench.clock.now_ns())
        await trio.sleep(5)
        sequencer.horizon.end()
    records = bench.records
    assert [r["seq"] for r in records] == list(range(1, len(records) + 1))
    assert sum(r["kind"] == "event" for r in records) == 40
    assert [r["kind"] for r in records[-2:]] == ["state", "checkpoint"]
    assert seen[-1] == len(records)
    assert len(seen) < 40, "what comes during a commit is one batch"


async def test_a_slow_disk_costs_a_counted_gap_and_nothing_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench(slow_s=2.0, buffer=20 * (ITEM_OVERHEAD + 10))
    inbox = bench.sequencer.inbox
    sent = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sequencer.run)
        for source in (A, B):
            inbox.feed(source).opened()
        for n in range(200):
            items: list[Item] = [bench.event() for _ in range(3)]
            sent += len(items)
            inbox.feed((A, B)[n % 2]).deliver(items, bench.clock.now_ns())
            await trio.sleep(0.1)
        inbox.close(bench.clock.now_ns())
    records = bench.records
    gaps = [r for r in records if r["kind"] == "gap"]
    assert gaps
    assert {(g["cause"], g["certainty"]) for g in gaps} == {("overflow", "proven")}
    recorded = sum(r["kind"] == "event" for r in records)
    assert recorded + sum(g["lost"] for g in gaps) == sent
    assert inbox.budget.used == 0


async def test_a_checkpoint_reaches_no_further_than_what_is_written(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    inbox = bench.sequencer.inbox
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sequencer.run)
        inbox.feed(A).opened()
        inbox.feed(B).opened()
        await trio.sleep(9.99)
        # B's read left something in its socket: what A brings has to wait for it.
        inbox.feed(B).deliver([], bench.clock.now_ns(), more=True)
        inbox.feed(A).deliver([bench.event()], bench.clock.now_ns())
        await trio.sleep(1)
        checkpoint = bench.records[-1]
        assert checkpoint["kind"] == "checkpoint"
        assert checkpoint["through"] < "2023-11-14T22:13:29.99"
        assert not any(r["kind"] == "event" for r in bench.records)
        inbox.close(bench.clock.now_ns())


async def test_segments_end_by_age_go_by_age_and_a_full_disk_is_told(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    how = JournalSettings(segment_age_s=60.0, retain=RetainSettings(age_s=150.0))
    bench = Bench(how=how)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sequencer.run)
        await trio.sleep(1000)
        files = sorted(p for p in bench.storage.files if p.suffix == ".ndjson")
        # A checkpoint every 10 s; a segment of 60 to 70 s; what is younger than 150 s, and one on.
        assert 3 <= len(files) <= 5
        journal = bench.sequencer.journal
        assert journal.oldest_ns is not None
        assert 150 <= (bench.clock.now_ns() - journal.oldest_ns) / 10**9 <= 240
        assert not any(r.get("state") == "disk" for r in bench.records)
        bench.storage.free_bytes = 5
        await trio.sleep(400)
        assert any(r.get("state") == "disk" for r in bench.records)
        assert "were removed for room" in caplog.text
        assert caplog.text.count("there is no old segment left to remove") == 1
        bench.sequencer.inbox.close(bench.clock.now_ns())


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("fsync", ["commit", "never", 0.5])
async def test_a_refusing_disk_is_outlasted_and_told(
    autojump_clock: trio.testing.MockClock, operation: str, fsync: Any
) -> None:
    how = JournalSettings(fsync=fsync, segment_size=20_000)
    bench = Bench(buffer=20 * (ITEM_OVERHEAD + 20), how=how)
    sequencer = bench.sequencer
    inbox, horizon, disk = sequencer.inbox, sequencer.horizon, sequencer.disk
    refused = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sequencer.run)
        inbox.feed(A).opened()
        for n in range(200):
            if n == 20:
                bench.storage.refuse(operation, errno.ENOSPC)
                bench.storage.refuse("rewrite", errno.ENOSPC)
            if n == 120:
                refused.append(disk.refusal())
                bench.storage.take_again()
            inbox.feed(A).deliver([bench.event(900)] * 2, bench.clock.now_ns())
            await trio.sleep(0.5)
        inbox.close(bench.clock.now_ns())
    assert disk.refusal() is None
    records = bench.shown()
    assert [r["seq"] for r in records] == list(range(1, horizon.position.seq + 1))
    lost = sum(r["lost"] for r in records if r["kind"] == "gap")
    assert sum(r["kind"] == "event" for r in records) + lost == 400
    assert lost > 100
    (told,) = [r for r in records if r.get("state") == "disk"]
    (refusal,) = refused
    assert refusal is not None
    assert "the disk is full" in told["reason"]
    assert f"{lost} events found the buffer full" in told["reason"]
    assert told["from"] == refusal.since
    # All that a commit was given, and what the buffer has room for.
    assert refusal.waiting_records > 0
    assert 0 < refusal.held_events < 60
    assert 5 < refusal.tries < 30, "the pauses grow, and have an end"
    # Files read in a row have each record once.
    assert bench.records == records


@pytest.mark.parametrize("when", ["while it waits", "at its end"])
async def test_a_disk_that_refuses_at_a_stop_ends_it_and_says_what_is_left(
    autojump_clock: trio.testing.MockClock, when: str
) -> None:
    bench = Bench()
    inbox = bench.sequencer.inbox

    async def end() -> None:
        inbox.feed(A).deliver([bench.event()], bench.clock.now_ns())
        if when == "while it waits":
            bench.storage.refuse("sync", errno.EIO)
            await trio.sleep(60)
        inbox.close(bench.clock.now_ns())
        bench.storage.refuse("sync", errno.EIO)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        with pytest.raises(
            DiskFault, match=r"cannot sync .* 1 records .* the 1 events in the buffer"
        ):
            await bench.sequencer.run()
    assert trio.current_time() < 70
    assert bench.sequencer.horizon.position.seq == 0


async def test_a_disk_that_takes_again_at_a_stop_gets_everything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    inbox = bench.sequencer.inbox
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sequencer.run)
        bench.storage.refuse("write", errno.ENOSPC)
        inbox.feed(A).deliver([bench.event()], bench.clock.now_ns())
        await trio.sleep(60)
        inbox.close(bench.clock.now_ns())
        await trio.sleep(1)
        bench.storage.take_again()
    kinds = [r.get("state", r["kind"]) for r in bench.shown()]
    assert [k for k in kinds if k != "checkpoint"] == ["event", "disk", "stop"]


async def test_what_tells_of_losses_does_not_grow_without_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench(buffer=100 * ITEM_OVERHEAD)
    inbox, done = bench.sequencer.inbox, trio.Event()

    async def flap() -> None:
        while not done.is_set():
            inbox.feed(A).deliver([StateChange("down")], bench.clock.now_ns())
            await trio.sleep(1)

    bench.storage.refuse("write", errno.ENOSPC)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flap)
        with pytest.raises(DiskFault, match="for too long"):
            await bench.sequencer.run()
        done.set()
    assert inbox.budget.used < 250 * ITEM_OVERHEAD


async def test_an_outage_that_begins_while_the_disk_refuses_does_not_begin_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    inbox = bench.sequencer.inbox
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sequencer.run)
        bench.storage.refuse("write", errno.ENOSPC)
        inbox.feed(A).deliver([bench.event()], bench.clock.now_ns())
        await trio.sleep(60)
        assert inbox.feed(A).empty_ns > bench.clock.now_ns() - 3 * 10**9
        bench.storage.take_again()
        await trio.sleep(20)
        inbox.close(bench.clock.now_ns())


@pytest.mark.parametrize(
    "item",
    [
        StateChange("down", None, "retry", "silent", START_NS + 5 * 10**9),
        Gap(START_NS + 5 * 10**9, START_NS + 9 * 10**9, "overflow", "proven", 7),
    ],
)
async def test_a_checkpoint_does_not_reach_past_what_is_still_to_be_told(
    autojump_clock: trio.testing.MockClock, item: Item
) -> None:
    bench = Bench()
    inbox = bench.sequencer.inbox
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sequencer.run)
        feed = inbox.feed(A)
        feed.opened()
        feed.deliver([StateChange("up")], bench.clock.now_ns())
        inbox.feed(B).opened()
        await trio.sleep(9.995)
        # It waits for B, and the checkpoint comes first.
        feed.deliver([item], bench.clock.now_ns())
        await trio.sleep(0.02)
        (checkpoint,) = [r for r in bench.records if r["kind"] == "checkpoint"]
        assert checkpoint["through"] <= "2023-11-14T22:13:25.000000000Z"
        assert bench.records[-1] == checkpoint, "what it must not pass over is not written yet"
        await trio.sleep(10)
        checkpoint = [r for r in bench.records if r["kind"] == "checkpoint"][-1]
        assert checkpoint["through"] > "2023-11-14T22:13:39"
        inbox.close(bench.clock.now_ns())


async def test_a_state_that_tells_of_no_outage_holds_no_checkpoint_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A quiet that began an hour ago is no reason to take a crash for an hour's outage."""
    bench = Bench()
    inbox = bench.sequencer.inbox
    inbox.feed(A).deliver([StateChange("up")], bench.clock.now_ns())
    hour_ago_ns = bench.clock.now_ns() - 3600 * 10**9
    inbox.feed(A).deliver([StateChange("quiet", from_ns=hour_ago_ns)], bench.clock.now_ns())
    drained_ns = bench.clock.now_ns()
    assert bench.sequencer._through_ns(drained_ns) == drained_ns
    inbox.feed(A).deliver([StateChange("down", from_ns=hour_ago_ns)], bench.clock.now_ns())
    assert bench.sequencer._through_ns(drained_ns) == hour_ago_ns


async def test_a_checkpoint_that_had_to_go_back_is_soon_made_good(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    inbox = bench.sequencer.inbox
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.sequencer.run)
        feed = inbox.feed(A)
        feed.opened()
        feed.deliver([StateChange("up")], bench.clock.now_ns())
        inbox.feed(B).opened()
        await trio.sleep(19.995)
        # A has been silent since before the last checkpoint; its `down` waits for B.
        down = StateChange("down", None, "retry", "silent", START_NS + 5 * 10**9)
        feed.deliver([down], bench.clock.now_ns())
        await trio.sleep(3)
        first, back, good = [r["through"] for r in bench.records if r["kind"] == "checkpoint"]
        assert back < first < good
        assert good > "2023-11-14T22:13:40"
        inbox.close(bench.clock.now_ns())


async def settled_within(sequencer: Sequencer, moment_ns: int) -> float:
    begun = trio.current_time()
    with trio.fail_after(30):
        await sequencer.settle(moment_ns + 1)  # what was received at that moment, too
    return trio.current_time() - begun


async def test_settled_is_shown(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever asks waits as long as events wait for each other and for the disk, and no longer."""
    bench = Bench(slow_s=0.02)
    sequencer, horizon = bench.sequencer, bench.sequencer.horizon
    inbox = sequencer.inbox
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sequencer.run)
        inbox.feed(A).opened()
        inbox.feed(B).opened()
        await trio.sleep(0.5)
        assert await settled_within(sequencer, bench.clock.now_ns()) < 0.1, "nothing is held"
        assert 1 <= await settled_within(sequencer, bench.clock.now_ns() + 10**9) < 1.1
        before = horizon.position.seq
        inbox.feed(A).deliver([bench.event()], bench.clock.now_ns())
        assert 0.1 <= await settled_within(sequencer, bench.clock.now_ns()) < 0.3
        assert horizon.position.seq == before + 1
        # A source that was not read empty may hold something older, for max_hold at the most.
        inbox.feed(B).deliver([], bench.clock.now_ns(), more=True)
        with trio.move_on_after(5) as scope:
            await sequencer.settle(bench.clock.now_ns())
        assert scope.cancelled_caught
        inbox.feed(B).deliver([], bench.clock.now_ns())
        assert await settled_within(sequencer, bench.clock.now_ns()) < 0.1
        assert not sequencer._settling
        inbox.close(bench.clock.now_ns())


async def test_settled_is_synced(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench(how=JournalSettings(fsync=3.0))
    sequencer = bench.sequencer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sequencer.run)
        sequencer.inbox.feed(A).opened()
        await trio.sleep(4)
        sequencer.inbox.feed(A).deliver([bench.event()], bench.clock.now_ns())
        assert 0.2 < await settled_within(sequencer, bench.clock.now_ns()) < 3.5
        assert sequencer.horizon.position.seq == sequencer.journal.next_seq - 1
        sequencer.inbox.close(bench.clock.now_ns())
