"""Ways a server can fail, with real processes: what state and gap records say of each."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import (
    HYPERMUX,
    LIMITS,
    Emulator,
    Place,
    emulator,
    end,
    place,
    process,
    service,
    verify,
    wait_until,
)

from hypermux.emulator.control import call

pytestmark = [pytest.mark.live, pytest.mark.slow]

PATIENT = f"""\
{LIMITS}
[connection]
ping_interval = "500ms"
pong_timeout = "500ms"
backoff = {{ min = "50ms", max = "200ms" }}"""


@contextmanager
def both(directory: Path) -> Iterator[tuple[Emulator, Place]]:
    """An emulator with two sources, a service on it, both up."""
    with emulator(
        directory, "--accounts", "1", "--regions", "east,west", "--rate", "50"
    ) as emulated:
        where = place(directory, emulated.accounts, PATIENT)
        with service(where):
            wait_until(lambda: len(of(where, "state", state="up")) == 2, "both are up")
            yield emulated, where


def of(where: Place, kind: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the records of a kind that have these fields."""
    records = where.records if where.state.exists() else []
    return [
        r
        for r in records
        if r["kind"] == kind and all(r.get(key) == value for key, value in fields.items())
    ]


@pytest.mark.parametrize(
    ("order", "cause"),
    [
        ({"op": "close", "code": 1012}, "closed"),
        ({"op": "close", "code": 4001}, "closed"),
        ({"op": "drop"}, "dropped"),
    ],
)
def test_an_end_is_one_down_one_gap_one_up_and_the_sibling_hears_nothing(
    tmp_path: Path, order: dict[str, Any], cause: str
) -> None:
    with both(tmp_path) as (emulated, where):
        reply = call(emulated.control, {**order, "account": "acct-001", "region": "east"})
        assert reply["ok"], reply
        wait_until(lambda: of(where, "gap", region="east", cause=cause), "the gap")
        wait_until(lambda: len(of(where, "state", region="east", state="up")) == 2, "it is back")
        (down,) = of(where, "state", region="east", cause=cause)
        (gap,) = of(where, "gap", region="east", cause=cause)
        assert down["state"] == "down"
        assert down["reason"]
        assert (gap["from"], gap["certainty"]) == (down["from"], "possible")
        assert gap["from"] < gap["to"]
        assert len(of(where, "gap", region="west")) == 1, "its sibling had only the start"


def test_a_server_that_falls_silent_and_comes_back(tmp_path: Path) -> None:
    with both(tmp_path) as (emulated, where):
        emulated.child.send_signal(signal.SIGSTOP)
        wait_until(lambda: len(of(where, "state", state="down", cause="silent")) == 2, "silent", 5)
        emulated.child.send_signal(signal.SIGCONT)
        wait_until(lambda: len(of(where, "gap", cause="silent")) == 2, "the gaps")
        wait_until(lambda: len(of(where, "state", state="up")) == 4, "both are back")


def test_a_refused_source_waits_and_comes_back(tmp_path: Path) -> None:
    with both(tmp_path) as (emulated, where):
        target = {"account": "acct-001", "region": "east"}
        call(emulated.control, {"op": "refuse", "status": 503, "count": 3, **target})
        call(emulated.control, {"op": "drop", **target})
        wait_until(lambda: of(where, "gap", region="east", cause="dropped"), "the gap")
        (gap,) = of(where, "gap", region="east", cause="dropped")
        downs = of(where, "state", region="east", state="down", verdict="retry")
        assert [d["cause"] for d in downs] == ["dropped", "refused"], "told once for each reason"
        assert {d["from"] for d in downs} == {gap["from"]}, "one outage has one beginning"


def test_a_server_that_is_down_at_the_start(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "1", "--regions", "us", "--rate", "20") as emulated:
        address = emulated.ready["url"].split("/")[2]
        where = place(tmp_path, emulated.accounts, PATIENT)
        emulated.stop()
    with service(where) as child:
        wait_until(lambda: of(where, "state", cause="unreachable"), "down")
        port = address.rpartition(":")[2]
        text = emulated.accounts.read_text()
        # The same accounts: keys follow from the seed. A new authority is named in the same file.
        with emulator(
            tmp_path, "--accounts", "1", "--regions", "us", "--rate", "20", "--port", port
        ):
            assert text.splitlines()[1] == emulated.accounts.read_text().splitlines()[1]
            wait_until(lambda: of(where, "gap"), "the gap")
            assert end(child) == 0
    (gap,) = of(where, "gap")
    assert gap["cause"] == "unreachable"
    assert gap["from"] == of(where, "state", cause="start")[0]["from"], "covered since configured"


def test_a_certificate_of_another_authority(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with (
        emulator(tmp_path / "other", "--accounts", "1", "--regions", "us") as other,
        emulator(tmp_path, "--accounts", "1", "--regions", "us") as emulated,
    ):
        text = emulated.accounts.read_text()
        emulated.accounts.write_text(text.replace(emulated.ready["ca"], other.ready["ca"]))
        where = place(tmp_path, emulated.accounts, PATIENT)
        with service(where) as child:
            wait_until(lambda: of(where, "state", verdict="untrusted"), "untrusted")
            assert end(child) == 0
        (down,) = of(where, "state", verdict="untrusted")
        assert "authority" in down["reason"]
        emulated.stop()
        assert not emulated.accept_log.exists() or not emulated.accept_log.read_bytes()


def test_a_wrong_key_is_denied_and_its_neighbours_run(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "2", "--regions", "us", "--rate", "20") as emulated:
        lines = emulated.accounts.read_text().splitlines()
        first = next(n for n, line in enumerate(lines) if line.startswith("secret_key"))
        lines[first] = 'secret_key = "wrong"'
        emulated.accounts.write_text("\n".join(lines))
        where = place(tmp_path, emulated.accounts, PATIENT)
        with service(where) as child:
            wait_until(lambda: len(of(where, "event", account="acct-002")) > 20, "events")
            (down,) = of(where, "state", account="acct-001", verdict="denied")
            assert "401" in down["reason"]
            assert end(child) == 0
        emulated.stop()
        answers = [json.loads(line) for line in emulated.accept_log.read_text().splitlines()]
        assert [a["answer"] for a in answers if a["account"] == "acct-001"] == [401]
        assert verify(where, emulated).returncode == 0


def test_a_stderr_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    with emulator(
        tmp_path, "--accounts", "2", "--regions", "east,west", "--rate", "50"
    ) as emulated:
        where = place(tmp_path, emulated.accounts, PATIENT, '[log]\nlevel = "debug"')
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writing, b"x" * 4096)
        command = [*HYPERMUX, "run", "-c", str(where.config)]
        with process(*command, stderr=writing) as child:
            os.close(writing)
            wait_until(lambda: len(of(where, "state", state="up")) == 4, "all are up")
            for _ in range(3):
                ups = len(of(where, "state", state="up"))
                call(emulated.control, {"op": "drop"})
                wait_until(lambda ups=ups: len(of(where, "state", state="up")) >= ups + 4, "back")  # type: ignore[misc]
            assert end(child) == 0
        os.close(reading)
