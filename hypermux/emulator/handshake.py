"""The HTTP head of a handshake: read, taken apart, answered.

Done here and not by the WebSocket library, because the signature covers what came over the wire,
and because a malformed head has to end one connection and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from email.utils import formatdate

import trio
from attrs import frozen

from hypermux.emulator.verify_signature import Request

# Room for a long filter; Go's servers take 1 MiB, load balancers in front of them about this.
MAX_HEAD = 64 * 1024
_READ = 8 * 1024

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(r"/[\x21-\x7e]*")
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")

_REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


class BadRequest(Exception):
    """The head is no request for a WebSocket; the text is what the 400 says."""


@frozen
class Answer:
    """How a handshake is answered. `retry_after_s`: whole seconds, None to leave it out."""

    status: int
    reason: str = ""
    retry_after_s: int | None = None
    location: str | None = None

    def encode(self, now_ns: int) -> bytes:
        """Return the whole HTTP response of a refusal, dated `now_ns`."""
        body = json.dumps({"message": self.reason}).encode()
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Refused')}",
            f"Date: {http_date(now_ns)}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        if self.retry_after_s is not None:
            lines.append(f"Retry-After: {self.retry_after_s}")
        if self.location is not None:
            lines.append(f"Location: {self.location}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def http_date(now_ns: int) -> str:
    """Return the `Date` header's text."""
    return formatdate(now_ns // 1_000_000_000, usegmt=True)


async def read_head(stream: trio.abc.ReceiveStream) -> tuple[bytes, bytes] | None:
    """Return the head, without its empty line, and the bytes behind it; None when none came.

    Raises BadRequest when the stream ends or grows over MAX_HEAD before the head does.
    """
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > MAX_HEAD:
            raise BadRequest("the request's head is too long")
        more = await stream.receive_some(_READ)
        if not more:
            if data:
                raise BadRequest("the request ended within its head")
            return None
        data += more
    return bytes(data[:end]), bytes(data[end + 4 :])


def parse_head(head: bytes) -> Request:
    """Take a head apart. Raises BadRequest; a raw space in the target is one of its reasons."""
    first, *rest = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or parts[2] != "HTTP/1.1":
        raise BadRequest("the request line is malformed")
    if not _TARGET.fullmatch(parts[1]):
        raise BadRequest("the request target is malformed")
    headers = []
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
            raise BadRequest("a header line is malformed")
        headers.append((name, value.strip(" \t")))
    return Request(parts[0], parts[1], tuple(headers))


def websocket_key(request: Request) -> str:
    """Return Sec-WebSocket-Key of a proper upgrade request (RFC 6455, 4.2.1). Raises BadRequest."""
    if request.method != "GET":
        raise BadRequest("the method has to be GET")
    if not request.header("host"):
        raise BadRequest("no Host header")
    if not _has_token(request, "upgrade", "websocket"):
        raise BadRequest("no Upgrade: websocket header")
    if not _has_token(request, "connection", "upgrade"):
        raise BadRequest("no Connection: Upgrade header")
    if request.header("sec-websocket-version") != "13":
        raise BadRequest("Sec-WebSocket-Version has to be 13")
    key = request.header("sec-websocket-key") or ""
    if not _KEY.fullmatch(key):
        raise BadRequest("Sec-WebSocket-Key is missing or malformed")
    return key


def plain_upgrade(key: str) -> bytes:
    """Return the upgrade request that the WebSocket library gets to see: checked, and no more."""
    lines: Sequence[str] = (
        "GET / HTTP/1.1",
        "Host: emulator",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def _has_token(request: Request, name: str, wanted: str) -> bool:
    return any(
        token.strip().lower() == wanted
        for key, value in request.headers
        if key.lower() == name
        for token in value.split(",")
    )
