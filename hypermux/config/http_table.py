"""`[http]`: the read-only routes over TCP, off until `listen` says where.

Only this computer's own addresses do without a token, because whoever reaches the port may read
everything. A host name is not taken: what it resolves to tomorrow nobody knows.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from hypermux.config import files
from hypermux.config.settings import HttpSettings
from hypermux.config.shape import Key, Wrong, hidden, table, text
from hypermux.model.accounts import Secret

_FORM = 'write "127.0.0.1:8787" or "[::1]:8787"'
# Shorter ones are guessed; longer ones are no tokens (and fill a request's head).
_LEAST_TOKEN, _MAX_TOKEN = 16, 1024


@frozen
class HttpTable:
    """`[http]` as written."""

    listen: str | None = None
    token_file: str | None = None
    ready_when: str = "all"

    def settings(self, resolve: Callable[[str], str]) -> tuple[HttpSettings, list[tuple[str, str]]]:
        """Return the settings and what is wrong: keys, and sentences that show no secret.

        `resolve` makes a path of a file's name.
        """
        token, faults = None, []
        if self.token_file is not None:
            token, fault = read_token(resolve(self.token_file))
            if fault is not None:
                faults.append(("token_file", fault))
        found = HttpSettings(listen=self.listen, token=token, ready_when=self.ready_when)
        if self.listen is not None and self.token_file is None and not found.loopback:
            faults.append(
                (
                    "listen",
                    f"{self.listen} lets others than this computer read everything: name a "
                    'token_file, or listen at "127.0.0.1"',
                )
            )
        return found, faults


def read_token(path: str) -> tuple[Secret | None, str | None]:
    """Return the token in a file, or what is wrong with it, in words that show none of it."""
    try:
        found = files.read(path, limit=_MAX_TOKEN)
    except files.Unreadable as error:
        return None, f"the file that it names: {error}"
    if files.shared(Path(path), found.mode):
        return None, f"others can read the file that it names: type  {files.private_command(path)}"
    token = found.text.strip()
    if len(token) < _LEAST_TOKEN:
        return None, f"the file that it names holds no token of {_LEAST_TOKEN} characters or more"
    if not token.isascii() or not token.isprintable() or " " in token:
        return None, "the token is not printable ASCII without spaces"
    return Secret(token), None


def _listen(value: Any) -> str | None:
    if value == "":
        return None
    found = text(value)
    host, colon, port = found.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise Wrong.value(f"is not an address and a port: {_FORM}", found) from None
    right = colon and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535
    if not right or (address.version == 6) != host.startswith("[") or "%" in bare:
        raise Wrong.value(f"is not an address and a port: {_FORM}", found)
    return found


def _ready_when(value: Any) -> str:
    found = text(value)
    share = found.removesuffix("%")
    percent = share != found and share.isascii() and share.isdigit() and 1 <= int(share) <= 100
    if found not in ("all", "any") and not percent:
        raise Wrong.value('is none of "all", "any" and a share such as "80%"', found)
    return found


http = table(
    HttpTable,
    listen=Key("listen", _listen),
    token_file=Key("token_file", hidden(text)),
    ready_when=Key("ready_when", _ready_when),
)
