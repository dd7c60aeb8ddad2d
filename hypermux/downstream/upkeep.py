"""What can wait: indexes that are missing are made again, in a reader's thread, one at a time."""

from __future__ import annotations

import logging
import time

import trio

from hypermux.downstream.indexes import Indexes
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


def _rest() -> None:
    time.sleep(REST_S)
