"""`hypermux status` for people."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from attrs import evolve

from hypermux.cli import status as cli
from hypermux.model.errors import Unreachable
from hypermux.model.status import (
    FORMAT,
    BufferStatus,
    Counts,
    Gaps,
    JournalStatus,
    LastFailure,
    LimitStatus,
    Refusal,
    ReloadStatus,
    SourceStatus,
    Status,
    SubscriberStatus,
    Throttled,
)

NOW = "2026-11-24T12:00:00.000000000Z"
LIVE = SourceStatus(
    account="prod",
    region="us",
    upstream="hyper",
    endpoint="wss://us.example.com/events/ws",
    state="live",
    since="2026-11-24T09:00:00.000000000Z",
    connected_seconds=3.0,
    tls="verified",
    last_event="2026-11-24T11:59:58.500000000Z",
    events=Counts(received=7, recorded=7),
    gaps=Gaps(count=2, total_seconds=61.0),
    offset_seconds=-3.25,
)
DENIED = SourceStatus(
    account="prod",
    region="eu",
    upstream="hyper",
    endpoint="wss://eu.example.com/events/ws",
    state="denied",
    since="2026-11-24T11:00:00.000000000Z",
    next_try="2026-11-24T12:10:00.000000000Z",
    last_failure=LastFailure(
        at=NOW, verdict="denied", cause="denied", reason="refused: \x1b[2J\u202ehttp 401"
    ),
)
STATUS = Status(
    format=FORMAT,
    version="0.1.0",
    pid=77,
    at=NOW,
    started="2026-11-24T09:00:00.000000000Z",
    uptime_seconds=10_800.0,
    config_file="/etc/hypermux/accounts.toml",
    states={"live": 1, "denied": 1},
    journal=JournalStatus(directory="/j", epoch="ep", cursor="ep:9", durable_seq=9),
    buffer=BufferStatus(used_bytes=0, size_bytes=1 << 26, per_source_bytes=1 << 23, held_events=0),
    subscribers=SubscriberStatus(active=2, accepted=3, refused=0, stalled=0),
    limits=LimitStatus(max_connections=10, connect_rate_per_second=1.0),
    last_reload=None,
    sources=(LIVE, DENIED),
)


def shown(status: Status, capsys: pytest.CaptureFixture[str]) -> list[str]:
    cli._show(status)
    return capsys.readouterr().out.splitlines()


def test_a_line_for_each_source_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    head, live, denied, _, summary = shown(STATUS, capsys)
    assert " ".join(head.split()) == "source state since last event events gaps offset remarks"
    assert live.split() == ["prod/us", "live", "3", "h", "1.5", "s", "7", "2", "(1", "min", "1",
                            "s)", "-3.2", "s"]  # fmt: skip
    assert denied.startswith("prod/eu  denied")
    assert "next try in 10 min" in denied
    assert "pid 77, up 3 h: 2 sources (1 denied, 1 live); journal at ep:9" in summary


def test_nothing_from_a_server_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = evolve(DENIED, account="\x1b]0;x\x07", state="\x1b[31m", waits_for="\u202e")
    reload = ReloadStatus(at=NOW, who="\x1b[1m", accepted=False, problems=("\x9b2J",))
    text = "\n".join(shown(evolve(STATUS, sources=(hostile,), last_reload=reload), capsys))
    assert all(char.isprintable() or char == "\n" for char in text)


def test_what_a_person_should_know_stands_below(capsys: pytest.CaptureFixture[str]) -> None:
    status = evolve(
        STATUS,
        limits=LimitStatus(
            max_connections=1,
            connect_rate_per_second=1.0,
            throttled=(
                Throttled(account=None, endpoint="h:1", connect_rate_per_second=2.0),
                Throttled(account="a", endpoint="h:1", connect_rate_per_second=0.5),
            ),
        ),
        last_reload=ReloadStatus(
            at="2026-11-24T11:59:00.000000000Z",
            who="SIGHUP",
            accepted=True,
            changes=("added x/y",),
            needs_restart=("journal.fsync stays",),
        ),
    )
    lines = shown(status, capsys)
    assert "the server h:1 asked all accounts for fewer connects: 2/s now" in lines
    assert "the server h:1 asked account a for fewer connects: 30/min now" in lines
    assert "reloaded 1 min ago by SIGHUP: added x/y" in lines
    assert "needs a restart: journal.fsync stays" in lines
    refused = ReloadStatus(at=NOW, who="me", accepted=False, problems=("f: k: is wrong",))
    lines = shown(evolve(status, last_reload=refused), capsys)
    assert lines[-2:] == ["reload by me 0 ms ago was refused:", "  f: k: is wrong"]


def test_the_document_reads_back_as_it_was_written() -> None:
    assert cli._read(msgspec.json.encode(STATUS)) == STATUS


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"format": None}, {"sources": 3}, {"at": None}, {"pid": "\x1b"}]
)
def test_another_version_is_told_from_ours(change: dict[str, Any]) -> None:
    document = json.loads(msgspec.json.encode(STATUS)) | change
    with pytest.raises(Unreachable, match="-o json"):
        cli._read(json.dumps(document).encode())


def test_later_keys_are_passed_over() -> None:
    document = json.loads(msgspec.json.encode(STATUS)) | {"weather": "fine"}
    document["sources"][0]["mood"] = 1
    assert cli._read(json.dumps(document).encode()) == STATUS


def test_what_is_wrong_with_a_clock_and_a_key_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = evolve(
        LIVE, signing_offset_seconds=600.0, key_trouble="the program ended with exit code 3"
    )
    line = shown(evolve(STATUS, sources=(live,)), capsys)[1]
    assert "our clock is off: signed with +600 s" in line
    assert "its key cannot be renewed: the program ended with exit code 3" in line


@pytest.mark.parametrize("lost", [0, 12])
def test_a_disk_that_refuses_is_said_plainly(lost: int, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = Refusal(
        since="2026-11-24T11:58:30.000000000Z",
        reason="cannot append to /j/1: the disk is full",
        tries=7,
        waiting_records=3,
        held_events=40,
        lost_events=lost,
    )
    line = shown(evolve(STATUS, journal=evolve(STATUS.journal, refusal=refusal)), capsys)[-1]
    more = f", {lost} more are lost" if lost else ""
    assert line == (
        "the disk has refused for 1 min 30 s: cannot append to /j/1: the disk is full; "
        f"40 events are held in memory{more}; tried 7 times since"
    )


@pytest.mark.parametrize(
    ("at", "told"), [("2026-11-24T09:00:00.1Z", True), ("2026-11-24T08:59:59Z", False)]
)
def test_a_refused_successor_is_said_while_the_old_connection_lives(
    at: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = LastFailure(at=at, verdict="denied", cause="denied", reason="http 401")
    source = evolve(LIVE, last_failure=failure)
    text = "\n".join(shown(evolve(STATUS, sources=(source,)), capsys))
    assert ("cannot connect anew: http 401" in text) is told
