"""Rotation with real processes over TLS: old and new connections side by side."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from processes import LIMITS, emulator, end, place, service, wait_until

pytestmark = [pytest.mark.live, pytest.mark.slow]

ROTATING = """\
[connection]
rotate_after = "3s"
backoff = { min = "50ms", max = "500ms" }"""


def accepted(path: Path) -> int:
    return sum(json.loads(line)["answer"] == 101 for line in path.read_bytes().splitlines())


def by_source(lines: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Return each source's events, each once, in the order of their first lines."""
    found: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for line in lines:
        found[line["account"], line["region"]].setdefault(json.dumps(line["event"]))
    return {source: list(events) for source, events in found.items()}


def test_connections_are_replaced_without_loss_or_repeat(tmp_path: Path) -> None:
    arguments = ("--accounts", "5", "--regions", "us,eu", "--rate", "200", "--shared")
    with emulator(tmp_path, *arguments) as emulated:
        where = place(tmp_path, emulated.accounts, LIMITS, ROTATING)
        with service(where) as child:
            wait_until(lambda: accepted(emulated.accept_log) >= 40, "three rotations each", 60)
            assert end(child) == 0
        emulated.stop()
        sent = by_source([json.loads(x) for x in emulated.manifest.read_bytes().splitlines()])
        answers = Counter(
            json.loads(line)["answer"] for line in emulated.accept_log.read_bytes().splitlines()
        )
    records = where.records
    assert set(answers) == {101}
    assert Counter(r["cause"] for r in records if r["kind"] == "gap") == {"start": 10}
    events = [r for r in records if r["kind"] == "event"]
    recorded = by_source(events)
    assert len(events) == sum(map(len, recorded.values())), "an event was recorded twice"
    assert len(events) > 10 * 1500
    for source, messages in sent.items():
        # What was sent during the last moments of the drain is behind its end.
        assert recorded[source] == messages[: len(recorded[source])]
        assert len(messages) - len(recorded[source]) < 100


def test_without_a_spare_slot_each_rotation_is_one_short_gap(tmp_path: Path) -> None:
    limits = LIMITS.replace("[limits]", "[limits]\nmax_connections = 4")
    arguments = (
        *("--accounts", "2", "--regions", "us,eu", "--rate", "100", "--shared"),
        *("--limit-connections", "4"),
    )
    with emulator(tmp_path, *arguments) as emulated:
        where = place(tmp_path, emulated.accounts, limits, ROTATING)
        with service(where) as child:
            wait_until(lambda: accepted(emulated.accept_log) >= 12, "two rotations each", 60)
            assert end(child) == 0
        emulated.stop()
        answers = Counter(
            json.loads(line)["answer"] for line in emulated.accept_log.read_bytes().splitlines()
        )
    assert set(answers) == {101}
    causes = Counter(r["cause"] for r in where.records if r["kind"] == "gap")
    assert set(causes) == {"start", "rotation"}
    assert causes["rotation"] >= 8
