"""The keys of one account on a command line: from files and the environment, never from argv."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hypermux.model.accounts import CredentialSource
from hypermux.model.errors import UsageFault

F = TypeVar("F", bound=Callable[..., Any])

# The second of each pair is the original client's older name.
_ACCESS_VARIABLES = ("HYPER_ACCESS_KEY", "HYPER_ACCESS")
_SECRET_VARIABLES = ("HYPER_SECRET_KEY", "HYPER_SECRET")


def key_options(function: F) -> F:
    """Add `--access-key` and `--secret-key-file`; `--secret-key` is there to be refused."""
    function = refuse_secret_key(function)
    function = click.option(
        "--secret-key-file",
        metavar="FILE",
        help="The secret key's file; else HYPER_SECRET_KEY or HYPER_SECRET.",
    )(function)
    return click.option(
        "--access-key", metavar="K", help="The access key; else HYPER_ACCESS_KEY or HYPER_ACCESS."
    )(function)


def refuse_secret_key(function: F) -> F:
    """Add a hidden `--secret-key`, so that whoever tries it is told what to use."""
    return click.option("--secret-key", hidden=True, expose_value=False, callback=_refuse)(function)


def _refuse(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise UsageFault(
            "a secret key on the command line can be read by everybody on this machine: "
            "use --secret-key-file FILE, or the environment variable HYPER_SECRET_KEY"
        )


def credential_source(access_key: str | None, secret_key_file: str | None) -> CredentialSource:
    """Return where the keys are. Raises UsageFault when one of them is missing."""
    access_key = access_key or _first(_ACCESS_VARIABLES)
    if not access_key:
        raise UsageFault("the access key is missing: --access-key K, or HYPER_ACCESS_KEY")
    if secret_key_file:
        path = os.path.abspath(Path(secret_key_file).expanduser())
        return CredentialSource(access_key, secret_key_file=path)
    for variable in _SECRET_VARIABLES:
        if os.environ.get(variable):
            return CredentialSource(access_key, secret_key_env=variable)
    raise UsageFault("the secret key is missing: --secret-key-file FILE, or HYPER_SECRET_KEY")


def _first(variables: tuple[str, ...]) -> str | None:
    return next((value for name in variables if (value := os.environ.get(name))), None)
