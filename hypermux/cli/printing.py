"""The options of every command that prints records."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from hypermux.cli import stderr
from hypermux.core.rendering import escape
from hypermux.downstream.console import Color, Formatter, Output
from hypermux.model.errors import DiskFault

F = TypeVar("F", bound=Callable[..., Any])


def printing_options(function: F) -> F:
    """Add `-o/--format` and `--color` to a command, as arguments `output` and `color`."""
    function = click.option(
        "--color",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Colours of the line form; auto honours NO_COLOR.",
    )(function)
    return click.option(
        "-o",
        "--format",
        "output",
        type=click.Choice(["json", "raw", "line", "pretty"]),
        help="json: records byte for byte. raw: the events alone, as received. "
        "line: one line for people. pretty: indented JSON. "
        "Default: line on a terminal, json elsewhere.",
    )(function)


def make_formatter(output: Output | None, color: Color) -> Formatter:
    """Return the formatter for stdout. What "raw" has no place for goes to stderr.

    Raises DiskFault when there is no stdout.
    """
    if sys.stdout is None:
        # Its number may be that of the next socket: nothing may be written there.
        raise DiskFault("stdout is closed: there is nowhere to print to")
    chosen = output or ("line" if sys.stdout.isatty() else "json")
    return Formatter.for_stream(chosen, sys.stdout, color=color, aside=notice)


def notice(text: str) -> None:
    """Say something on stderr, beside the records."""
    stderr.say(f"hypermux: {escape(text, limit=None)}")
