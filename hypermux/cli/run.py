"""`hypermux run`: the service."""

from __future__ import annotations

import logging
from pathlib import Path

import click
import trio

from hypermux.cli.logs import configure
from hypermux.cli.running import run_service
from hypermux.config import accounts_file
from hypermux.config.settings import Settings
from hypermux.model.errors import UsageFault

log = logging.getLogger("hypermux.run")


def load_settings(config: Path | None) -> Settings:
    """Return the settings of `config`, or of the first accounts file in the usual places.

    Raises UsageFault when there is none, ConfigurationFault with all that is wrong.
    """
    path = config or accounts_file.find()
    if path is None:
        raise UsageFault("no accounts file: name one with -c FILE, or see accounts.toml.example")
    return accounts_file.load(path)


@click.command("run")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="The accounts file.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["auto", "human", "json"]))
def command(config: Path | None, log_level: str | None, log_format: str | None) -> None:
    """Hold a connection for every account and region; write the one stream."""
    settings = load_settings(config)
    configure(log_level or settings.log.level, log_format or settings.log.format)  # type: ignore[arg-type]
    for warning in settings.warnings:
        log.warning("%s", warning)
    if not settings.sources:
        raise UsageFault(f"{settings.file} has no enabled account")
    log.info(
        "%d sources of %d accounts; journal in %s; socket %s",
        len(settings.sources),
        sum(account.enabled for account in settings.accounts),
        settings.state_dir / "journal",
        settings.socket.path,
    )
    trio.run(run_service, settings)
