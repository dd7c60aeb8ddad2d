"""`hypermux reload`: have a running service read its accounts file and keys again."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from hypermux.cli.sockets import find_socket, socket_options
from hypermux.core.wording import printable
from hypermux.downstream.asking import ask
from hypermux.model.errors import HypermuxError, Unreachable
from hypermux.model.status import ReloadStatus

# It reads files, some perhaps over a network, and keys by programs that may take ten seconds.
ANSWER_S = 60.0


class ReloadRefused(HypermuxError):
    """The service keeps its configuration: the new one is not good."""

    exit_code = 78


@click.command("reload")
@socket_options
def command(socket_path: Path | None, config: Path | None) -> None:
    """Have a running service read its accounts file and keys again.

    What did not change is not touched, but sources that were refused try at once. A
    configuration that is not good changes nothing, and exits 78 with all that is wrong. SIGHUP
    does the same; its outcome is in the log.
    """
    path = socket_path or find_socket(config)
    answer = ask(path, "POST", "/reload", timeout_s=ANSWER_S)
    if answer.status not in (200, 422):
        raise Unreachable(f"the service at {path} cannot reload: {answer.error}")
    try:
        outcome = msgspec.json.decode(answer.body, type=ReloadStatus)
    except msgspec.MsgspecError as error:
        raise Unreachable(f"the service's answer does not read: {printable(str(error))}") from None
    if not outcome.accepted:
        problems = "\n".join(printable(problem, 2000) for problem in outcome.problems)
        raise ReloadRefused(f"nothing was changed; the service goes on as it was:\n{problems}")
    for sentence in outcome.changes or ("nothing changed",):
        click.echo(printable(sentence, 4000))
    for sentence in outcome.needs_restart:
        click.echo(f"needs a restart: {printable(sentence, 4000)}", err=True)
