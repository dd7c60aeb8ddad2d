"""The file that the journal writes to: append, sync, show, begin the next, and go on in another.

When the disk refuses, nothing is tried again on the same file: the kernel may drop what it could
not write, and call the next sync a success. What was given to `commit` and not shown stays in
memory, and the file is given up:

    a write, whole or in part    behind its last shown record lies half a batch
    a sync                       what lies behind the sync before may never reach the disk
    making a segment: any step   the segment is made again from the first step, as a new file

`go_on` makes it good, in this order, and may be called until it does:

    1. A file in the way, of a try before, is removed. It would hold what was shown to nobody.
    2. Old segments make room, as `retention` has it.
    3. "never" alone: what was shown of the file given up and not synced is read back, compared with
       its checksum and written over itself, synced. What does not read back is gone:
       `ShownIsGone`, and a new start.
    4. The file given up is cut behind its last shown record, synced. So in every mode a segment
       that has a successor is whole, and ends where that begins.
    5. A new segment is made, whose first seq follows the last shown. Its `.sources` are there
       when the batch that begins it came with them; else a start reads the segment before.
    6. What waits is written to it, synced unless "never", and shown.

What a start finds, whichever of these steps was the last: before step 5 is on the disk the file
given up is the last segment, and what it holds behind the last shown record is kept or cut by the
rule of `core.segments`: either is right, as nobody has seen it. From then on the new segment is the
last, and only what it holds is in doubt. An index or mark that cannot be written is made again some
time; a removal by `retention` likewise. A directory's sync that failed is not believed later: the
names it was for are made again first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import define, field, frozen

from hypermux.core.index import Index
from hypermux.core.segments import segment_name
from hypermux.downstream.horizon import Position
from hypermux.downstream.indexes import Indexes
from hypermux.downstream.opening import begin_segment, unharmed
from hypermux.downstream.storage import Appender, Storage, translated, write_all
from hypermux.model.errors import DiskFault


class ShownIsGone(DiskFault):
    """What was shown is in no file any more: trying again does not help.

    Under `fsync = "never"` it does not read back, or somebody has removed the file.
    """


@frozen
class Batch:
    """Records as they were given to `commit`; `sources` only when they begin a segment."""

    data: bytes
    last_seq: int
    span: tuple[int, int]
    sources: bytes


@define(eq=False)
class Writer:
    """The newest segment. `position` is how far readers may see, `end` what was written.

    `durable_seq` is the last synced seq. What is not shown is kept, `waiting_bytes` of it.
    """

    directory: Path
    indexes: Indexes
    position: Position
    _storage: Storage
    _file: Appender
    end: Position = field(init=False)
    durable_seq: int = field(init=False)
    waiting_bytes: int = field(init=False, default=0)
    _settled: int = field(init=False)  # the bytes of the present file that were synced
    _waiting: list[Batch] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.end = self.position
        self.durable_seq = self.position.seq
        self._settled = self.position.offset

    @property
    def waiting(self) -> int:
        """How many records were given and are not shown yet."""
        return self._waiting[-1].last_seq - self.position.seq if self._waiting else 0

    def take(self, batch: Batch) -> None:
        """Keep a batch until it is shown; `append` writes it."""
        self._waiting.append(batch)
        self.waiting_bytes += len(batch.data)

    def append(self, batch: Batch) -> None:
        """Write what was taken. Raises DiskFault."""
        with translated(self._path, "append to"):
            write_all(self._file, batch.data)
        end = self.end
        self.end = Position(end.segment, end.offset + len(batch.data), batch.last_seq)
        self.indexes.open.add(batch.data, batch.last_seq, *batch.span)

    def show(self) -> None:
        """Let all that was written be seen."""
        self.position = self.end
        # The one for which a segment is being begun is still to be written.
        self._waiting = [batch for batch in self._waiting if batch.last_seq > self.end.seq]
        self.waiting_bytes = sum(len(batch.data) for batch in self._waiting)

    def sync(self) -> None:
        """Make all that was written durable, and show it. Raises DiskFault."""
        if self.durable_seq != self.end.seq:
            with translated(self._path, "sync"):
                self._file.sync()
            self.durable_seq, self._settled = self.end.seq, self.end.offset
        self.show()

    def begin(self, sources: bytes) -> None:
        """Begin a segment behind one that is synced whole. Raises DiskFault."""
        first_seq = self.end.seq + 1
        file = begin_segment(self._storage, self.directory, first_seq, sources)
        self._file.close()
        closed = self._enter(first_seq, file)
        self.indexes.close(closed)

    def go_on(self, make_room: Callable[[], None], *, synced: bool) -> None:
        """After a DiskFault: steps 1 to 6. Raises DiskFault, ShownIsGone."""
        shown = self.position
        first_seq = shown.seq + 1
        self._file.close()
        path = self.directory / segment_name(first_seq)
        with translated(path, "remove"):
            self._storage.remove(path)
        make_room()
        if first_seq != shown.segment:
            self._keep_shown()
            self._cut()
        sources: bytes | None = self._waiting[0].sources if self._waiting else b""
        if not sources:
            # Of a segment that nothing was shown of they are right, if they are there.
            sources = None if first_seq == shown.segment else b""
        given_up = self._enter(
            first_seq, begin_segment(self._storage, self.directory, first_seq, sources)
        )
        for batch in self._waiting:
            self.append(batch)
        if synced:
            self.sync()
        else:
            self.show()
        if first_seq != shown.segment and given_up.last_seq == shown.seq:
            self.indexes.close(given_up)

    def look(self) -> None:
        """See that the file still has its name. Raises ShownIsGone."""
        try:
            self._storage.size(self._path)
        except FileNotFoundError as exc:
            raise ShownIsGone(
                f"{self._path} was removed while it was written to; a new start begins another"
            ) from exc
        except OSError:
            pass  # it may well be there

    def close(self) -> None:
        """Close the file, without syncing it."""
        self._file.close()

    @property
    def _path(self) -> Path:
        return self.directory / segment_name(self.end.segment)

    def _enter(self, first_seq: int, file: Appender) -> Index:
        """Write to a new segment from now on; return the index of the one before."""
        self._file, self._settled = file, 0
        self.end = Position(first_seq, 0, first_seq - 1)
        before, self.indexes.open = self.indexes.open, Index.empty(first_seq)
        return before

    def _keep_shown(self) -> None:
        """Sync what was shown without a sync, believing nothing that was not read back."""
        shown = self.position
        if self.durable_seq == shown.seq:
            return
        path = self.directory / segment_name(shown.segment)
        if not unharmed(self._storage, path, self.indexes.open):
            raise ShownIsGone(
                f"{path} no longer holds what was shown of it and never synced; the next start "
                "keeps what is whole, and begins an epoch"
            )
        with translated(path, "write again to"):
            self._storage.rewrite(path, self._settled, shown.offset)
        self.durable_seq, self._settled = shown.seq, shown.offset

    def _cut(self) -> None:
        shown = self.position
        path = self.directory / segment_name(shown.segment)
        with translated(path, "truncate"):
            if self._storage.size(path) > shown.offset:
                self._storage.truncate(path, shown.offset)
