"""The root command, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

import click

from hypermux import __version__
from hypermux.cli import stderr
from hypermux.model.errors import ConfigurationFault, HypermuxError

EXIT_USAGE = 64
EXIT_INTERNAL = 70
EXIT_DISK = 74

# Loaded when named: `tail` should not pay for the emulator's imports.
COMMANDS = {
    "run": "Hold all connections and write the one stream (the service).",
    "watch": "The same in the foreground, records on the terminal.",
    "tail": "Read the stream of a running service, from any point.",
    "status": "Show how a running service and its sources fare.",
    "audit": "Say whether all of a time was received, source by source.",
    "reload": "Have a running service take up a changed configuration.",
    "journal": "List, check, read and repair the files of a journal.",
    "check": "Check a configuration and say what running it means.",
    "accounts": "Add, list and remove accounts.",
    "sign": "Print a signed request without sending it.",
    "emulate": "A local API router to try things against.",
}


class _Commands(click.Group):
    """Commands by module name, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"hypermux.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hypermux")
def cli() -> None:
    """Many signed event streams, one durable, totally ordered stream."""


def main() -> None:
    """Run the command line and exit; no traceback reaches a user."""
    _settle_streams()
    sys.exit(_run())


def _settle_streams() -> None:
    """Have the three standard streams be safe to use, whatever we were started with.

    A closed one's number would go to the next file or socket, and what is meant for a terminal
    into that. stdout stays closed to writers: who needs it says that there is none.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if fd == 2 else os.O_RDONLY)  # takes the lowest number
            os.set_inheritable(fd, True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and (out.encoding != "utf-8" or out.errors == "strict"):
        # A name that is no UTF-8, or a locale that lacks the character.
        out.reconfigure(errors="backslashreplace")


def _run() -> int:
    try:
        result = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        _say(error.format_message())
        return EXIT_USAGE
    except click.UsageError as error:
        with suppress(OSError):
            error.show()
        return EXIT_USAGE
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SystemExit:
        # No command of ours exits by itself: it is what rich and click make of a broken pipe.
        _leave_stdout()
        return 0
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return EXIT_USAGE
    except BaseException as error:
        return _report(error)
    return result if isinstance(result, int) else 0


@contextmanager
def readers_may_leave() -> Iterator[None]:
    """Print within it what the exit code does not depend on: `… | head` stays as it was."""
    try:
        yield
    except (BrokenPipeError, SystemExit):  # SystemExit is rich's word for it
        _leave_stdout()


def _leave_stdout() -> None:
    """Point stdout elsewhere: its reader has gone.

    What is in its buffer would fail once more in the interpreter's flush at exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: BaseException) -> int:
    """Say what went wrong in one sentence each; return the exit code."""
    stderr.finish()  # what was said before comes before
    leaves = _leaves(error)
    if any(isinstance(leaf, BrokenPipeError) for leaf in leaves):
        _leave_stdout()
        return 0
    for known in leaves:
        if isinstance(known, HypermuxError):
            prefix = "" if isinstance(known, ConfigurationFault) else "hypermux: "
            _say(f"{prefix}{known}")
            return known.exit_code
    for leaf in leaves:
        if isinstance(leaf, KeyboardInterrupt):
            return 130
        if isinstance(leaf, OSError):
            _say(f"hypermux: {leaf}")
            return EXIT_DISK
    leaf = leaves[0]
    if os.environ.get("HYPERMUX_TRACEBACK"):
        raise error
    _say(
        f"hypermux: internal error: {type(leaf).__name__}: {leaf}\n"
        "This is a fault of hypermux, not yours. HYPERMUX_TRACEBACK=1 shows where it is."
    )
    return EXIT_INTERNAL


def _say(text: str) -> None:
    with suppress(OSError):  # the exit code says it, too
        print(text, file=sys.stderr)


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the plain exceptions inside nested groups, in order."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
