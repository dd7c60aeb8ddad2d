"""A server that enforces limits of its own, over TLS: equal to ours, and a little below them."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from processes import Emulator, Place, emulator, place, run, service, wait_until

from hypermux.emulator.control import call

pytestmark = [pytest.mark.live, pytest.mark.slow]

ACCOUNTS, REGIONS, RATE, BURST = 4, 50, 25, 5
SOURCES = ACCOUNTS * REGIONS
# Of the time that the rate itself takes, 8 s, this is 0.4 s: what Python's start, the last dial and
# a busy machine may take, while a limiter that loses one permit in twenty fails.
MOST_S = 1.05 * SOURCES / RATE


def limited(regions: int = REGIONS) -> list[str]:
    """Return the emulator's options: limits on rates and counts, all of which are reached."""
    names = ",".join(f"r{number:02d}" for number in range(regions))
    return [
        *("--accounts", str(ACCOUNTS), "--regions", names, "--rate", "0"),
        *("--limit-rate", f"{RATE}/s", "--limit-burst", str(BURST), "--account-rate", "7/s"),
        *("--limit-connections", str(ACCOUNTS * regions), "--account-connections", str(regions)),
    ]


def limits(per_minute: int, account_per_minute: int, regions: int = REGIONS) -> str:
    """Return `[limits]` with these rates, and counts that are the server's."""
    rate = f'connect_rate = "{per_minute}/min"'
    own = f'max_connections = {regions}, connect_rate = "{account_per_minute}/min"'
    return f"""\
[limits]
max_connections = {ACCOUNTS * regions}
{rate}
connect_burst = {BURST}
per_account = {{ {own} }}
per_endpoint = {{ {rate} }}
[connection]
backoff = {{ min = "50ms", max = "500ms" }}"""


def answers(emulated: Emulator) -> list[tuple[int, int]]:
    """Return the time and the status of every handshake."""
    lines = (json.loads(line) for line in emulated.accept_log.read_bytes().splitlines())
    return [(line["time"], line["answer"]) for line in lines]


def up(where: Place) -> int:
    """Return how many sources the journal says are up."""
    states = (r for r in where.records if r["kind"] == "state" and "region" in r)
    last = {(r["account"], r["region"]): r["state"] for r in states}
    return Counter(last.values())["up"]


def connect_all(where: Place, emulated: Emulator, timeout_s: float) -> tuple[float, dict[str, Any]]:
    """Wait until all sources are up.

    Returns how many seconds after the service's start that is, and what it says of its limits.
    """
    with service(where):
        wait_until(
            lambda: Counter(status for _, status in answers(emulated))[101] >= SOURCES,
            "everything is connected",
            timeout_s,
        )
        wait_until(lambda: up(where) == SOURCES, "everything is up")
        status = json.loads(run("status", "-c", where.config, "-o", "json").stdout)
    started = next(r for r in where.records if r["kind"] == "state" and r["state"] == "start")
    accepted = [time for time, status in answers(emulated) if status == 101]
    return (accepted[SOURCES - 1] - nanoseconds(started["time"])) / 1e9, status["limits"]


def nanoseconds(text: str) -> int:
    """Return what a record's time text says."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()
    return int(seconds) * 1_000_000_000 + int(fraction.ljust(9, "0"))


def test_a_server_with_our_own_limits_refuses_nothing_and_all_connect_in_time(
    tmp_path: Path,
) -> None:
    with emulator(tmp_path, *limited()) as emulated:
        where = place(tmp_path, emulated.accounts, limits(60 * RATE, 60 * 7))
        took_s, told = connect_all(where, emulated, 30.0)
        assert Counter(status for _, status in answers(emulated)) == {101: SOURCES}
    assert took_s <= MOST_S
    assert told["slots_taken"] == SOURCES
    assert told["throttled"] == []


def test_a_tenth_too_much_is_refused_settles_and_is_told(tmp_path: Path) -> None:
    with emulator(tmp_path, *limited()) as emulated:
        where = place(tmp_path, emulated.accounts, limits(66 * RATE, 66 * 7))
        took_s, told = connect_all(where, emulated, 60.0)
        statuses = Counter(status for _, status in answers(emulated))
    log = where.log.read_text()
    assert statuses[429] > 0
    assert statuses[429] < SOURCES / 10
    assert took_s < 3 * SOURCES / RATE
    lowered = [line for line in log.splitlines() if "asks for fewer connections: now" in line]
    assert 0 < len(lowered) <= statuses[429]
    # Nobody has dialed often enough since to bring the rates back up.
    assert told["throttled"]


def test_all_that_are_dropped_at_once_come_back_at_the_rate_and_unrefused(tmp_path: Path) -> None:
    sources, half = ACCOUNTS * REGIONS // 2, REGIONS // 2
    with emulator(tmp_path, *limited(half)) as emulated:
        where = place(tmp_path, emulated.accounts, limits(60 * RATE, 60 * 7, half))
        with service(where):
            wait_until(lambda: len(answers(emulated)) == sources, "everything is connected")
            wait_until(lambda: up(where) == sources, "everything is up")
            # Every burst is rested by then, on both sides.
            rested_at = time.monotonic() + BURST / RATE
            wait_until(lambda: time.monotonic() >= rested_at, "a rest")
            dropped_ns = time.time_ns()
            assert call(emulated.control, {"op": "drop"})["ok"]
            wait_until(lambda: len(answers(emulated)) >= 2 * sources, "everything is back")
            wait_until(lambda: up(where) == sources, "everything is up again")
        assert Counter(status for _, status in answers(emulated)) == {101: 2 * sources}
        took_s = (answers(emulated)[-1][0] - dropped_ns) / 1e9
    # The pause after a failure, and what a busy machine may take; half a second of dials at once
    # is not counted in our favour.
    assert took_s <= 1.05 * sources / RATE + 0.5
