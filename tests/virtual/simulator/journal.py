"""A journal read without code of hypermux: its lines as they are on the disk."""

from __future__ import annotations

import calendar
import json
import re
import time
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from attrs import frozen

from hypermux.model.accounts import SourceId

_EVENT = b',"event":'
_END = re.compile(rb',"crc":"([0-9a-f]{8})"\}\n')
_END_SIZE = 19


@lru_cache(maxsize=1024)
def _seconds(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def moment(text: str) -> int:
    """Return nanoseconds since 1970."""
    if len(text) != 30 or text[19] != "." or text[29] != "Z":
        raise ValueError(f"{text!r} is no time of a record")
    return _seconds(text[:19]) * 10**9 + int(text[20:29])


@frozen(eq=False)
class Line:
    """One record. `event` is the bytes of an event, None for other kinds."""

    seq: int
    kind: str
    head: dict[str, Any]
    event: bytes | None
    raw: bytes
    source: SourceId | None
    at: int
    received: int

    @property
    def state(self) -> str:
        """The word of a state record, else empty."""
        return str(self.head["state"]) if self.kind == "state" else ""

    @property
    def late(self) -> bool:
        """Whether it came behind its place."""
        return bool(self.head.get("late"))

    def ns(self, key: str) -> int:
        """Return a time of a gap or state record."""
        return moment(self.head[key])


def parse(raw: bytes) -> Line:
    """Read a line. Raises ValueError when it is not whole."""
    end = _END.fullmatch(raw, max(0, len(raw) - _END_SIZE))
    body = raw[:-_END_SIZE]
    if end is None or f"{zlib.crc32(body):08x}".encode() != end[1]:
        raise ValueError(f"the line has no good checksum: {raw[-80:]!r}")
    cut = body.find(_EVENT)
    head = json.loads((body if cut < 0 else body[:cut]) + b"}")
    source = SourceId(head["account"], head["region"]) if "account" in head else None
    received = moment(head["received"])
    at = moment(head.get("at") or head["time"])
    event = None if cut < 0 else body[cut + len(_EVENT) :]
    return Line(head["seq"], head["kind"], head, event, raw, source, at, received)


def segments(files: dict[Path, bytes]) -> list[tuple[Path, bytes]]:
    """Return the segments in order."""
    return [(path, files[path]) for path in sorted(files) if path.suffix == ".ndjson"]


def read(files: dict[Path, bytes]) -> tuple[list[Line], list[str]]:
    """Return the records of all segments, and what is wrong with them as such."""
    problems: list[str] = []
    lines: list[Line] = []
    found = segments(files)
    for index, (path, data) in enumerate(found):
        limit = int(found[index + 1][0].stem) if index + 1 < len(found) else None
        for raw in data.splitlines(keepends=True):
            expected = lines[-1].seq + 1 if lines else 1
            if limit is not None and expected >= limit:
                break
            try:
                line = parse(raw)
            except (ValueError, KeyError) as error:
                problems.append(f"journal: {path.name}: record {expected}: {error}")
                return lines, problems
            if line.seq != expected:
                problems.append(f"journal: {path.name}: seq {line.seq}, expected {expected}")
                return lines, problems
            if line.raw.translate(None, bytes(range(0x20, 0x7F))) != b"\n":
                problems.append(f"journal: record {line.seq} is not printable ASCII")
            lines.append(line)
    return lines, problems
