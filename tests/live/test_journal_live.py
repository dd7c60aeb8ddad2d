"""`hypermux journal` on a real journal: beside its service, without it, damaged, and copied."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import (
    FAST,
    HYPERMUX,
    Place,
    emulator,
    end,
    place,
    run,
    service,
    subscriber,
    wait_until,
)

pytestmark = [pytest.mark.live, pytest.mark.slow]

SMALL = '[journal]\nsegment = { size = "64KiB" }\nfsync = "100ms"'


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A service under load, whose journal has several segments."""
    directory = tmp_path_factory.mktemp("journal")
    arguments = ("--accounts", "3", "--regions", "a,b", "--rate", "40")
    with emulator(directory, *arguments) as emulated:
        where = place(directory, emulated.accounts, FAST, SMALL)
        with service(where):
            wait_until(lambda: len(files(where.state)) >= 4, "four segments", 60)
            yield where


def files(state: Path) -> list[Path]:
    return sorted((state / "journal").glob("[0-9]*.ndjson"))


def cat(*arguments: str | Path) -> bytes:
    found = subprocess.run(
        [*HYPERMUX, "journal", "cat", *map(str, arguments)], capture_output=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def read(path: Path, request: dict[str, Any]) -> bytes:
    """Return a subscription's whole stream."""
    with subscriber(path, request) as connection:
        return b"".join(iter(lambda: connection.recv(1 << 20), b""))


def has(where: Place, words: bytes) -> bool:
    return any(words in line for line in where.lines)


def copy(where: Place, to: Path, *more: str) -> Place:
    """Copy a state directory as it is this moment, and configure a service on it."""
    to.mkdir()
    done = subprocess.run(["cp", "-a", where.state, to / "state"], capture_output=True, text=True)
    # What is being written anew may be gone again before it is copied.
    assert all(".new'" in line for line in done.stderr.splitlines()), done.stderr
    return place(to, None, IDLE, *more)


# A service that receives nothing: what its journal has is what it was started with.
IDLE = '[accounts.idle]\nupstream = "docker"\nhosts = { a = "unix:///nonexistent/docker.sock" }'


def test_beside_a_running_service(running: Place) -> None:
    shown = read(running.socket, {"after": "start", "follow": False})
    printed = cat("-c", running.config)
    lines = shown.splitlines(keepends=True)[1:-1]
    assert printed.startswith(b"".join(lines))
    # All of it is synced: whatever is in the files behind it was not shown.
    later = read(running.socket, {"after": "start", "follow": False})
    assert later.splitlines(keepends=True)[1:][: printed.count(b"\n")] == printed.splitlines(True)
    asked: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("--account", "*2", "--region", "a"), {"accounts": ["*2"], "regions": ["a"]}),
        (("--filter", "event=start", "--kinds", "event"), {"filters": {"event": ["start"]}}),
        (("--since", "10min", "--limit", "50"), {"limit": 50}),
    ]
    for options, selected in asked:
        request: dict[str, Any] = {"after": "start", "follow": False, "limit": 150, **selected}
        if "--kinds" in options:
            request["kinds"] = options[options.index("--kinds") + 1].split(",")
        limit = () if "--limit" in options else ("--limit", "150")
        wanted = read(running.socket, request).splitlines(keepends=True)[1:-1]
        assert len(wanted) > 5
        got = cat("-c", running.config, *options, *limit).splitlines(keepends=True)
        assert got[: len(wanted)] == wanted  # there may be more by now
    epoch = json.loads(shown.splitlines()[0])["cursor"].partition(":")[0]
    behind = cat("-c", running.config, "--after", f"{epoch}:100", "--limit", "3")
    assert behind == b"".join(lines[100:103])
    checked = run("journal", "verify", "-c", running.config)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    listed = json.loads(run("journal", "ls", "-c", running.config, "-o", "json").stdout)
    segments = listed["segments"]
    assert len(segments) >= 4
    assert [s["last_seq"] + 1 for s in segments[:-1]] == [s["first_seq"] for s in segments[1:]]
    assert all(s["index"] for s in segments)
    assert {tuple(s["epochs"]) for s in segments} == {(epoch,)}
    table = run("journal", "ls", "-c", running.config).stdout
    assert "retention covers" in table.splitlines()[-1]
    assert run("journal", "repair", "--yes", "-c", running.config).returncode == 69


def test_a_reader_that_goes_away_ends_it_quietly(running: Place) -> None:
    found = subprocess.run(
        f"{' '.join(HYPERMUX)} journal cat -c {running.config} | head -n 1",
        shell=True,
        capture_output=True,
        timeout=60,
        executable="/bin/bash",
    )
    assert found.stdout.count(b"\n") == 1
    assert found.stderr == b""


def test_one_byte_flipped_and_the_way_out(running: Place, tmp_path: Path) -> None:
    where = copy(running, tmp_path / "damaged")
    last = files(where.state)[-1]
    last.with_suffix(".index").unlink(missing_ok=True)
    # Filled up so that the damage has synced records behind it, whatever the copy got of it.
    with service(where) as child:
        wait_until(lambda: b'"state":"down"' in where.lines[-1], "a record of our own")
        assert end(child) == 0
    cursors = read_cursors(where)
    middle, last = files(where.state)[1], files(where.state)[-1]
    lost = []
    for path, line in ((middle, 20), (last, 1)):
        data = bytearray(path.read_bytes())
        offset = len(b"".join(bytes(data).splitlines(keepends=True)[:line]))
        data[offset + 40] ^= 1
        path.write_bytes(bytes(data))
        lost.append((path, line + 1, offset, int(path.name[:20]) + line))
    lines = where.lines
    checked = run("journal", "verify", "-c", where.config)
    assert checked.returncode == 65
    for path, line, offset, seq in lost:
        place_of = f"{path}: line {line} at byte {offset} "
        assert place_of in checked.stdout
        assert f"record {seq} is lost" in checked.stdout
    assert "hypermux journal repair" in checked.stderr
    refused = run("run", "-c", where.config)
    assert refused.returncode == 65
    assert f"{last}: line 2 at byte {lost[1][2]} is damaged" in refused.stderr
    assert "hypermux journal repair" in refused.stderr
    unasked = run("journal", "repair", "-c", where.config, stdin=subprocess.DEVNULL)
    assert unasked.returncode == 64
    assert "2 lost records are replaced by gaps" in unasked.stdout
    assert where.lines == lines
    assert run("journal", "repair", "-y", "-c", where.config).returncode == 0
    assert run("journal", "verify", "-c", where.config).returncode == 0
    with service(where):
        stream = read(where.socket, {"after": cursors[0], "follow": False})
        told = [json.loads(line) for line in stream.splitlines()]
        gaps = [r for r in told if r.get("cause") == "damage"]
        assert [r["seq"] for r in gaps] == [seq for *_, seq in lost]
        records = told[1:-1]
        assert [r["seq"] for r in records] == list(range(11, 11 + len(records)))
        assert any("was repaired" in r.get("reason", "") for r in records)
        # Who had all of it goes on.
        behind = read(where.socket, {"after": cursors[1], "follow": False})
        assert b"was repaired" in behind
        assert len(set(stream.splitlines(keepends=True)) & set(lines)) == len(lines) - 10 - 2


def read_cursors(where: Place) -> tuple[str, str]:
    """Return cursors behind the tenth and the last record of a stopped service's journal."""
    manifest = (where.state / "journal" / "journal.toml").read_text()
    epochs = [part.split('"')[1] for part in manifest.split("epoch = ")[1:]]
    last = json.loads(where.lines[-1])["seq"]
    return f"{epochs[0]}:10", f"{epochs[-1]}:{last}"


def test_a_copy_made_while_the_service_runs_is_a_journal(running: Place, tmp_path: Path) -> None:
    """What `cp -a` and `rsync` get of files that grow: the last line may be torn, no more."""
    shown = read(running.socket, {"after": "start", "follow": False})
    before = shown.splitlines(keepends=True)[1:-1]
    where = copy(running, tmp_path / "copy", '[journal]\ncompress = "zstd"')
    # The lock file came along, and nobody holds it.
    assert (where.state / "journal" / "journal.lock").exists()
    last = files(where.state)[-1]
    with last.open("ab") as file:
        file.write(b'{"seq":')  # as if the copy had ended in the middle of a line
    assert cat("--dir", where.state).startswith(b"".join(before))
    checked = run("journal", "verify", "--dir", where.state)
    assert checked.returncode == 0, checked.stdout
    with service(where):
        lines = read(where.socket, {"after": "start", "follow": False}).splitlines(keepends=True)
        assert lines[1 : 1 + len(before)] == before
        wait_until(lambda: has(where, b"unsynced bytes were set aside"), "the new epoch")
        # Closed segments are compressed meanwhile, and nobody notices.
        packed = where.state / "journal"
        wait_until(lambda: len(list(packed.glob("*.zst"))) > 2, "compressed segments")
        again = read(where.socket, {"after": "start", "follow": False}).splitlines(keepends=True)
        assert again[1 : len(lines) - 1] == lines[1:-1]
        assert cat("-c", where.config).startswith(b"".join(lines[1:-1]))
        listed = run("journal", "ls", "-c", where.config).stdout.splitlines()
        assert listed[1].split()[-1] == "zstd"
        checked = run("journal", "verify", "-c", where.config)
        assert checked.returncode == 0, checked.stdout


def assert_rewritten(where: Place, asked: dict[str, Any], last: int) -> None:
    """A reader of 5,000 records after `last` is told that they are others now, and shown these."""
    begun, gap, *records = map(json.loads, read(where.socket, asked).splitlines())
    assert begun["kind"] == "subscribed"
    assert (gap["kind"], gap["cause"]) == ("gap", "rewritten")
    assert gap["lost"] + gap["seq"] == last + 5000
    assert begun["cursor"].endswith(f":{gap['seq']}")
    assert records[0]["seq"] == gap["seq"] + 1


def test_a_backup_put_back_is_told_to_whoever_has_seen_more(running: Place, tmp_path: Path) -> None:
    """Put back on another machine: another boot, and readers know records that are not there."""
    backup = copy(running, tmp_path / "backup")
    last = int(json.loads(backup.lines[-1])["seq"])
    manifest = backup.state / "journal" / "journal.toml"
    epoch = manifest.read_text().split('"')[1]
    ahead = f"{epoch}:{last + 5000}"
    asked = {"after": ahead, "follow": False}
    assert run("journal", "cat", "--dir", backup.state, "--after", ahead).returncode == 64
    with service(backup) as child:
        wait_until(lambda: has(backup, b"these files were copied"), "the new epoch")
        assert_rewritten(backup, asked, last)
        assert end(child, signal.SIGKILL) == -9
    # Under fsync = "never" the other machine's boot means that records may be missing.
    manifest.write_text(f'unsynced_boot = "of another machine"\n{manifest.read_text()}')
    with service(backup):
        wait_until(lambda: has(backup, b"the machine may have gone down"), "the new epoch")
        assert_rewritten(backup, asked, last)
    shutil.rmtree(backup.state)
