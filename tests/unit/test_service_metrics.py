"""What metrics are made of: families, counts, the written form; and the alert rules' names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from hypermux.config.settings import Source
from hypermux.core.histogram import Histogram
from hypermux.core.intake import MAX_CAUSES, Tally
from hypermux.core.verdicts import Judgement, Verdict
from hypermux.model.accounts import Endpoint, SourceId
from hypermux.model.errors import Failure, FailureKind
from hypermux.model.records import Gap
from hypermux.model.status import (
    BufferStatus,
    Counts,
    JournalStatus,
    LimitStatus,
    ReloadStatus,
    SourceStatus,
    Status,
    SubscriberStatus,
)
from hypermux.service.counting import MAX_WORDS, CountingObserver, timed
from hypermux.service.metrics import (
    AT_ONCE,
    SourceFamilies,
    Whole,
    of_the_whole,
    process_families,
    write,
)
from hypermux.service.observing import LoggedObserver

AT = "2026-01-01T00:00:00Z"
ALERTS = Path(__file__).parents[2] / "scripts" / "alerts.yml"


def source(region: str = "r1", **more: Any) -> SourceStatus:
    return SourceStatus(
        account="prod",
        region=region,
        upstream="hyper",
        endpoint="wss://x/",
        since=AT,
        **{
            "state": "live",
            "connected_seconds": 5.0,
            "last_event": AT,
            "lag_seconds": 0.2,
            **more,
        },
    )


def status(*sources: SourceStatus) -> Status:
    return Status(
        format=1,
        version="0",
        pid=1,
        at=AT,
        started=AT,
        uptime_seconds=1.0,
        config_file="",
        states=dict(Counter(s.state for s in sources)),
        journal=JournalStatus(directory="", epoch="ep", cursor="ep:7", durable_seq=7),
        buffer=BufferStatus(used_bytes=1, size_bytes=9, per_source_bytes=3, held_events=0),
        subscribers=SubscriberStatus(active=1, accepted=2, refused=3, stalled=4),
        limits=LimitStatus(max_connections=9, connect_rate_per_second=1.0),
        last_reload=ReloadStatus(at=AT, who="x", accepted=False),
        sources=sources,
    )


def families(*sources: SourceStatus) -> Iterator[Metric]:
    of_sources = SourceFamilies()
    for one in sources:
        of_sources.add(
            one, dials={"opened": 2}, reconnects={"eof": 1}, gaps={"eof": (1, 1_500_000_000)}
        )
    whole = Whole(
        status(*sources),
        Histogram(),
        journal_bytes=5,
        oldest_ns=0,
        now_ns=10**9,
        fsync="commit",
        lags=[3, 9],
        reloads=Counter({True: 1}),
    )
    return chain(of_the_whole(whole), of_sources, process_families()())


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


async def test_what_is_there() -> None:
    body, content_type = await write(families(source()), "")
    assert content_type.startswith("text/plain; version=0.0.4")
    found = samples(body.decode())

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    one = {"account": "prod", "region": "r1"}
    assert value("hypermux_source_state", **one, state="live") == 1
    assert value("hypermux_source_state", **one, state="denied") == 0
    assert value("hypermux_sources", state="live") == 1
    assert value("hypermux_dials_total", **one, outcome="opened") == 2
    assert value("hypermux_gap_seconds_total", **one, cause="eof") == 1.5
    assert value("hypermux_subscriber_lag_records") == 9
    assert value("hypermux_last_reload_success") == 0
    assert value("hypermux_reloads_total", outcome="accepted") == 1
    assert value("hypermux_journal_fsync_info", mode="commit") == 1
    assert value("hypermux_journal_last_seq") == 7
    assert value("process_resident_memory_bytes") > 0
    assert all(name.startswith(("hypermux_", "process_")) for name, _ in found)


async def test_slices_are_the_whole_and_hold_nobody_up() -> None:
    many = [source(f"r{number}") for number in range(AT_ONCE + 7)]

    class All:
        def collect(self) -> Iterator[Metric]:
            return (f for f in families(*many) if not f.name.startswith("process_"))

    sliced, _ = await write(All().collect(), "")
    assert sliced == generate_latest(All())
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        body, content_type = await write(families(*many), "application/openmetrics-text")
        nursery.cancel_scope.cancel()
    assert passes > len(body) / 200 / AT_ONCE  # no line is shorter than that by much
    assert content_type.startswith("application/openmetrics-text")
    assert body.count(b"# EOF\n") == 1
    assert len(list(parse_open(body.decode()))) > 30  # type: ignore[no-untyped-call]


def test_names_in_the_alert_rules_are_given() -> None:
    given: dict[str, set[str]] = {"up": {"job", "instance"}}
    for family in families(source()):
        for sample in family.samples:
            given.setdefault(sample.name, set()).update(sample.labels)
    rules = ALERTS.read_text()
    expressions = re.findall(r"^ +expr: (.+)$", rules, re.MULTILINE)
    assert len(expressions) == rules.count("- alert:") > 10
    for expression in expressions:
        names = re.findall(r"\b(?:hypermux|process)_\w+|\bup\b", expression)
        assert names, expression
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            labels |= {label.strip() for label in grouped.split(",")}
        for name in names:
            assert name in given, name
            assert labels <= given[name], (name, labels - given[name])
    for label in re.findall(r"\$labels\.(\w+)", rules):
        assert label in {"account", "region", "state", "instance"}
    for words in re.findall(r"state=~?\"([^\"]+)\"", rules):
        for word in words.split("|"):
            assert ("state", word) in {
                pair for _, pairs in samples(_text()) for pair in pairs if pair[0] == "state"
            }


def _text() -> str:
    class All:
        def collect(self) -> Iterator[Metric]:
            return families(source())

    return generate_latest(All()).decode()


def test_dials_and_what_ended_connections() -> None:
    counting = CountingObserver(LoggedObserver())
    one = Source(SourceId("prod", "r1"), "hyper", Endpoint.parse("wss://h:1/x"))
    failure = Failure(FailureKind.EOF, "it ended")

    def fail(cause: str, verdict: Verdict = Verdict.RETRY) -> None:
        counting.failed(one, Judgement(verdict, cause, "it ended"), failure)

    counting.dialing(one)
    fail("http-401", Verdict.DENIED)
    counting.dialing(one)
    counting.opened(one)
    fail("eof")
    counting.dialing(one)
    counting.opened(one)
    counting.replaced(one)
    counting.dialing(one)  # a reload ended it, with no failure
    fail("connect")
    assert counting.dials[one.id] == {"denied": 1, "opened": 3, "retry": 1}
    assert counting.reconnects[one.id] == {"eof": 1, "rotation": 1, "parted": 1}
    for number in range(3 * MAX_WORDS):
        counting.opened(one)
        fail(f"close-{number}")
    assert len(counting.reconnects[one.id]) == MAX_WORDS + 1
    assert sum(counting.reconnects[one.id].values()) == 3 + 3 * MAX_WORDS


def test_gaps_by_cause_are_bounded_and_none_is_lost() -> None:
    tally = Tally()
    for number in range(3 * MAX_CAUSES):
        tally.add(Gap(0, 10, f"close-{number}", "possible"))
    assert len(tally.causes) == MAX_CAUSES + 1
    assert sum(count for count, _ in tally.causes.values()) == tally.gaps
    assert sum(ns for _, ns in tally.causes.values()) == tally.gap_ns


async def test_commits_are_timed_and_nothing_else(autojump_clock: trio.abc.Clock) -> None:
    histogram = Histogram(bounds=(0.5, 2.0))

    async def slow(function: Any, *args: Any) -> Any:
        await trio.sleep(1)
        return function(*args)

    def commit() -> int:
        return 1

    def sync() -> None:
        raise OSError

    run = timed(slow, histogram)
    assert await run(commit) == 1
    with pytest.raises(OSError):  # noqa: PT011 - it is ours
        await run(sync)
    assert await run(max, 1, 2) == 2
    assert histogram.cumulative() == [(0.5, 0), (2.0, 2), (float("inf"), 2)]
    assert histogram.sum_s == pytest.approx(2)


def test_counts_of_the_promise_are_all_there() -> None:
    counts = Counts(received=10, synthetic=2, recorded=5, duplicate=1, filtered=2, lost=3)
    text = _of(evolve(source(), events=evolve(counts, in_flight=1)))
    given = {name.removeprefix("hypermux_events_").removesuffix("_total"): value
             for (name, labels), value in samples(text).items()
             if name.startswith("hypermux_events_")}  # fmt: skip
    came = given["received"] + given["synthetic"]
    went = ("recorded", "duplicate", "filtered", "lost", "in_flight")
    assert came == sum(given[name] for name in went) == 12


def _of(one: SourceStatus) -> str:
    class All:
        def collect(self) -> Iterator[Metric]:
            return families(one)

    return generate_latest(All()).decode()
