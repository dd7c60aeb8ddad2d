"""Whom a port on this computer answers, decided by a request's headers.

With a token: who knows it, whatever the Host header says; a page in somebody's browser does not.
Without one: only requests that name this computer as this computer does. A page whose own name was
made to lead here (DNS rebinding) is same-origin for its browser, but has its own name as Host.
"""

from __future__ import annotations

import hmac

from attrs import frozen

from hypermux.core.http import HttpRequest, Reply
from hypermux.model.accounts import Secret

_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@frozen
class Guard:
    """What is demanded of a request. `host` is the address that is listened at.

    `open` says that it does without a token: only this computer reaches it.
    """

    host: str
    open: bool
    token: Secret | None = None

    def refusal(self, request: HttpRequest) -> Reply | None:
        """Return why a request is not answered, None when it is."""
        if self.token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            wanted = self.token.reveal().encode()
            if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), wanted):
                return None
            return _unauthorized("a token is wanted: Authorization: Bearer …")
        if not self.open:
            return _unauthorized("no token is configured any more, and this is no loopback address")
        name = _name(request.headers.get("host", ""))
        if name in _OWN_NAMES or name == self.host:
            return None
        return Reply.error(421, f"this is not {name[:100]}: ask for localhost, or use a token")


def _name(host: str) -> str:
    """Return a Host header's name without its port, in lower case."""
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdigit() and not host.endswith("]") else host.strip().lower()


def _unauthorized(sentence: str) -> Reply:
    return Reply.error(401, sentence, WWW_Authenticate='Bearer realm="hypermux"')
