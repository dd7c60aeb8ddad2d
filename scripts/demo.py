"""Three accounts in two regions of a local emulator, held by the real service, shown merged.

Everything lives in `.demo/`, made anew each time; the processes are ended by their pids.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tomli_w

from hypermux.config.places import fits_a_socket
from hypermux.config.units import UnitError, parse_duration

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path(".demo")  # in ROOT, where all of this runs
HYPERMUX = [sys.executable, "-m", "hypermux"]
# The service's own deadline for its drain is shorter.
ENDS_WITHIN_S = 60.0


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
            end(process, signal.SIGTERM)
            assert process.stdout is not None
            process.stdout.close()


def end(process: subprocess.Popen[str], how: signal.Signals) -> None:
    """End a process in order; at once when that takes too long or we are hurried."""
    try:
        process.send_signal(how)
        process.wait(timeout=ENDS_WITHIN_S)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def wait_for(path: Path, process: subprocess.Popen[str], log: Path) -> None:
    """Return when `path` exists; give up when `process` ends or after 30 s."""
    deadline = time.monotonic() + 30
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"demo: the service did not start:\n{log.read_text()}")
        time.sleep(0.02)


def main() -> int:
    """Run the demonstration; return an exit code."""
    seconds = parse()
    os.chdir(ROOT)
    # Whoever ends us by another signal than Ctrl-C wants nothing left running either.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        with ExitStack() as stack:
            lock = stack.enter_context(Path(__file__).open())
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sys.exit(f"demo: it runs already in {ROOT}: end that one first")
            return demonstrate(stack, seconds)
    except KeyboardInterrupt:
        return 130


def parse() -> float | None:
    """Read the command line; return the seconds to run for, None for until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--for", dest="seconds", type=duration, metavar="10s", help="end by itself after this"
    )
    seconds: float | None = parser.parse_args().seconds
    return seconds


def duration(text: str) -> float:
    """Read a duration for argparse."""
    try:
        return parse_duration(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def demonstrate(stack: ExitStack, seconds: float | None) -> int:
    """Start everything, what `stack` ends; show the stream and return an exit code."""
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir(mode=0o700)
    socket = ROOT / DEMO / "hypermux.sock"
    shown = str(DEMO / "hypermux.sock")
    if not fits_a_socket(socket):
        short = stack.enter_context(tempfile.TemporaryDirectory(prefix="hypermux-"))
        socket = Path(short) / "hypermux.sock"
        shown = shlex.quote(str(socket))
    config = DEMO / "accounts.toml"
    write_accounts(config, socket)

    log = DEMO / "emulator.log"
    emulator = stack.enter_context(
        running(
            *("emulate", "--accounts", "3", "--regions", "us-west-1,eu-central-1"),
            *("--rate", "1", "--seed", "7", "--write-accounts", str(DEMO / "emulated.toml")),
            *("--control", str(socket.with_name("control.sock"))),
            log=log,
        )
    )
    assert emulator.stdout is not None
    line = emulator.stdout.readline()
    if not line:
        sys.exit(f"demo: the emulator did not start:\n{log.read_text()}")
    say(f"emulator: 3 accounts x 2 regions at {json.loads(line)['url']}")
    log = DEMO / "service.log"
    service = stack.enter_context(running("run", "-c", str(config), log=log))
    wait_for(socket, service, log)
    say(f"service:  pid {service.pid}, log in {ROOT / log}")
    say("The same stream from another terminal, while this runs:")
    say(f"  cd {shlex.quote(str(ROOT))}")
    say(f"  .venv/bin/hypermux tail -c {config} --after start -o json")
    say(f"  nc -U {shown}")
    say("  jq -c 'select(.kind == \"event\") | [.account, .event.Action]' \\")
    say(f"    {DEMO}/state/journal/current.ndjson")
    say("Ctrl-C ends it." if seconds is None else f"It ends by itself after {seconds:g} s.")
    return follow(config, seconds)


def write_accounts(config: Path, socket: Path) -> None:
    """Write the accounts file that includes what the emulator will write."""
    document = {
        "include": ["emulated.toml"],
        "state_dir": "state",
        "limits": {"connect_rate": "10/s", "per_endpoint": {"connect_rate": "10/s"}},
        "socket": {"path": str(socket)},
    }
    config.touch(0o600)
    config.write_text(f"# Written by scripts/demo.\n{tomli_w.dumps(document)}")


def follow(config: Path, seconds: float | None) -> int:
    """Show the stream until Ctrl-C or for `seconds`; return an exit code."""
    tail = subprocess.Popen(
        [*HYPERMUX, "tail", "-c", str(config), "--after", "start", "-o", "line"],
        text=True,
        start_new_session=True,
    )
    try:
        code = tail.wait(timeout=seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        code = 0
    finally:
        end(tail, signal.SIGINT)
    records = sum(s.read_bytes().count(b"\n") for s in DEMO.glob("state/journal/[0-9]*.ndjson"))
    say(f"{records} records so far are in {DEMO}/state/journal; stopping the service")
    return code


def say(text: str) -> None:
    """Print to stderr: stdout is the stream's."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
