"""The way through an HTTP proxy: CONNECT, and its answer in plain words.

Only a proxy that the configuration names is used: the environment's (`https_proxy`, `NO_PROXY`) is
meant for other programs, and would send a service's streams where nobody looked for them. What a
proxy answers is the proxy's: it is never judged as an answer of the server behind it.
"""

from __future__ import annotations

import base64
import contextlib
from http import HTTPStatus

import h11
import trio

from hypermux.model.accounts import Endpoint, Proxy
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import answers, faults

# An answer's head; proxies write a few hundred bytes.
MAX_HEAD = 16 * 1024
_READ_SIZE = 4096


async def open_tunnel(stream: trio.SocketStream, endpoint: Endpoint, proxy: Proxy) -> None:
    """Have `proxy`, at the other end of `stream`, connect on to `endpoint`.

    Afterwards the stream is the server's. The caller owns the deadline, and closes the stream.
    Raises ConnectionFailed.
    """
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    headers = [("Host", endpoint.address), ("User-Agent", "hypermux")]
    if proxy.login is not None:
        login = base64.b64encode(proxy.login.reveal().encode()).decode()
        headers.append(("Proxy-Authorization", f"Basic {login}"))
    request = h11.Request(method="CONNECT", target=endpoint.address, headers=headers)
    sent = (http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b"")
    who = f"the proxy {proxy.address}"
    # It may have refused before it read the request: see what it said.
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(sent)
    response = await _answer(stream, http, who)
    if not 200 <= response.status_code <= 299:
        raise ConnectionFailed(_refusal(response, who, endpoint, known=proxy.login is not None))
    # In all that goes through here the client speaks first.
    if http.trailing_data[0]:
        raise ConnectionFailed(Failure(FailureKind.SETUP, f"{who} talks behind its answer"))


async def _answer(stream: trio.SocketStream, http: h11.Connection, who: str) -> h11.Response:
    start = b""
    while True:
        try:
            event = http.next_event()
            if isinstance(event, h11.Response):
                return event
            if isinstance(event, h11.InformationalResponse):
                continue  # the real answer is still to come
            data = bytes(await stream.receive_some(_READ_SIZE))
            if not data:
                text = f"{who} ended the connection without an answer"
                raise ConnectionFailed(Failure(FailureKind.EOF, text))
            start = start or data
            http.receive_data(data)
        except h11.RemoteProtocolError as exc:
            detail = answers.not_http(start, who=who).detail.removeprefix("handshake: ")
            raise ConnectionFailed(Failure(FailureKind.SETUP, detail)) from exc
        except trio.BrokenResourceError as exc:
            cause = exc.__cause__
            words = faults.os_words(cause) if isinstance(cause, OSError) else "it is gone"
            raise ConnectionFailed(Failure(FailureKind.EOF, f"{who}: {words}")) from exc


def _refusal(response: h11.Response, who: str, endpoint: Endpoint, *, known: bool) -> Failure:
    """Return what a proxy's answer means; `known`: it was told a user and a password."""
    status = response.status_code
    try:
        said = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        said = str(status)
    target = endpoint.address
    match status:
        case 407 if known:
            text = f"{who} refuses the user and password ({said})"
            return Failure(FailureKind.ACCESS, text)
        case 407:
            text = f"{who} wants a user and password ({said}): http://USER:PASSWORD@HOST:PORT"
            return Failure(FailureKind.ACCESS, text)
        case 401 | 403:
            return Failure(FailureKind.ACCESS, f"{who} refuses to connect to {target} ({said})")
        case 429:
            return Failure(
                FailureKind.HTTP,
                f"{who} answered {said}",
                code=status,
                retry_after_s=answers.retry_after_s(response.headers),
                retry_at_ns=answers.retry_at_ns(response.headers),
            )
        case 408 | 500 | 502 | 503 | 504:
            return Failure(FailureKind.CONNECT, f"{who} does not reach {target} ({said})")
        case _:
            text = f"{who} does not do CONNECT to {target} ({said})"
            return Failure(FailureKind.SETUP, text)
