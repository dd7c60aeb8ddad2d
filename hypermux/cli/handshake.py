"""A signed upgrade request, and the same as command lines for curl and wscat.

Whoever has one of these lines gets in while its signature is valid: five minutes.
"""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Iterable

from hypermux.core import signing
from hypermux.core.signing import Signed
from hypermux.model.accounts import Endpoint, Tls
from hypermux.model.errors import UsageFault

_HTTP_SCHEMES = {"ws": "http", "wss": "https"}


def check_region(region: str) -> None:
    """Raise UsageFault unless `region` can stand in a signature's scope."""
    # It stands in the Authorization header between slashes, before a comma.
    usable = region.isascii() and region.isprintable() and not any(c in region for c in " ,/")
    if not region or not usable:
        raise UsageFault(f"--region {region!r}: a region is a name such as us-west-1")


def url_with_query(endpoint: Endpoint, query: str, *, scheme: str | None = None) -> str:
    """Return the URL of a request; `query` is percent-encoded, "" for none."""
    path = signing.wire_path(endpoint.path)
    url = f"{scheme or endpoint.scheme}://{endpoint.netloc}{path}"
    return f"{url}?{query}" if query else url


def curl_command(
    endpoint: Endpoint,
    query: str,
    signed: Signed,
    *,
    tls: Tls | None = None,
    max_time_s: int | None = None,
    websocket_key: str | None = None,
) -> str:
    """Return a shell command that does the handshake with curl and prints what follows.

    The frames behind the 101 are printed raw. `max_time_s` makes curl give up then.
    """
    key = websocket_key or base64.b64encode(os.urandom(16)).decode()
    upgrade = (
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
    )
    # HTTP/2 does not carry this kind of upgrade; -N shows frames as they come.
    words = ["curl", "-sS", "--http1.1", "-i", "-N"]
    if max_time_s is not None:
        words += ["--max-time", str(max_time_s)]
    if tls is not None and endpoint.secure:
        words += [] if tls.verify else ["-k"]
        words += ["--cacert", tls.ca] if tls.ca else []
        pinned = ";".join(pin.replace(":", "//") for pin in tls.pins)
        words += ["--pinnedpubkey", pinned] if pinned else []
    words += ["-x", str(endpoint.proxy)] if endpoint.proxy else []
    words += _header_words((*_host(endpoint), *upgrade, *signed.headers))
    words.append(url_with_query(endpoint, query, scheme=_HTTP_SCHEMES[endpoint.scheme]))
    return shlex.join(words)


def wscat_command(endpoint: Endpoint, query: str, signed: Signed, *, tls: Tls | None = None) -> str:
    """Return a shell command that opens the connection with wscat."""
    words = ["wscat", "-c", url_with_query(endpoint, query)]
    if tls is not None and endpoint.secure:
        words += [] if tls.verify else ["-n"]
        words += ["--ca", tls.ca] if tls.ca else []
    return shlex.join([*words, *_header_words((*_host(endpoint), *signed.headers))])


def _host(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    """Return the Host header where a tool would write another than the one that is signed."""
    changed = endpoint.host != endpoint.host.lower() or ":" in endpoint.host
    return (("Host", endpoint.netloc),) if changed else ()


def _header_words(headers: Iterable[tuple[str, str]]) -> list[str]:
    return [word for name, value in headers for word in ("-H", f"{name}: {value}")]
