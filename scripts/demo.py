"""Three accounts in two regions of a local emulator, held by the real service, shown merged.

Everything lives in `.demo/`, made anew each time; the processes are ended by their pids.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hypermux.config.places import MAX_SOCKET_PATH
from hypermux.config.units import parse_duration

DEMO = Path(".demo")
HYPERMUX = [sys.executable, "-m", "hypermux"]
ACCOUNTS = """\
# Written by scripts/demo.
include = ["emulated.toml"]
state_dir = "state"

[limits]
connect_rate = "10/s"
per_endpoint = {{ connect_rate = "10/s" }}

[socket]
path = "{socket}"
"""


@contextmanager
def running(*command: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `command` in a session of its own, so that Ctrl-C reaches this script alone."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*HYPERMUX, *command],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            assert process.stdout is not None
            process.stdout.close()


def wait_for(path: Path, process: subprocess.Popen[str], log: Path) -> None:
    """Return when `path` exists; give up when `process` ends or after 30 s."""
    deadline = time.monotonic() + 30
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"demo: the service did not start:\n{log.read_text()}")
        time.sleep(0.02)


def main() -> int:
    """Run the demonstration; return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--for", dest="duration", metavar="10s", help="end by itself after this")
    arguments = parser.parse_args()
    seconds = parse_duration(arguments.duration) if arguments.duration else None
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir(mode=0o700)
    with ExitStack() as stack:
        socket = (DEMO / "hypermux.sock").absolute()
        if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
            short = stack.enter_context(tempfile.TemporaryDirectory(prefix="hypermux-"))
            socket = Path(short) / "hypermux.sock"
        config = DEMO / "accounts.toml"
        config.write_text(ACCOUNTS.format(socket=socket))
        config.chmod(0o600)

        emulator = stack.enter_context(
            running(
                *("emulate", "--accounts", "3", "--regions", "us-west-1,eu-central-1"),
                *("--rate", "1", "--seed", "7", "--write-accounts", str(DEMO / "emulated.toml")),
                *("--control", str(socket.with_name("control.sock"))),
                log=DEMO / "emulator.log",
            )
        )
        assert emulator.stdout is not None
        line = emulator.stdout.readline()
        if not line:
            sys.exit(f"demo: the emulator did not start:\n{(DEMO / 'emulator.log').read_text()}")
        say(f"emulator: 3 accounts x 2 regions at {json.loads(line)['url']}")
        log = DEMO / "service.log"
        service = stack.enter_context(running("run", "-c", str(config), log=log))
        wait_for(socket, service, log)
        say(f"service:  pid {service.pid}, log in {log}")
        say("The same stream from another terminal, while this runs:")
        say(f"  .venv/bin/hypermux tail -c {config} --after start -o json")
        say(f"  nc -U {os.path.relpath(socket) if DEMO.absolute() in socket.parents else socket}")
        say("  jq -c 'select(.kind == \"event\") | [.account, .event.Action]' \\")
        say(f"    {DEMO}/state/journal/current.ndjson")
        say("Ctrl-C ends it." if seconds is None else f"It ends by itself after {seconds:g} s.")
        return follow(config, seconds)


def follow(config: Path, seconds: float | None) -> int:
    """Show the stream until Ctrl-C or for `seconds`; return an exit code."""
    tail = subprocess.Popen(
        [*HYPERMUX, "tail", "-c", str(config), "--after", "start", "-o", "line"],
        start_new_session=True,
    )
    try:
        code = tail.wait(timeout=seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        tail.send_signal(signal.SIGINT)
        tail.wait(timeout=30)
        code = 0
    records = sum(s.read_bytes().count(b"\n") for s in DEMO.glob("state/journal/[0-9]*.ndjson"))
    say(f"{records} records so far are in {DEMO}/state/journal; stopping the service")
    return code


def say(text: str) -> None:
    """Print to stderr: stdout is the stream's."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
