"""`hypermux run`: the service."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path

import click
import trio

from hypermux.cli.logs import configure
from hypermux.cli.running import run_service
from hypermux.config import accounts_file
from hypermux.config.settings import Settings
from hypermux.downstream import activation
from hypermux.service.notifying import Notifier

log = logging.getLogger("hypermux.run")


@click.command("run")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="The accounts file.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["auto", "human", "json"]))
def command(config: Path | None, log_level: str | None, log_format: str | None) -> None:
    """Hold a connection for every account and region; write the one stream.

    SIGTERM and Ctrl-C drain it. SIGHUP, or `hypermux reload`, has it read the accounts file and
    the keys again. Under systemd it takes the sockets of a .socket unit, and tells how it fares
    (Type=notify, with or without a watchdog).
    """
    passed = activation.take(os.environ, os.getpid())
    notifier = Notifier.take(os.environ, os.getpid())
    settings = accounts_file.load(accounts_file.locate(config))

    def log_as_told(settings: Settings) -> None:
        configure(log_level or settings.log.level, log_format or settings.log.format)  # type: ignore[arg-type]

    log_as_told(settings)
    for warning in settings.warnings:
        log.warning("%s", warning)
    accounts_file.need_sources(settings)
    trio.run(
        partial(run_service, settings, on_reload=log_as_told, passed=passed, notifier=notifier)
    )
