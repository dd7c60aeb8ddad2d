"""What readers cost: catching up by the kernel and by hand, and what stuck readers cost a good one.

Rounds alternate between the two ways, so that a noisy machine disturbs both alike; medians and
their ratio are printed. Absolute figures swing with the machine: trust the ratios. On a busy one
the last percent is the other processes' doing: `chrt -r 5 scripts/bench readers` keeps them out.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from hypermux.config.settings import JournalSettings, SocketSettings
from hypermux.core.recording import Encoder
from hypermux.downstream.horizon import Horizon
from hypermux.downstream.journal import Journal
from hypermux.downstream.reading import JournalReader, resolve_cursor
from hypermux.downstream.storage import DiskStorage
from hypermux.downstream.streaming import Published, Stream
from hypermux.downstream.subscribers import Subscribers
from hypermux.model.accounts import SourceId
from hypermux.model.records import Event
from hypermux.service.seams import in_thread

EPOCH = "be9c4a11"
SOURCE = SourceId("prod", "us-west-1")
RAW = (
    b'{"status":"start","id":"%064x","from":"xjimmyshcn/busybox","Type":"container","Action":"start",'
    b'"Actor":{"ID":"%064x","Attributes":{"":"","exitCode":"0","image":"xjimmyshcn/busybox","name":'
    b'"test%d","sh_hyper_instancetype":"s4","test1":"","test3":"test3=test3"}},"time":1,"timeNano":%d}'
)
SETTLE_S = 1.0
# Reads all that comes and counts it, in a process of its own: as cheap as a reader can be.
DRAIN = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.argv[2].encode() + b"\\n")
room, total = bytearray(1 << 20), 0
while count := s.recv_into(room):
    total += count
print(total)
"""
# Notes when each record came, and prints the delays since it was sent, in microseconds.
LISTEN = """
import json, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"limit":%d}\\n' % int(sys.argv[2]))
file = s.makefile("rb")
file.readline()
print("ready", flush=True)
late = []
for line in file:
    if line.startswith(b'{"seq"'):
        now = time.monotonic_ns()
        late.append((now - json.loads(line)["event"]["timeNano"]) // 1000)
json.dump(late, sys.stdout)
"""


class Server:
    """A journal on disk, and its readers."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        storage = DiskStorage()
        self.journal = Journal.open(
            folder / "journal",
            storage,
            JournalSettings(fsync="never", segment_size=64 << 20),
            new_epoch=lambda: EPOCH,
            now_ns=0,
        )
        self.horizon = Horizon(self.journal.epoch, self.journal.position)
        self.path = folder / "run" / "s"
        self.published = Published(
            self.horizon,
            lambda after: JournalReader(
                self.journal.directory,
                storage,
                after=after,
                near=self.horizon.position,
                indexes=self.journal.indexes,
            ),
            resolve=lambda cursor: resolve_cursor(
                cursor, self.journal.epochs, self.horizon.position.seq + 1
            ),
            run_sync=in_thread(trio.CapacityLimiter(8)),
        )
        self.subscribers = Subscribers(SocketSettings(self.path, **settings), self.published)
        self._encoder = Encoder()

    def commit(self, count: int, time_ns: int = 1) -> bytes:
        """Write records; return them."""
        journal, first = self.journal, self.journal.next_seq
        data = b"".join(
            self._encoder.encode(
                seq,
                Event(RAW % (seq, seq, seq, time_ns), time_ns, "timeNano"),
                source=SOURCE,
                at_ns=seq,
                received_ns=seq,
            )
            for seq in range(first, first + count)
        )
        sources = journal.coverage.to_bytes() if journal.rotation_due else b""
        journal.commit(data, first, first + count - 1, sources)
        return data

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the block runs."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.subscribers.run)
            yield
            nursery.cancel_scope.cancel()


async def catch_up(folder: Path, rounds: int, size: int) -> None:
    """Let one reader read the whole journal, by either way in turn."""
    server = Server(folder)
    while server.journal.position.offset < size:
        server.commit(100)
        if server.journal.rotation_due:
            break
    server.horizon.publish(server.journal.position)
    total = server.journal.position.offset
    by_kernel = Stream.next_piece

    async def by_hand(stream: Stream) -> Any:
        return await stream.next()

    async def once(way: Callable[[Stream], Awaitable[Any]]) -> tuple[float, float]:
        Stream.next_piece = way  # type: ignore[method-assign, assignment]
        cpu, wall = time.process_time(), time.perf_counter()
        done = await trio.run_process(
            [sys.executable, "-c", DRAIN, str(server.path), '{"after":"start","follow":false}'],
            capture_stdout=True,
        )
        assert int(done.stdout) > total
        return time.process_time() - cpu, time.perf_counter() - wall

    async with server.serving():
        pairs = [(await once(by_kernel), await once(by_hand)) for _ in range(rounds)]
    Stream.next_piece = by_kernel  # type: ignore[method-assign]
    mib = total / (1 << 20)
    print(f"catching up {mib:.0f} MiB:    ms CPU/MiB   MiB/s")
    for name, at in (("sendfile", 0), ("by hand", 1)):
        cpu = statistics.median(pair[at][0] for pair in pairs)
        wall = statistics.median(pair[at][1] for pair in pairs)
        print(f"  {name:20} {cpu / mib * 1000:10.3f} {mib / wall:7.0f}")
    ratio = statistics.median(pair[1][0] / pair[0][0] for pair in pairs)
    print(f"  ratio of the CPU     {ratio:10.2f}")


def resident() -> int:
    """Return this process's own memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def waiting(readers: list[socket.socket]) -> list[int]:
    """Return how many bytes wait for each reader."""
    return [
        int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)
        for reader in readers
    ]


@contextmanager
def stuck(path: Path, count: int) -> Iterator[list[socket.socket]]:
    """Hold readers that ask for everything and read nothing."""
    readers = []
    try:
        for _ in range(count):
            reader = socket.socket(socket.AF_UNIX)
            reader.connect(str(path))
            reader.sendall(b'{"after":"start"}\n')
            readers.append(reader)
        yield readers
    finally:
        for reader in readers:
            reader.close()


async def stuck_ones(folder: Path, rounds: int, count: int, records: int) -> None:
    """Time a good reader's records, with stuck ones beside it and without, in turn."""
    server = Server(folder, stall_timeout_s=3600.0)
    server.commit(20_000)
    server.horizon.publish(server.journal.position)
    memory: list[float] = []
    kernel: list[int] = []

    async def once(beside: int) -> tuple[float, float]:
        before = resident()
        with stuck(server.path, beside) as readers:
            held = [-1]
            # Until each of them is stuck.
            while held != (held := waiting(readers)) or 0 in held:  # noqa: ASYNC110
                await trio.sleep(0.3)
            # A scheduler makes who has just been busy wait: both ways begin rested.
            await trio.sleep(SETTLE_S)
            listener = await trio.lowlevel.open_process(
                [sys.executable, "-c", LISTEN, str(server.path), str(records)],
                stdout=subprocess.PIPE,
            )
            assert listener.stdout is not None
            told = b""
            while b"\n" not in told:
                told += await listener.stdout.receive_some()
            begun = time.process_time()
            for _ in range(records):
                now_ns = time.monotonic_ns()
                data = server.commit(1, now_ns)
                server.horizon.publish(server.journal.position, data)
                await trio.sleep(0.002)
            cpu = (time.process_time() - begun) / records * 1e6
            async for part in listener.stdout:
                told += part
            await listener.wait()
            if beside:
                memory.append((resident() - before) / beside)
                kernel.append(max(waiting(readers)))
        while server.subscribers.statistics().active:  # noqa: ASYNC110
            await trio.sleep(0.01)
        late = sorted(json.loads(told.partition(b"\n")[2]))
        assert len(late) == records
        return float(late[int(len(late) * 0.99)]), cpu

    pairs = []
    async with server.serving():
        for number in range(rounds):
            first, second = (count, 0) if number % 2 else (0, count)
            found = {first: await once(first), second: await once(second)}
            pairs.append((found[count], found[0]))
    print(f"{count} stuck readers:     p99 of a good one, µs    CPU of a record, µs")
    for name, at in (("with them", 0), ("without", 1)):
        p99, cpu = (statistics.median(pair[at][what] for pair in pairs) for what in (0, 1))
        print(f"  {name:20} {p99:20.0f} {cpu:22.0f}")
    p99, cpu = (statistics.median(p[0][what] / p[1][what] for p in pairs) for what in (0, 1))
    print(f"  {'median ratio':20} {p99:20.2f} {cpu:22.2f}")
    print(f"  memory of each       {max(memory) / (1 << 20):10.3f} MiB at most")
    print(f"  unread by each       {max(kernel) / (1 << 20):10.3f} MiB, in the kernel")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=64, help="MiB to catch up")
    parser.add_argument("--stuck", type=int, default=100)
    parser.add_argument("--records", type=int, default=1000, help="for the good reader, a round")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hm-") as folder:
        trio.run(catch_up, Path(folder, "a"), given.rounds, given.size << 20)
        trio.run(stuck_ones, Path(folder, "b"), given.rounds, given.stuck, given.records)


if __name__ == "__main__":
    main()
