"""How a journal starts: what is found on disk, what of it is kept, and where it goes on.

A new epoch begins whenever records may be gone that a reader has seen, or that stood in a file
which was taken away: after a cut; when `current.ndjson` points past the last segment; when the
machine went down under `fsync = "never"`. Each step is on disk before the next relies on it: cut
bytes are saved and the new epoch is written before the cut itself, so a start that is interrupted
is simply made again.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import tomli_w
from attrs import define, evolve, frozen

from hypermux.core.coverage import Coverage
from hypermux.core.recording import BadLine, Parsed, parse_rfc3339, rfc3339
from hypermux.core.segments import (
    CURRENT,
    Bad,
    Epoch,
    Recovery,
    first_seqs,
    line_end,
    recount,
    recover,
    segment_name,
    sources_name,
    torn_name,
)
from hypermux.downstream.horizon import Position
from hypermux.downstream.storage import Appender, Storage, translated
from hypermux.model.errors import DamagedData

MANIFEST = "journal.toml"

_FORMAT = 1


@frozen
class Manifest:
    """`journal.toml`: the epochs in the order they began, each with its wall time for people.

    `unsynced_boot` is set while a writer runs that leaves syncing to the system: the boot it runs
    under. Found at a start under another boot, records that were shown may be gone.
    """

    epochs: tuple[Epoch, ...]
    began: tuple[str, ...]
    unsynced_boot: str | None = None

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """Read the file. Raises ValueError with what is wrong."""
        data: dict[str, Any] = tomllib.loads(text)
        if data.get("format") != _FORMAT:
            raise ValueError(f"format {data.get('format')} is not known; this is format {_FORMAT}")
        try:
            tables = data["epochs"]
            epochs = tuple(Epoch(str(t["epoch"]), int(t["first_seq"])) for t in tables)
            began = tuple(str(t.get("began", "")) for t in tables)
        except (KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"the list of epochs is not whole: {exc!r}") from None
        if not epochs:
            raise ValueError("there is no epoch")
        return cls(epochs, began, data.get("unsynced_boot"))

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        data: dict[str, Any] = {"format": _FORMAT}
        if self.unsynced_boot is not None:
            data["unsynced_boot"] = self.unsynced_boot
        data["epochs"] = [
            {"epoch": epoch.name, "first_seq": epoch.first_seq, "began": began}
            for epoch, began in zip(self.epochs, self.began, strict=True)
        ]
        return tomli_w.dumps(data).encode()

    @property
    def began_ns(self) -> int:
        """When the journal began (nanoseconds since 1970), 0 when nobody knows."""
        try:
            return parse_rfc3339(self.began[0])
        except ValueError:
            return 0

    def with_epoch(self, name: str, first_seq: int, now_ns: int) -> Manifest:
        """Return the manifest with one more epoch."""
        began = (*self.began, rfc3339(now_ns))
        return evolve(self, epochs=(*self.epochs, Epoch(name, first_seq)), began=began)


def begin_segment(storage: Storage, directory: Path, first_seq: int, sources: bytes) -> Appender:
    """Create a segment, what lies beside it, and the link; all of it synced."""
    path = directory / sources_name(first_seq)
    with translated(path, "write"):
        storage.write(path, sources)
    path = directory / segment_name(first_seq)
    with translated(path, "create"):
        file = storage.append(path)
        storage.link(directory / CURRENT, path.name)
        storage.sync_names(directory)
    return file


@frozen
class Opened:
    """What a start came to: see the attributes of `Journal` of the same names."""

    manifest: Manifest
    coverage: Coverage
    first_seq: int
    position: Position
    cut: int
    epoch_reason: str | None
    file: Appender


@define(eq=False)
class Opening:
    """One start of a journal, under its lock; `run` is the order of it.

    `boot` names the machine's present boot, `fsync` is as in `JournalSettings`.
    """

    directory: Path
    storage: Storage
    fsync: Literal["commit", "never"] | float
    new_epoch: Callable[[], str]
    now_ns: int
    boot: str

    def run(self) -> Opened:
        """Recover what is there, or begin anew. Raises DamagedData, DiskFault, OSError."""
        segments = first_seqs(self.storage.names(self.directory))
        found = self._read_manifest(segments)
        before = found or Manifest((), ()).with_epoch(self.new_epoch(), 1, self.now_ns)
        coverage, cut, reason = Coverage(), 0, None
        if segments:
            manifest, coverage, position, cut, reason = self._recover(segments, before)
        else:
            manifest = before
            if found is not None:
                # The segments were taken away: their numbers must not come again in their epoch.
                manifest = self._with_epoch(before, before.epochs[-1].first_seq)
                reason = "there were no segments any more"
            first_seq = manifest.epochs[-1].first_seq
            position = Position(first_seq, 0, first_seq - 1)
        manifest = evolve(manifest, unsynced_boot=self.boot if self.fsync == "never" else None)
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
                    f"{path} is missing, but there are segments: restore it from a copy, or move "
                    f"{self.directory} aside to begin a new journal"
                ) from None
        except ValueError as exc:
            raise DamagedData(
                f"{path}: {exc}; restore it from a copy, or move {self.directory} aside to begin "
                "a new journal"
            ) from None
        return None

    def _with_epoch(self, manifest: Manifest, first_seq: int) -> Manifest:
        return manifest.with_epoch(self.new_epoch(), first_seq, self.now_ns)

    def _recover(
        self, segments: list[int], manifest: Manifest
    ) -> tuple[Manifest, Coverage, Position, int, str | None]:
        """Keep what is good of the last segment, save and cut the rest. Raises DamagedData.

        Returns the bytes cut, and why an epoch begins, None when none does.
        """
        last = segments[-1]
        path = self.directory / segment_name(last)
        coverage = self._coverage_before(segments)
        with translated(path, "read"):
            data = self.storage.read(path)
        recovery = recover(data, last, _applier(coverage))
        if recovery.damaged:
            raise _damage(path, recovery)
        cut = len(data) - recovery.keep
        newest = self.storage.target(self.directory / CURRENT)
        taken_away = newest is not None and newest > path.name
        unsynced = manifest.unsynced_boot
        # Two unknown boots are not known to be the same.
        lost = unsynced is not None and (unsynced != self.boot or unsynced == "unknown")
        reasons = [
            text
            for holds, text in (
                (cut, f"{cut} unsynced bytes were set aside"),
                (taken_away, f"{newest} was taken away"),
                (lost, 'the machine may have gone down under fsync = "never"'),
            )
            if holds
        ]
        if reasons:
            manifest = self._with_epoch(manifest, recovery.last_seq + 1)
            if cut:
                name = torn_name(recovery.last_seq + 1, manifest.epochs[-1].name)
                self._write(name, data[recovery.keep :])
            self._write(MANIFEST, manifest.to_bytes())
            if cut:
                with translated(path, "truncate"):
                    self.storage.truncate(path, recovery.keep)
        behind = line_end(data, recovery.durable - last + 1)
        if behind < recovery.keep:
            with translated(path, "write again to"):
                self.storage.rewrite(path, behind, data[behind : recovery.keep])
        position = Position(last, recovery.keep, recovery.last_seq)
        return manifest, coverage, position, cut, "; ".join(reasons) or None

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
        for first_seq, end_seq in pairwise(segments[start:]):
            path = self.directory / segment_name(first_seq)
            with translated(path, "read"):
                data = self.storage.read(path)
            bad = recount(data, first_seq, end_seq, _applier(coverage))
            if bad is not None:
                raise _closed_damage(path, bad)
        if start < len(segments) - 1:
            self._write(sources_name(segments[-1]), coverage.to_bytes())
        return coverage

    def _write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        with translated(path, "write"):
            self.storage.write(path, data)


def _applier(coverage: Coverage) -> Callable[[Parsed], None]:
    def take(parsed: Parsed) -> None:
        coverage.apply(parsed.source, parsed.item, parsed.at_ns)

    return take


def _damage(path: Path, recovery: Recovery) -> DamagedData:
    bad = recovery.bad
    assert bad is not None
    return DamagedData(
        f"{path}: line {bad.line} at byte {bad.offset} is damaged: {bad.reason}. Records up to "
        f"{recovery.durable} had been synced, so this is not an unfinished write, and nothing is "
        "appended behind it. Restore the file from a copy, or move it aside: the journal then "
        "goes on without its records, in a new epoch"
    )


def _closed_damage(path: Path, bad: Bad) -> DamagedData:
    return DamagedData(
        f"{path}: line {bad.line} at byte {bad.offset} is damaged: {bad.reason}. It is read to "
        "rebuild a missing .sources file. Restore either file from a copy, or move this segment "
        "and all earlier ones aside"
    )
