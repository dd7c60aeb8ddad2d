"""What opening a large journal costs: with its indexes, after a kill, and without any.

A journal of the size asked for is made in a directory of its own, and removed: the records of one
segment, again and again, with their right seqs. Each opening is a process of its own, so that its
memory is its own, too; "memory" is what it has more than a process that has opened none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from hypermux.config.settings import JournalSettings, RetainSettings
from hypermux.config.units import parse_size
from hypermux.core.recording import Encoder
from hypermux.downstream.journal import Journal
from hypermux.downstream.storage import DiskStorage
from hypermux.model.accounts import SourceId
from hypermux.model.records import Event, StateChange

SOURCES = [SourceId(f"acct-{n:03}", "us-west-1") for n in range(50)]
START_NS = 1_700_000_000_000_000_000
BATCH = 500
GOAL_S, GOAL_MIB = 0.3, 60


def open_journal(directory: Path) -> Journal:
    """Open it as a service would, keeping all of it."""
    settings = JournalSettings(fsync=1e9, retain=RetainSettings(1 << 60, 1e9), keep_free=0)
    return Journal.open(
        directory, DiskStorage(), settings, new_epoch=lambda: "e", now_ns=START_NS, boot="b"
    )


def bodies() -> list[bytes]:
    """Return what stands behind the seq in the lines of a batch, without checksum."""
    lines = []
    for n in range(BATCH):
        raw = (
            b'{"status":"start","id":"%064x","from":"xjimmyshcn/busybox","Type":"container",'
            b'"Action":"start","Actor":{"ID":"%064x","Attributes":{"image":"xjimmyshcn/busybox",'
            b'"name":"test%d"}},"time":%d,"timeNano":%d}' % (n, n, n, START_NS // 10**9, START_NS)
        )
        event = Event(raw, START_NS, "timeNano")
        source = SOURCES[n % len(SOURCES)]
        line = Encoder().encode(1, event, source=source, at_ns=START_NS, received_ns=START_NS)
        lines.append(line[line.index(b",") : -19])
    return lines


def make(directory: Path, size: int) -> int:
    """Write the journal; leave it as a kill would. Returns its records."""
    journal, made, tails = open_journal(directory), 0, bodies()
    span = (START_NS, START_NS)
    for source in SOURCES:
        journal.coverage.apply(source, StateChange("up"), START_NS)
    # An odd size ends in the middle of a segment, where a start has the most to do.
    while made < size or journal.position.offset < 100 << 20:
        sources = journal.coverage.to_bytes() if journal.rotation_due else b""
        first = journal.next_seq
        lines = []
        for seq, tail in enumerate(tails, first):
            durable = b"" if seq > first else b',"durable":%d' % journal.durable_seq
            body = b'{"seq":%d%b' % (seq, tail.replace(b',"event":', durable + b',"event":', 1))
            lines.append(b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body)))
        data = b"".join(lines)
        made += len(data)
        last = first + len(lines) - 1
        journal.commit(data, first, last, sources, float(made), span)
        if made % (64 << 20) < len(data):
            journal.sync(float(made))
            print(f"\r{made >> 20} MiB", end="", file=sys.stderr)
    journal.sync(0.0)
    print(file=sys.stderr)
    return journal.next_seq - 1


def memory_mib() -> float:
    """Return the most memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def opened(directory: Path) -> None:
    """Open the journal once and print what it cost."""
    before = memory_mib()
    start, cpu = time.perf_counter(), time.process_time()
    journal = open_journal(directory)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = memory_mib()
    print(json.dumps({"s": took, "cpu": cpu, "mib": peak, "more": peak - before}), flush=True)
    assert journal.epoch_reason is None
    os._exit(0)  # as a kill: what closing writes is not to be there the next time


def measure(words: str, directory: Path, rounds: int, prepare: Callable[[], None]) -> None:
    """Print the median of some openings."""
    found = []
    for _ in range(rounds):
        prepare()
        command = [sys.executable, __file__, "--open", str(directory)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    keys = ("s", "cpu", "mib", "more")
    took, cpu, mib, more = (statistics.median(f[key] for f in found) for key in keys)
    print(
        f"{words:32} {took:7.3f} s ({cpu:.3f} s of CPU) {mib:5.0f} MiB, "
        f"of which {more:.0f} for the journal"
    )


def main() -> None:
    """Make, measure, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=parse_size, default="1GiB", help="of the journal (1GiB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to make it (the temporary directory)")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open is not None:
        opened(given.open)
    place = given.dir or Path(tempfile.gettempdir())
    if shutil.disk_usage(place).free < 2 * given.size:
        sys.exit(f"{place} has no room for {given.size} bytes twice over")
    with tempfile.TemporaryDirectory(dir=place, prefix="hypermux-bench-") as name:
        directory = Path(name) / "journal"
        records = make(directory, given.size)
        segments = len(list(directory.glob("[0-9]*.ndjson")))
        print(f"{segments} segments, {records} records; goal {GOAL_S} s, {GOAL_MIB} MiB")
        measure("with its indexes, after a kill", directory, given.rounds, lambda: None)

        def forget() -> None:
            for path in directory.glob("*.index"):
                path.unlink()

        measure("without any", directory, given.rounds, forget)


if __name__ == "__main__":
    main()
