"""The recipes of the README, each run as it stands there; only paths are put in their place."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define
from processes import FAST, PROJECT, Place, emulator, place, service, wait_until

from hypermux.client import Client, event_id
from hypermux.emulator import control

pytestmark = [pytest.mark.live, pytest.mark.slow]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a recipe shows where it does not print: the file that it writes.
WRITES = {"--exec 'jq": "seen", "[Service]": "log", "sqlite3": "events.db"}
NEEDS = ("jq", "nc", "curl", "docker")


@define
class Recipe:
    """One block: its language, its text, and what it is called in a report."""

    language: str
    text: str

    @property
    def name(self) -> str:
        return self.text.partition("\n")[0].strip("# .:")[:40]

    def command(self, where: Place, consumer: Path) -> list[str]:
        """Return what runs it, with this test's places for the usual ones."""
        text = self.text
        for usual, ours in (
            ("/run/hypermux/hypermux.sock", where.socket),
            ("/var/lib/consumer", consumer),
            ("/usr/bin/hypermux", "hypermux"),
        ):
            text = text.replace(usual, str(ours))
        if self.language == "python":
            return [sys.executable, "-c", text]
        if self.language == "ini":
            line = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
            assert line is not None
            return shlex.split(line[1])  # systemd quotes alike here
        return ["sh", "-c", text]


def recipes() -> list[Recipe]:
    text = (PROJECT / "README.md").read_text()
    section = re.search(r"^## Recipes\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    return [Recipe(*block) for block in BLOCK.findall(section[1])]


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Place]:
    """A service with two accounts, whose events come all the time."""
    with emulator(tmp_path, "--accounts", "2", "--regions", "us", "--rate", "20") as emulated:
        found = place(tmp_path, emulated.accounts, FAST, '[journal]\ncheckpoint_interval = "1s"')
        with service(found):
            # Two seconds of them: the docker command cuts `--until 0s` to a whole second.
            wait_until(
                lambda: sum(b'"kind":"event"' in line for line in found.lines) > 80, "events"
            )
            yield found


def test_there_are_some() -> None:
    found = recipes()
    assert len(found) >= 7
    assert {recipe.language for recipe in found} == {"sh", "python", "ini"}


def test_each_does_what_it_is_for(where: Place, tmp_path: Path) -> None:
    """All at once: most go on until they are told to end."""
    missing = [name for name in NEEDS if shutil.which(name) is None]
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    program = bin_directory / "hypermux"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hypermux "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
    }
    running = []
    for number, recipe in enumerate(recipes()):
        if any(f"{name} " in recipe.text for name in missing):
            continue
        consumer = tmp_path / f"consumer{number}"
        consumer.mkdir()
        output = consumer / "output"
        with output.open("wb") as stdout:
            child = subprocess.Popen(
                recipe.command(where, consumer),
                stdout=stdout,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=where.config.parent,  # where the accounts file is found
                env=environment,
                start_new_session=True,
            )
        written = next((name for mark, name in WRITES.items() if mark in recipe.text), "output")
        running.append((recipe, child, consumer / written, output))
    try:
        for recipe, child, shows, output in running:
            wait_until(
                lambda shows=shows: shows.exists() and b"acct-00" in shows.read_bytes(),  # type: ignore[misc]
                f"{recipe.name}: {output.read_text()}",
            )
            assert b"Traceback" not in output.read_bytes()
            status = child.poll()
            # 1 is an audit's: before the first connection there is a gap.
            assert status in (None, 0) or ("audit" in recipe.text and status == 1), recipe.name
    finally:
        for _, child, _, _ in running:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGTERM)
                child.wait(30)


def test_two_instances_give_an_event_one_id(tmp_path: Path) -> None:
    """Both read the same source; their records differ, and the ids do not."""
    with emulator(tmp_path, "--accounts", "1", "--regions", "us", "--rate", "0") as emulated:
        found = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            found.append(place(tmp_path / name, emulated.accounts, FAST))
        with service(found[0]), service(found[1]):
            for where in found:
                wait_until(lambda where=where: b'"state":"up"' in b"".join(where.lines), "up")  # type: ignore[misc]
            order = {"op": "create", "account": "acct-001", "region": "us", "image": "busybox"}
            for number in range(5):
                assert control.call(emulated.control, {**order, "name": f"c{number}"})["ok"]
            ids, lines = [], []
            for where in found:
                with Client(where.socket, after="start", kinds=["event"], limit=5) as records:
                    got = list(records)
                ids.append([event_id(record) for record in got])
                lines.append([record.line for record in got])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 5
    assert not set(lines[0]) & set(lines[1])
