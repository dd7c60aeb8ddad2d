"""The other end of HTTP on the socket: one question, one answer, in plain blocking calls."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path

from attrs import frozen

from hypermux.core.rendering import escape
from hypermux.downstream.follow import no_service
from hypermux.model.errors import Unreachable

# Ten thousand sources are 10 MB of state; what sends more is no hypermux.
MAX_ANSWER = 256 << 20


@frozen
class Answer:
    """What the service said."""

    status: int
    body: bytes

    @property
    def error(self) -> str:
        """The sentence of an error, fit for a terminal."""
        try:
            told = json.loads(self.body)["error"]
        except (ValueError, LookupError, TypeError, RecursionError):
            told = f"status {self.status} without a reason"
        return escape(str(told), limit=1000)


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("hypermux", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, target: str, *, timeout_s: float) -> Answer:
    """Ask the service at the socket `path`. Raises Unreachable when there is no answer in time."""
    connection = _Connection(path, timeout_s)
    try:
        try:
            connection.connect()
        except OSError as exc:
            raise Unreachable(no_service(path, exc)) from exc
        try:
            connection.request(method, target)
            response = connection.getresponse()
            body = response.read(MAX_ANSWER + 1)
        except http.client.BadStatusLine as exc:
            raise Unreachable(_turned_away(str(exc.args[0]))) from None
        except TimeoutError:
            sentence = f"the service at {path} did not answer within {timeout_s:g} s"
            raise Unreachable(sentence) from None
        except (OSError, http.client.HTTPException) as exc:
            raise Unreachable(f"the service at {path} did not answer: {_reason(exc)}") from None
        if len(body) > MAX_ANSWER:
            raise Unreachable(f"the answer from {path} is over {MAX_ANSWER >> 20} MiB")
        return Answer(response.status, body)
    finally:
        connection.close()


def _turned_away(line: str) -> str:
    """Say why, when it is the line that a refused peer gets, whatever it speaks."""
    try:
        told = json.loads(line)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "this is not a hypermux socket: it does not answer in HTTP"
    return escape(f"the service refuses: {told}", limit=1000)


def _reason(error: Exception) -> str:
    return escape(str(getattr(error, "strerror", None) or error) or type(error).__name__)
