"""What the log is told of sources."""

from __future__ import annotations

import logging

import pytest

from hypermux.config.settings import Source
from hypermux.core.verdicts import judge
from hypermux.model.accounts import Endpoint, SourceId
from hypermux.model.errors import Failure, FailureKind
from hypermux.service.observing import LoggedObserver

SOURCES = [
    Source(SourceId("prod", f"r{n}"), "hyper", Endpoint.parse("wss://x.test/")) for n in range(5)
]


def fail(observer: LoggedObserver, source: Source, kind: FailureKind) -> None:
    failure = Failure(kind, "the detail")
    judgement = judge(failure, secure=False, now_utc_ns=0)
    observer.failed(source, judgement, failure)


def test_a_cause_is_told_once_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    observer = LoggedObserver()
    for _ in range(3):
        fail(observer, SOURCES[0], FailureKind.CONNECT)
    fail(observer, SOURCES[0], FailureKind.TIMEOUT)
    observer.opened(SOURCES[0])
    fail(observer, SOURCES[0], FailureKind.CONNECT)
    told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 3
    assert told[0] == "prod/r0: nothing accepts the connection: the detail (retry)"


def test_our_own_shortage_is_told_once_for_all_sources(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    observer = LoggedObserver()
    for _ in range(3):
        for source in SOURCES:
            fail(observer, source, FailureKind.SHORTAGE)
    told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert told == ["prod/r0: this computer has run short: the detail (retry)"]
    for source in SOURCES:
        observer.opened(source)
    fail(observer, SOURCES[1], FailureKind.SHORTAGE)
    assert sum(r.levelno == logging.WARNING for r in caplog.records) == 2
