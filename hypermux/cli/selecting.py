"""The options of every command that shows a part of the stream, and the request they make."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

from hypermux.cli.filtering import read_filters
from hypermux.core.moments import moment_ns
from hypermux.downstream.console import Output
from hypermux.model.errors import UsageFault
from hypermux.model.records import Cursor, Kind

F = TypeVar("F", bound=Callable[..., Any])

# Checkpoints are for programs that keep cursors; the other forms have nothing to show of them,
# and a limit should count what is shown.
_SHOWN = [Kind.EVENT, Kind.GAP, Kind.STATE, Kind.UNPARSED]
_SHOWN_RAW = [Kind.EVENT, Kind.GAP, Kind.UNPARSED]

_OPTIONS = (
    click.option("--after", metavar="CURSOR|start", help="Begin behind EPOCH:SEQ, or at start."),
    click.option("--since", metavar="TIME", help="From then on: RFC 3339, seconds, or 10min back."),
    click.option("--until", metavar="TIME", help="Up to a time, likewise; ends there."),
    click.option(
        "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="As docker events."
    ),
    click.option("--account", "accounts", multiple=True, metavar="GLOB", help="These accounts."),
    click.option("--region", "regions", multiple=True, metavar="GLOB", help="These regions."),
    click.option("--kinds", multiple=True, metavar="KIND[,KIND]", help="Kinds of records."),
    click.option("--limit", type=click.IntRange(min=1), help="End after so many records."),
)


def selection_options(function: F) -> F:
    """Add to a command what `build_request` takes."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def build_request(
    output: Output,
    *,
    after: str | None,
    since: str | None,
    until: str | None,
    filters: Sequence[str],
    accounts: Sequence[str],
    regions: Sequence[str],
    kinds: Sequence[str],
    limit: int | None,
    checkpoints: bool = True,
) -> dict[str, Any]:
    """Return the request, as a service takes it, for what is to be shown in the form `output`.

    Without `checkpoints` they are not even among all that is asked for. Raises UsageFault.
    """
    request: dict[str, Any] = {}
    if after is not None:
        request["after"] = _checked_after(after)
    for key, text in (("since", since), ("until", until)):
        if text is not None:
            request[key] = _written(moment(key, text))
    if filters:
        request["filters"] = read_filters(filters).encode()
    if accounts:
        request["accounts"] = list(accounts)
    if regions:
        request["regions"] = list(regions)
    wanted = [kind for text in kinds for kind in text.split(",") if kind]
    if not wanted and (output != "json" or not checkpoints):
        wanted = [*(_SHOWN_RAW if output == "raw" else _SHOWN)]
    if wanted:
        request["kinds"] = wanted
    if limit is not None:
        request["limit"] = limit
    return request


def _checked_after(text: str) -> str:
    if text in ("start", "live"):
        return text
    try:
        return str(Cursor.parse(text))
    except ValueError as error:
        raise UsageFault(f"--after: {error}; or start") from None


def moment(option: str, text: str) -> int:
    """Return a time in nanoseconds since 1970. A duration counts back from now, once and for all.

    Raises UsageFault.
    """
    try:
        return moment_ns(text, time.time_ns())
    except ValueError as error:
        form = str(error)
    try:
        local = datetime.fromisoformat(text)  # without an offset: this machine's time
        found = int(local.astimezone().timestamp()) * 10**9 + local.microsecond * 1000
    except (ValueError, OverflowError):  # at the ends of the calendar
        found = -1
    if found < 0:
        raise UsageFault(f"--{option}: {form}")
    return found


def _written(moment: int) -> str:
    return f"{moment // 10**9}.{moment % 10**9:09d}"
