"""Auditing a journal's files, as an onlooker: what to read, from where, and how far it knows.

Reading begins with the segment in which the interval does, because beside each lies what was true
before it, and goes on to the end of the journal: a gap is written when its outage ends, whenever
that is. Behind the interval only blocks that may tell of it are looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hypermux.core.auditing import Auditor, Report
from hypermux.core.coverage import Coverage
from hypermux.core.recording import BadLine, Parsed, parse_line
from hypermux.core.segments import segment_name, sources_name
from hypermux.downstream.horizon import Position
from hypermux.downstream.onlooker import Onlooker
from hypermux.downstream.reading import JournalReader
from hypermux.downstream.retention import first_received_ns
from hypermux.downstream.storage import translated
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DamagedData
from hypermux.model.records import Checkpoint, Kind

# A record is released at most this long after the one that came last.
_HELD_NS = 60 * 10**9
# A checkpoint that is this much later than the ones before it were: the service writes none.
_OVERDUE_NS = 60 * 10**9
# Records at the end among which the last checkpoints are looked for first.
_LAST = 2000


def audit(
    onlooker: Onlooker,
    since_ns: int | None,
    until_ns: int | None,
    wanted: Callable[[SourceId], bool],
    *,
    running: bool,
    now_ns: int,
) -> Report:
    """Return what the journal can say of the time from `since_ns` to `until_ns`.

    None for the one is the journal's beginning; for the other it is as far as a running service
    (`running`) knows, or now. Raises DamagedData, DiskFault.
    """
    if onlooker.damage is not None:
        path = onlooker.directory / segment_name(onlooker.position.segment)
        raise DamagedData(f"{path}: line {onlooker.damage.line} is damaged; see `journal verify`")
    came = [_came_ns(onlooker, segment) for segment in onlooker.segments]
    oldest_ns = came[0]
    if since_ns is None:
        since_ns = now_ns if oldest_ns is None else oldest_ns
    if until_ns is None:
        until_ns = (_known_ns(onlooker, now_ns) if running else None) or now_ns
    since_ns = min(since_ns, until_ns)
    at = 0
    for index, came_ns in enumerate(came):
        if came_ns is not None and came_ns < since_ns - _HELD_NS:
            at = index
    at, coverage = _coverage(onlooker, at)
    removed_ns = None
    if at == 0 and onlooker.segments[0] > 1 and oldest_ns is not None and since_ns < oldest_ns:
        removed_ns = oldest_ns
    blind = removed_ns is not None and coverage is None
    auditor = Auditor(
        since_ns, until_ns, wanted, coverage or Coverage(), removed_ns=removed_ns, blind=blind
    )
    for block in _blocks(onlooker, onlooker.segments[at] - 1):
        if auditor.needs(block):
            for parsed in _records(block):
                try:
                    auditor.take(parsed)
                except BadLine as exc:
                    raise _bad(parsed.line, exc) from None
    return auditor.report(running=running)


def _came_ns(onlooker: Onlooker, segment: int) -> int | None:
    path = onlooker.directory / segment_name(segment)
    with translated(path, "read"):
        return first_received_ns(onlooker.storage, onlooker.directory, segment)


def _coverage(onlooker: Onlooker, at: int) -> tuple[int, Coverage | None]:
    """Return what was true before a segment, or before an earlier one that still says so.

    None when nothing says it: a segment that was begun when the disk refused has no such file.
    """
    for index in range(at, -1, -1):
        path = onlooker.directory / sources_name(onlooker.segments[index])
        try:
            return index, Coverage.from_bytes(onlooker.storage.read(path))
        except (OSError, BadLine):
            continue
    return 0, None


def _known_ns(onlooker: Onlooker, now_ns: int) -> int | None:
    """Return how far a running service's checkpoints reach, None when they have stopped."""
    first, last, width = onlooker.segments[0], onlooker.position.seq, _LAST
    while True:
        after = max(first - 1, last - width)
        found = [
            item.through_ns
            for block in _blocks(onlooker, after)
            for parsed in _records(block)
            if parsed.kind is Kind.CHECKPOINT and isinstance(item := parsed.item, Checkpoint)
        ][-2:]
        if len(found) == 2 or after < first:
            break
        width *= 8
    if not found:
        return None
    usual_ns = found[-1] - found[0]
    return found[-1] if now_ns - found[-1] < 2 * usual_ns + _OVERDUE_NS else None


def _blocks(onlooker: Onlooker, after: int) -> Iterator[bytes]:
    began_ns = 0 if onlooker.manifest is None else onlooker.manifest.began_ns
    near = Position(after + 1, 0, after) if after + 1 in onlooker.segments else None
    reader = JournalReader(
        onlooker.directory,
        onlooker.storage,
        after=after,
        near=near,
        began_ns=began_ns,
        indexes=onlooker.indexes,
    )
    try:
        while block := reader.read(onlooker.position):
            yield block
    finally:
        reader.close()


def _records(block: bytes) -> Iterator[Parsed]:
    for line in block.splitlines(keepends=True):
        try:
            parsed = parse_line(line)
        except BadLine as exc:
            raise _bad(line, exc) from None
        yield parsed


def _bad(line: bytes, error: BadLine) -> DamagedData:
    shown = line[:40].decode("ascii", "replace")
    return DamagedData(
        f"the record {shown!r}… does not read back: {error}; `hypermux journal verify` finds all "
        "such"
    )
