"""`hypermux emulate`: a local router to test against."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

import click

from hypermux.config.units import UnitError, parse_rate
from hypermux.emulator.router import Account, RouterSettings
from hypermux.emulator.serve import Options, run
from hypermux.model.errors import DiskFault

_FILE = click.Path(dir_okay=False, path_type=Path)


def _parse_limit(text: str | None, option: str) -> float | None:
    """Read handshakes per second. Raises click.BadParameter."""
    if text is None:
        return None
    try:
        rate = parse_rate(text)
    except UnitError as problem:
        raise click.BadParameter(str(problem), param_hint=option) from None
    if rate == 0:
        raise click.BadParameter("a rate of 0 lets nobody in", param_hint=option)
    return rate


def _parse_events_rate(text: str) -> float:
    """Read events per second: a number or `max`. Raises click.BadParameter."""
    if text == "max":
        return math.inf
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        message = f"{text!r}: events per second are a number, or max"
        raise click.BadParameter(message, param_hint="--rate")
    return rate


@click.command(name="emulate")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=0,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port; 0: any free one.",
)
@click.option(
    "--accounts",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="How many; each has all the regions.",
)
@click.option("--regions", default="us-west-1", show_default=True, help="Comma-separated names.")
@click.option(
    "--rate",
    default="1",
    show_default=True,
    metavar="N|max",
    help="Events per second and connection.",
)
@click.option("--shared", is_flag=True, help="A source's connections all get the same events.")
@click.option("--events", type=click.IntRange(0), help="Events per connection, then silence.")
@click.option("--seed", default="0", show_default=True, help="Keys and events follow from it.")
@click.option(
    "--dialect",
    default="a",
    show_default=True,
    type=click.Choice(["a", "b", "mixed"]),
    help="Of the events: a is Docker's shape, b the early one.",
)
@click.option(
    "--write-accounts", required=True, type=_FILE, help="Accounts file to write, with the keys."
)
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), help="Keep the CA here.")
@click.option("--plain", is_flag=True, help="Without TLS.")
@click.option("--limit-connections", type=click.IntRange(1), help="More get a 429.")
@click.option("--limit-rate", metavar="RATE", help="More handshakes get a 429: 10/s, 30/min.")
@click.option(
    "--limit-burst", type=click.IntRange(1), help="Handshakes at once; default: a second's worth."
)
@click.option("--account-connections", type=click.IntRange(1), help="More of one get a 429.")
@click.option("--account-rate", metavar="RATE", help="As --limit-rate, of each account.")
@click.option("--manifest", type=_FILE, help="Append every event sent to this file.")
@click.option("--accept-log", type=_FILE, help="Append every handshake to this file.")
@click.option("--control", type=_FILE, help="Serve orders on this unix socket.")
def command(
    host: str,
    port: int,
    accounts: int,
    regions: str,
    rate: str,
    shared: bool,
    events: int | None,
    seed: str,
    dialect: Literal["a", "b", "mixed"],
    write_accounts: Path,
    state: Path | None,
    plain: bool,
    limit_connections: int | None,
    limit_rate: str | None,
    limit_burst: int | None,
    account_connections: int | None,
    account_rate: str | None,
    manifest: Path | None,
    accept_log: Path | None,
    control: Path | None,
) -> None:
    """Run a local router of signed event WebSockets, to try hypermux against.

    It makes up accounts, writes them to a file that hypermux reads, and sends each connection
    the events of made-up containers. When it is ready it prints one line of JSON.
    """
    names = list(dict.fromkeys(name.strip() for name in regions.split(",")))
    if not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) for name in names):
        raise click.BadParameter("regions are names, comma-separated", param_hint="--regions")
    per_second = _parse_limit(limit_rate, "--limit-rate")
    own_per_second = _parse_limit(account_rate, "--account-rate")
    if state is not None:
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise DiskFault(f"cannot make {state}: {error.strerror}") from error
    run(
        Options(
            RouterSettings(
                accounts=tuple(Account.derive(seed, n + 1, names) for n in range(accounts)),
                rate=_parse_events_rate(rate),
                shared=shared,
                events=events,
                seed=seed,
                dialect=dialect,
                limit_connections=limit_connections,
                limit_rate=per_second,
                limit_burst=limit_burst or max(1, round(per_second or own_per_second or 1)),
                account_connections=account_connections,
                account_rate=own_per_second,
            ),
            accounts_file=write_accounts,
            host=host,
            port=port,
            plain=plain,
            manifest=manifest,
            accept_log=accept_log,
            control=control,
            directory=state,
        )
    )
