"""What can wait: missing indexes are made again, and segments that have ended are compressed.

Each in a thread, one file at a time, and slowly; cancelled, it ends with the next MiB.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from itertools import pairwise

import trio

from hypermux.core.segments import first_seqs, segment_name
from hypermux.downstream.indexes import Indexes
from hypermux.downstream.storage import translated
from hypermux.downstream.stored import compress
from hypermux.downstream.walk import RunSync
from hypermux.model.errors import DamagedData, DiskFault

log = logging.getLogger("hypermux.upkeep")

# Without an index a search reads a segment, which is slow and not wrong: there is no hurry.
INTERVAL_S = 60.0
# Between two MiB, which take about 10 ms of everybody's time: it is a sixth of a core.
REST_S = 0.05


async def keep_indexes(indexes: Indexes, run_sync: RunSync) -> None:
    """Look for missing indexes for ever; one that cannot be made is told once."""
    told: set[int] = set()
    while True:
        try:
            for segment, end_seq in await run_sync(indexes.missing):
                if segment not in told:
                    try:
                        await run_sync(indexes.rebuild, segment, end_seq, _rest)
                    except (DamagedData, DiskFault) as exc:
                        told.add(segment)
                        log.warning("no index for an old segment: %s", exc)
        except DiskFault as exc:
            log.info("%s", exc)
        await trio.sleep(INTERVAL_S)


async def compress_closed(indexes: Indexes, run_sync: RunSync) -> None:
    """Compress segments that have ended, oldest first, for ever; one that cannot be is told once.

    A plain file beside a compressed one is what a compression left that was cut short.
    """
    told: set[int] = set()
    while True:
        try:
            for segment, end_seq in await run_sync(_plain, indexes):
                if segment not in told:
                    try:
                        await run_sync(_compress, indexes, segment, end_seq)
                    except (DamagedData, DiskFault) as exc:
                        told.add(segment)
                        log.warning("an old segment stays as it is: %s", exc)
        except DiskFault as exc:
            log.info("%s", exc)
        await trio.sleep(INTERVAL_S)


def _plain(indexes: Indexes) -> list[tuple[int, int]]:
    """Return the closed segments that are not compressed, each with its end."""
    with translated(indexes.directory, "list"):
        names = indexes.storage.names(indexes.directory)
    open_seq = indexes.open.first_seq
    closed = [seq for seq in first_seqs(names) if seq < open_seq]
    pairs = pairwise([*closed, open_seq])
    return [(seq, end_seq) for seq, end_seq in pairs if segment_name(seq) in set(names)]


def _compress(indexes: Indexes, segment: int, end_seq: int) -> None:
    with translated(indexes.directory / segment_name(segment), "compress"):
        try:
            compress(indexes.storage, indexes.directory, segment, end_seq, _rest)
        except FileNotFoundError:
            log.debug("segment %d was removed while it was being compressed", segment)


def _rest() -> None:
    with suppress(RuntimeError):  # not in a thread of trio's
        trio.from_thread.check_cancelled()
    time.sleep(REST_S)
