"""What `hypermux emulate` sent is what `hypermux run` recorded, by the word of scripts/verify."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from hypermux.emulator.control import call

pytestmark = [pytest.mark.live, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# A busy machine may take its time to start a process or to make a few connections.
WITHIN_S = 60.0
SETTINGS = """\
include = ["accounts.toml"]
state_dir = "state"
[socket]
path = "hypermux.sock"
[journal]
checkpoint_interval = "1s"
[limits]
connect_rate = "20/s"
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@define
class Pair:
    """An emulator under way, and a hypermux to run beside it."""

    directory: Path
    processes: list[subprocess.Popen[str]] = field(factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "hypermux", *arguments],
            cwd=self.directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.processes.append(process)
        return process

    def ask(self, op: str, **keys: Any) -> dict[str, Any]:
        reply = call(self.directory / "control", {"op": op, **keys})
        assert reply["ok"], reply
        return reply

    def service(self) -> subprocess.Popen[str]:
        """Start hypermux, and wait until every source is connected and gets events."""
        process = self.start("run", "-c", "hypermux.toml")
        wait_for(lambda: sum(c["sent"] > 20 for c in self.connections()) == 4, "connections")
        return process

    def connections(self) -> list[dict[str, Any]]:
        return list(self.ask("connections")["connections"])

    def verify(self, *options: str) -> tuple[int, dict[str, int]]:
        command = [str(ROOT / "scripts" / "verify"), "state", "manifest", "accepts", *options]
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN_S,
        )
        print(done.stdout, done.stderr)
        pairs = (word.partition("=") for word in done.stdout.split())
        return done.returncode, {key: int(value) for key, _, value in pairs}


def end(process: subprocess.Popen[str]) -> int:
    process.terminate()
    try:
        process.communicate(timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    (tmp_path / "hypermux.toml").write_text(SETTINGS)
    (tmp_path / "hypermux.toml").chmod(0o600)
    try:
        yield made
    finally:
        for process in made.processes:
            if process.poll() is None:
                end(process)


def emulate(pair: Pair, *options: str) -> subprocess.Popen[str]:
    files = ["--manifest", "manifest", "--accept-log", "accepts", "--control", "control"]
    sources = ["--accounts", "2", "--regions", "us-west-1,eu-central-1", "--dialect", "mixed"]
    process = pair.start("emulate", *sources, *files, "--write-accounts", "accounts.toml", *options)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["ready"]
    return process


def test_everything_sent_is_recorded(pair: Pair) -> None:
    emulator = emulate(pair, "--rate", "200", "--events", "300")
    service = pair.service()
    for text in ('{"Action":"é","timeNano":1.5e18}', "garbage\n", '{"Action":\n"x"}', "[]"):
        pair.ask("emit", account="acct-001", region="us-west-1", events=[text, text])
    wait_for(lambda: sum(c["sent"] for c in pair.connections()) == 4 * 300 + 8, "all events")
    time.sleep(0.5)  # what is on its way is not in any file yet
    assert (end(service), end(emulator)) == (0, 0)
    code, counts = pair.verify("--slack", "0ms")
    assert code == 0
    assert counts["sent"] == counts["recorded"] == 4 * 300 + 8
    assert counts["covered"] == counts["damaged"] == 0
    assert counts["dials"] == 4


def test_what_is_lost_is_covered(pair: Pair) -> None:
    emulator = emulate(pair, "--rate", "200")
    service = pair.service()
    pair.ask("drop", account="acct-001")
    wait_for(lambda: sum(c["sent"] > 20 for c in pair.connections()) == 4, "reconnections")
    service.kill()
    service.communicate()
    again = pair.service()
    assert (end(again), end(emulator)) == (0, 0)
    code, counts = pair.verify()
    assert code == 0
    assert counts["recorded"] > 0
    assert counts["gaps"] == 4 + 2 + 4, "at the first start, the drop, the kill"
    assert counts["dials"] == 4 + 2 + 4


def test_a_line_taken_out_of_the_journal_is_noticed(pair: Pair) -> None:
    emulator = emulate(pair, "--rate", "200", "--events", "50")
    service = pair.service()
    wait_for(lambda: sum(c["sent"] for c in pair.connections()) == 4 * 50, "all events")
    time.sleep(0.5)
    assert (end(service), end(emulator)) == (0, 0)
    assert pair.verify()[0] == 0
    [segment] = (pair.directory / "state" / "journal").glob("0*.ndjson")
    lines = segment.read_bytes().splitlines(keepends=True)
    # Near a gap, the one of the first start: that must not excuse it.
    index = next(i for i, line in enumerate(lines) if b'"kind":"event"' in line)
    segment.write_bytes(b"".join(lines[:index] + lines[index + 1 :]))
    code, counts = pair.verify()
    assert (code, counts["missing"], counts["misordered"]) == (1, 1, 1)
