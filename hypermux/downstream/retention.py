"""Removing the oldest segments, and knowing how far back the journal goes.

`first_seq` moves before a file goes, so no cursor is told to be good that will find nothing; a
reader that is there already gets a gap (see `downstream.reading`). Files go oldest first, each
removal synced before the next, so that a power cut leaves no hole. What a start would have to read
stays: it reads from the newest segment back to one with a `.sources` file.

When less than `keep_free` is free, the oldest records make room for new ones. Whoever fills the
disk, it is full for us too, and a record of today is worth more than one of last month. When that
is not enough it is said, and written on. A file that somebody still reads gives nothing free, so
this is done once in ROOM_S.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from hypermux.config.settings import JournalSettings
from hypermux.config.units import format_duration, format_size
from hypermux.core.recording import BadLine, parse_line
from hypermux.core.retention import Kept, surplus
from hypermux.core.segments import (
    beside,
    compressed_name,
    first_seqs,
    segment_name,
    sources_name,
)
from hypermux.downstream.storage import Storage, translated
from hypermux.downstream.stored import open_segment, stored_size
from hypermux.model.errors import DamagedData, DiskFault

log = logging.getLogger("hypermux.journal")

# A removed file is free only when the last reader has left it, and one that reads nothing is closed
# after the stall timeout, 30 s by default: the second look must not see the same lack again.
ROOM_S = 60.0
_LINE = 4096


def first_received_ns(storage: Storage, directory: Path, first_seq: int) -> int | None:
    """Return when the first record of a segment came, None when it does not say.

    Raises OSError.
    """
    size = _LINE
    try:
        file = open_segment(storage, directory, first_seq)
        try:
            data = file.read_at(0, size)
            while (end := data.find(b"\n") + 1) == 0 and len(data) == size:
                size *= 4
                data = file.read_at(0, size)
        finally:
            file.close()
        return parse_line(data[:end]).received_ns
    except (BadLine, DamagedData):
        return None


@define(eq=False)
class Retention:
    """What the journal keeps. `first_seq` is the oldest record, `oldest_ns` when it came.

    `size` is the bytes of its files as they were last looked at, None before that.
    """

    directory: Path
    storage: Storage
    settings: JournalSettings
    first_seq: int
    oldest_ns: int | None = None
    size: int | None = None
    _received_ns: dict[int, int] = field(factory=dict)
    _made_room_ns: int | None = None
    _short: bool = False
    _fault: str | None = None

    @classmethod
    def begin(
        cls, directory: Path, storage: Storage, settings: JournalSettings, first_seq: int
    ) -> Retention:
        """Return what is kept at the start: the records from `first_seq` on."""
        retention = cls(directory, storage, settings, first_seq)
        retention.oldest_ns = retention.began_ns(first_seq)
        return retention

    def tend(self, now_ns: int) -> list[str]:
        """Remove what is to go; return what is to be told in the journal.

        Also notices what an operator has removed. Nothing here raises: the disk's refusal is told
        once, and it is tried again the next time.
        """
        told: list[str] = []
        try:
            with translated(self.directory, "list"):
                names = set(self.storage.names(self.directory))
            segments = first_seqs(list(names))
            if segments:
                self._remove(names, segments, now_ns, told)
            self._fault = None
        except DiskFault as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                return told  # an operator is removing them, too
            if self._fault != str(exc):
                self._fault = str(exc)
                told.append(f"{exc}; old records stay for now")
        return told

    def _remove(self, names: set[str], segments: list[int], now_ns: int, told: list[str]) -> None:
        keep, settings = self.settings.retain, self.settings
        closed = self._closed(names, segments)
        with translated(self.directory, "look at"):
            sizes = [stored_size(self.storage, self.directory, s) for s in segments]
            short = settings.keep_free - self.storage.free(self.directory)
        self.size = sum(sizes)
        kept = [
            Kept(first_seq, size, self.began_ns(after))
            for first_seq, size, after in zip(closed, sizes, segments[1:], strict=False)
        ]
        rest = sum(sizes[len(closed) :])
        limits = {"size": keep.size, "age_ns": int(keep.age_s * 1e9)}
        going = surplus(kept, rest, now_ns=now_ns, **limits, short=0)
        if going:
            why = f"beyond {format_size(keep.size)} or older than {format_duration(keep.age_s)}"
            log.info("removing records up to %d: %s", segments[going] - 1, why)
        if short > 0:
            since = self._made_room_ns
            if since is None or now_ns - since >= ROOM_S * 1e9:
                more = surplus(kept, rest, now_ns=now_ns, **limits, short=short)
                if more > going:
                    going, self._made_room_ns = more, now_ns
                    told.append(
                        f"less than {format_size(settings.keep_free)} is free on the disk: "
                        f"records up to {segments[going] - 1} were removed for room"
                    )
                elif not self._short and not closed:
                    told.append(
                        f"less than {format_size(settings.keep_free)} is free on the disk, and "
                        "there is no old segment left to remove"
                    )
                    self._short = True
        else:
            self._short = False
        self.first_seq = max(self.first_seq, segments[going])
        for first_seq in segments[:going]:
            self._remove_one(first_seq)
        # What a removal left that was cut short, and what recoveries cut off that long ago.
        stray = [n for n in names if (seq := beside(n)) is not None and seq < segments[going]]
        for name in stray:
            with translated(self.directory / name, "remove"):
                self.storage.remove(self.directory / name)
        self.oldest_ns = self.began_ns(self.first_seq)
        for first_seq in [s for s in self._received_ns if s < self.first_seq]:
            del self._received_ns[first_seq]

    def _closed(self, names: set[str], segments: list[int]) -> list[int]:
        """Return the segments that may go."""
        known = [n for n, s in enumerate(segments) if sources_name(s) in names]
        return segments[: min(known[-1] if known else 0, len(segments) - 1)]

    def _remove_one(self, first_seq: int) -> None:
        # Both are there when a compression was cut short.
        for name in (segment_name(first_seq), compressed_name(first_seq)):
            with translated(self.directory / name, "remove"):
                self.storage.remove(self.directory / name)
        with translated(self.directory, "remove a segment from"):
            self.storage.sync_names(self.directory)

    def began_ns(self, first_seq: int) -> int | None:
        """Return when the first record of a segment came, None while it has none."""
        if first_seq not in self._received_ns:
            with suppress(OSError):
                received_ns = first_received_ns(self.storage, self.directory, first_seq)
                if received_ns is not None:
                    self._received_ns[first_seq] = received_ns
        return self._received_ns.get(first_seq)
