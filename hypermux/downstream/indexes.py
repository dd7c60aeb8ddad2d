"""The indexes beside the segments: finding a record, and finding a time.

An index is used when it covers its segment, up to the record before the next segment's first.
Without one a search reads the segment instead, so nothing here has to be there, and what is not is
written again in the background (`rebuild`), slowly enough to disturb nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from attrs import define, field

from hypermux.core.index import Index, Summary
from hypermux.core.recording import BadLine, Parsed
from hypermux.core.segments import Recounter, first_seqs, index_name, segment_name
from hypermux.downstream.retention import first_received_ns
from hypermux.downstream.storage import Storage, translated
from hypermux.downstream.stored import SHARED, Frames, segment_blocks
from hypermux.model.errors import DamagedData, DiskFault

log = logging.getLogger("hypermux.journal")

# Indexes in memory beside the open one: readers that catch up are in few segments at a time, and
# each is about 200 KiB.
_CACHED = 8
# The head of an index is one line of about 200 bytes.
_HEAD = 512
# A record is released at most this long after the one that came last: `max_hold` cannot be longer.
_HELD_NS = 60 * 10**9


@define(eq=False)
class Indexes:
    """`open` is the index of the segment that is written to; `frames` are unpacked ones.

    Calls block, from any thread.
    """

    directory: Path
    storage: Storage
    open: Index
    frames: Frames = field(factory=lambda: Frames(SHARED))
    _cached: dict[int, Index] = field(factory=dict)
    _summaries: dict[int, Summary] = field(factory=dict)

    def of(self, segment: int, end_seq: int) -> Index | None:
        """Return the index of a segment that ends before `end_seq`, None when there is none."""
        index = self.open
        if index.first_seq == segment:
            return index
        cached = self._cached.get(segment)
        if cached is not None:
            return cached
        try:
            index, _ = Index.from_bytes(self.storage.read(self.directory / index_name(segment)))
        except (OSError, BadLine):
            return None
        if (index.first_seq, index.last_seq) != (segment, end_seq - 1):
            return None
        while len(self._cached) >= _CACHED:
            self._cached.pop(next(iter(self._cached)), None)
        self._cached[segment] = index
        return index

    def since(self, at_ns: int) -> int:
        """Return a record after which all are that have an `at` of `at_ns` or later.

        Raises DiskFault.
        """
        index = self.open
        with translated(self.directory, "list"):
            segments = first_seqs(self.storage.names(self.directory))
        for first_seq, end_seq in pairwise(segments):
            summary = self._summary(first_seq, end_seq)
            if summary is None:
                if not self._older(end_seq, at_ns - _HELD_NS):
                    return first_seq - 1
            elif summary.largest_ns >= at_ns:
                found = self.of(first_seq, end_seq)
                seq = None if found is None else found.since(at_ns)
                return (first_seq if seq is None else seq) - 1
        if segments and segments[-1] != index.first_seq:
            return segments[-1] - 1  # the journal has gone on meanwhile
        seq = index.since(at_ns)
        return index.last_seq if seq is None else seq - 1

    def _summary(self, segment: int, end_seq: int) -> Summary | None:
        summary = self._summaries.get(segment)
        if summary is None:
            path = self.directory / index_name(segment)
            try:
                file = self.storage.open(path)
                try:
                    summary = Summary.from_bytes(file.read_at(0, _HEAD))
                finally:
                    file.close()
            except (OSError, BadLine):
                return None
            if (summary.first_seq, summary.last_seq) != (segment, end_seq - 1):
                return None
            self._summaries[segment] = summary
        return summary

    def _older(self, end_seq: int, than_ns: int) -> bool:
        """Tell whether the segment before the one of `end_seq` has only older records.

        No record's `at` is later than when it came.
        """
        try:
            came_ns = first_received_ns(self.storage, self.directory, end_seq)
        except OSError:
            return False
        return came_ns is not None and came_ns < than_ns

    def missing(self) -> list[tuple[int, int]]:
        """Return the closed segments without an index, each with its end. Raises DiskFault."""
        with translated(self.directory, "list"):
            segments = first_seqs(self.storage.names(self.directory))
        for gone in self._summaries.keys() - set(segments):
            self._summaries.pop(gone, None)
            self._cached.pop(gone, None)
        closed = [s for s in segments if s < self.open.first_seq] + [self.open.first_seq]
        return [(s, end) for s, end in pairwise(closed) if self._summary(s, end) is None]

    def rebuild(self, segment: int, end_seq: int, rest: Callable[[], None]) -> None:
        """Write the index of a closed segment; `rest` is called after each block read.

        Raises DamagedData, DiskFault.
        """
        index = Index.empty(segment)

        def take(parsed: Parsed) -> None:
            index.add(parsed.line, parsed.seq, parsed.at_ns, parsed.at_ns)

        recounter = Recounter(segment, end_seq, take)
        path = self.directory / segment_name(segment)
        with translated(path, "read"):
            for data in segment_blocks(self.storage, self.directory, segment):
                recounter.feed(data)
                if recounter.done:
                    break
                rest()
        bad = recounter.finish()
        if bad is not None:
            raise DamagedData(f"{path}: line {bad.line} at byte {bad.offset}: {bad.reason}")
        self.write(index)

    def write(self, index: Index, coverage: bytes = b"") -> int:
        """Put an index in its place; return its size. Raises DiskFault."""
        path, data = self.directory / index_name(index.first_seq), index.to_bytes(coverage)
        with translated(path, "write"):
            self.storage.write(path, data)
        return len(data)

    def close(self, index: Index) -> None:
        """Write the index of a segment that has ended; without it, it is rebuilt some time."""
        try:
            self.write(index)
        except DiskFault as exc:
            log.info("%s; it will be made again", exc)
