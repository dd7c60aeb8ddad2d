"""What an event costs at each stage, next to the plain way of doing the same.

Rounds alternate between the two, so that a noisy machine disturbs both alike; medians and their
ratio are printed. Absolute figures swing with the machine: trust the ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypermux.config.settings import JournalSettings
from hypermux.core.decoding import decode_batch
from hypermux.core.frames import FrameSplitter
from hypermux.core.merging import Merger
from hypermux.core.recording import Encoder
from hypermux.downstream.journal import Journal
from hypermux.downstream.storage import DiskStorage
from hypermux.model.accounts import SourceId
from hypermux.model.records import Event, Item

EVENTS = 5_000
BATCH = 128
SOURCES = [SourceId(f"acct-{n:03}", "us-west-1") for n in range(50)]
START_NS = 1_700_000_000_000_000_000
RAW = [
    b'{"status":"start","id":"%064x","from":"xjimmyshcn/busybox","Type":"container","Action":"start",'
    b'"Actor":{"ID":"%064x","Attributes":{"":"","exitCode":"0","image":"xjimmyshcn/busybox","name":'
    b'"test%d","sh_hyper_instancetype":"s4","test1":"","test3":"test3=test3"}},"time":%d,'
    b'"timeNano":%d}' % (n, n, n, START_NS // 10**9, START_NS + n * 1000)
    for n in range(EVENTS)
]
FRAMES = b"".join(b"\x81\x7e%b%b" % (len(raw).to_bytes(2, "big"), raw) for raw in RAW)


def batches() -> list[list[bytes]]:
    """Return the messages as reads bring them."""
    return [RAW[n : n + BATCH] for n in range(0, EVENTS, BATCH)]


def split() -> None:
    """Cut frames in bulk, 64 KiB a read."""
    splitter = FrameSplitter(1 << 18)
    for start in range(0, len(FRAMES), 65536):
        splitter.feed(FRAMES[start : start + 65536])


def split_plainly() -> None:
    """Let the WebSocket library's own parser do it."""
    from wsproto.connection import Connection, ConnectionType

    connection = Connection(ConnectionType.CLIENT)
    for start in range(0, len(FRAMES), 65536):
        connection.receive_data(FRAMES[start : start + 65536])
        for _ in connection.events():
            pass


def decode() -> None:
    """Validate, keep the bytes."""
    for batch in batches():
        decode_batch(batch)


def decode_plainly() -> None:
    """Parse to dicts."""
    for batch in batches():
        for message in batch:
            json.loads(message)


def merge() -> None:
    """Push and release by the watermark."""
    merger: Merger[Item] = Merger(max_hold_ns=2 * 10**9, window_ns=50_000_000)
    for source in SOURCES:
        merger.opened(source)
    event = Event(b"{}", 1, "timeNano")
    for n in range(EVENTS):
        now_ns = START_NS + n * 1_000_000
        merger.push(SOURCES[n % len(SOURCES)], event, now_ns - 1_000_000, now_ns)
        if n % BATCH == 0:
            merger.drained(now_ns, except_for={})
            merger.release(now_ns)
    merger.flush()


def merge_plainly() -> None:
    """Sort the batch."""
    held = [
        (START_NS + n * 1_000_000, str(SOURCES[n % len(SOURCES)]), n, b"{}") for n in range(EVENTS)
    ]
    held.sort()


def encode() -> None:
    """Splice the bytes into record lines."""
    encoder, source = Encoder(), SOURCES[0]
    for n, raw in enumerate(RAW):
        at_ns = START_NS + n * 1000
        event = Event(raw, at_ns, "timeNano")
        encoder.encode(n + 1, event, source=source, at_ns=at_ns, received_ns=START_NS)


def encode_plainly() -> None:
    """Parse and dump again."""
    for n, raw in enumerate(RAW):
        json.dumps({"seq": n + 1, "kind": "event", "account": "a", "event": json.loads(raw)})


def commit() -> None:
    """Write and sync in batches of 500."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal.open(
            Path(directory),
            DiskStorage(),
            JournalSettings(),
            new_epoch=lambda: "e",
            now_ns=START_NS,
        )
        for start in range(0, EVENTS, 500):
            data = b"\n".join(RAW[start : start + 500]) + b"\n"
            journal.commit(data, start + 1, start + 500)
        journal.close()


def commit_plainly() -> None:
    """Write and flush every line, sync none."""
    with tempfile.TemporaryFile() as file:
        for raw in RAW:
            file.write(raw + b"\n")
            file.flush()


STAGES: list[tuple[str, Callable[[], None], Callable[[], None], str]] = [
    ("frames", split, split_plainly, "wsproto"),
    ("decode", decode, decode_plainly, "json.loads"),
    ("merge", merge, merge_plainly, "one sort, which no stream can do"),
    ("encode", encode, encode_plainly, "json.loads and dumps"),
    ("commit", commit, commit_plainly, "a flush a line, no sync at all"),
]


def timed(function: Callable[[], None]) -> float:
    """Return the CPU and waiting time of a call in microseconds an event."""
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) / EVENTS * 1e6


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(f"{'stage':8} {'µs/event':>9} {'plainly':>9} {'ratio':>6}  the plain way")
    for name, ours, plain, words in STAGES:
        pairs = [(timed(ours), timed(plain)) for _ in range(rounds)]
        mine = statistics.median(pair[0] for pair in pairs)
        other = statistics.median(pair[1] for pair in pairs)
        print(f"{name:8} {mine:9.2f} {other:9.2f} {other / mine:6.1f}  {words}")


if __name__ == "__main__":
    main()
