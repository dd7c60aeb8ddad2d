"""The journal's one writer: append, sync, rotate, retain. The only truth about what was seen.

    journal.toml                  format, the epochs and where each began
    <20-digit first seq>.ndjson   a segment; never renamed or truncated by rotation
    <20-digit first seq>.ndjson.zst   the same, closed and compressed; see `downstream.stored`
    <20-digit first seq>.sources  the coverage before its first record
    <20-digit first seq>.index    where its records are, and when; see `core.index`
    current.ndjson                a link to the newest segment
    <seq>.<epoch>.torn            what a recovery cut off
    <seq>.<epoch>.damaged         what a repair took out; see `downstream.repair`
    journal.lock                  held by the one writer

`.sources` is on disk before its segment's first record, and a segment is synced whole, whatever
`fsync` says, before the next is begun. Every call here blocks: a service makes them in a thread
of their own.

What `fsync` promises of a record that was shown:

    "commit"      it was synced before: neither a kill nor a power cut takes it
    a duration    the same, and it is shown that much later at the most
    "never"       a kill does not take it; a power cut may, and then the next start begins an epoch

What becomes of it when the disk refuses is told in `downstream.writing`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from attrs import define, evolve, field

from hypermux.config.settings import JournalSettings
from hypermux.core.coverage import Coverage
from hypermux.core.index import FOREVER_NS, NEVER_NS
from hypermux.core.segments import Epoch
from hypermux.downstream.horizon import Position
from hypermux.downstream.indexes import Indexes
from hypermux.downstream.manifest import MANIFEST, Manifest
from hypermux.downstream.opening import Opening
from hypermux.downstream.retention import Retention
from hypermux.downstream.storage import Lock, Storage, translated
from hypermux.downstream.writing import Batch, Writer
from hypermux.model.errors import DiskFault, Unreachable

log = logging.getLogger("hypermux.journal")

LOCK = "journal.lock"

# A start reads as lines what came after the last mark: this much takes it about 0.1 s. A mark has
# the whole coverage in it, so with many sources that remember much it is made less often: one byte
# of mark for so many of records.
MARK_SIZE = 4 << 20
MARK_RATIO = 8
# What is not shown is held in memory. With seconds between syncs one comes early for so much.
UNSYNCED = 16 << 20


@define(eq=False)
class Journal:
    """An open journal. One thread at a time calls it; what it says may be read from another.

    `position` is how far readers may see: after `open` all that was kept, and synced; then, by
    `fsync`, what was synced ("commit", a duration) or written ("never"). `next_seq` is the one to
    number next. `coverage` is true after the last record at
    `open`; from then on whoever encodes records applies them to it. `retention` knows what is kept,
    `indexes` where it is. `cut` is the bytes that recovery cut off. `epoch_reason` says why this
    start began an epoch, None when it did not, or only because the journal is new.
    """

    directory: Path
    manifest: Manifest
    coverage: Coverage
    retention: Retention
    indexes: Indexes
    writer: Writer
    cut: int
    epoch_reason: str | None
    _storage: Storage
    _settings: JournalSettings
    _lock: Lock
    _synced_s: float | None = field(init=False, default=None)
    _told: list[str] = field(init=False, factory=list)
    _broken: str | None = field(init=False, default=None)
    _aged: bool = field(init=False, default=False)
    _marked: int = field(init=False)
    _mark_size: int = field(init=False, default=0)
    _closed: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._marked = self.position.offset

    @classmethod
    def open(
        cls,
        directory: Path,
        storage: Storage,
        settings: JournalSettings,
        *,
        new_epoch: Callable[[], str],
        now_ns: int,
        boot: str = "",
        which: Callable[[Path], tuple[int, ...]] = lambda _: (),
    ) -> Journal:
        """Lock the journal in `directory`, recover it or begin it, and make it ready to append.

        `new_epoch` gives a name that was never used, `boot` names the machine's present boot
        (empty: unknown); `which` tells a file from its copies. Raises Unreachable while another
        process holds the journal, DamagedData, DiskFault.
        """
        with translated(directory, "open the journal in"):
            storage.prepare(directory)
            try:
                lock = storage.lock(directory / LOCK)
            except BlockingIOError:
                raise Unreachable(
                    f"another hypermux holds {directory}: stop it, or set another state_dir"
                ) from None
        try:
            with translated(directory, "open the journal in"):
                held = which(directory / LOCK)
                opening = Opening(
                    directory, storage, settings.fsync, new_epoch, now_ns, boot or "unknown", held
                )
                found = opening.run()
                retention = Retention.begin(directory, storage, settings, found.first_seq)
        except BaseException:
            lock.close()
            raise
        indexes = Indexes(directory, storage, found.index)
        return cls(
            directory,
            found.manifest,
            found.coverage,
            retention,
            indexes,
            Writer(directory, indexes, found.position, storage, found.file),
            found.cut,
            found.epoch_reason,
            storage,
            settings,
            lock,
        )

    @property
    def position(self) -> Position:
        """How far readers may see."""
        return self.writer.position

    @property
    def durable_seq(self) -> int:
        """The last synced seq."""
        return self.writer.durable_seq

    @property
    def epoch(self) -> str:
        """The present epoch's name."""
        return self.manifest.epochs[-1].name

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Every epoch, in the order they began; what `resolve_cursor` asks for."""
        return self.manifest.epochs

    @property
    def first_seq(self) -> int:
        """The seq of the oldest record that is kept, or of the next one when there is none."""
        return self.retention.first_seq

    @property
    def oldest_ns(self) -> int | None:
        """When the oldest record that is kept came (nanoseconds since 1970), None without one.

        What lies between it and now is what retention covers.
        """
        return self.retention.oldest_ns

    @property
    def next_seq(self) -> int:
        """The seq of the first record of the next commit."""
        return self.writer.end.seq + 1

    @property
    def rotation_due(self) -> bool:
        """Whether the next commit begins a segment, and so needs `sources`."""
        return self._aged or self.writer.end.offset >= self._settings.segment_size

    @property
    def sync_due_s(self) -> float | None:
        """When `sync` is to be called, on the clock of `now_s`; None when nothing waits for it."""
        interval = self._settings.fsync
        if isinstance(interval, str) or self.writer.end.seq == self.durable_seq:
            return None
        return 0.0 if self._synced_s is None else self._synced_s + interval

    def commit(
        self,
        data: bytes,
        first_seq: int,
        last_seq: int,
        sources: bytes = b"",
        now_s: float = 0.0,
        span: tuple[int, int] = (NEVER_NS, FOREVER_NS),
    ) -> Position:
        """Append the records `first_seq` to `last_seq`; return how far readers may now see.

        `sources` is the coverage before `first_seq`; only needed when `rotation_due`. `now_s` is
        a monotonic time, only needed when `fsync` is a duration: then what was written may be
        shown later than it is returned from here, by a later commit or `sync`. `span` is the least
        and the largest `at` of the records; without it any search by time looks among them.

        Raises DiskFault; from then on every commit does, until `retry` has written these records.
        """
        self._refuse_when_broken()
        if first_seq != self.next_seq or last_seq < first_seq:
            raise ValueError(
                f"records {first_seq} to {last_seq} cannot follow {self.writer.end.seq}"
            )
        if self.rotation_due and not sources:
            raise ValueError("a new segment needs the coverage before it")
        batch = Batch(data, last_seq, span, sources)
        self.writer.take(batch)
        try:
            if self.rotation_due:
                self._rotate(sources, now_s)
            self.writer.append(batch)
            self._settle(now_s)
            self._mark(MARK_SIZE)
        except DiskFault as exc:
            self._broken = str(exc)
            raise
        return self.position

    def sync(self, now_s: float = 0.0) -> Position:
        """Make all that was committed durable, whatever `fsync` says; return how far to show it.

        Raises DiskFault, and commits do from then on, until `retry`.
        """
        self._refuse_when_broken()
        try:
            self._sync(now_s)
        except DiskFault as exc:
            self._broken = str(exc)
            raise
        return self.position

    @property
    def fault(self) -> str | None:
        """What the disk refused, while records wait for it; None when all is well."""
        return self._broken

    @property
    def waiting(self) -> int:
        """How many records were given to `commit` and are not shown yet."""
        return self.writer.waiting

    def retry(self, now_s: float = 0.0, now_ns: int = 0) -> Position:
        """After a DiskFault: go on in a new segment; return how far to show it.

        `now_s` and `now_ns` are as in `commit` and `tend`. Raises DiskFault, and may be called
        again then; ShownIsGone when that is of no use.
        """
        if self._closed or self._broken is None:
            raise ValueError("there is nothing to try again")

        def make_room() -> None:
            self._told += self.retention.tend(now_ns)

        synced = self._settings.fsync != "never"
        try:
            self.writer.go_on(make_room, synced=synced)
        except DiskFault as exc:
            self._broken = str(exc)
            raise
        self._broken, self._synced_s = None, now_s
        self._marked, self._aged = 0, False
        self._mark(MARK_SIZE)
        return self.position

    def tend(self, now_ns: int) -> list[str]:
        """Do what is due now and then: end an old segment, remove the oldest, look at the disk.

        Returns what is to be told in the journal, in sentences. `now_ns` is on the clock of
        `received`. What the disk refuses here is tried again the next time; but when somebody has
        removed the file that is written to, what goes there is in no file: raises ShownIsGone.
        """
        self.writer.look()
        told, self._told = [*self._told, *self.retention.tend(now_ns)], []
        if self.writer.end.seq >= self.writer.end.segment:
            began_ns = self.retention.began_ns(self.writer.end.segment)
            age_ns = int(self._settings.segment_age_s * 1e9)
            self._aged = began_ns is not None and now_ns - began_ns >= age_ns
        return told

    def close(self) -> None:
        """Sync what is not synced and let the journal go. Raises DiskFault; closed it is."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._broken is None:
                self._sync(0.0)
                self._mark(1)
                if self.manifest.unsynced_boot is not None:
                    self.manifest = evolve(self.manifest, unsynced_boot=None)
                    path = self.directory / MANIFEST
                    with translated(path, "write"):
                        self._storage.write(path, self.manifest.to_bytes())
        finally:
            self._broken = self._broken or "the journal is closed"
            self.writer.close()
            self._lock.close()

    def _refuse_when_broken(self) -> None:
        if self._broken is not None:
            raise DiskFault(f"the journal takes no more records: {self._broken}")

    def _settle(self, now_s: float) -> None:
        """Sync or show what was just written, as `fsync` says."""
        fsync = self._settings.fsync
        if fsync == "commit":
            self._sync(now_s)
        elif fsync == "never":
            self.writer.show()
        elif (
            self._synced_s is None
            or now_s - self._synced_s >= float(fsync)
            or self.writer.waiting_bytes >= UNSYNCED
        ):
            self._sync(now_s)

    def _sync(self, now_s: float) -> None:
        self.writer.sync()
        self._synced_s = now_s

    def _mark(self, least: int) -> None:
        """Note where the next start goes on, if all is synced and `least` bytes came since.

        Only when everything encoded is committed is the coverage that of the last record.
        """
        index = self.indexes.open
        if self.durable_seq != index.last_seq or index.size - self._marked < least:
            return
        if least > 1 and index.size - self._marked < MARK_RATIO * self._mark_size:
            return
        self._marked = index.size
        try:
            self._mark_size = self.indexes.write(index, self.coverage.to_bytes())
        except DiskFault as exc:
            log.info("%s; the next start takes longer", exc)

    def _rotate(self, sources: bytes, now_s: float) -> None:
        self._sync(now_s)
        self.writer.begin(sources)
        self._marked, self._aged = 0, False
