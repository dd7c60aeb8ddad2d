"""The options of every command that prints records."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from hypermux.core.rendering import escape
from hypermux.downstream.console import Color, Formatter, Output

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
    """Return the formatter for stdout. What "raw" has no place for goes to stderr."""
    chosen = output or ("line" if sys.stdout.isatty() else "json")
    return Formatter.for_stream(chosen, sys.stdout, color=color, aside=notice)


def notice(text: str) -> None:
    """Say something on stderr, beside the records."""
    click.echo(f"hypermux: {escape(text, limit=None)}", err=True)
