"""`hypermux audit` of a service that runs, is killed, and runs again."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from processes import FAST, Place, emulator, end, place, run, service, wait_until

pytestmark = [pytest.mark.live, pytest.mark.slow]

QUICK = '[journal]\ncheckpoint_interval = "100ms"'


def audit(where: Place, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = run("audit", "-c", where.config, "-o", "json", *arguments)
    return done.returncode, json.loads(done.stdout)


def ups(where: Place) -> int:
    return sum(b'"state":"up"' in line for line in where.lines)


def moment() -> str:
    return f"{time.time():.6f}"


def test_complete_or_not(tmp_path: Path) -> None:
    with emulator(tmp_path, "--accounts", "2", "--regions", "us", "--rate", "20") as emulated:
        where = place(tmp_path, emulated.accounts, FAST, QUICK)
        with service(where) as first:
            wait_until(lambda: ups(where) == 2, "the connections")
            begun = moment()
            time.sleep(0.5)  # an interval
            code, found = audit(where, "--since", begun)
            assert (code, found["verdict"]) == (0, "complete"), found
            for source in found["sources"]:
                assert source["connected_percent"] == 100
                assert source["records"]["event"] >= 3

            # What has not happened yet is not known yet.
            later = f"{time.time() + 60:.6f}"
            code, found = audit(where, "--since", begun, "--until", later)
            assert (code, found["verdict"]) == (75, "not known yet")

            # Before the first connection there may have been something.
            code, found = audit(where)
            assert code == 1
            assert {gap["cause"] for s in found["sources"] for gap in s["gaps"]} == {"start"}
            for arguments, words in (
                (("--account", "nobody"), "no source that was selected"),
                (("--since", "10", "--until", "9"), "--until is before --since"),
            ):
                done = run("audit", "-c", where.config, *arguments)
                assert (done.returncode, done.stdout) == (64, "")
                assert words in done.stderr
            assert end(first, signal.SIGKILL) == -signal.SIGKILL

        # Nobody receives anything now.
        text = run("audit", "-c", where.config, "--since", begun, "--account", "acct-001")
        assert text.returncode == 1
        assert "acct-001/us" in text.stdout
        assert "acct-002" not in text.stdout
        assert "no service runs, not received" in text.stdout

        with service(where):
            wait_until(lambda: ups(where) == 4, "the connections of the next")
            again = moment()
            wait_until(lambda: audit(where, "--since", again)[0] == 0, "to be complete again")
            code, found = audit(where, "--since", begun)
            assert code == 1
            assert {g["cause"] for s in found["sources"] for g in s["gaps"]} == {"restart"}
