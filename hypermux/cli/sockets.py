"""Which socket a command talks to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hypermux.config import accounts_file
from hypermux.model.errors import ConfigurationFault

F = TypeVar("F", bound=Callable[..., Any])


def socket_options(function: F) -> F:
    """Add `--socket` and `-c` to a command, as arguments `socket_path` and `config`."""
    function = click.option(
        "-c", "--config", type=click.Path(path_type=Path), help="Take the socket from there."
    )(function)
    return click.option(
        "--socket", "socket_path", type=click.Path(path_type=Path), help="Where to connect."
    )(function)


def find_socket(config: Path | None) -> Path:
    """Return the socket that a configuration names, or the usual one."""
    path = config or accounts_file.find()
    if path is not None:
        try:
            return accounts_file.load(path).socket.path
        except (ConfigurationFault, OSError):
            # A reader need not be able to read the service's secrets, and a service goes on while
            # its file is being edited; only a file that was asked for has to name the socket.
            if (named := accounts_file.socket_path(path)) is not None:
                return named
            if config is not None:
                raise
    return accounts_file.default_socket_path()
