"""How a journal starts: what is found on disk, what of it is kept, and where it goes on.

A new epoch begins whenever records may be gone that a reader has seen, or that stood in a file
which was taken away: after a cut; when `current.ndjson` points past the last segment; when the
machine went down under `fsync = "never"`; when the directory is a copy. Each step is on disk before
the next relies on it: cut bytes are saved and the new epoch is written before the cut itself, so a
start that is interrupted is simply made again.

The last segment is read in blocks. Behind a mark (the `.index` of a segment that is written to) it
is read as lines; before it only its checksum is looked at, which is twenty times as fast and finds
any damage as surely. What is not known to be synced is written again: see `Storage.rewrite`.

A copy of the directory is a journal, too: one made with `cp -a` or `rsync` while the service ran,
or a backup put back, on this machine or another. The lock is the system's, not the file's, so one
that came along is free. A last line that was being written is cut off, and a segment copied before
its mark is short, not damaged. However whole a copy is, it begins an epoch: the original may have
gone on, and its numbers must not come again in their epoch, or a reader that has seen more than the
copy holds would one day go on behind other records. It is told so, by its cursor. What tells a copy
is its lock file, of which `journal.toml` says which one it was: nobody can copy a file's number and
the time of its last change. (A snapshot of a whole file system put back has both.) A segment that
ended just then may lack its end in the copy: `hypermux journal verify` says so, and copying once
more brings it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

from attrs import define, evolve, frozen

from hypermux.core.coverage import Coverage
from hypermux.core.index import Index
from hypermux.core.recording import BadLine, Parsed
from hypermux.core.segments import (
    CURRENT,
    Bad,
    Recounter,
    Recoverer,
    Recovery,
    first_seqs,
    index_name,
    segment_name,
    sources_name,
    torn_name,
)
from hypermux.downstream.horizon import Position
from hypermux.downstream.manifest import MANIFEST, Manifest
from hypermux.downstream.storage import Appender, Storage, read_blocks, translated
from hypermux.downstream.stored import is_plain, restore, segment_blocks
from hypermux.model.errors import DamagedData


def begin_segment(
    storage: Storage, directory: Path, first_seq: int, sources: bytes | None
) -> Appender:
    """Create a segment, what lies beside it, and the link; all of it synced.

    `sources` is empty when the coverage before it is not known, None when it is there already.
    """
    # One of that name may have been moved aside, and have left a mark.
    path = directory / index_name(first_seq)
    with translated(path, "remove"):
        storage.remove(path)
    path = directory / sources_name(first_seq)
    if sources:
        with translated(path, "write"):
            storage.write(path, sources)
    elif sources is not None:
        # One that another history left must not come back by a power cut.
        with translated(path, "remove"):
            storage.remove(path)
            storage.sync_names(directory)
    path = directory / segment_name(first_seq)
    with translated(path, "create"):
        file = storage.append(path)
        storage.link(directory / CURRENT, path.name)
        storage.sync_names(directory)
    return file


def unharmed(storage: Storage, path: Path, index: Index) -> bool:
    """Tell whether the file has the bytes that `index` covers. Raises DiskFault."""
    left, crc = index.size, 0
    with translated(path, "read"):
        for data in read_blocks(storage, path):
            crc = zlib.crc32(memoryview(data)[:left], crc)
            left -= min(left, len(data))
            if not left:
                break
    return not left and crc == index.crc


@frozen
class Opened:
    """What a start came to: see the attributes of `Journal` of the same names."""

    manifest: Manifest
    coverage: Coverage
    first_seq: int
    position: Position
    index: Index
    cut: int
    epoch_reason: str | None
    file: Appender


@define(eq=False)
class Opening:
    """One start of a journal, under its lock; `run` is the order of it.

    `boot` names the machine's present boot, `lock` is which lock file is held, empty when nobody
    knows; `fsync` is as in `JournalSettings`.
    """

    directory: Path
    storage: Storage
    fsync: Literal["commit", "never"] | float
    new_epoch: Callable[[], str]
    now_ns: int
    boot: str
    lock: tuple[int, ...] = ()

    def run(self) -> Opened:
        """Recover what is there, or begin anew. Raises DamagedData, DiskFault, OSError."""
        segments = first_seqs(self.storage.names(self.directory))
        found = self._read_manifest(segments)
        before = found or Manifest((), ()).with_epoch(self.new_epoch(), 1, self.now_ns)
        coverage, cut, reason = Coverage(), 0, None
        if segments:
            manifest, coverage, index, cut, reason = self._recover(segments, before)
        else:
            manifest = before
            if found is not None:
                # The segments were taken away: their numbers must not come again in their epoch.
                manifest = self._with_epoch(before, before.epochs[-1].first_seq)
                reason = "there were no segments any more"
            index = Index.empty(manifest.epochs[-1].first_seq)
        position = Position(index.first_seq, index.size, index.last_seq)
        manifest = evolve(manifest, unsynced_boot=self.boot if self.fsync == "never" else None)
        manifest = evolve(manifest, lock=self.lock or manifest.lock)
        if segments:
            # In this order: an earlier boot's mark goes when what it stands for is synced.
            file = self._reopen(position)
            if manifest != found:
                self._write(MANIFEST, manifest.to_bytes())
        else:
            self._write(MANIFEST, manifest.to_bytes())
            sources = coverage.to_bytes()
            file = begin_segment(self.storage, self.directory, position.segment, sources)
        return Opened(
            manifest,
            coverage,
            segments[0] if segments else position.segment,
            position,
            index,
            cut,
            reason,
            file,
        )

    def _reopen(self, position: Position) -> Appender:
        path = self.directory / segment_name(position.segment)
        file = self.storage.append(path)
        # What a killed process wrote may be in memory only; from here on it counts as kept.
        with translated(path, "sync"):
            file.sync()
        if self.storage.target(self.directory / CURRENT) != path.name:
            self.storage.link(self.directory / CURRENT, path.name)
        self.storage.sync_names(self.directory)
        return file

    def _read_manifest(self, segments: list[int]) -> Manifest | None:
        """Return what `journal.toml` says, None when there is no journal yet."""
        path = self.directory / MANIFEST
        try:
            return Manifest.parse(self.storage.read(path).decode())
        except FileNotFoundError:
            if segments:
                raise DamagedData(
                    f"{path} is missing, but there are segments: restore it from a copy, run "
                    "`hypermux journal repair` (no older cursor fits then), or move "
                    f"{self.directory} aside to begin a new journal"
                ) from None
        except ValueError as exc:
            raise DamagedData(
                f"{path}: {exc}; restore it from a copy, run `hypermux journal repair` (no older "
                f"cursor fits then), or move {self.directory} aside to begin a new journal"
            ) from None
        return None

    def _with_epoch(self, manifest: Manifest, first_seq: int) -> Manifest:
        return manifest.with_epoch(self.new_epoch(), first_seq, self.now_ns)

    def _recover(
        self, segments: list[int], manifest: Manifest
    ) -> tuple[Manifest, Coverage, Index, int, str | None]:
        """Keep what is good of the last segment, save and cut the rest. Raises DamagedData.

        Returns the bytes cut, and why an epoch begins, None when none does.
        """
        last = segments[-1]
        path = self.directory / segment_name(last)
        with translated(path, "look at"):
            plain = is_plain(self.storage, self.directory, last)
        if not plain:  # those behind it were taken away; nothing is appended to a compressed one
            restore(self.storage, self.directory, last)
        coverage, index, recovery, durable = self._scan(segments)
        if recovery.damaged:
            raise _damage(path, recovery)
        with translated(path, "read"):
            cut = self.storage.size(path) - recovery.keep
        newest = self.storage.target(self.directory / CURRENT)
        taken_away = newest is not None and newest > path.name
        unsynced = manifest.unsynced_boot
        # Two unknown boots are not known to be the same.
        lost = unsynced is not None and (unsynced != self.boot or unsynced == "unknown")
        missing = recovery.last_seq < durable
        copied = bool(self.lock and manifest.lock) and manifest.lock != self.lock
        reasons = [
            text
            for holds, text in (
                (cut, f"{cut} unsynced bytes were set aside"),
                (taken_away, f"{newest} was taken away"),
                (missing, f"records up to {durable} were taken away"),
                (copied, "these files were copied: the original may have gone on"),
                (lost, 'the machine may have gone down under fsync = "never"'),
            )
            if holds
        ]
        if reasons:
            manifest = self._with_epoch(manifest, recovery.last_seq + 1)
            if cut:
                with translated(path, "read"):
                    torn = b"".join(read_blocks(self.storage, path, recovery.keep))
                self._write(torn_name(recovery.last_seq + 1, manifest.epochs[-1].name), torn)
            self._write(MANIFEST, manifest.to_bytes())
            if cut:
                with translated(path, "truncate"):
                    self.storage.truncate(path, recovery.keep)
        if recovery.settled < recovery.keep:
            with translated(path, "write again to"):
                self.storage.rewrite(path, recovery.settled, recovery.keep)
        return manifest, coverage, index, cut, "; ".join(reasons) or None

    def _scan(self, segments: list[int]) -> tuple[Coverage, Index, Recovery, int]:
        """Read the last segment; return what is true behind its last good record.

        And the last record that is known to have been synced. A file that is shorter than its mark
        knows was cut short, or copied before its mark was: its end is missing, and not damaged.
        """
        last = segments[-1]
        path = self.directory / segment_name(last)
        mark = self._mark(last)
        marked = last - 1 if mark is None else mark[0].last_seq
        with translated(path, "read"):
            short = mark is not None and self.storage.size(path) < mark[0].size
        durable = last - 1 if short else marked
        if mark is not None and unharmed(self.storage, path, mark[0]):
            index, coverage = mark
        else:
            index, coverage = Index.empty(last), self._coverage_before(segments)

        def take(parsed: Parsed) -> None:
            coverage.apply(parsed.source, parsed.item, parsed.at_ns)
            index.add(parsed.line, parsed.seq, parsed.at_ns, parsed.at_ns)

        recoverer = Recoverer(last, take, seq=index.last_seq, offset=index.size, durable=durable)
        with translated(path, "read"):
            for data in read_blocks(self.storage, path, index.size):
                recoverer.feed(data)
        recovery = recoverer.finish()
        return coverage, index, recovery, max(marked, recovery.durable)

    def _mark(self, last: int) -> tuple[Index, Coverage] | None:
        try:
            data = self.storage.read(self.directory / index_name(last))
            index, coverage = Index.from_bytes(data)
            return (index, Coverage.from_bytes(coverage)) if index.first_seq == last else None
        except (OSError, BadLine):
            return None

    def _coverage_before(self, segments: list[int]) -> Coverage:
        """Return the coverage before the last segment, from its `.sources` or by reading back."""
        coverage, start = Coverage(), 0
        for index in range(len(segments) - 1, -1, -1):
            try:
                data = self.storage.read(self.directory / sources_name(segments[index]))
                coverage, start = Coverage.from_bytes(data), index
                break
            except (FileNotFoundError, BadLine):
                continue

        def take(parsed: Parsed) -> None:
            coverage.apply(parsed.source, parsed.item, parsed.at_ns)

        for first_seq, end_seq in pairwise(segments[start:]):
            path = self.directory / segment_name(first_seq)
            recounter = Recounter(first_seq, end_seq, take)
            with translated(path, "read"):
                for data in segment_blocks(self.storage, self.directory, first_seq):
                    recounter.feed(data)
                    if recounter.done:
                        break
            bad = recounter.finish()
            if bad is not None:
                raise _closed_damage(path, bad)
        if start < len(segments) - 1:
            self._write(sources_name(segments[-1]), coverage.to_bytes())
        return coverage

    def _write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        with translated(path, "write"):
            self.storage.write(path, data)


def _damage(path: Path, recovery: Recovery) -> DamagedData:
    bad = recovery.bad
    assert bad is not None
    return DamagedData(
        f"{path}: line {bad.line} at byte {bad.offset} is damaged: {bad.reason}. Records up to "
        f"{recovery.durable} had been synced, so this is not an unfinished write, and nothing is "
        "appended behind it. Restore the file from a copy, or run `hypermux journal repair`: it "
        "keeps what is good, tells readers what is lost, and begins a new epoch"
    )


def _closed_damage(path: Path, bad: Bad) -> DamagedData:
    return DamagedData(
        f"{path}: line {bad.line} at byte {bad.offset} is damaged: {bad.reason}. It is read to "
        "rebuild a missing .sources file. Restore either file from a copy, or run `hypermux "
        "journal repair`: it keeps what is good, and tells readers what is lost"
    )
