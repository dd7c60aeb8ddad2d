"""HTTP answers that are not what was asked for, in plain words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from attrs import define, field

from hypermux.core.wording import printable
from hypermux.model.errors import Failure, FailureKind
from hypermux.upstream.transport import PROVEN, Trust

# Enough for any error message; an endless body must not fill memory.
MAX_BODY = 4096
# The body only explains a refusal that is known already: not worth the whole dial deadline.
BODY_PATIENCE_S = 2.0
_MAX_LOCATION = 200

Headers = Iterable[tuple[bytes, bytes]]


def date_ns(headers: Headers) -> int | None:
    """Return the server's clock from its `Date` header, nanoseconds since 1970."""
    return _http_date_ns(_find(headers, b"date"))


@define(eq=False)
class Refusal:
    """An answer that is not what was asked for. Its body, which only explains, is added to it."""

    status: int
    headers: Headers
    who: str
    trust: Trust
    body: bytearray = field(factory=bytearray)

    def failure(self) -> Failure:
        """Return what it means, with as much of the body as has come."""
        body = bytes(self.body[:MAX_BODY])
        return http_failure(self.status, self.headers, body, who=self.who, trust=self.trust)


def http_failure(status: int, headers: Headers, body: bytes, *, who: str, trust: Trust) -> Failure:
    """Return the failure that an answer means; `who` begins its sentence.

    The server's clock is believed only when it has proved who it is.
    """
    headers = list(headers)
    text = body[:MAX_BODY].decode(errors="replace")
    try:
        said = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        said = str(status)
    message = _message(text)
    detail = f"{who} answered {said}{f': {message}' if message else ''}"
    if 300 <= status < 400 and (elsewhere := _location(headers)):
        detail = f"{who} answered {said}, to {elsewhere}: not followed, write that as the endpoint"
    if status == 400 and "HTTP request to an HTTPS server" in text:
        detail = (
            f"{who} wants TLS on this port: use wss:// or https://,"
            " or for tcp:// give ca, client_cert and client_key"
        )
    return Failure(
        FailureKind.HTTP,
        detail,
        code=status,
        retry_after_s=retry_after_s(headers),
        retry_at_ns=retry_at_ns(headers),
        date_ns=date_ns(headers) if trust in PROVEN else None,
        body=printable(text, MAX_BODY) if text else None,
    )


def not_http(data: bytes, *, who: str) -> Failure:
    """Return the failure for an answer to the handshake that is no HTTP; `data` is its start."""
    if data[:2] in (b"\x15\x03", b"\x16\x03"):
        guess = "it speaks TLS"
    else:
        guess = f"it begins {printable(data[:40].decode(errors='replace'))!r}"
    return Failure(FailureKind.PROTOCOL, f"handshake: {who} did not answer in HTTP ({guess})")


def _message(text: str) -> str:
    """Return what a body says: its JSON `message`, or its first line."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    if isinstance(tree, dict) and isinstance(tree.get("message"), str):
        return printable(tree["message"].strip())
    lines = text.strip().splitlines()
    return printable(lines[0]) if lines and not lines[0].startswith("<") else ""


def _find(headers: Headers, name: bytes) -> str | None:
    return next((v.decode("latin-1").strip() for n, v in headers if n.lower() == name), None)


def _location(headers: Headers) -> str:
    """Return where a redirect points, without its query, which may hold anything."""
    place, question, _ = (_find(headers, b"location") or "").partition("?")
    return printable(f"{place}?…" if question else place, _MAX_LOCATION)


def _http_date_ns(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 1_000_000_000
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def retry_after_s(headers: Headers) -> float | None:
    """Return `Retry-After` in seconds. A date is read against the same answer's `Date`.

    None for a date without that: it is for whoever knows the time to read.
    """
    text = _find(headers, b"retry-after")
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(min(int(text[:12]), 1 << 31))
    then, now = _http_date_ns(text), date_ns(headers)
    return None if then is None or now is None else max(0.0, (then - now) / 1e9)


def retry_at_ns(headers: Headers) -> int | None:
    """Return the moment that `Retry-After` names, None when it names none."""
    return _http_date_ns(_find(headers, b"retry-after"))
