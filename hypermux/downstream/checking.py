"""Looking at every byte of a journal: does each line read back, and does all fit together?

    records     every checksum; the seqs, without one left out, over all segments
    journal.toml  the epochs, none of them twice or beyond the records
    .sources    what the records before say, where they say all of it
    .index      its checksum, its bounds, and that a record begins where it says

Beside a running service the last segment is looked at as far as readers are shown it. What is
missing but is made again by itself (an index, `.sources`) is remarked upon, and is no fault.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from attrs import Factory, define, evolve, field, frozen

from hypermux.core.coverage import Coverage
from hypermux.core.index import Index
from hypermux.core.inspection import Damage, Inspected, Inspector
from hypermux.core.recording import BadLine, Parsed
from hypermux.core.segments import index_name, segment_name, sources_name
from hypermux.downstream.manifest import MANIFEST
from hypermux.downstream.onlooker import Onlooker
from hypermux.downstream.storage import Storage, translated
from hypermux.downstream.stored import plain_size, readable_blocks, segment_path
from hypermux.model.records import Gap

# The cause of a gap that stands where records were damaged; see `downstream.repair`.
DAMAGE = "damage"

# Called with the bytes read so far.
Progress = Callable[[int], None]


@frozen
class Segment:
    """What a segment was found to be: `end_seq` is the next one's first, None for the last."""

    first_seq: int
    end_seq: int | None
    size: int
    inspected: Inspected
    name: str


@frozen
class Fault:
    """A file beside the segments that does not fit them, and why."""

    name: str
    reason: str


@define
class Report:
    """What a check came to. `remarks` are about what is missing and does no harm."""

    records: int = 0
    size: int = 0
    segments: list[Segment] = Factory(list)
    faults: list[Fault] = Factory(list)
    remarks: list[str] = Factory(list)

    @property
    def damages(self) -> list[tuple[Segment, Damage]]:
        """All damage, in the order of the records."""
        return [(segment, d) for segment in self.segments for d in segment.inspected.damages]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damages and not self.faults


@define(eq=False)
class Check:
    """One check of a journal, segment by segment, in constant memory."""

    onlooker: Onlooker
    progress: Progress = lambda _: None
    report: Report = field(factory=Report)
    # What the records so far come to, None while not all of it is known.
    _coverage: Coverage | None = field(init=False, default=None)
    _came_ns: int | None = field(init=False, default=None)

    def run(self) -> Report:
        """Look at everything. Raises DiskFault."""
        self._epochs()
        segments = [s for s in self.onlooker.segments if s <= self.onlooker.position.segment]
        for at, first_seq in enumerate(segments):
            self._segment(first_seq, segments[at + 1] if at + 1 < len(segments) else None)
        return self.report

    @property
    def _directory(self) -> Path:
        return self.onlooker.directory

    @property
    def _storage(self) -> Storage:
        return self.onlooker.storage

    def _epochs(self) -> None:
        manifest = self.onlooker.manifest
        if manifest is None:
            self._blame(MANIFEST, self.onlooker.fault)
            return
        epochs, last_seq = manifest.epochs, self.onlooker.position.seq
        names = [epoch.name for epoch in epochs]
        if len(set(names)) < len(names):
            self._blame(MANIFEST, "an epoch stands in it twice")
        elif epochs[-1].first_seq > last_seq + 1 and self.onlooker.damage is None:
            self._blame(
                MANIFEST,
                f"epoch {names[-1]} begins at record {epochs[-1].first_seq}, and the last record "
                f"is {last_seq}",
            )

    def _segment(self, first_seq: int, end_seq: int | None) -> None:
        self._sources(first_seq)
        limit = self._shown(first_seq)
        index, mark = self._index(first_seq)
        if index is not None and limit is not None and index.size > limit:
            index = mark = None  # the service has gone on since it was asked
        if index is not None and end_seq is None and index.size > self._size(first_seq):
            self.report.remarks.append(
                f"{self._directory / segment_name(first_seq)} ends before record {index.last_seq}, "
                "which had been synced: it was cut short, or copied before its index was. The "
                "next start begins an epoch"
            )
            index = mark = None
        coverage, whole, crc, size = self._coverage, True, 0, 0
        marked = None
        checked = None if index is None else _Blocks(index)

        def take(parsed: Parsed, offset: int) -> None:
            nonlocal whole, marked
            if coverage is not None:
                try:
                    item = parsed.item
                    coverage.apply(parsed.source, item, parsed.at_ns)
                    whole = whole and not (isinstance(item, Gap) and item.cause == DAMAGE)
                except BadLine:
                    whole = False
            if checked is not None:
                checked.take(parsed, offset)
                if mark is not None and parsed.seq == checked.index.last_seq:
                    marked = None if coverage is None else coverage.to_bytes()

        last = end_seq is None
        durable = first_seq - 1 if index is None or not last else index.last_seq
        inspector = Inspector(first_seq, end_seq, durable, take, came_ns=self._came_ns)
        left_out: list[str] = []
        with translated(self._directory / segment_name(first_seq), "read"):
            name = segment_path(self._storage, self._directory, first_seq).name
            blocks = readable_blocks(self._storage, self._directory, first_seq, left_out.append)
            with closing(blocks):
                for data in blocks:
                    if limit is not None:
                        data = data[: limit - size]
                    inspector.feed(data)
                    if index is not None and size < index.size:
                        crc = zlib.crc32(memoryview(data)[: index.size - size], crc)
                    size += len(data)
                    self.report.size += len(data)
                    self.progress(self.report.size)
                    if inspector.done or size == limit:
                        break
        found = inspector.finish()
        self._came_ns = inspector.came_ns
        if left_out:
            self._spoilt(name, left_out, found)
            found = evolve(found, damages=_because(found.damages, left_out))
        self.report.records += found.last_seq - first_seq + 1 - sum(d.lost for d in found.damages)
        self.report.segments.append(Segment(first_seq, end_seq, size, found, name))
        if checked is not None and not found.damages:
            self._fits(checked, crc, found)
            if marked is not None and whole and mark != marked:
                self._blame(index_name(first_seq), "its coverage is not what the records say")
        if found.tail is not None:
            self.report.remarks.append(
                f"{self._directory / name}: what is behind byte {found.tail} "
                f"had not been synced ({found.reason}): the next start sets it aside"
            )
        if found.damages or not whole:
            self._coverage = None

    def _shown(self, first_seq: int) -> int | None:
        """Return how much of a segment counts, None for all of it."""
        onlooker = self.onlooker
        told = onlooker.position.segment == first_seq and onlooker.told
        return onlooker.position.offset if told else None

    def _size(self, first_seq: int) -> int:
        with translated(self._directory / segment_name(first_seq), "look at"):
            return plain_size(self._storage, self._directory, first_seq)

    def _spoilt(self, name: str, left_out: list[str], found: Inspected) -> None:
        """A compressed file is harmed, though all its records may be there."""
        if not found.damages:
            self._blame(name, "; ".join(left_out))

    def _sources(self, first_seq: int) -> None:
        """Compare the coverage so far with what is kept beside the segment, and go on from that."""
        path = self._directory / sources_name(first_seq)
        computed, self._coverage = self._coverage, None
        try:
            kept = Coverage.from_bytes(self._storage.read(path))
        except FileNotFoundError:
            self.report.remarks.append(f"{path} is missing: a start that needs it makes it again")
            self._coverage = computed
            return
        except OSError as exc:
            self._blame(path.name, f"it cannot be read: {exc.strerror}")
            return
        except BadLine as exc:
            self._blame(path.name, str(exc))
            self._coverage = computed
            return
        self._coverage = kept
        if computed is not None and computed != kept:
            self._blame(path.name, "it is not what the records before it say")
            self._coverage = computed

    def _index(self, first_seq: int) -> tuple[Index | None, bytes | None]:
        path = self._directory / index_name(first_seq)
        last = first_seq == self.onlooker.segments[-1]
        try:
            index, mark = Index.from_bytes(self._storage.read(path))
        except FileNotFoundError:
            if not last:
                self.report.remarks.append(f"{path} is missing: `run` makes it again")
            return None, None
        except OSError as exc:
            self._blame(path.name, f"it cannot be read: {exc.strerror}")
            return None, None
        except BadLine as exc:
            self._blame(path.name, str(exc))
            return None, None
        if index.first_seq != first_seq:
            self._blame(path.name, f"it is that of segment {index.first_seq}")
            return None, None
        return index, mark or None

    def _fits(self, checked: _Blocks, crc: int, found: Inspected) -> None:
        index = checked.index
        wrong = checked.wrong
        if wrong is None and (index.last_seq > found.last_seq or index.size > found.end):
            wrong = f"it covers records up to {index.last_seq}, and the segment ends before"
        elif wrong is None and crc != index.crc:
            wrong = "its checksum of the segment does not match"
        if wrong is not None:
            self._blame(index_name(index.first_seq), wrong)

    def _blame(self, name: str, reason: str) -> None:
        self.report.faults.append(Fault(name, reason))


@define(eq=False)
class _Blocks:
    """An index beside the records it is about."""

    index: Index
    wrong: str | None = None
    _starts: dict[int, tuple[int, int, int]] = field(init=False)
    _block: tuple[int, int, int] | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._starts = {
            offset: (seq, least, largest) for seq, offset, least, largest in self.index.blocks()
        }

    def take(self, parsed: Parsed, offset: int) -> None:
        """Compare with the next record."""
        if parsed.seq > self.index.last_seq or self.wrong is not None:
            return
        start = self._starts.pop(offset, None)
        if start is not None:
            self._block = start
            if start[0] != parsed.seq:
                self.wrong = f"it has record {start[0]} at byte {offset}, where {parsed.seq} is"
        if self._block is None or not self._block[1] <= parsed.at_ns <= self._block[2]:
            self.wrong = f"its times do not hold for record {parsed.seq}"
        elif parsed.seq == self.index.last_seq and self._starts:
            self.wrong = f"no record begins at byte {min(self._starts)}, as it says"


def _because(damages: tuple[Damage, ...], left_out: list[str]) -> tuple[Damage, ...]:
    """Say of records that are missing without a trace that their frame is harmed."""
    reason = "; ".join(left_out)
    return tuple(evolve(d, reason=reason) if d.offset == d.end else d for d in damages)


def sentence(name: str, damage: Damage) -> str:
    """Say where damage is and what it took."""
    what = "no record is missing"
    if damage.lost == 1:
        what = f"record {damage.first_seq} is lost"
    elif damage.lost:
        what = f"records {damage.first_seq} to {damage.last_seq} are lost"
    return (
        f"{name}: line {damage.line} at byte {damage.offset}"
        f"{f' ({damage.end - damage.offset} bytes)' if damage.end > damage.offset else ''}: "
        f"{damage.reason}; {what}"
    )
