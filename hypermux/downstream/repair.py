"""Making a damaged journal whole again, without passing anything over.

Every good record keeps its seq and its bytes. In place of each record that is lost stands a `gap`
of the service's own with the cause `damage`, its seq, and the times between which the lost ones
came: readers go on counting, and whoever reads there is told. When the end of the journal is lost,
one gap tells how many records that were.

    saved first     the damaged bytes, as `<first lost seq>.<epoch>.damaged`
    then            a new epoch in `journal.toml`: cursors behind a lost end are refused
    then            each damaged segment, written anew beside it and put in its place
    at last         a segment of its own, with the coverage that is certain, and what was done

So a repair that is cut short is simply made again. A source that was connected before the damage
and has no record after it counts as disconnected from there on: its next gap may begin too early,
never too late. All that is left to a start is what it does anyway: a tail that had not been synced.
"""

from __future__ import annotations

from pathlib import Path

from attrs import define, evolve, field

from hypermux.core.coverage import Coverage
from hypermux.core.inspection import Damage, Inspected, Inspector
from hypermux.core.recording import BadLine, Encoder, Parsed
from hypermux.core.segments import (
    compressed_name,
    damaged_name,
    index_name,
    segment_name,
    sources_name,
    torn_name,
)
from hypermux.downstream.checking import DAMAGE, Report, Segment, sentence
from hypermux.downstream.manifest import MANIFEST, Manifest
from hypermux.downstream.opening import begin_segment
from hypermux.downstream.retention import first_received_ns
from hypermux.downstream.storage import BLOCK, Appender, Storage, translated, write_all
from hypermux.downstream.stored import readable_blocks
from hypermux.model.accounts import SourceId
from hypermux.model.errors import DiskFault
from hypermux.model.records import Event, Gap, StateChange, Unparsed

# What stands in a lost record's place is not longer.
_FILLER = 350
# Files that the record of a repair names; the gaps say the rest.
_NAMED = 8


@define(eq=False)
class Repair:
    """One repair of the journal in `directory`, whose lock the caller holds.

    `plan` says what there is to do after a check came to `report`, and `run` does it. `manifest` is
    None when it does not read. `epoch` is a name that was never used, `now_ns` the time of day.
    """

    directory: Path
    storage: Storage
    report: Report
    manifest: Manifest | None
    epoch: str
    now_ns: int

    def plan(self) -> list[str]:
        """Return what is to be done, in sentences: none when all is well.

        Raises DiskFault, also when there is no room for it.
        """
        report, lost = self.report, self._lost
        if report.sound:
            return []
        with translated(self.directory, "look at"):
            free = self.storage.free(self.directory)
        need = 2 * max(segment.size for segment in report.segments) + lost * _FILLER
        if free < need:
            raise DiskFault(
                f"repairing takes up to {need} bytes on the disk of {self.directory}, and {free} "
                "are free"
            )
        told = [
            f"damaged bytes are kept as *.{self.epoch}.damaged",
            f"{lost} lost records are replaced by gaps" if lost else "no record is lost",
            f"epoch {self.epoch} begins at record {self._last_seq + 1}",
        ]
        if self.manifest is None:
            told.append("no cursor of before fits any more")
        return [*self._reasons(), "; ".join(told)]

    def _reasons(self) -> list[str]:
        return [
            *(sentence(segment.name, damage) for segment, damage in self.report.damages),
            *(f"{fault.name}: {fault.reason}" for fault in self.report.faults),
        ]

    def _summary(self) -> str:
        names = [segment.name for segment in self.report.segments if segment.inspected.damages]
        names += [fault.name for fault in self.report.faults]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        where = f"{', '.join(names[:_NAMED])}{more}"
        return f"the journal was repaired: {self._lost} records were lost; damaged were {where}"

    @property
    def _lost(self) -> int:
        return sum(damage.lost for _, damage in self.report.damages)

    @property
    def _end(self) -> Damage | None:
        """The damage that took the journal's end, if any did."""
        found = self.report.segments[-1].inspected
        end = found.damages[-1] if found.damages else None
        return end if end is not None and end.first_seq > found.last_seq else None

    @property
    def _last_seq(self) -> int:
        return self.report.segments[-1].inspected.last_seq

    # Mending

    def run(self) -> None:
        """Do what `plan` said. Raises DiskFault."""
        segments = self.report.segments
        for segment in segments:
            self._save(segment)
        for fault in self.report.faults:
            self._save_aside(fault.name)
        before = self.manifest or Manifest((), ())
        if self.manifest is not None and self._epochs_wrong:
            before = Manifest((), ())
        manifest = before.with_epoch(self.epoch, self._last_seq + 1, self.now_ns)
        self._write(MANIFEST, manifest.to_bytes())
        coverage = self._certain_coverage()
        wrong = {fault.name for fault in self.report.faults}
        for segment in segments:
            if segment.inspected.damages or segment.name in wrong:
                self._mend(segment)
        for fault in self.report.faults:
            if fault.name != MANIFEST:
                with translated(self.directory / fault.name, "remove"):
                    self.storage.remove(self.directory / fault.name)
        self._conclude(coverage)

    @property
    def _epochs_wrong(self) -> bool:
        return any(fault.name == MANIFEST for fault in self.report.faults)

    def _save(self, segment: Segment) -> None:
        """Keep what will be in no segment any more."""
        found = segment.inspected
        for damage in found.damages:
            if damage.end > damage.offset:
                name = damaged_name(damage.first_seq, self.epoch)
                self._keep(segment, damage.offset, damage.end, name)
        if found.tail is not None:
            # The segment is not the last one from here on: no start will cut this off.
            self._keep(segment, found.tail, segment.size, torn_name(found.last_seq + 1, self.epoch))

    def _keep(self, segment: Segment, start: int, end: int, name: str) -> None:
        with translated(self.directory / segment.name, "read"):
            blocks = readable_blocks(self.storage, self.directory, segment.first_seq, _unheard)
            data = b"".join(blocks)[start:end]
        self._write(name, data)

    def _save_aside(self, name: str) -> None:
        path = self.directory / name
        try:
            with translated(path, "read"):
                data = self.storage.read(path)
        except DiskFault as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                return
            raise
        self._write(f"{name}.{self.epoch}.damaged", data)

    def _mend(self, segment: Segment) -> None:
        """Write a segment anew: its good lines, and gaps in place of the lost ones."""
        found, encoder = segment.inspected, Encoder()
        path = self.directory / segment_name(segment.first_seq)
        beside = path.with_name(f".{path.name}.new")
        lines: list[bytes] = []
        file: Appender | None = None
        with translated(path, "write anew"):
            self.storage.remove(beside)
            file = self.storage.append(beside)
        size = 0

        def put(line: bytes, seq: int) -> None:
            nonlocal size
            if segment.end_seq is None and seq > found.last_seq:
                return
            lines.append(line)
            size += len(line)
            if size >= BLOCK:
                flush()

        def flush() -> None:
            nonlocal size
            with translated(path, "write anew"):
                write_all(file, b"".join(lines))
            lines.clear()
            size = 0

        known = {damage.first_seq: damage for damage in found.damages}

        def fill(damage: Damage) -> None:
            damage = known.get(damage.first_seq, damage)
            if damage.to_ns is None and segment.end_seq is not None:
                damage = evolve(damage, to_ns=self._came_ns(segment.end_seq))
            for seq in range(damage.first_seq, damage.last_seq + 1):
                put(_filler(encoder, seq, damage, 1), seq)

        inspector = Inspector(
            segment.first_seq,
            segment.end_seq,
            found.durable,
            lambda parsed, _: put(parsed.line, parsed.seq),
            fill,
        )
        try:
            self._feed(segment.first_seq, inspector)
            inspector.finish()
            if segment.end_seq is None and (end := self._end) is not None:
                end = evolve(end, to_ns=max(self.now_ns, end.from_ns or 0))
                lines.append(_filler(encoder, end.first_seq, end, end.lost))
            flush()
            with translated(path, "write anew"):
                file.sync()
        finally:
            file.close()
        with translated(path, "put in place"):
            # An index of what it was would lead readers astray.
            self.storage.remove(self.directory / index_name(segment.first_seq))
            self.storage.sync_names(self.directory)
            self.storage.move(beside, path)
            # A plain file wins; the frames that do not unpack are of no use any more.
            self.storage.remove(self.directory / compressed_name(segment.first_seq))
            self.storage.sync_names(self.directory)

    def _came_ns(self, first_seq: int) -> int | None:
        try:
            return first_received_ns(self.storage, self.directory, first_seq)
        except OSError:
            return None

    def _feed(self, first_seq: int, inspector: Inspector) -> None:
        with translated(self.directory / segment_name(first_seq), "read"):
            for data in readable_blocks(self.storage, self.directory, first_seq, _unheard):
                inspector.feed(data)
                if inspector.done:
                    break

    def _certain_coverage(self) -> Coverage:
        """Return what is certain of every source behind the last good record."""
        coverage, begin = Coverage(), 0
        for at in range(len(self.report.segments) - 1, -1, -1):
            path = self.directory / sources_name(self.report.segments[at].first_seq)
            if any(fault.name == path.name for fault in self.report.faults):
                continue
            try:
                coverage, begin = Coverage.from_bytes(self.storage.read(path)), at
                break
            except (OSError, BadLine):
                continue
        doubts = _Doubts(coverage)
        for segment in self.report.segments[begin:]:
            found = segment.inspected

            def take(parsed: Parsed, _: int, found: Inspected = found) -> None:
                if parsed.seq <= found.last_seq:
                    doubts.take(parsed)

            inspector = Inspector(
                segment.first_seq, segment.end_seq, found.durable, take, doubts.doubt
            )
            self._feed(segment.first_seq, inspector)
            inspector.finish()
        doubts.settle()
        return coverage

    def _conclude(self, coverage: Coverage) -> None:
        """Begin a segment that tells of the repair."""
        last = self.report.segments[-1]
        found, first_seq = last.inspected, self._last_seq + 1
        path = self.directory / last.name
        if found.damages:
            first_seq += self._end is not None
        elif path.name != segment_name(last.first_seq):
            pass  # compressed, which only what is synced is
        elif first_seq == last.first_seq:
            self._write(path.name, b"")  # without a record, and this one has its name
        else:
            with translated(path, "write again to"):
                self.storage.rewrite(path, 0, found.end)
        came_ns = max(self.now_ns, coverage.wall_ns, coverage.through_ns)
        file = begin_segment(self.storage, self.directory, first_seq, coverage.to_bytes())
        path = self.directory / segment_name(first_seq)
        try:
            with translated(path, "append to"):
                line = Encoder().encode(
                    first_seq,
                    StateChange("epoch", f"epoch {self.epoch}: {self._summary()}"),
                    source=None,
                    at_ns=came_ns,
                    received_ns=came_ns,
                    durable=first_seq - 1,
                )
                write_all(file, line)
                file.sync()
        finally:
            file.close()

    def _write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        with translated(path, "write"):
            self.storage.write(path, data)


def _unheard(_: str) -> None:
    """Take what was told before."""


def _filler(encoder: Encoder, seq: int, damage: Damage, lost: int) -> bytes:
    """Return what stands in the place of lost records: it came when the one before it did."""
    from_ns = damage.from_ns if damage.from_ns is not None else damage.to_ns or 0
    to_ns = max(from_ns, damage.to_ns or from_ns)
    gap = Gap(from_ns, to_ns, DAMAGE, "proven", lost)
    return encoder.encode(seq, gap, source=None, at_ns=from_ns, received_ns=from_ns, late=True)


@define(eq=False)
class _Doubts:
    """Sources that were connected when records were lost, and have shown no sign of life since.

    An event that just came shows that its source was connected; so does what says that it is not.
    """

    coverage: Coverage
    _since_ns: dict[SourceId, int] = field(init=False, factory=dict)

    def doubt(self, damage: Damage) -> None:
        """Records were lost here."""
        for source, state in self.coverage.sources.items():
            if state.up:
                known_ns = self.coverage.through_ns or damage.from_ns or state.since_ns
                self._since_ns.setdefault(source, max(state.since_ns, known_ns))

    def take(self, parsed: Parsed) -> None:
        """Take in a record."""
        try:
            item = parsed.item
        except BadLine:
            return
        self.coverage.apply(parsed.source, item, parsed.at_ns)
        if parsed.source is None or not self._since_ns:
            return
        alive = isinstance(item, Unparsed) or (
            isinstance(item, Event) and not item.replayed and not item.synthetic
        )
        if alive or (isinstance(item, StateChange) and item.state in ("up", "down", "config")):
            self._since_ns.pop(parsed.source, None)

    def settle(self) -> None:
        """Take those that are left for disconnected since then."""
        for source, since_ns in self._since_ns.items():
            state = self.coverage.sources[source]
            state.up, state.cause = False, DAMAGE
            state.since_ns = state.outage_from_ns = since_ns
