"""What a journal can say of an interval: for each source whether all of it was received.

Records are taken in order, from a place where the coverage is known. Of a source there are

    life       from its first record (or from when its outage began, where that record says so) to
               `config`, which says that it was removed or paused; it may have several
    outages    from `down` to `up`: not connected
    gaps       what may be lost, or is; most lie in outages. An outage without one was covered: its
               upstream remembered everything
               (A gap of no source, where the journal itself lost records, is every source's.)
    counts     of the records whose `at` lies in the interval

and an interval is complete for a source when, within its life there, no gap reaches into it, no
outage lasts on, and all of it is known. Known is what comes before the last checkpoint's `through`;
a gap may be written long after the time that it tells of, so records behind the interval's end
count, too: their gaps and states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum

from attrs import define, field, frozen

from hypermux.core.coverage import COUNTED, Coverage, SourceCoverage
from hypermux.core.index import FOREVER_NS
from hypermux.core.recording import Parsed
from hypermux.model.accounts import SourceId
from hypermux.model.records import Checkpoint, Gap, Item, Kind, StateChange

# A record is released at most this long after the one that came last, unless it is flagged.
_HELD_NS = 60 * 10**9
# Behind that, a block without one of these has nothing for us.
_TELLING = (b'"kind":"gap"', b'"kind":"state"', b'"late":true', b'"replayed":true')
_CHECKPOINT = b'"kind":"checkpoint"'


class Verdict(Enum):
    """What an interval comes to."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    UNKNOWN = "not known yet"
    ABSENT = "not configured"


@frozen
class Span:
    """From one moment to another, nanoseconds since 1970."""

    from_ns: int
    to_ns: int

    @property
    def length_ns(self) -> int:
        """How long it is."""
        return self.to_ns - self.from_ns

    def within(self, other: Span) -> Span | None:
        """Return what of it lies in another, None when nothing does; a moment is something."""
        from_ns, to_ns = max(self.from_ns, other.from_ns), min(self.to_ns, other.to_ns)
        return Span(from_ns, to_ns) if from_ns <= to_ns else None


@frozen
class Loss:
    """What is missing, or may be: `cause` and `certainty` are a gap's, or say what else it is.

    `within` is the part of it that lies in the interval and in the source's life.
    """

    span: Span
    within: Span
    cause: str
    certainty: str
    lost: int | None = None


@frozen
class SourceReport:
    """One source in the interval. `connected` is a part of 1, None where it had no life."""

    source: SourceId
    verdict: Verdict
    connected: float | None
    configured_ns: int
    losses: tuple[Loss, ...]
    kinds: Counter[str]
    late: int
    replayed: int
    synthetic: int


@frozen
class Report:
    """All sources asked for, over `interval`. `known_ns` is how much of it the journal knows."""

    interval: Span
    known_ns: int
    sources: tuple[SourceReport, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the sources'."""
        found = {source.verdict for source in self.sources}
        for verdict in (Verdict.INCOMPLETE, Verdict.UNKNOWN, Verdict.COMPLETE):
            if verdict in found:
                return verdict
        return Verdict.ABSENT


@define(eq=False)
class _Source:
    """What the records have told of one source so far."""

    lives: list[Span] = field(factory=list)
    outages: list[Span] = field(factory=list)
    gaps: list[Gap] = field(factory=list)
    kinds: Counter[str] = field(factory=Counter)
    late: int = 0
    replayed: int = 0
    synthetic: int = 0
    life_ns: int | None = None
    outage_ns: int | None = None
    cause: str = "unknown"

    @classmethod
    def known(cls, before: SourceCoverage) -> _Source:
        """Return one that lived already, or had ended."""
        source = cls(cause=before.cause or "unknown")
        if before.up or before.in_outage:
            source.life_ns, source.outage_ns = 0, before.outage_from_ns
        return source

    def change(self, item: StateChange, at_ns: int) -> None:
        begin_ns = at_ns if item.from_ns is None else item.from_ns
        match item.state:
            case "up":
                self._end_outage(at_ns)
                self._live(at_ns)
            case "down":
                self._live(begin_ns)
                if self.outage_ns is None:
                    self.outage_ns = begin_ns
                self.cause = item.cause or self.cause
            case "config":
                self._end_outage(at_ns)
                if self.life_ns is not None:
                    self.lives.append(Span(self.life_ns, max(self.life_ns, at_ns)))
                self.life_ns = None

    def count(self, parsed: Parsed) -> None:
        self.kinds[parsed.kind] += 1
        self.late += parsed.late
        if parsed.kind is Kind.EVENT:
            self.replayed += parsed.replayed
            self.synthetic += parsed.synthetic

    def _live(self, from_ns: int) -> None:
        if self.life_ns is None:
            self.life_ns = from_ns

    def _end_outage(self, at_ns: int) -> None:
        if self.outage_ns is not None:
            self.outages.append(Span(self.outage_ns, max(self.outage_ns, at_ns)))
        self.outage_ns = None


@define(eq=False)
class Auditor:
    """Takes records, gives a report.

    `coverage` is what was true before the first of them. `removed_ns`: records before that are no
    longer kept (None: none are missing). `blind`: nothing says what was true before the first
    record, so every source that is met counts as one that was there; rather a doubt than a false
    "complete".
    """

    since_ns: int
    until_ns: int
    wanted: Callable[[SourceId], bool]
    coverage: Coverage = field(factory=Coverage)
    removed_ns: int | None = None
    blind: bool = False
    _through_ns: int = field(init=False)
    _wall_ns: int = field(init=False)
    _sources: dict[SourceId, _Source] = field(init=False)
    _own: list[Gap] = field(init=False, factory=list)
    _before: frozenset[SourceId] = field(init=False)

    def __attrs_post_init__(self) -> None:
        coverage = self.coverage
        self._through_ns, self._wall_ns = coverage.through_ns, coverage.wall_ns
        self._sources = {
            source: _Source.known(before)
            for source, before in coverage.sources.items()
            if self.wanted(source)
        }
        self._before = frozenset(self._sources)

    def needs(self, block: bytes) -> bool:
        """Say whether there may be anything in a block of lines."""
        if self._wall_ns <= self.until_ns + _HELD_NS:
            return True
        if self._through_ns <= self.until_ns and _CHECKPOINT in block:
            return True
        return any(telling in block for telling in _TELLING)

    def take(self, parsed: Parsed) -> None:
        """Take the next record. Raises BadLine when it is none."""
        at_ns = parsed.at_ns
        self._wall_ns = max(self._wall_ns, at_ns)
        if parsed.source is None:
            self._take_own(parsed.item)
            return
        source = self._sources.get(parsed.source)
        if source is None:
            if not self.wanted(parsed.source):
                return
            source = self._sources[parsed.source] = _Source(life_ns=0 if self.blind else None)
        if parsed.kind is not Kind.EVENT:  # most are, and need no more than their head
            item = parsed.item
            if isinstance(item, StateChange):
                source.change(item, at_ns)
            elif isinstance(item, Gap):
                source.gaps.append(item)
                at_ns = item.from_ns if source.life_ns is None else at_ns
        if source.life_ns is None and parsed.kind is not Kind.STATE:
            source.life_ns = at_ns
        if self.since_ns <= parsed.at_ns <= self.until_ns:
            source.count(parsed)

    def _take_own(self, item: Item | Checkpoint) -> None:
        if isinstance(item, Checkpoint):
            self._through_ns = max(self._through_ns, item.through_ns)
        elif isinstance(item, Gap):
            self._own.append(item)

    def report(self, *, running: bool) -> Report:
        """Return what it comes to; there are no more records.

        A service that runs will tell of what is not known yet; without one it was not received.
        """
        interval = Span(self.since_ns, max(self.since_ns, self.until_ns))
        reports = [
            self._report(name, source, interval, running=running)
            for name, source in sorted(self._sources.items(), key=lambda pair: pair[0])
        ]
        known_ns = max(interval.from_ns, min(self._through_ns, interval.to_ns))
        return Report(interval, known_ns, tuple(reports))

    def _report(
        self, name: SourceId, source: _Source, interval: Span, *, running: bool
    ) -> SourceReport:
        lives = list(source.lives)
        if source.life_ns is not None:
            lives.append(Span(source.life_ns, FOREVER_NS))
        clipped = _clipped(lives, interval)
        told = list(map(_told, source.gaps))
        away = source.outages + [span for span, cause, _, _ in told if cause not in COUNTED]
        told += map(_told, self._own)
        unknown = Span(max(self._through_ns, interval.from_ns), interval.to_ns)
        waits = False
        if source.outage_ns is not None:
            lasting = Span(source.outage_ns, max(source.outage_ns, interval.to_ns))
            told.append((lasting, source.cause, "lasts on", None))
            away.append(lasting)
        elif source.life_ns is not None and unknown.length_ns > 0:
            waits = running and unknown.within(interval) is not None
            if not running:
                told.append((unknown, "no service runs", "not received", None))
                away.append(unknown)
        if self.removed_ns is not None and (self.blind or name in self._before):
            span = Span(interval.from_ns, self.removed_ns - 1)
            if span.length_ns > 0:
                told.append((span, "retention", "no longer kept", None))
        losses = [
            Loss(span, part, cause, certainty, lost)
            for span, cause, certainty, lost in told
            for part in _clipped([span], interval, lives)
        ]
        losses.sort(key=lambda loss: (loss.span.from_ns, loss.span.to_ns))
        configured_ns = sum(span.length_ns for span in clipped)
        away_ns = sum(span.length_ns for span in _joined(_clipped(away, interval, lives)))
        verdict = Verdict.COMPLETE
        if not clipped:
            verdict = Verdict.ABSENT
        elif losses:
            verdict = Verdict.INCOMPLETE
        elif waits:
            verdict = Verdict.UNKNOWN
        return SourceReport(
            name,
            verdict,
            1.0 - away_ns / configured_ns if configured_ns else None,
            configured_ns,
            tuple(losses),
            Counter({kind: source.kinds[kind] for kind in Kind if source.kinds[kind]}),
            source.late,
            source.replayed,
            source.synthetic,
        )


def _told(gap: Gap) -> tuple[Span, str, str, int | None]:
    return Span(gap.from_ns, max(gap.from_ns, gap.to_ns)), gap.cause, gap.certainty, gap.lost


def _clipped(
    spans: Iterable[Span], interval: Span, lives: Iterable[Span] | None = None
) -> list[Span]:
    """Return what of the spans lies in the interval, and in one of the lives."""
    found = [part for span in spans if (part := span.within(interval)) is not None]
    if lives is None:
        return found
    return [part for life in lives for span in found if (part := span.within(life)) is not None]


def _joined(spans: list[Span]) -> list[Span]:
    """Return spans that cover the same and do not overlap."""
    joined: list[Span] = []
    for span in sorted(spans, key=lambda s: s.from_ns):
        if joined and span.from_ns <= joined[-1].to_ns:
            joined[-1] = Span(joined[-1].from_ns, max(joined[-1].to_ns, span.to_ns))
        else:
            joined.append(span)
    return joined
