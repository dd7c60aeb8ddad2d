"""`hypermux tail`: read a running service's records, from any point on."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from hypermux.cli.filtering import read_filters
from hypermux.cli.printing import make_formatter, notice, printing_options
from hypermux.cli.sockets import find_socket, socket_options
from hypermux.core.moments import moment_ns
from hypermux.downstream.console import Color, Output, Printer, StdoutWriter
from hypermux.downstream.follow import follow
from hypermux.model.errors import UsageFault
from hypermux.model.records import Cursor, Kind

# Checkpoints are for programs that keep cursors; the other forms have nothing to show of them,
# and a limit should count what is shown.
_SHOWN = [Kind.EVENT, Kind.GAP, Kind.STATE, Kind.UNPARSED]
_SHOWN_RAW = [Kind.EVENT, Kind.GAP, Kind.UNPARSED]


@click.command("tail")
@socket_options
@click.option("--after", metavar="CURSOR|start", help="Begin behind EPOCH:SEQ, or at the start.")
@click.option("--since", metavar="TIME", help="From a time on: RFC 3339, seconds, or 10min back.")
@click.option("--until", metavar="TIME", help="Up to a time, likewise; ends there.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="As docker events.")
@click.option("--account", "accounts", multiple=True, metavar="GLOB", help="These accounts.")
@click.option("--region", "regions", multiple=True, metavar="GLOB", help="These regions.")
@click.option("--kinds", multiple=True, metavar="KIND[,KIND]", help="Kinds of records.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="End after so many records.")
@click.option("--no-follow", is_flag=True, help="End at what is there now.")
@printing_options
def command(
    socket_path: Path | None,
    config: Path | None,
    after: str | None,
    since: str | None,
    until: str | None,
    filters: tuple[str, ...],
    accounts: tuple[str, ...],
    regions: tuple[str, ...],
    kinds: tuple[str, ...],
    limit: int | None,
    no_follow: bool,
    output: Output | None,
    color: Color,
) -> None:
    """Print the records of a running service: from now on, or from any point.

    A service that restarts is waited for and read on without a gap or a repeat. Selecting by
    account, region or filter never hides a loss: gap and state records of the accounts and
    regions selected are shown, too, unless --kinds leaves them out. Ctrl-C ends it, with
    exit code 0.
    """
    formatter = make_formatter(output, color)
    request: dict[str, Any] = {}
    if after is not None:
        request["after"] = _checked_after(after)
    for key, moment in (("since", since), ("until", until)):
        if moment is not None:
            request[key] = _moment(key, moment)
    if filters:
        request["filters"] = read_filters(filters).encode()
    if accounts:
        request["accounts"] = list(accounts)
    if regions:
        request["regions"] = list(regions)
    wanted = [kind for text in kinds for kind in text.split(",") if kind]
    if not wanted and formatter.output != "json":
        wanted = [*(_SHOWN_RAW if formatter.output == "raw" else _SHOWN)]
    if wanted:
        request["kinds"] = wanted
    if limit is not None:
        request["limit"] = limit
    if no_follow:
        request["follow"] = False
    print_records(socket_path or find_socket(config), request, formatter)


def print_records(path: Path, request: Mapping[str, Any], printer: Printer) -> None:
    """Print a service's records on stdout until the request is fulfilled, or until Ctrl-C.

    Raises Unreachable, UsageFault for a refused request, BrokenStdout and DiskFault.
    """
    writer = StdoutWriter()
    rng = random.Random()
    with contextlib.suppress(KeyboardInterrupt):
        for block in follow(
            path,
            request,
            notice=notice,
            sleep=time.sleep,
            rng=rng,
            before_wait=writer.wait_unless_gone,
            began=_tell_cursor,
        ):
            writer.write(printer.format(block))


def _tell_cursor(cursor: Cursor) -> None:
    """Show a person where the stream begins: the epoch is in no record."""
    if sys.stderr.isatty():
        notice(f"reading after {cursor}")


def _checked_after(text: str) -> str:
    if text in ("start", "live"):
        return text
    try:
        return str(Cursor.parse(text))
    except ValueError as error:
        raise UsageFault(f"--after: {error}; or start") from None


def _moment(option: str, text: str) -> str:
    """Return a time as the service takes it. A duration counts back from now, once and for all."""
    try:
        moment = moment_ns(text, time.time_ns())
    except ValueError as error:
        form = str(error)
        try:
            local = datetime.fromisoformat(text)  # without an offset: this machine's time
            moment = int(local.astimezone().timestamp()) * 10**9 + local.microsecond * 1000
        except (ValueError, OverflowError):  # at the ends of the calendar
            moment = -1
        if moment < 0:
            raise UsageFault(f"--{option}: {form}") from None
    return f"{moment // 10**9}.{moment % 10**9:09d}"
