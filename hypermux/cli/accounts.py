"""`hypermux accounts`: add, list and remove accounts, one file each beside the accounts file."""

from __future__ import annotations

import os
import socket
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import click
import tomli_w
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hypermux.cli.keys import refuse_secret_key
from hypermux.config import accounts_file
from hypermux.model.errors import ConfigurationFault, DiskFault, Problem, UsageFault

DIRECTORY = "accounts.d"
_INCLUDE = f'include = ["{DIRECTORY}/*.toml"]'
_ANSWER_S = 1.0

_config_option = click.option(
    "-c", "--config", type=click.Path(path_type=Path, dir_okay=False), help="The accounts file."
)


@click.group("accounts")
def command() -> None:
    """Add, list and remove accounts.

    `add` writes accounts.d/NAME.toml beside the accounts file, which has to include it. Secret keys
    are never arguments: they would be in the shell's history and in everybody's list of processes.
    """


@command.command("list")
@_config_option
def list_accounts(config: Path | None) -> None:
    """List the accounts, and the file that each is in."""
    settings = accounts_file.load(accounts_file.locate(config))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("account", "upstream", "sources", "enabled", "file"):
        table.add_column(name, overflow="fold")
    for account in settings.accounts:
        cells = (
            account.name,
            account.upstream,
            str(len(account.sources)),
            "yes" if account.enabled else "no",
            str(account.file),
        )
        table.add_row(*(Text(cell) for cell in cells), style="" if account.enabled else "dim")
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


@command.command("add")
@click.argument("name")
@_config_option
@click.option("--access-key", help="The access key (not secret).")
@refuse_secret_key
@click.option(
    "--secret-key-file",
    type=click.Path(path_type=Path),
    help="A file with the secret key alone, that only you can read.",
)
@click.option(
    "--secret-key-env", metavar="VARIABLE", help="Where the service finds the secret key."
)
@click.option("--credential-process", metavar="COMMAND", help="A program that prints both keys.")
@click.option("--regions", metavar="A,B", help="Regions; default: those of [defaults].")
@click.option("--endpoint", metavar="URL", help="wss://{region}.…; default: that of [defaults].")
@click.option(
    "--docker", "hosts", metavar="NAME=URL", multiple=True, help="A Docker host; may be repeated."
)
def add(
    name: str,
    config: Path | None,
    access_key: str | None,
    secret_key_file: Path | None,
    secret_key_env: str | None,
    credential_process: str | None,
    regions: str | None,
    endpoint: str | None,
    hosts: tuple[str, ...],
) -> None:
    """Add account NAME: signed WebSockets, or with --docker Docker and Podman hosts.

    Nothing is written unless the whole configuration is good with it.
    """
    values: dict[str, Any] = {
        "access_key": access_key,
        "secret_key_file": secret_key_file and os.path.abspath(secret_key_file),
        "secret_key_env": secret_key_env,
        "credential_process": credential_process,
        "regions": regions and [region.strip() for region in regions.split(",")],
        "endpoint": endpoint,
    }
    values = {key: value for key, value in values.items() if value is not None}
    if hosts:
        if values:
            option = "--" + next(iter(values)).replace("_", "-")
            raise UsageFault(f"{option} does not go with --docker: an account is one or the other")
        values = {"upstream": "docker", "hosts": _hosts(hosts)}
    main = Path(os.path.abspath(accounts_file.locate(config)))
    file = _file(main, name)
    if file.exists():
        raise UsageFault(f"{file} exists already: remove it with  hypermux accounts remove {name}")
    text = tomli_w.dumps({"accounts": {name: values}})
    if not accounts_file.included(main, file):
        message = f"does not include {DIRECTORY}; write this as its first line:  {_INCLUDE}"
        raise ConfigurationFault([Problem(str(main), "include", message)])
    settings = accounts_file.load(main, pending={file: text})
    _write(file, text, like=main)
    click.echo(f"wrote {file}")
    _say_reload(settings.socket.path)


@command.command("remove")
@click.argument("name")
@_config_option
def remove(name: str, config: Path | None) -> None:
    """Remove account NAME, when `add` made it; its records stay in the journal."""
    main = Path(os.path.abspath(accounts_file.locate(config)))
    file = _file(main, name)
    if not file.exists():
        settings = accounts_file.load(main)
        files = {account.name: account.file for account in settings.accounts}
        if name in files:
            raise UsageFault(f"account {name} is in {files[name]}: remove it there")
        close = accounts_file.nearest(name, files)
        hint = f"; did you mean {close}?" if close else ""
        raise UsageFault(f"there is no account {name}{hint}")
    try:
        # One that does not read can be in the way of everything; it goes only by hand, though.
        document = tomllib.loads(file.read_text())
        alone = list(document) == ["accounts"] and list(document["accounts"]) == [name]
    except (OSError, ValueError, TypeError):
        alone = False
    if not alone:
        raise UsageFault(f"{file} holds something else than account {name}: edit it by hand")
    try:
        file.unlink()
    except OSError as error:
        raise DiskFault(f"cannot remove {file}: {error.strerror}") from None
    click.echo(f"removed {file}")
    try:
        _say_reload(accounts_file.load(main).socket.path)
    except ConfigurationFault as fault:
        click.echo(f"the configuration has other problems:\n{fault}", err=True)


def _hosts(pairs: tuple[str, ...]) -> dict[str, str]:
    hosts: dict[str, str] = {}
    for pair in pairs:
        name, equals, url = pair.partition("=")
        if not equals or not name or not url:
            raise UsageFault("--docker is written NAME=URL: local=unix:///var/run/docker.sock")
        if name in hosts:
            raise UsageFault(f"--docker names {name} twice")
        hosts[name] = url
    return hosts


def _file(main: Path, name: str) -> Path:
    """Return the file of an account. The name is checked, because it becomes a part of a path."""
    if (fault := accounts_file.name_fault(name)) is not None:
        raise UsageFault(f"the account name {fault}")
    return main.parent / DIRECTORY / f"{name}.toml"


def _write(file: Path, text: str, *, like: Path) -> None:
    """Write a new file that only its owner can read: the owner of `like`, when we are root.

    It appears whole or not at all, and never over another one.
    """
    try:
        owner = like.stat()
        if not file.parent.exists():
            file.parent.mkdir(mode=0o700)
            _give(file.parent, owner)
        # A leading dot keeps it from the include's glob until it is whole.
        fd, name = tempfile.mkstemp(prefix=".", suffix=".new", dir=file.parent)
        try:
            with open(fd, "w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(fd)
            _give(Path(name), owner)
            os.link(name, file)
        finally:
            os.unlink(name)
    except OSError as error:
        raise DiskFault(f"cannot write {file}: {error.strerror}") from None


def _give(path: Path, owner: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def _say_reload(path: Path) -> None:
    """Tell what makes the change count."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            click.echo("`hypermux run` takes it up at its start.")
            return
        except OSError:
            pass  # not for us to connect to, or busy: somebody is there
    click.echo("hypermux is running: `hypermux reload` makes it take this up.")
