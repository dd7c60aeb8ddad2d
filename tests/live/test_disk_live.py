"""A disk that refuses, under the real service: strace gives the errors, or a tmpfs is full."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import (
    FAST,
    HYPERMUX,
    Emulator,
    Place,
    Witness,
    emulator,
    end,
    place,
    run,
    service,
    verify,
    wait_until,
)

pytestmark = [pytest.mark.live, pytest.mark.slow]

# Full within half a second, so that there is something to count.
SMALL = '[buffer]\nsize = "256KiB"\nper_source = "64KiB"'
CONNECTION = FAST + '\nmax_message_size = "32KiB"'
JOURNAL = '[journal]\nkeep_free = "0B"'


def states(where: Place, word: str) -> list[dict[str, Any]]:
    return [r for r in where.records if r.get("state") == word]


def settled(where: Place, witness: Witness, emulated: Emulator) -> None:
    """Check, after an orderly end: what was shown is what the files hold, and nothing is hidden."""
    lines = where.lines
    wait_until(lambda: len(witness.shown) >= len(lines), "the reader's last line")
    witness.done.set()
    witness.join(60)
    emulated.stop()
    assert [r["seq"] for r in where.records] == list(range(1, len(lines) + 1))
    assert witness.shown == lines
    checked = verify(where, emulated)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # And by hypermux's own look at the files.
    checked = run("journal", "verify", "-c", where.config)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    shown = run("journal", "cat", "-c", where.config)
    assert shown.stdout.encode() == b"".join(lines), shown.stderr


@pytest.mark.parametrize(
    ("injected", "words"),
    [
        ("fdatasync:error=EIO:when=12..13", "sync .*: the disk reports an input/output error"),
        ("write:error=ENOSPC:when=12+", "append to .*: the disk is full"),
    ],
)
def test_the_service_goes_on_when_the_disk_refuses(
    injected: str, words: str, tmp_path: Path
) -> None:
    if shutil.which("strace") is None:
        if os.environ.get("CI"):
            pytest.fail("strace is missing in CI")
        pytest.skip("strace is not installed")
    with emulator(tmp_path, "--accounts", "2", "--regions", "us", "--rate", "100") as emulated:
        where = place(tmp_path, emulated.accounts, CONNECTION, SMALL, JOURNAL)
        name = injected.partition(":")[0]
        strace = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={name}"]
        if name == "write":  # of this file alone, and for ever
            strace += ["-P", str(where.state / "journal" / f"{1:020}.ndjson")]
        witness = Witness(where)
        with service(where, *strace, "-e", f"inject={injected}") as child:
            witness.start()
            wait_until(lambda: states(where, "disk"), "the record of the refusal", 60)
            seen = len(where.lines)
            wait_until(lambda: len(where.lines) > seen + 100, "records afterwards")
            # strace keeps signals to itself: the service is its only child.
            children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
            os.kill(int(children), signal.SIGTERM)
            assert child.wait(120) == 0
        # One at least: strace counts the calls of each thread by itself.
        told = states(where, "disk")[0]
        assert re.search(words, told["reason"]), told
        assert re.search(words, where.log.read_text())
        assert told["from"] < told["received"]
        assert len(list((where.state / "journal").glob("[0-9]*.ndjson"))) >= 2
        settled(where, witness, emulated)


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a tmpfs of 4 MiB."""
    path.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(ballast: Path) -> None:
    """Write until nothing more fits."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with (
        small_disk(disk),
        emulator(tmp_path, "--accounts", "2", "--regions", "us", "--rate", "100") as emulated,
    ):
        where = place(tmp_path, emulated.accounts, CONNECTION, SMALL, JOURNAL)
        where.config.write_text(where.config.read_text().replace(str(where.state), f"{disk}/state"))
        where.state, ballast = disk / "state", disk / "ballast"

        def ask(path: str) -> tuple[int, bytes]:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(where.socket))
                connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            head, _, body = answer.partition(b"\r\n\r\n")
            return int(head.split()[1]), body

        def refusal() -> dict[str, Any]:
            return json.loads(ask("/status")[1])["journal"]["refusal"] or {}

        witness = Witness(where)
        with service(where) as child:
            witness.start()
            wait_until(lambda: len(witness.shown) > 50, "records")
            fill(ballast)
            wait_until(lambda: refusal().get("lost_events"), "a buffer that is full")
            line = r"the disk has refused for .*: the disk is full; \d+ events are held.*, \d+ more"
            assert re.search(line, run("status", "--socket", where.socket).stdout)
            # A restart would lose what is held: live, and not ready.
            for path, code in (("/livez", 200), ("/readyz", 503)):
                answered, body = ask(path)
                assert answered == code
                assert "the disk is full" in json.loads(body)["disk"]
            assert b"\nhypermux_journal_disk_fault 1.0\n" in ask("/metrics")[1]
            ballast.unlink()
            (told,) = wait_until(lambda: states(where, "disk"), "the record of the refusal")
            counted = re.search(
                r"the disk is full; .* and (\d+) events found the buffer", told["reason"]
            )
            assert counted is not None, told
            assert not refusal()

            def lost() -> int:
                gaps = [r for r in where.records if r.get("cause") == "overflow"]
                return sum(gap["lost"] for gap in gaps)

            # Some more, while what was held is being written.
            wait_until(lambda: lost() >= int(counted[1]) > 0, "the gaps with their counts")
            wait_until(lambda: len(witness.shown) >= told["seq"] + 50, "records afterwards")

            fill(ballast)
            wait_until(refusal, "the next refusal")
            began = time.monotonic()
            assert end(child) == 74
            assert time.monotonic() - began < 20
        assert re.search(
            r"the disk is full; since \S+ nothing was written: neither \d+ records with a number, "
            r"nor the \d+ events in the buffer, nor the \d+ that found it full",
            where.log.read_text(),
        )
        other = place(tmp_path / "run", emulated.accounts)
        other.config.write_text(f'include = ["{emulated.accounts}"]\nstate_dir = "{disk}/new"\n')
        refused = subprocess.run(
            [*HYPERMUX, "run", "-c", other.config], capture_output=True, text=True, timeout=30
        )
        assert refused.returncode == 74, refused.stderr
        assert "the disk is full" in refused.stderr

        ballast.unlink()
        seen = len(where.lines)
        with service(where) as child:
            wait_until(lambda: len(where.lines) > seen + 50, "records of the next start")
            assert end(child) == 0
        assert [r for r in where.records if r["kind"] == "gap" and r["cause"] == "restart"]
        settled(where, witness, emulated)
