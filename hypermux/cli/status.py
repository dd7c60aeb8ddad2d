"""`hypermux status`: how a running service and each of its sources fares."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
from attrs import evolve
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hypermux.cli.root import readers_may_leave
from hypermux.cli.sockets import find_socket, socket_options
from hypermux.config.units import format_rate, format_size
from hypermux.core.recording import parse_rfc3339
from hypermux.core.rendering import duration
from hypermux.core.wording import printable
from hypermux.downstream.asking import ask
from hypermux.model.errors import Unreachable
from hypermux.model.status import FORMAT, SourceStatus, Status, Throttled

# A service under full load answers within a round of its loop; this covers a stopped disk.
ANSWER_S = 10.0
# Connected: what comes is received.
UP = frozenset({"proving", "live", "quiet"})
# Enough for what a line says when nobody's terminal limits it.
_WIDTH_OF_A_FILE = 200
_STYLES: Mapping[str, str] = {
    **dict.fromkeys(("live", "proving"), "green"),
    **dict.fromkeys(("waiting", "dialing", "draining", "quiet"), "yellow"),
}


@click.command("status")
@socket_options
@click.option("-o", "--format", "output", type=click.Choice(["text", "json"]), default="text")
@click.option("--account", "accounts", multiple=True, metavar="GLOB", help="These accounts.")
@click.option("--state", "states", multiple=True, metavar="NAME", help="In these states: live, …")
@click.option("--ready", is_flag=True, help="Exit 69 unless every source shown is connected.")
def command(
    socket_path: Path | None,
    config: Path | None,
    output: Literal["text", "json"],
    accounts: tuple[str, ...],
    states: tuple[str, ...],
    ready: bool,
) -> None:
    """Show how a running service and each of its sources fares.

    As JSON it is the service's own document (GET /status on its socket), less the sources that
    were not asked for. Exits 69 when no service answers.
    """
    path = socket_path or find_socket(config)
    answer = ask(path, "GET", "/status", timeout_s=ANSWER_S)
    if answer.status != 200:
        raise Unreachable(f"the service at {path} does not tell its state: {answer.error}")

    def wanted(account: str, state: str) -> bool:
        return (not accounts or any(fnmatch.fnmatchcase(account, glob) for glob in accounts)) and (
            not states or state in states
        )

    if output == "json":
        with readers_may_leave():
            click.echo(
                answer.body if not accounts and not states else _less(answer.body, wanted), nl=False
            )
    status = _read(answer.body)
    chosen = tuple(s for s in status.sources if wanted(s.account, s.state))
    if output == "text":
        with readers_may_leave():
            _show(evolve(status, sources=chosen))
    if ready and not chosen:
        raise Unreachable("no source was selected: none is connected")
    down = [source for source in chosen if source.state not in UP]
    if ready and down:
        raise Unreachable(f"{len(down)} of {len(chosen)} sources are not connected")


def _read(body: bytes) -> Status:
    try:
        status = msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError as error:
        reason = printable(str(error))
        raise Unreachable(f"the service's state does not read: {reason}; see -o json") from None
    if status.format != FORMAT:
        raise Unreachable(f"the service's state has format {status.format}; see -o json")
    return status


def _less(body: bytes, wanted: Any) -> bytes:
    """Return the document with the sources that are wanted."""
    document = json.loads(body)
    document["sources"] = [s for s in document["sources"] if wanted(s["account"], s["state"])]
    return json.dumps(document).encode() + b"\n"


def _show(status: Status) -> None:
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    if status.sources:
        console.print(_table(status))
        console.print()
    for line, style in _lines(status):
        console.print(Text(printable(line, 4000), style=style))


def _table(status: Status) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "source",
        "state",
        "since",
        "last event",
        "events",
        "gaps",
        "offset",
        "remarks",
    ):
        right = name in ("events", "gaps", "offset")
        table.add_column(name, overflow="fold", justify="right" if right else "left")
    for source in status.sources:
        cells = (
            f"{source.account}/{source.region}",
            source.state,
            _ago(status, source.since),
            _ago(status, source.last_event),
            str(source.events.recorded),
            _gaps(source),
            f"{source.offset_seconds:+.1f} s" if source.offset_seconds else "",
            _remark(status, source),
        )
        style = _STYLES.get(source.state, "red")
        table.add_row(
            *(
                Text(printable(cell, 1000), style=style if index == 1 else "")
                for index, cell in enumerate(cells)
            )
        )
    return table


def _gaps(source: SourceStatus) -> str:
    gaps = source.gaps
    return f"{gaps.count} ({_duration(gaps.total_seconds)})" if gaps.count else ""


def _remark(status: Status, source: SourceStatus) -> str:
    """Say what a person would want to know of it next."""
    parts = []
    if source.events.lost:
        parts.append(f"{source.events.lost} events lost")
    if source.internal_faults:
        parts.append(f"{source.internal_faults} faults of hypermux itself: see its log")
    if source.tls == "unverified":
        parts.append("certificate not verified")
    if source.signing_offset_seconds:
        parts.append(f"our clock is off: signed with {source.signing_offset_seconds:+.0f} s")
    if source.key_trouble and source.state in UP:
        parts.append(f"its key cannot be renewed: {source.key_trouble}")
    if source.waits_for:
        parts.append(source.waits_for)
    failed = source.last_failure
    if failed is not None:
        if source.state not in UP:
            parts.append(failed.reason)
        elif parse_rfc3339(failed.at) > parse_rfc3339(source.since):
            # Connected still, by what was before: a new key refused, a rotation that failed.
            parts.append(f"cannot connect anew: {failed.reason}")
    if source.next_try:
        parts.append(f"next try in {_until(status, source.next_try)}")
    return "; ".join(parts)


def _lines(status: Status) -> list[tuple[str, str]]:
    """Return the sentences below the table, each with its style."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(status.states.items()))
    buffer, readers = status.buffer, status.subscribers
    lines = [
        (
            f"hypermux {status.version}, pid {status.pid}, up {_duration(status.uptime_seconds)}: "
            f"{sum(status.states.values())} sources ({states}); "
            f"journal at {status.journal.cursor}; "
            f"buffer {buffer.used_bytes / 2**20:.1f}MiB of {format_size(buffer.size_bytes)}; "
            f"{readers.active} subscribers",
            "bold",
        )
    ]
    refusal = status.journal.refusal
    if refusal is not None:
        lost = f", {refusal.lost_events} more are lost" if refusal.lost_events else ""
        lines.append(
            (
                f"the disk has refused for {_ago(status, refusal.since)}: {refusal.reason}; "
                f"{refusal.held_events} events are held in memory{lost}; "
                f"tried {refusal.tries} times since",
                "red",
            )
        )
    lines += [
        (
            f"the server {pair.endpoint} asked {_whom(pair)} for fewer connects: "
            f"{format_rate(float(f'{pair.connect_rate_per_second:.3g}'))} now",
            "yellow",
        )
        for pair in status.limits.throttled
    ]
    reload = status.last_reload
    if reload is not None:
        how = "; ".join(reload.changes) or "nothing changed"
        lines.append((f"reloaded {_ago(status, reload.at)} ago by {reload.who}: {how}", ""))
        lines += [(f"needs a restart: {sentence}", "yellow") for sentence in reload.needs_restart]
        if not reload.accepted:
            lines[-1] = (
                f"reload by {reload.who} {_ago(status, reload.at)} ago was refused:",
                "red",
            )
            lines += [(f"  {problem}", "red") for problem in reload.problems]
    return lines


def _whom(throttled: Throttled) -> str:
    return "all accounts" if throttled.account is None else f"account {throttled.account}"


def _ago(status: Status, moment: str | None) -> str:
    """Return how long ago it was, by the service's clock."""
    if moment is None:
        return ""
    return duration(max(0, _ns(status.at) - _ns(moment)))


def _until(status: Status, moment: str) -> str:
    return duration(max(0, _ns(moment) - _ns(status.at)))


def _ns(moment: str) -> int:
    try:
        return parse_rfc3339(moment)
    except ValueError:
        raise Unreachable("the service's state has a moment that is none; see -o json") from None


def _duration(seconds: float) -> str:
    return duration(round(seconds * 1e9))
