"""Sockets that a service manager opened before we were started (systemd's socket activation).

They are at descriptors 3 and on, when LISTEN_PID is our process: LISTEN_FDS tells how many,
LISTEN_FDNAMES what each is called. Their files, permissions and ends are the manager's: between two
runs of the service a reader waits in the socket's queue instead of being refused. Who may read is
still decided here, by credentials.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from attrs import define

from hypermux.model.errors import ConfigurationFault, Problem

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


@define(eq=False)
class Passed:
    """A listening unix socket, and what the manager calls it."""

    sock: socket.socket
    name: str

    @property
    def path(self) -> str:
        """Where it listens; an abstract name begins with @."""
        address = self.sock.getsockname()
        text = os.fsdecode(address)
        return f"@{text[1:]}" if text.startswith("\0") else text

    def __str__(self) -> str:
        return f"{self.path}, passed by the service manager ({self.name})"

    def close(self) -> None:
        """Stop listening here; the manager goes on."""
        self.sock.close()


def take(environ: MutableMapping[str, str], pid: int) -> tuple[Passed, ...]:
    """Return the sockets passed to process `pid`; call it once, before anything is opened.

    The variables go: our own children are not meant. Raises ConfigurationFault for a descriptor
    that readers cannot connect to.
    """
    given = {name: environ.pop(name, "") for name in _VARIABLES}
    if given["LISTEN_PID"] != str(pid):
        return ()
    count = given["LISTEN_FDS"]
    names = given["LISTEN_FDNAMES"].split(":")
    numbers = range(_FIRST, _FIRST + int(count if count.isdigit() else "0"))
    passed, problems = [], []
    for index, number in enumerate(numbers):
        name = names[index] if index < len(names) and names[index] else "unknown"
        try:
            os.set_inheritable(number, False)
            sock = socket.socket(fileno=number)
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            problems.append(_problem(number, name, f"is no socket ({error.strerror})"))
            continue
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or not listens:
            problems.append(_problem(number, name, "is not a unix socket that listens"))
            sock.close()
            continue
        sock.setblocking(False)
        passed.append(Passed(sock, name))
    if problems:
        raise ConfigurationFault(problems)
    return tuple(passed)


def _problem(number: int, name: str, message: str) -> Problem:
    advice = "write ListenStream=/run/hypermux/hypermux.sock in its .socket unit"
    return Problem("the service manager", f"descriptor {number} ({name})", f"{message}: {advice}")
