"""What happens to sources, as the log has it."""

from __future__ import annotations

import logging

from hypermux.config.settings import Source
from hypermux.core.verdicts import Judgement
from hypermux.model.accounts import SourceId
from hypermux.model.errors import Failure, FailureKind

log = logging.getLogger("hypermux.service")


class LoggedObserver:
    """Writes what happens to sources to the log, each cause of an outage once.

    What this computer is short of is said once for all sources: it is none of theirs.
    """

    def __init__(self) -> None:
        self._told: dict[SourceId, str] = {}

    def dialing(self, source: Source) -> None:
        """A dial begins."""
        log.debug("%s: connecting to %s", source.id, source.endpoint)

    def opened(self, source: Source) -> None:
        """A connection is open."""
        self._told.pop(source.id, None)
        log.info("%s: up", source.id)

    def replaced(self, source: Source) -> None:
        """Another connection has taken the open one's place."""
        log.info("%s: a new connection has taken the old one's place", source.id)

    def failed(self, source: Source, judgement: Judgement, failure: Failure) -> None:
        """A connection or a dial ended."""
        told = self._told.get(source.id) == judgement.cause
        if failure.kind is FailureKind.SHORTAGE:
            told = judgement.cause in self._told.values()
        level = logging.DEBUG if told else logging.WARNING
        self._told[source.id] = judgement.cause
        log.log(level, "%s: %s (%s)", source.id, judgement.reason, judgement.verdict)
