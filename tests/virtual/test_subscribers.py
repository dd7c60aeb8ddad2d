"""Serving readers, in virtual time: real sockets, a clock that jumps, a journal in memory."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from attrs import define, evolve, field
from trio.testing import MockClock, wait_all_tasks_blocked

from hypermux.config.settings import SocketSettings
from hypermux.core.recording import Encoder
from hypermux.core.segments import segment_name
from hypermux.downstream.horizon import Horizon, Position
from hypermux.downstream.http import Routes
from hypermux.downstream.peer import Peer
from hypermux.downstream.reading import BLOCK, JournalReader
from hypermux.downstream.storage import DiskStorage
from hypermux.downstream.streaming import Published
from hypermux.downstream.subscribers import Subscribers
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DamagedData
from hypermux.model.records import Checkpoint, Cursor, Event

T = TypeVar("T")
SECOND = 10**9


def record(seq: int, account: str = "prod", size: int = 0) -> bytes:
    raw = b'{"Type":"container","Action":"start","pad":"%s"}' % (b"x" * size)
    return Encoder().encode(
        seq,
        Event(raw, seq * SECOND, "timeNano"),
        source=SourceId(account, "r1"),
        at_ns=seq * SECOND,
        received_ns=seq * SECOND,
    )


@define(eq=False)
class FakeJournal:
    """Lines in memory, of one segment."""

    lines: list[bytes] = field(factory=list)
    horizon: Horizon = field(factory=lambda: Horizon("ep", Position(1, 0, 0)))
    reads: int = 0
    open: int = 0
    broken: bool = False
    at_read: Callable[[FakeJournal], None] | None = None

    def add(self, *lines: bytes) -> None:
        self.lines.extend(lines)
        offset = self.horizon.position.offset + sum(map(len, lines))
        self.horizon.publish(Position(1, offset, len(self.lines)))

    def grow(self, count: int, **more: Any) -> None:
        start = len(self.lines) + 1
        self.add(*(record(seq, **more) for seq in range(start, start + count)))

    def reader(self, after: int) -> FakeReader:
        self.open += 1
        return FakeReader(self, after)

    def resolve(self, cursor: Cursor) -> int | str:
        if cursor.epoch != "ep":
            return "the cursor is of an epoch that this journal never had"
        return cursor.seq


@define(eq=False)
class FakeReader:
    journal: FakeJournal
    seq: int

    def read(self, upto: Position, max_bytes: int) -> bytes:
        self.journal.reads += 1
        if self.journal.at_read is not None:
            self.journal.at_read(self.journal)
        if self.journal.broken:
            raise DamagedData("record 1 is missing")
        block = b""
        for line in self.journal.lines[self.seq : upto.seq]:
            if block and len(block) + len(line) > max_bytes:
                break
            block += line
            self.seq += 1
        return block

    def piece(self, upto: Position, max_bytes: int) -> bytes:
        return self.read(upto, max_bytes)

    def skip(self, to: Position) -> None:
        raise AssertionError("nothing is shared here")

    def close(self) -> None:
        self.journal.open -= 1


async def direct(function: Callable[..., T], *args: Any) -> T:
    await trio.lowlevel.checkpoint()
    return function(*args)


class Client:
    """A peer that collects lines."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._held = b""

    async def send(self, text: str) -> None:
        await self.stream.send_all(text.encode())

    async def line(self) -> bytes:
        """Return the next line, b"" at the end."""
        while b"\n" not in self._held:
            data = await self.stream.receive_some(65536)
            if not data:
                assert not self._held, "a line was cut"
                return b""
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line + b"\n"

    async def lines(self, count: int) -> list[bytes]:
        return [await self.line() for _ in range(count)]

    async def rest(self) -> list[bytes]:
        found = []
        while line := await self.line():
            found.append(line)
        return found

    async def head(self) -> dict[str, Any]:
        head: dict[str, Any] = json.loads(await self.line())
        return head


@define(eq=False)
class Rig:
    journal: FakeJournal
    server: Subscribers
    path: Path
    clients: list[Client] = field(factory=list)

    async def connect(self, request: str | None = None) -> Client:
        client = Client(await trio.open_unix_socket(str(self.path)))
        self.clients.append(client)
        if request is not None:
            await client.send(request + "\n")
        return client

    async def close(self) -> None:
        for client in self.clients:
            await client.stream.aclose()


@asynccontextmanager
async def serving(
    tmp_path: Path, *, routes: Routes | None = None, **changes: Any
) -> AsyncIterator[Rig]:
    path = tmp_path / "run" / "h.sock"
    journal = FakeJournal()
    settings = evolve(SocketSettings(path), **changes)
    published = Published(journal.horizon, journal.reader, journal.resolve, direct)
    server = Subscribers(settings, published, routes or ())
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda *, task_status: server.run(task_status=task_status))
        rig = Rig(journal, server, path)
        try:
            yield rig
        finally:
            with trio.CancelScope(shield=True):  # a close does not wait
                await rig.close()
        nursery.cancel_scope.cancel()
    assert journal.open == 0


async def test_silence_is_live_from_accept(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.journal.grow(3)
        client = await rig.connect()
        await trio.sleep(0.1)
        rig.journal.grow(1)  # accepted, though not yet live
        begun = trio.current_time()
        assert await client.head() == {"kind": "subscribed", "mode": "live", "cursor": "ep:3"}
        assert trio.current_time() - begun == pytest.approx(0.15, abs=0.01)
        rig.journal.grow(1)
        assert await client.lines(2) == rig.journal.lines[3:]


async def test_replay_then_live_without_a_gap_or_a_repeat(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:
        rig.journal.grow(500)
        client = await rig.connect('{"after":"start"}')
        assert (await client.head())["mode"] == "replay"
        assert await client.lines(500) == rig.journal.lines
        for _ in range(3):
            rig.journal.grow(2)
            assert await client.lines(2) == rig.journal.lines[-2:]


async def test_any_cursor_under_any_growth_gives_exactly_the_rest(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    rng = random.Random(7)
    async with serving(tmp_path) as rig:
        rig.journal.grow(50)
        async with trio.open_nursery() as nursery:

            async def reader(after: int) -> None:
                await trio.sleep(rng.random())
                client = await rig.connect(json.dumps({"after": f"ep:{after}"}))
                assert (await client.head())["cursor"] == f"ep:{after}"
                got = []
                for _ in range(300 - after):
                    got.append(await client.line())
                    if rng.random() < 0.05:
                        await trio.sleep(rng.random())
                assert got == rig.journal.lines[after:300]

            for _ in range(8):
                nursery.start_soon(reader, rng.randrange(50))
            while len(rig.journal.lines) < 300:
                rig.journal.grow(min(rng.randrange(1, 9), 300 - len(rig.journal.lines)), size=300)
                await trio.sleep(rng.random() / 10)


async def test_a_late_request_starts_over(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.journal.grow(2)
        client = await rig.connect()
        assert (await client.head())["mode"] == "live"
        rig.journal.grow(1)
        assert await client.lines(1) == rig.journal.lines[2:]
        await trio.sleep(60)
        await client.send('{"after":"ep:1"}\n')
        assert await client.head() == {"kind": "subscribed", "mode": "replay", "cursor": "ep:1"}
        assert await client.lines(2) == rig.journal.lines[1:]


async def test_a_late_selection_goes_on_where_live_was(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:
        client = await rig.connect()
        await client.head()
        rig.journal.grow(2)
        assert len(await client.lines(2)) == 2
        await client.send('{"accounts":["dev"]}\n')
        assert await client.head() == {"kind": "subscribed", "mode": "live", "cursor": "ep:2"}
        rig.journal.grow(1)
        rig.journal.grow(1, account="dev")
        assert await client.lines(1) == rig.journal.lines[3:]


async def test_half_close_does_not_end_the_stream(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:
        client = await rig.connect()
        await client.stream.send_eof()
        assert (await client.head())["mode"] == "live"
        await trio.sleep(100)
        rig.journal.grow(1)
        assert await client.lines(1) == rig.journal.lines
        assert rig.server.statistics().active == 1


async def test_a_peer_that_went_away_is_noticed_without_records(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:
        for eof_first in (False, True):
            client = await rig.connect("{}")
            await client.head()
            if eof_first:
                await client.stream.send_eof()
                await trio.sleep(1)
            assert rig.server.statistics().active == 1
            await client.stream.aclose()
            await trio.sleep(6)
            assert rig.server.statistics().active == 0


async def test_a_peer_for_whom_nothing_passes_is_noticed_too(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:
        client = await rig.connect('{"accounts":["nobody"]}')
        await client.head()
        await client.stream.send_eof()
        await trio.sleep(1)
        await client.stream.aclose()
        rig.journal.grow(1)
        await wait_all_tasks_blocked()
        assert rig.server.statistics().active == 0


async def test_a_stalled_reader_is_closed_and_delays_nobody(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, stall_timeout_s=30.0) as rig:
        stuck = await rig.connect("{}")
        good = await rig.connect("{}")
        await stuck.head()
        await good.head()
        rig.journal.grow(200, size=10_000)
        begun = trio.current_time()
        assert await good.lines(200) == rig.journal.lines
        assert trio.current_time() == begun
        # The kernel's buffer and a block: no more was read for the one that stands still.
        assert rig.journal.reads * BLOCK < 2 * 200 * 10_000 + 512 * 1024
        await trio.sleep(29.9)
        assert rig.server.statistics().active == 2
        await trio.sleep(0.2)
        assert rig.server.statistics().active == 1
        assert rig.server.statistics().stalled == 1
        assert "30 s" in caplog.text


async def test_standing_still_without_data_is_no_stall(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path, stall_timeout_s=30.0) as rig:
        client = await rig.connect("{}")
        await client.head()
        await trio.sleep(1000)
        rig.journal.grow(1)
        assert await client.lines(1) == rig.journal.lines


async def test_slow_is_not_stalled(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path, stall_timeout_s=30.0) as rig:
        rig.journal.grow(100, size=10_000)
        client = await rig.connect('{"after":"start","follow":false}')
        got = b""
        while data := await client.stream.receive_some(40_000):
            got += data
            await trio.sleep(25)
        assert got.splitlines(keepends=True)[1:-1] == rig.journal.lines


async def test_heartbeats_carry_the_cursor(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.journal.grow(2)
        client = await rig.connect('{"accounts":["none"],"heartbeat":"30s"}')
        await client.head()
        begun = trio.current_time()
        assert await client.head() == {"kind": "heartbeat", "cursor": "ep:2"}
        rig.journal.grow(1)
        assert await client.head() == {"kind": "heartbeat", "cursor": "ep:3"}
        assert trio.current_time() - begun == pytest.approx(60.0, abs=0.1)


async def test_a_half_closed_reader_that_goes_is_noticed_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:
        client = await rig.connect("{}")
        await client.head()
        await client.stream.send_eof()
        await trio.sleep(1000)
        rig.journal.grow(1)  # it still reads
        assert await client.lines(1) == rig.journal.lines
        assert rig.server.statistics().active == 1
        await client.stream.aclose()
        await trio.sleep(0.1)  # time jumps only when every task waits, and a hang-up is ready
        assert not rig.server.statistics().active
        assert rig.journal.open == 0


async def test_too_many(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path, max_subscribers=1) as rig:
        first = await rig.connect("{}")
        await first.head()
        second = await rig.connect()
        refusal = await second.head()
        assert (refusal["kind"], refusal["cause"]) == ("error", "busy")
        assert await second.rest() == []
        await first.stream.aclose()
        await trio.sleep(6)
        third = await rig.connect("{}")
        assert (await third.head())["kind"] == "subscribed"


@pytest.mark.parametrize(
    ("request_line", "seqs", "cursor"),
    [
        ('{"after":"start","limit":4}', [1, 2, 3, 4], "ep:4"),
        ('{"after":"ep:7","follow":false}', [8, 9, 10], "ep:10"),
        ('{"follow":false,"accounts":["none"]}', [], "ep:10"),
        ('{"after":"live","follow":false}', [], "ep:10"),
        ('{"since":3,"until":5}', [3, 4, 5], "ep:10"),
    ],
)
async def test_streams_with_an_end(
    autojump_clock: MockClock, tmp_path: Path, request_line: str, seqs: list[int], cursor: str
) -> None:
    async with serving(tmp_path) as rig:
        rig.journal.grow(10)
        client = await rig.connect(request_line)
        await client.head()
        got = await client.rest()
        assert [json.loads(line)["seq"] for line in got[:-1]] == seqs
        assert json.loads(got[-1]) == {"kind": "end", "cursor": cursor}


async def test_until_ends_when_time_has_passed_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:
        rig.journal.grow(3)
        client = await rig.connect('{"until":4}')
        await client.head()
        assert await client.lines(3) == rig.journal.lines
        await trio.sleep(100)
        rig.journal.grow(1)
        assert await client.lines(1) == rig.journal.lines[3:]
        checkpoint = Encoder().encode(
            5, Checkpoint(9 * SECOND), source=None, at_ns=4 * SECOND, received_ns=9 * SECOND
        )
        rig.journal.add(checkpoint)
        assert [json.loads(line)["kind"] for line in await client.rest()] == ["end"]


async def test_until_ends_however_fast_the_journal_grows(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:

        def grow_at_every_read(journal: FakeJournal) -> None:
            journal.grow(200, size=1000)

        rig.journal.at_read = grow_at_every_read
        rig.journal.grow(10)
        client = await rig.connect('{"until":4}')
        await client.head()
        with trio.fail_after(20):
            got = await client.rest()
        assert got[:-1] == rig.journal.lines[:4]
        assert json.loads(got[-1])["kind"] == "end"
        # What was shown when it was over is looked through for late records, and no more.
        assert rig.journal.reads < 5


async def test_a_second_request_is_refused_while_the_first_line_waits_for_room(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Peer.send

    async def slow(peer: Peer, data: bytes, stall_timeout_s: float) -> None:
        await trio.sleep(1)
        await send(peer, data, stall_timeout_s)

    monkeypatch.setattr(Peer, "send", slow)
    async with serving(tmp_path) as rig:
        client = await rig.connect("{}")
        await trio.sleep(0.5)
        await client.send("{}\n")
        with trio.fail_after(20):
            got = await client.rest()
        assert [json.loads(line)["kind"] for line in got] == ["subscribed", "error"]


async def test_an_unknown_cursor_is_an_error_line(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:
        client = await rig.connect('{"after":"other:3"}')
        error = await client.head()
        assert (error["kind"], error["cause"]) == ("error", "cursor")
        assert await client.rest() == []


async def test_a_stray_text_gets_an_error_between_two_lines(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with serving(tmp_path) as rig:
        rig.journal.grow(300, size=5000)
        client = await rig.connect('{"after":"start"}')
        await client.head()
        await client.send("what?\n")
        *records, error = await client.rest()
        assert 0 < len(records) < 300
        assert records == rig.journal.lines[: len(records)]
        assert json.loads(error)["kind"] == "error"


async def test_a_journal_that_does_not_read_is_said_to_that_reader_alone(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as rig:
        good = await rig.connect("{}")
        await good.head()
        rig.journal.grow(1)
        assert len(await good.lines(1)) == 1
        rig.journal.broken = True
        bad = await rig.connect('{"after":"start"}')
        await bad.head()
        assert (await bad.head())["cause"] == "fault"
        rig.journal.broken = False
        rig.journal.grow(1)
        assert await good.lines(1) == rig.journal.lines[1:]
        assert "record 1 is missing" in caplog.text


async def test_a_half_sent_request_is_given_up(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        client = await rig.connect()
        await client.send('{"after"')
        begun = trio.current_time()
        assert (await client.head())["kind"] == "error"
        assert trio.current_time() - begun == pytest.approx(10.0, abs=0.01)


async def test_the_end_of_the_journal_ends_every_reader_after_the_last_record(
    autojump_clock: MockClock,
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / "h.sock"
    journal = FakeJournal()
    published = Published(journal.horizon, journal.reader, journal.resolve, direct)
    server = Subscribers(SocketSettings(path), published)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda *, task_status: server.run(task_status=task_status))
        rig = Rig(journal, server, path)
        clients = [await rig.connect("{}") for _ in range(3)]
        for client in clients:
            await client.head()
        journal.grow(100, size=5000)
        journal.horizon.end()
        for client in clients:
            assert await client.rest() == journal.lines
        await rig.close()
    assert not path.exists()
    assert journal.open == 0


def test_the_fake_reads_as_the_real_one_does(tmp_path: Path) -> None:
    journal = FakeJournal()
    rng = random.Random(3)
    for _ in range(60):
        journal.grow(1, size=rng.choice([0, 50, 3000, 9000]))
    (tmp_path / segment_name(1)).write_bytes(b"".join(journal.lines))
    for after in (0, 1, 17, 59, 60):
        fake = journal.reader(after)
        real = JournalReader(tmp_path, DiskStorage(), after=after)
        for end in (after, min(60, after + 5), 60):
            upto = Position(1, sum(map(len, journal.lines[:end])), end)
            one, other = [], []
            while block := fake.read(upto, 8192):
                one.append(block)
            while block := real.read(upto, 8192):
                other.append(block)
            assert one == other
        fake.close()
        real.close()
