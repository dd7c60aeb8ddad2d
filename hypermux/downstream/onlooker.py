"""A journal as others than its service may read it: beside a running one, stopped, or a copy.

What is shown is on the disk, and no start will cut it off. How far that is says, in this order,

    the running service       it was asked, and told the last record it shows
    the files, while a        what a later line, or the mark beside the segment, knows to be synced:
    process has the lock      a few records less than are there
    the files, else           all that a start would keep; it is synced first

Nothing is written here, and no lock is held, so an onlooker disturbs nobody. Lines are handed on as
they are; whether they are harmed is for `downstream.checking` to find, which takes a hundred times
as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attrs import define, frozen

from hypermux.core.index import Index
from hypermux.core.recording import BadLine, Parsed, parse_line
from hypermux.core.request import Request
from hypermux.core.segments import Bad, Recoverer, first_seqs, index_name, segment_name
from hypermux.core.selection import Selector
from hypermux.downstream.horizon import Position
from hypermux.downstream.indexes import Indexes
from hypermux.downstream.manifest import MANIFEST, Manifest
from hypermux.downstream.reading import JournalReader, locate, resolve_cursor
from hypermux.downstream.retention import first_received_ns
from hypermux.downstream.storage import Storage, settle, translated
from hypermux.downstream.stored import is_plain, plain_size, segment_blocks, segment_path
from hypermux.model.errors import DamagedData, UsageFault


@frozen
class SegmentInfo:
    """One segment: its records, its bytes on the disk, and when its records came.

    `last_seq` is `first_seq` - 1 while there is none. Times are nanoseconds since 1970, None when
    no record says. `epochs` are those whose records are in it. `index`: whether it has one that
    fits; the one that is written to has none but a mark.
    """

    name: str
    first_seq: int
    last_seq: int
    size: int
    from_ns: int | None
    to_ns: int | None
    epochs: tuple[str, ...]
    index: bool
    compressed: bool
    last: bool


@define(eq=False)
class Onlooker:
    """A journal to be read up to `position`, as it was when this was made.

    `told` is whether the running service said how far it goes. `behind` is the bytes of the last
    segment that are not shown. `damage` is where that stops to read back although it had been
    synced. `manifest` is None when it does not read, and `fault` says why.
    """

    directory: Path
    storage: Storage
    segments: list[int]
    position: Position
    indexes: Indexes
    manifest: Manifest | None
    fault: str
    told: bool = False
    behind: int = 0
    damage: Bad | None = None

    @classmethod
    def open(
        cls, directory: Path, storage: Storage, *, told_seq: int | None, locked: bool
    ) -> Onlooker:
        """Look at the journal in `directory`. Raises UsageFault when there is none, DiskFault.

        `told_seq` is the last record that the running service shows, None when none was asked;
        `locked` is whether a process has the journal's lock.
        """
        with translated(directory, "look into"):
            try:
                segments = first_seqs(storage.names(directory))
            except (FileNotFoundError, NotADirectoryError):
                segments = []
        if not segments:
            raise UsageFault(f"there is no journal in {directory}")
        manifest, fault = _manifest(directory, storage)
        if told_seq is not None and segments[0] <= told_seq + 1:
            # It may have begun another segment meanwhile.
            last = max(seq for seq in segments if seq <= told_seq + 1)
            index = _mark(directory, storage, last) or Index.empty(last)
            indexes = Indexes(directory, storage, index)
            place = locate(directory, storage, told_seq + 1, indexes)
            position = Position(*place, told_seq)
            return cls(directory, storage, segments, position, indexes, manifest, fault, told=True)
        return cls._by_files(directory, storage, segments, manifest, fault, locked=locked)

    @classmethod
    def _by_files(
        cls,
        directory: Path,
        storage: Storage,
        segments: list[int],
        manifest: Manifest | None,
        fault: str,
        *,
        locked: bool,
    ) -> Onlooker:
        last = segments[-1]
        path = directory / segment_name(last)
        with translated(path, "read"):
            plain = is_plain(storage, directory, last)
            size = storage.size(path) if plain else plain_size(storage, directory, last)
        index = _mark(directory, storage, last)
        if index is None or index.size > size:  # what is short is no damage, see `Opening`
            index = Index.empty(last)
        durable = index.last_seq
        taken = index

        def take(parsed: Parsed) -> None:
            taken.add(parsed.line, parsed.seq, parsed.at_ns, parsed.at_ns)

        recoverer = Recoverer(last, take, seq=index.last_seq, offset=index.size, durable=durable)
        left = size - index.size  # more may come while we read
        with translated(path, "read"):
            for data in segment_blocks(storage, directory, last, index.size):
                recoverer.feed(data[:left])
                left -= min(left, len(data))
                if not left:
                    break
        found = recoverer.finish()
        keep, seq = found.settled, min(found.durable, found.last_seq)
        if not plain:
            keep, seq = found.keep, found.last_seq
        elif not locked:
            with suppress(OSError):  # then only what is known to be synced is shown
                settle(path)
                keep, seq = found.keep, found.last_seq
        return cls(
            directory,
            storage,
            segments,
            Position(last, keep, seq),
            Indexes(directory, storage, index),
            manifest,
            fault,
            behind=size - keep,
            damage=found.bad if found.damaged else None,
        )

    def blocks(self, request: Request) -> Iterator[bytes]:
        """Yield blocks of the lines that `request` asks for, up to the end of what may be shown.

        Raises UsageFault for a cursor that does not fit, DamagedData, DiskFault.
        """
        return self._blocks(request, self._begin(request))

    def _blocks(self, request: Request, after: int) -> Iterator[bytes]:
        began_ns = 0 if self.manifest is None else self.manifest.began_ns
        reader = JournalReader(
            self.directory,
            self.storage,
            after=after,
            near=self.position,
            began_ns=began_ns,
            indexes=self.indexes,
        )
        selector = Selector(request.selection, request.limit)
        try:
            while block := reader.read(self.position):
                chosen, limit_seq = selector.select(block)
                if chosen:
                    yield chosen
                if limit_seq is not None:
                    return
        finally:
            reader.close()
        if self.damage is not None:
            path = self.directory / segment_name(self.position.segment)
            raise DamagedData(
                f"{path}: line {self.damage.line} at byte {self.damage.offset} is damaged: "
                f"{self.damage.reason}. Nothing behind it is shown; `hypermux journal verify` "
                "finds all of it"
            )

    def last(self, request: Request, count: int) -> Iterator[bytes]:
        """Yield the last `count` of the lines asked for. Raises what `blocks` does."""
        after = self._begin(request)
        if request.selection.everything and request.limit is None:
            # All of them count: there is no need to look at what lies before.
            after = max(after, self.position.seq - count)
        held: deque[bytes] = deque(maxlen=count)
        for block in self._blocks(request, after):
            held.extend(block.splitlines(keepends=True))
        yield from held

    def _begin(self, request: Request) -> int:
        """Return the record after which `request` begins."""
        oldest = self.segments[0] - 1
        seq = oldest
        if not isinstance(request.after, str):
            if self.manifest is None:
                raise DamagedData(
                    f"{self.directory / MANIFEST}: {self.fault}, so nobody knows what a cursor "
                    "stands for: begin with --after start, or see `hypermux journal repair`"
                )
            found = resolve_cursor(request.after, self.manifest.epochs, self.position.seq + 1)
            if not isinstance(found, int):
                raise UsageFault(str(found))
            seq = found
        since_ns = request.selection.since_ns
        if since_ns is not None:
            found = min(self._since(since_ns), self.position.seq)
            seq = found if request.after == "start" else max(seq, found)
        return seq

    def _since(self, at_ns: int) -> int:
        oldest = self.segments[0]
        oldest_ns = self._came_ns(oldest)
        if oldest > 1 and (oldest_ns is None or at_ns < oldest_ns):
            return 0
        return self.indexes.since(at_ns)

    def _came_ns(self, segment: int) -> int | None:
        with suppress(OSError):
            return first_received_ns(self.storage, self.directory, segment)
        return None

    def list(self) -> list[SegmentInfo]:
        """Return what there is, oldest first. Raises DiskFault."""
        shown = [s for s in self.segments if s <= self.position.segment]
        without = {segment for segment, _ in self.indexes.missing()}
        came = [self._came_ns(segment) for segment in shown]
        ends = [*shown[1:], self.position.seq + 1]
        found = []
        for at, (first_seq, end_seq) in enumerate(zip(shown, ends, strict=True)):
            last = at == len(shown) - 1
            with translated(self.directory / segment_name(first_seq), "look at"):
                path = segment_path(self.storage, self.directory, first_seq)
                size = self.storage.size(path)
            to_ns = self._last_came_ns() if last else came[at + 1]
            found.append(
                SegmentInfo(
                    path.name,
                    first_seq,
                    end_seq - 1,
                    size,
                    came[at],
                    to_ns,
                    self._epochs(first_seq, end_seq),
                    first_seq not in without,
                    path.name != segment_name(first_seq),
                    last,
                )
            )
        return found

    def _last_came_ns(self) -> int | None:
        seq = self.position.seq
        if seq < self.position.segment:
            return None
        reader = JournalReader(self.directory, self.storage, after=seq - 1, indexes=self.indexes)
        try:
            line = reader.read(self.position)
        finally:
            reader.close()
        with suppress(BadLine):
            return parse_line(line).received_ns
        return None

    def _epochs(self, first_seq: int, end_seq: int) -> tuple[str, ...]:
        """Return the epochs of the records from `first_seq` to before `end_seq`."""
        if self.manifest is None:
            return ()
        found, end = [], None
        for epoch in reversed(self.manifest.epochs):
            if epoch.first_seq < max(end_seq, first_seq + 1) and (end is None or end > first_seq):
                found.append(epoch.name)
            end = epoch.first_seq if end is None else min(end, epoch.first_seq)
        return tuple(reversed(found))


def _manifest(directory: Path, storage: Storage) -> tuple[Manifest | None, str]:
    try:
        return Manifest.parse(storage.read(directory / MANIFEST).decode()), ""
    except FileNotFoundError:
        return None, "it is missing"
    except OSError as exc:
        return None, f"it cannot be read: {exc.strerror}"
    except ValueError as exc:
        return None, str(exc)


def _mark(directory: Path, storage: Storage, segment: int) -> Index | None:
    """Return what lies beside a segment and is known to have been synced of it."""
    try:
        index, _ = Index.from_bytes(storage.read(directory / index_name(segment)))
    except (OSError, BadLine):
        return None
    return index if index.first_seq == segment else None
