"""`hypermux check`: what a configuration says, whether it holds, and what running it means."""

from __future__ import annotations

import resource
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hypermux.cli.root import readers_may_leave
from hypermux.config import accounts_file, credentials
from hypermux.config.forecast import Forecast, forecast
from hypermux.config.settings import Account, Settings
from hypermux.config.units import format_duration, format_rate
from hypermux.model.accounts import Cap, CredentialSource
from hypermux.model.errors import ConfigurationFault, Problem

# Credential programs mostly wait for a network.
_PROGRAMS_AT_ONCE = 8
# Enough for what a line says when nobody's terminal limits it.
_WIDTH_OF_A_FILE = 200
# More than these are counted, not listed.
_SURPLUS_SHOWN = 10


@click.command("check")
@click.option(
    "-c", "--config", type=click.Path(path_type=Path, dir_okay=False), help="The accounts file."
)
def command(config: Path | None) -> None:
    """Check a configuration and say what running it means.

    Reads the accounts file and what it includes, loads every credential (and runs the programs
    that give them), and adds up limits, connect rates and open files. Connects to nothing.
    Exits 78 when something is wrong, with all of it.
    """
    settings = accounts_file.load(accounts_file.locate(config))
    enabled = [account for account in settings.accounts if account.enabled]
    with ThreadPoolExecutor(_PROGRAMS_AT_ONCE) as pool:
        faults = dict(
            zip([account.name for account in enabled], pool.map(_faults, enabled), strict=True)
        )
    problems = [problem for found in faults.values() for problem in found]
    plan = forecast(settings)
    console = Console(markup=False, highlight=False, soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    with readers_may_leave():
        console.print(_table(settings, faults))
        for line in _sentences(settings, plan):
            console.print(line)
        for warning in (*settings.warnings, *_surplus(plan), *_cramped(settings, plan)):
            console.print(f"warning: {warning}", style="yellow")
    problems += _open_files(settings, plan)
    if problems:
        raise ConfigurationFault(problems)
    accounts_file.need_sources(settings)
    console.print("This configuration is good.", style="green")


def _faults(account: Account) -> list[Problem]:
    """Load an enabled account's keys and certificates, and return what is wrong with them."""
    key = f"accounts.{account.name}"
    problems: list[Problem] = []
    if account.sources and (credential := account.sources[0].credential) is not None:
        try:
            credentials.load(credential, file=str(account.file), key=key)
        except ConfigurationFault as fault:
            problems += fault.problems
    if account.sources:
        tls = account.sources[0].tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if tls.ca is not None:
            try:
                context.load_verify_locations(tls.ca)
            except (OSError, ValueError):
                problems.append(Problem(str(account.file), f"{key}.ca", "has no PEM certificate"))
        if tls.client_cert is not None:
            try:
                # Without the password function a protected key would ask the terminal.
                context.load_cert_chain(tls.client_cert, tls.client_key, lambda: "")
            except (OSError, ValueError):
                message = "with client_key is no PEM certificate with its unprotected key"
                problems.append(Problem(str(account.file), f"{key}.client_cert", message))
    return problems


def _table(settings: Settings, faults: dict[str, list[Problem]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("account", "region", "upstream", "endpoint", "filters", "keys"):
        table.add_column(name, overflow="fold")
    for account in settings.accounts:
        style = "" if account.enabled else "dim"
        for source in account.sources:
            if not account.enabled:
                keys = "disabled"
            elif faults[account.name]:
                keys = "wrong: see below"
            else:
                keys = _keys(source.credential)
            cells = (
                account.name,
                source.id.region,
                account.upstream,
                str(source.endpoint),
                source.filters.encode(),
                keys,
            )
            table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def _way(account: Account) -> list[str]:
    """Say what lies between an account's endpoints and the stream, without what is secret of it."""
    lines = []
    if proxy := next((s.endpoint.proxy for s in account.sources if s.endpoint.proxy), None):
        login = " with a password" if proxy.login else ""
        lines.append(f"account {account.name}: through the proxy {proxy}{login}")
    if pins := next((source.tls.pins for source in account.sources), ()):
        beside = "" if account.sources[0].tls.verify else ", certificates not verified"
        lines.append(f"account {account.name}: pinned to {' or '.join(pins)}{beside}")
    if patterns := next((len(source.redact) for source in account.sources), 0):
        what = "what a pattern matches" if patterns == 1 else f"what {patterns} patterns match"
        lines.append(f"account {account.name}: {what} is not recorded")
    return lines


def _keys(source: CredentialSource | None) -> str:
    if source is None:
        return ""
    ways = {
        "from a program": source.process,
        "from a file": source.secret_key_file,
        "from the environment": source.secret_key_env,
        "in the accounts file": source.secret_key,
    }
    return next((way for way, value in ways.items() if value is not None), "")


def _sentences(settings: Settings, plan: Forecast) -> list[str]:
    limits = settings.limits
    whole = Cap(limits.max_connections, limits.connect_rate)
    lines = [
        "",
        f"limits: {_cap(whole)}, burst {limits.connect_burst}; "
        f"each account {_cap(limits.per_account)}; each endpoint {_cap(limits.per_endpoint)}",
        f"journal in {settings.state_dir / 'journal'}; socket {settings.socket.path}"
        + (f"; HTTP at {settings.http.listen}" if settings.http.listen else ""),
    ]
    lines += [
        f"account {account.name}: {_cap(account.cap)}"
        for account in settings.accounts
        if account.enabled and account.cap != Cap()
    ]
    lines += [line for account in settings.accounts if account.enabled for line in _way(account)]
    if plan.connected:
        seconds = format_duration(max(round(plan.seconds, 1), 0.1))
        lines.append(
            f"{plan.connected} of {len(settings.sources)} sources connect within {seconds}, "
            f"at {plan.slowest}; up to {plan.open_files} open files"
        )
    rotate_after_s = settings.connection.rotate_after_s
    hyper = any(source.upstream == "hyper" for source in settings.sources)
    if hyper and rotate_after_s is not None and not any(full.websockets for full in plan.full):
        each = format_duration(rotate_after_s)
        lines.append(f"each WebSocket is replaced about every {each}, without a gap")
    return lines


def _cap(cap: Cap) -> str:
    parts = []
    if cap.max_connections is not None:
        parts.append(f"{cap.max_connections} connections")
    if cap.connect_rate is not None:
        parts.append(f"{format_rate(cap.connect_rate)}")
    return ", ".join(parts) or "no limit"


def _surplus(plan: Forecast) -> list[str]:
    """Say which sources would wait for a slot."""
    lines = [f"{source} {why}" for source, why in plan.surplus[:_SURPLUS_SHOWN]]
    if more := len(plan.surplus) - len(lines):
        lines.append(f"and {more} more sources wait for a slot")
    return lines


def _cramped(settings: Settings, plan: Forecast) -> list[str]:
    """Say what is lacking where a count has no slot to spare."""
    after_s = settings.connection.rotate_after_s
    each = None if after_s is None else f"about every {format_duration(after_s)}"
    lines = []
    for full in plan.full:
        lacking = []
        if full.sources > full.cap:
            turns = f", and each connection gives way {each}" if each else " until others are lost"
            lacking.append(f"{full.sources - full.cap} of {full.sources} sources wait{turns}")
        elif full.websockets and each:
            websockets = _count(full.websockets, "WebSocket")
            lacking.append(f"each of {websockets} has one short gap (rotation) {each}")
        if full.engines:
            lacking.append(
                f"{_count(full.engines, 'engine')} cannot be asked what was missed in an outage, "
                "nor whether a stream is whole"
            )
        if lacking:
            lines.append(
                f"{full.name} has no slot to spare of its {full.cap}: {'; '.join(lacking)}. "
                f"max_connections = {full.sources + 1} would do"
            )
    if after_s is not None and plan.seconds > after_s:
        lines.append(
            f"at {plan.slowest} connections cannot be replaced as often as rotate_after asks for: "
            "servers will end them at an age of their own"
        )
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _open_files(settings: Settings, plan: Forecast) -> list[Problem]:
    """Return the problem of too few open files; the soft limit is raised at start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or plan.open_files <= hard:
        return []
    message = (
        f"{plan.connected} sources and {settings.socket.max_subscribers} subscribers take "
        f"{plan.open_files} open files, and the hard limit is {hard}: raise it (ulimit -Hn, "
        "LimitNOFILE=), or lower socket.max_subscribers or limits.max_connections"
    )
    return [Problem(str(settings.file), "limits.max_connections", message)]
