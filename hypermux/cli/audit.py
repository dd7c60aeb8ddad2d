"""`hypermux audit`: whether all of an interval was received, source by source."""

from __future__ import annotations

import fnmatch
import json
import time
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hypermux.cli.journal import look, place_options
from hypermux.cli.root import readers_may_leave
from hypermux.cli.selecting import moment
from hypermux.core.auditing import Loss, Report, SourceReport, Verdict
from hypermux.core.recording import rfc3339
from hypermux.core.rendering import duration
from hypermux.core.wording import printable
from hypermux.downstream.auditing import audit
from hypermux.downstream.journal import LOCK
from hypermux.downstream.storage import is_locked
from hypermux.model.accounts import SourceId
from hypermux.model.errors import UsageFault
from hypermux.model.records import Kind

# As of `diff` and `grep`: the question was answered, and the answer is no. 75 is "ask again".
EXIT_INCOMPLETE, EXIT_UNKNOWN = 1, 75
_WIDTH_OF_A_FILE = 200
# Losses that are told one by one in the text; JSON has them all.
_TOLD = 100
_STYLES = {Verdict.COMPLETE: "green", Verdict.INCOMPLETE: "red", Verdict.UNKNOWN: "yellow"}


@click.command("audit")
@place_options
@click.option("--since", metavar="TIME", help="From a time on: RFC 3339, seconds, or 10min back.")
@click.option("--until", metavar="TIME", help="Up to a time, likewise.")
@click.option("--account", "accounts", multiple=True, metavar="GLOB", help="These accounts.")
@click.option("--region", "regions", multiple=True, metavar="GLOB", help="These regions.")
@click.option("-o", "--format", "output", type=click.Choice(["text", "json"]), default="text")
def command(
    directory: Path | None,
    config: Path | None,
    since: str | None,
    until: str | None,
    accounts: tuple[str, ...],
    regions: tuple[str, ...],
    output: Literal["text", "json"],
) -> int:
    """Say whether all that happened in a time was received, from the journal's files.

    For each source: how much of the time it was connected, its gaps, and what was recorded.
    Without --since it is all of the journal; without --until as far as the running service knows
    (up to a checkpoint ago), or now when none runs. A source counts from when it was configured
    to when it was removed.

    Exits 0 when the interval is complete for all sources selected; 1 when it is not: a gap
    reaches into it, an outage lasts on, or records of it are no longer kept; 75 when nothing is
    missing but its last seconds are not known yet; 65 when the journal is damaged.

    What an hour ago was complete stays so. Of the last minute or so it is said of what is known
    now: a connection that has died shows when its peer misses an answer (27 s), an event that an
    engine dropped at the next comparison (a minute).
    """
    since_ns = None if since is None else moment("since", since)
    until_ns = None if until is None else moment("until", until)
    now_ns = time.time_ns()
    if until_ns is not None and until_ns < (since_ns or 0):
        raise UsageFault("--until is before --since: nothing is between them")

    def wanted(source: SourceId) -> bool:
        return _any(source.account, accounts) and _any(source.region, regions)

    onlooker = look(directory, config)
    running = onlooker.told or is_locked(onlooker.directory / LOCK)
    report = audit(onlooker, since_ns, until_ns, wanted, running=running, now_ns=now_ns)
    if report.verdict is Verdict.ABSENT:
        raise UsageFault("no source that was selected was configured in that time")
    with readers_may_leave():
        if output == "json":
            click.echo(json.dumps(_document(report)))
        else:
            _show(report)
    return {Verdict.COMPLETE: 0, Verdict.UNKNOWN: EXIT_UNKNOWN}.get(report.verdict, EXIT_INCOMPLETE)


def _any(name: str, globs: tuple[str, ...]) -> bool:
    return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _document(report: Report) -> dict[str, Any]:
    return {
        "since": rfc3339(report.interval.from_ns),
        "until": rfc3339(report.interval.to_ns),
        "known_until": rfc3339(report.known_ns),
        "verdict": report.verdict.value,
        "sources": [
            {
                "account": found.source.account,
                "region": found.source.region,
                "verdict": found.verdict.value,
                "configured_seconds": found.configured_ns / 1e9,
                "connected_percent": _percent(found),
                "gaps": [
                    {
                        "from": rfc3339(loss.span.from_ns),
                        "to": rfc3339(loss.span.to_ns),
                        "seconds_within": loss.within.length_ns / 1e9,
                        "cause": loss.cause,
                        "certainty": loss.certainty,
                        "lost": loss.lost,
                    }
                    for loss in found.losses
                ],
                "records": {str(kind): found.kinds[kind] for kind in _COUNTED},
                "late": found.late,
                "replayed": found.replayed,
                "synthetic": found.synthetic,
            }
            for found in report.sources
        ],
    }


_COUNTED = (Kind.EVENT, Kind.GAP, Kind.STATE, Kind.UNPARSED)


def _percent(found: SourceReport) -> float | None:
    # Never rounded up to 100: that is for what was never away.
    return None if found.connected is None else int(found.connected * 1e6) / 1e4


def _show(report: Report) -> None:
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("source", "verdict") else "right")
    for found in report.sources:
        percent = _percent(found)
        table.add_row(
            str(found.source),
            Text(found.verdict.value, style=_STYLES.get(found.verdict, "")),
            "" if percent is None else f"{percent:.4g} %",
            _gaps(found),
            *(
                str(count or "")
                for count in (
                    found.kinds[Kind.EVENT],
                    found.late,
                    found.replayed,
                    found.synthetic,
                    found.kinds[Kind.UNPARSED],
                )
            ),
        )
    console.print(table)
    told = [(found.source, loss) for found in report.sources for loss in found.losses]
    if told:
        console.print()
    for source, loss in told[:_TOLD]:
        console.print(Text(f"{source}: {_sentence(loss)}", style="red"))
    if len(told) > _TOLD:
        console.print(f"… and {len(told) - _TOLD} more; -o json has them all")
    interval = report.interval
    words = f"{_local(interval.from_ns)} to {_local(interval.to_ns)}: {report.verdict.value}"
    if report.verdict is Verdict.UNKNOWN:
        some = report.known_ns > interval.from_ns
        words += f"; all is known up to {_local(report.known_ns)}" if some else ", nothing of it"
    console.print(Text(f"\n{words}", style=_STYLES.get(report.verdict, "")))


_COLUMNS = (
    "source", "verdict", "connected", "gaps", "events", "late", "replayed", "synthetic", "unparsed",
)  # fmt: skip


def _gaps(found: SourceReport) -> str:
    if not found.losses:
        return ""
    within_ns = sum(loss.within.length_ns for loss in found.losses)
    return f"{len(found.losses)} ({duration(within_ns)})"


def _sentence(loss: Loss) -> str:
    lost = "" if loss.lost is None else f", {loss.lost} lost"
    span = loss.span
    return (
        f"{_local(span.from_ns)} to {_local(span.to_ns)} ({duration(span.length_ns)}), "
        f"{printable(loss.cause)}, {loss.certainty}{lost}"
    )


def _local(ns: int) -> str:
    """Write a moment for people: this machine's time, to the millisecond."""
    seconds, rest = divmod(ns, 10**9)
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    return f"{clock}.{rest // 10**6:03d}"
