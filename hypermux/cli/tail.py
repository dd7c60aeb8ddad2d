"""`hypermux tail`: read a running service's records, from any point on."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import click

from hypermux.cli.consuming import Consumer, Handing, Place, Printing, end_cut_line
from hypermux.cli.printing import make_formatter, notice, printing_options
from hypermux.cli.selecting import build_request, selection_options
from hypermux.cli.sockets import find_socket, socket_options
from hypermux.downstream.console import Color, Output, Printer, StdoutWriter
from hypermux.downstream.follow import Block
from hypermux.downstream.follow import follow as follow_stream
from hypermux.downstream.handing import Command
from hypermux.downstream.lookback import begin_of_last
from hypermux.model.errors import UsageFault
from hypermux.model.records import Cursor

# A selection may have nothing for days: the cursor moves so often without, and after a restart that
# much is looked through again.
_HEARTBEAT = "5s"

SignalHandler: TypeAlias = Callable[[int, FrameType | None], None]


@click.command("tail")
@socket_options
@selection_options
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Begin with the last N records.")
@click.option(
    "-f", "--follow/--no-follow", default=True, help="Go on (the default), or end at what is there."
)
@click.option("--cursor-file", metavar="FILE", help="Keep the place there, and begin there.")
@click.option("--exec", "run", metavar="CMD", help="Run a shell command for each record.")
@printing_options
def command(
    socket_path: Path | None,
    config: Path | None,
    lines: int | None,
    follow: bool,
    cursor_file: str | None,
    run: str | None,
    output: Output | None,
    color: Color,
    **selection: Any,
) -> None:
    """Print the records of a running service: from now on, or from any point.

    A service that restarts is waited for and read on without a gap or a repeat. Selecting by
    account, region or filter never hides a loss: gap and state records of the accounts and
    regions selected are shown, too, unless --kinds leaves them out. Ctrl-C and SIGTERM end it,
    with exit code 0.

    --cursor-file: a FILE that holds a cursor is where to begin; otherwise --after start, --since
    or -n say so, for the first time. It is written while records are printed, behind each write:
    after a kill -9 the last block (128 KiB at the most) may come again, and none is missing.

    --exec: CMD has a record on its standard input, as JSON unless -o says otherwise, and its
    cursor in HYPERMUX_CURSOR. When it fails it is run again for the same record, less and less
    often; the cursor moves when it has exited with 0.
    """
    if lines is not None and selection["after"] is not None:
        raise UsageFault("-n counts back from the end and --after names a place: choose one")
    formatter = make_formatter(output or (None if run is None else "json"), color)
    request = build_request(formatter.output, checkpoints=run is None, **selection)
    if not follow:
        request["follow"] = False
    path = socket_path or find_socket(config)
    place = Place() if cursor_file is None else Place.open(cursor_file)
    with place:
        goes_on = cursor_file is not None and _goes_on(request, place, cursor_file)
        if cursor_file is not None:
            end_cut_line()
            request["heartbeat"] = _HEARTBEAT
        consumer: Consumer = Printing(formatter, place=place)
        stop: SignalHandler = _interrupt
        if run is not None:
            handed = Command(run, notice, time.sleep, random.Random(), StdoutWriter().gone)
            consumer, stop = Handing(formatter, handed, place), handed.stop
        try:
            with _signals(stop):
                consume(path, request, consumer, last=None if goes_on else lines)
        except UsageFault as error:
            if not goes_on:
                raise
            raise UsageFault(f"{error} (remove {cursor_file} to begin anew)") from None


def print_records(path: Path, request: Mapping[str, Any], printer: Printer) -> None:
    """Print a service's records on stdout until the request is fulfilled, Ctrl-C or SIGTERM.

    Raises Unreachable, UsageFault for a refused request, BrokenStdout and DiskFault.
    """
    with _signals(_interrupt):
        consume(path, request, Printing(printer))


def consume(
    path: Path, request: Mapping[str, Any], consumer: Consumer, *, last: int | None = None
) -> None:
    """Give a service's records to a consumer until the request is fulfilled, or until Ctrl-C.

    With `last` it begins so many records before the end. Raises Unreachable, UsageFault for a
    refused request, and what the consumer raises.
    """
    before_wait = StdoutWriter().wait_unless_gone

    def began(cursor: Cursor) -> None:
        _tell_cursor(cursor)
        # A cursor that was asked with stands until something has come: the first thing may be the
        # gap that tells of records that were cut off, and behind it nobody is told again.
        if request.get("after", "live") in ("start", "live"):
            consumer.take(Block(b"", cursor))

    with contextlib.suppress(KeyboardInterrupt):
        if last is not None:
            after = begin_of_last(path, request, last, notice=notice, before_wait=before_wait)
            request = {**request, "after": after}
        for block in follow_stream(
            path,
            request,
            notice=notice,
            sleep=time.sleep,
            rng=random.Random(),
            before_wait=before_wait,
            began=began,
            read_size=consumer.read_size,
        ):
            consumer.take(block)


def _goes_on(request: dict[str, Any], place: Place, file: str) -> bool:
    """Have the request begin where the cursor file says; say whether it says anything.

    Raises UsageFault where the command line says something else.
    """
    cursor = place.cursor
    if cursor is None:
        return False
    if request.get("after", "start") != "start":
        raise UsageFault(f"--after {request['after']}, but {file} holds {cursor}: choose one")
    request["after"] = cursor
    # It was where to begin the first time; what lies behind the cursor is wanted whatever its age.
    request.pop("since", None)
    return True


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _signals(stop: SignalHandler) -> Iterator[None]:
    """Have SIGTERM end us as Ctrl-C does. What whoever started us chose to ignore stays ignored."""
    heeded = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_cursor(cursor: Cursor) -> None:
    """Show a person where the stream begins: the epoch is in no record."""
    if sys.stderr.isatty():
        notice(f"reading after {cursor}")
