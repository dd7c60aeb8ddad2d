"""What the end of a link means, and who has to hear of it beside the stream.

`core.verdicts` judges. The limiter hears of a server that asks for fewer dials, the key ring of a
credential that was refused, and the corrections of a clock that was wrong: of ours, so once for
all sources of an endpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from attrs import define, evolve

from hypermux.config.settings import Source
from hypermux.core.correction import Corrections
from hypermux.core.verdicts import Judgement, Verdict, judge
from hypermux.model.errors import Failure, FailureKind
from hypermux.upstream.counters import Counters, Fall
from hypermux.upstream.dialing import trust_of
from hypermux.upstream.gate import Gate
from hypermux.upstream.link import FAULT_TEXT, Keys, Link
from hypermux.upstream.telling import Teller
from hypermux.upstream.transport import PROVEN, Opened

log = logging.getLogger("hypermux.connection")


@define(eq=False)
class Judge:
    """One source's."""

    gate: Gate
    keys: Keys
    corrections: Corrections
    counters: Counters
    teller: Teller
    utc_ns: Callable[[], int]

    def judge(self, link: Link, source: Source) -> tuple[Judgement, Failure]:
        """Return what the end of a link means; it is the source's last failure."""
        failure = link.failure
        assert failure is not None  # it has ended
        if failure.retry_after_s is None and failure.retry_at_ns is not None:
            now_ns = self.utc_ns() + self.corrections.of(source.endpoint.address)
            failure = evolve(failure, retry_after_s=(failure.retry_at_ns - now_ns) / 1e9)
        judgement = judge(
            failure,
            secure=trust_of(source.endpoint, source.tls) in PROVEN,
            now_utc_ns=self.utc_ns(),
            signed_offset_ns=link.sign_offset_ns,
            opened=link.accepted is not None,
        )
        self.counters.fall = Fall(self.teller.clock.now_ns(), judgement)
        self.counters.faults += failure.kind is FailureKind.INTERNAL
        return judgement, failure

    def fault(self) -> tuple[Judgement, Failure]:
        """Return what it means that a fault of ours has ended the source's task."""
        failure = Failure(FailureKind.INTERNAL, FAULT_TEXT)
        judgement = judge(failure, secure=False, now_utc_ns=self.utc_ns())
        self.counters.fall = Fall(self.teller.clock.now_ns(), judgement)
        self.counters.faults += 1
        return judgement, failure

    def heed(
        self, link: Link, source: Source, judgement: Judgement, failure: Failure, *, denied: bool
    ) -> bool:
        """Tell whom it concerns; returns whether there is another key to try at once."""
        another = denied and self.keys.refused(source, link.credential)
        if judgement.verdict is Verdict.THROTTLED:
            self.gate.throttled(source.id, link.dialed_at, failure.retry_after_s)
        if judgement.offset_ns is not None:
            address = source.endpoint.address
            if self.corrections.refused(address, judgement.offset_ns):
                self._tell_correction(source)
        return another

    def accepted(self, link: Link, source: Source, opened: Opened) -> None:
        """Tell whom it concerns that a link is open."""
        self.gate.succeeded(source.id)
        self.keys.accepted(source, link.credential)
        if opened.date_ns is not None and opened.trust in PROVEN:
            offset_ns = opened.date_ns - self.utc_ns()
            if self.corrections.accepted(source.endpoint.address, offset_ns):
                self._tell_correction(source)

    def _tell_correction(self, source: Source) -> None:
        offset_ns = self.corrections.of(source.endpoint.address)
        log.warning("%s: %s", source.id, self.teller.correction(offset_ns))
