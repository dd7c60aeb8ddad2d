"""Keys that change, clocks that are wrong and streams that fall silent, with real processes."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from processes import (
    FAST,
    HYPERMUX,
    LIMITS,
    Emulator,
    Place,
    emulator,
    end,
    place,
    process,
    service,
    subscriber,
    verify,
    wait_until,
)

from hypermux.emulator.control import call

pytestmark = [pytest.mark.live, pytest.mark.slow]

# When a pong is late by more than this, the peer is dead: 15 s and a tenth, then 10 s.
NOTICED_S = 27.0


def of(where: Place, kind: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the records of a kind that have these fields."""
    records = where.records if where.state.exists() else []
    return [
        r
        for r in records
        if r["kind"] == kind and all(r.get(key) == value for key, value in fields.items())
    ]


def seconds(time_text: str) -> float:
    """Return a record's time in seconds since 1970."""
    return datetime.fromisoformat(f"{time_text[:26]}+00:00").timestamp()


@contextmanager
def router(directory: Path, *arguments: str) -> Iterator[Emulator]:
    """An emulator with one source over TLS."""
    given = ("--accounts", "1", "--regions", "us", "--rate", "50", *arguments)
    with emulator(directory, *given) as emulated:
        yield emulated


def rewritten(emulated: Emulator, *lines: str) -> str:
    """Have the accounts file say `lines` instead of the secret key; return the key."""
    found: list[str] = []
    key = ""
    for line in emulated.accounts.read_text().splitlines():
        if line.startswith("secret_key ="):
            key = json.loads(line.partition("=")[2])
            found += lines
        elif not (line.startswith("access_key") and any("process" in new for new in lines)):
            found.append(line)
    emulated.accounts.write_text("\n".join(found) + "\n")
    return key


def key_file(path: Path, key: str) -> None:
    """Put a key in place, as a careful program does."""
    beside = path.with_suffix(".new")
    beside.write_text(key)
    beside.chmod(0o600)
    beside.replace(path)


def answers(emulated: Emulator) -> list[int]:
    """Return how the emulator answered each handshake so far."""
    lines = emulated.accept_log.read_bytes().splitlines(keepends=True)
    return [json.loads(line)["answer"] for line in lines if line.endswith(b"\n")]


def test_a_corrected_key_file_lets_a_denied_source_in_at_once(tmp_path: Path) -> None:
    with router(tmp_path) as emulated:
        key = rewritten(emulated, 'secret_key_file = "the.key"')
        key_file(tmp_path / "the.key", "wrong")
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where):
            wait_until(lambda: of(where, "state", verdict="denied"), "denied")
            corrected_s = time.time()
            key_file(tmp_path / "the.key", key)
            wait_until(lambda: of(where, "state", state="up"), "up", 10)
            assert time.time() - corrected_s < 8
            wait_until(lambda: len(of(where, "event")) > 5, "events")
        assert "wrong" not in where.log.read_text()
        (gap,) = of(where, "gap")
        assert gap["cause"] == "denied"
        emulated.stop()
        assert answers(emulated) == [401, 101], "looked at once, and once more"


def test_sighup_lets_a_denied_source_try_at_once(tmp_path: Path) -> None:
    """What was wrong was mended at the server's end: nothing here tells of it."""
    with router(tmp_path) as emulated:
        call(emulated.control, {"op": "rekey", "account": "acct-001", "secret": "another"})
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where) as child:
            wait_until(lambda: of(where, "state", verdict="denied"), "denied")
            (key,) = (
                json.loads(line.partition("=")[2])
                for line in emulated.accounts.read_text().splitlines()
                if line.startswith("secret_key =")
            )
            call(emulated.control, {"op": "rekey", "account": "acct-001", "secret": key})
            child.send_signal(signal.SIGHUP)
            wait_until(lambda: of(where, "state", state="up"), "up", 10)
        emulated.stop()
        assert answers(emulated) == [401, 101]


def test_a_rotated_key_is_moved_to_without_a_gap(tmp_path: Path) -> None:
    with router(tmp_path) as emulated:
        key = rewritten(emulated, 'secret_key_file = "the.key"')
        key_file(tmp_path / "the.key", key)
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where):
            wait_until(lambda: len(of(where, "event")) > 5, "events")
            call(emulated.control, {"op": "rekey", "account": "acct-001", "secret": "another"})
            key_file(tmp_path / "the.key", "another")

            def moved() -> bool:
                reply = call(emulated.control, {"op": "connections"})
                return [c["connection"] for c in reply["connections"]] == [2]

            wait_until(moved, "a connection with the new key, alone", 15)
            # One that the server refuses leaves the connection alone.
            key_file(tmp_path / "the.key", "nonsense")
            wait_until(lambda: "did not take the old one's place" in where.log.read_text(), "told")
            count = len(of(where, "event"))
            wait_until(lambda: len(of(where, "event")) > count + 20, "it goes on")
            assert moved()
        assert [gap["cause"] for gap in of(where, "gap")] == ["start"]
        assert [r["cause"] for r in of(where, "state", state="down")] == ["start", "stopped"]
        emulated.stop()
        assert answers(emulated)[:2] == [101, 101]
        assert verify(where, emulated).returncode == 0


PROGRAM = """\
import datetime, json, pathlib, sys
here = pathlib.Path(sys.argv[1])
with (here / "asked").open("a") as file:
    file.write("x")
if (here / "broken").exists():
    sys.exit(3)
end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=12)
print(json.dumps({"AccessKeyId": sys.argv[2], "SecretAccessKey": (here / "secret").read_text(),
                  "Expiration": end.isoformat()}))
"""


def test_a_program_is_asked_before_its_key_ends_and_may_fail(tmp_path: Path) -> None:
    with router(tmp_path) as emulated:
        (tmp_path / "program.py").write_text(PROGRAM)
        text = emulated.accounts.read_text().splitlines()
        access = next(json.loads(line.partition("=")[2]) for line in text if "access_key" in line)
        command = shlex.join(
            [sys.executable, "-I", "-S", str(tmp_path / "program.py"), str(tmp_path), access]
        )
        key = rewritten(emulated, f"credential_process = {json.dumps(command)}")
        (tmp_path / "secret").write_text(key)
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where):
            wait_until(lambda: len(of(where, "event")) > 5, "events")
            asked = tmp_path / "asked"
            wait_until(lambda: asked.stat().st_size >= 2, "asked again before 12 s", 12)
            (tmp_path / "broken").touch()
            count = asked.stat().st_size
            wait_until(lambda: asked.stat().st_size >= count + 3, "asked on and on", 30)
            (tmp_path / "secret").write_text("a-third-one")
            call(emulated.control, {"op": "rekey", "account": "acct-001", "secret": "a-third-one"})
            (tmp_path / "broken").unlink()

            def moved() -> bool:
                reply = call(emulated.control, {"op": "connections"})
                return [c["connection"] for c in reply["connections"]] == [2]

            wait_until(moved, "a connection with the new key, alone", 30)
        log = where.log.read_text()
        assert log.count("no new key: ") == 1, "said once"
        assert "its key can be read again" in log
        assert key not in log
        assert [gap["cause"] for gap in of(where, "gap")] == ["start"]
        emulated.stop()
        assert answers(emulated) == [101, 101]
        assert verify(where, emulated).returncode == 0


@pytest.mark.parametrize("ahead_s", [600, 86_400])
def test_a_clock_that_is_behind_the_servers(tmp_path: Path, ahead_s: int) -> None:
    with router(tmp_path) as emulated:
        call(emulated.control, {"op": "clock", "seconds": ahead_s})
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where):
            wait_until(lambda: of(where, "state", state="up"), "up")
            call(emulated.control, {"op": "drop"})
            wait_until(lambda: len(of(where, "state", state="up")) == 2, "up again")
        emulated.stop()
        assert answers(emulated) == [401, 101, 101], "one attempt more, once"
        told = [r["reason"] for r in of(where, "state", state="clock") if "signed" in r["reason"]]
        assert len(told) == 1
        assert "behind the server's: requests are signed with the server's time" in told[0]


def test_a_corrected_authority_lets_an_untrusted_source_in_at_once(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with router(tmp_path) as emulated, router(tmp_path / "other") as other:
        right = Path(emulated.ready["ca"]).read_text()
        wrong = Path(other.ready["ca"]).read_text()
        Path(emulated.ready["ca"]).write_text(wrong)
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where):
            wait_until(lambda: of(where, "state", verdict="untrusted"), "untrusted")
            Path(emulated.ready["ca"]).write_text(right)
            wait_until(lambda: of(where, "state", state="up"), "up", 10)


def test_a_redirect_is_told_and_not_followed(tmp_path: Path) -> None:
    with router(tmp_path) as emulated:
        order = {"op": "refuse", "status": 307, "location": "https://elsewhere.test/e?token=x"}
        call(emulated.control, order)
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where):
            wait_until(lambda: of(where, "state", verdict="misconfigured"), "misconfigured")
        (down,) = of(where, "state", verdict="misconfigured")
        assert "to https://elsewhere.test/e?…: not followed" in down["reason"]


def test_a_mute_stream_is_quiet_and_connected_anew(tmp_path: Path) -> None:
    with router(tmp_path) as emulated:
        where = place(
            tmp_path,
            emulated.accounts,
            FAST,
            '[defaults]\nexpect_event_within = "2s"\non_quiet = "redial"',
        )
        with service(where):
            wait_until(lambda: len(of(where, "event")) > 20, "events")
            call(emulated.control, {"op": "mute"})
            wait_until(lambda: of(where, "state", state="active"), "active again", 20)
            count = len(of(where, "event"))
            wait_until(lambda: len(of(where, "event")) > count + 20, "events")
        states = [r["state"] for r in of(where, "state") if "account" in r]
        assert states == ["down", "up", "quiet", "down", "up", "active", "down"]
        (quiet,) = of(where, "state", state="quiet")
        assert quiet["reason"].startswith("no event for 2.0 s")
        assert [gap["cause"] for gap in of(where, "gap")] == ["start", "quiet"]


def test_a_stopped_server_is_noticed_in_time_and_a_stalled_reader_is_no_stopped_server(
    tmp_path: Path,
) -> None:
    """With the default ping: nothing happens to a connection whose readers stall, for as long as
    a dead peer would be noticed; then the server stops, and comes back."""
    with emulator(
        tmp_path, "--accounts", "1", "--regions", "east,west", "--rate", "200"
    ) as emulated:
        where = place(tmp_path, emulated.accounts, LIMITS)
        (tmp_path / "watch").mkdir()
        alone = place(tmp_path / "watch", emulated.accounts, LIMITS)
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        watch = [*HYPERMUX, "watch", "-c", str(alone.config), "-o", "json"]
        with (
            service(where),
            subscriber(where.socket, {"after": "start"}),
            (tmp_path / "watch.log").open("wb") as log,
            process(*watch, stdout=writing, stderr=log) as watching,
        ):
            os.close(writing)
            wait_until(lambda: len(of(where, "state", state="up")) == 2, "both are up")
            wait_until(lambda: answers(emulated) == [101] * 4, "watch's too")
            # Neither the subscriber nor the pipe is read from.
            time.sleep(NOTICED_S + 5)
            assert len(of(where, "state", state="down")) == 2, "the start's alone"
            assert watching.poll() is None, (tmp_path / "watch.log").read_text()
            assert answers(emulated) == [101] * 4, "nobody connected anew"

            stopped_s = time.time()
            emulated.child.send_signal(signal.SIGSTOP)
            try:
                wait_until(
                    lambda: len(of(where, "state", cause="silent")) == 2,
                    "both are down",
                    NOTICED_S + 5,
                )
            finally:
                emulated.child.send_signal(signal.SIGCONT)
            for down in of(where, "state", cause="silent"):
                assert seconds(down["time"]) - stopped_s < NOTICED_S
                # What came before the stop was received: the outage begins there.
                assert abs(seconds(down["from"]) - stopped_s) < 1.5
            wait_until(lambda: len(of(where, "state", state="up")) == 4, "both are back", 60)
            os.close(reading)
        for region in ("east", "west"):
            gaps = of(where, "gap", region=region)
            assert [gap["cause"] for gap in gaps] == ["start", "silent"], "exactly one"


@pytest.mark.parametrize("stands_still", [False, True])
def test_a_stop_tells_a_server_that_is_there_from_one_that_was_dead(
    tmp_path: Path, stands_still: bool
) -> None:
    with router(tmp_path) as emulated:
        where = place(tmp_path, emulated.accounts, FAST)
        with service(where) as child:
            wait_until(lambda: len(of(where, "event")) > 20, "events")
            silent_s = time.time()
            if stands_still:
                emulated.child.send_signal(signal.SIGSTOP)
                time.sleep(2)  # nothing is heard for so long
            asked_s = time.time()
            try:
                assert end(child) == 0
            finally:
                emulated.child.send_signal(signal.SIGCONT)
            assert time.time() - asked_s < 5
        down = of(where, "state", state="down")[-1]
        assert down["cause"] == "stopped"
        began_s = seconds(down["from"])
        if stands_still:
            assert began_s < silent_s + 1
        else:
            assert asked_s - 1.5 < began_s


def test_stdout_and_stderr_of_subprocesses_hold_no_key(tmp_path: Path) -> None:
    with router(tmp_path) as emulated:
        key = rewritten(emulated, 'secret_key_file = "the.key"')
        key_file(tmp_path / "the.key", key + "x")
        where = place(tmp_path, emulated.accounts, FAST, '[log]\nlevel = "debug"')
        with service(where):
            wait_until(lambda: of(where, "state", verdict="denied"), "denied")
            key_file(tmp_path / "the.key", key)
            wait_until(lambda: of(where, "state", state="up"), "up", 10)
        assert key not in where.log.read_text()
        found = subprocess.run(["grep", "-rlF", key, str(where.state)], capture_output=True)
        assert not found.stdout


def test_too_few_descriptors_are_our_own_shortage(tmp_path: Path) -> None:
    with emulator(
        tmp_path, "--accounts", "5", "--regions", "a,b,c,d,e,f", "--rate", "5"
    ) as emulated:
        where = place(tmp_path, emulated.accounts, LIMITS)
        with service(where, "prlimit", "--nofile=32:32") as child:
            wait_until(lambda: of(where, "state", cause="shortage"), "some are down for want of it")
            up = len(of(where, "state", state="up"))
            assert 0 < up < 30
            wait_until(lambda: len(of(where, "event")) > 100, "the others bring events")
            assert end(child) == 0, "and the journal was written to the end"
        causes = {r["cause"] for r in of(where, "state", state="down")}
        assert causes == {"start", "shortage", "stopped"}, "nobody is unreachable"
        assert where.log.read_text().count("too many open files") == 1, "said once for all"
        emulated.stop()
        assert verify(where, emulated).returncode == 0
