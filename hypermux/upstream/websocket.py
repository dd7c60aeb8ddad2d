"""The signed WebSocket transport: one connection, from dial to its end.

Dialling comes first, then signing, right before the upgrade request: a signature ages. Every end
is one ConnectionFailed: the first cause, not what it led to. The socket is always closed here;
after a close by the server the library leaves it open.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NoReturn

import h11
import trio
import trio_websocket
import wsproto.utilities
from attrs import define, field

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core import heartbeat, signing
from hypermux.core.frames import FrameSplitter
from hypermux.core.wording import printable
from hypermux.model.accounts import Credential
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import dialing
from hypermux.upstream.diverting import DivertingStream
from hypermux.upstream.groups import is_cancellation, leaves
from hypermux.upstream.transport import Dialer, Listener

# How long a server may take to answer our goodbye when we stop: several round trips of the longest
# line. It may not hold up a shutdown for longer; who does not answer counts as dead since it was
# last heard.
GOODBYE_S = 1.0
# After our own goodbye in the middle of things: how long the server may take to say its own and
# to send what it had on its way.
PARTING_S = 5.0
# How long the reader may still look for a better reason after a failed write.
_REASON_S = 1.0
_GOODBYES = {FailureKind.PROTOCOL: 1002, FailureKind.SILENT: None}


async def stream_websocket(
    source: Source,
    credential: Credential,
    *,
    dialer: Dialer,
    listener: Listener,
    settings: ConnectionSettings,
    now_utc_s: Callable[[], float],
    rng: random.Random,
) -> NoReturn:
    """Connect to `source` and hand its messages to `listener` until the connection ends.

    Raises ConnectionFailed. When cancelled it says goodbye (close code 1000), hands on what the
    server still sends, and tells the listener if there was no answer within a second.
    """
    raw = await dialer.dial(source.endpoint, source.tls)
    trust = dialing.trust_of(source.endpoint, source.tls)
    stream = DivertingStream(raw, listener, FrameSplitter(settings.max_message_size), trust)
    control = stream.control = _Control(stream)
    try:
        request = _Request(source, credential, now_utc_s())
        await _converse(stream, control, request, settings, rng)
    except ConnectionFailed as failed:
        goodbye = _GOODBYES.get(failed.failure.kind)
        if goodbye is not None:
            with trio.move_on_after(GOODBYE_S, shield=True):
                await stream.close(goodbye)
        raise
    except BaseException as exc:
        with trio.move_on_after(GOODBYE_S, shield=True) as unanswered:
            await stream.close(1000)
            if is_cancellation(exc):  # otherwise a fault of ours: it may meet what comes too
                await stream.read_out()
        if unanswered.cancelled_caught:
            listener.unanswered()
        raise
    finally:
        await trio.aclose_forcefully(raw)


@define(eq=False)
class _Control:
    """What the source's task can have an open connection do."""

    stream: DivertingStream
    parting: trio.Event = field(factory=trio.Event)

    async def ping(self) -> None:
        """See `Control`."""
        await self.stream.ping_through()

    def close(self) -> None:
        """See `Control`."""
        self.parting.set()


class _Request:
    """The signed upgrade request."""

    def __init__(self, source: Source, credential: Credential, now_utc_s: float) -> None:
        endpoint = source.endpoint
        self.host = endpoint.netloc
        path = signing.wire_path(endpoint.path)
        query = source.filters.query()
        self.resource = f"{path}?{query}" if query else path
        signed = signing.sign_upgrade(
            endpoint,
            query,
            credential=credential,
            region=source.signing_region,
            now_utc_s=now_utc_s,
        )
        if not all(value.isascii() and value.isprintable() for _, value in signed.headers):
            text = "the access key or the region has characters that a header cannot hold"
            raise ConnectionFailed(Failure(FailureKind.CREDENTIAL, text))
        self.headers = [(name.encode(), value.encode()) for name, value in signed.headers]


async def _converse(
    stream: DivertingStream,
    control: _Control,
    request: _Request,
    settings: ConnectionSettings,
    rng: random.Random,
) -> NoReturn:
    """Upgrade, then read and ping until the end; raises ConnectionFailed."""
    failure = None
    try:
        async with trio.open_nursery() as nursery:
            websocket = await _upgrade(nursery, stream, request, settings.dial_timeout_s)
            nursery.start_soon(_keep_pinging, stream, settings, rng)
            nursery.start_soon(_part, stream, control)
            await _wait_closed(websocket, stream)
    except BaseExceptionGroup as group:
        failure = _first_cause(group)
        if failure is None:
            raise
    assert failure is not None  # the nursery ends by an exception only
    raise failure


async def _upgrade(
    nursery: trio.Nursery, stream: DivertingStream, request: _Request, timeout_s: float
) -> trio_websocket.WebSocketConnection:
    stream.listener.asking()
    with trio.move_on_after(timeout_s):
        return await trio_websocket.wrap_client_stream(
            nursery,
            stream,  # type: ignore[arg-type]  # any trio.abc.Stream will do
            request.host,
            request.resource,
            extra_headers=request.headers,
            receive_buffer_size=None,
        )
    if stream.refusal is not None:  # with a body that did not come to its end
        raise ConnectionFailed(stream.refusal.failure())
    text = f"handshake: the server did not answer the upgrade request within {timeout_s:g} s"
    raise ConnectionFailed(Failure(FailureKind.TIMEOUT, text))


async def _wait_closed(
    websocket: trio_websocket.WebSocketConnection, stream: DivertingStream
) -> NoReturn:
    """Wait until the library considers the connection closed: then one of its writes failed."""
    try:
        await websocket.get_message()
    except trio_websocket.ConnectionClosed:
        # Usually the reader finds the reason at its next read, which ends this wait.
        await trio.sleep(_REASON_S)
    ended = Failure(FailureKind.RESET, "nothing can be sent any more")
    raise ConnectionFailed(stream.splitter.ended or ended)


async def _keep_pinging(
    stream: DivertingStream, settings: ConnectionSettings, rng: random.Random
) -> NoReturn:
    """Ping now and then; raises ConnectionFailed when nothing at all comes back in time."""
    while True:
        await trio.sleep(heartbeat.next_ping(settings.ping_interval_s, rng))
        with trio.move_on_after(settings.pong_timeout_s):
            await stream.ping()
            continue
        # After a stall of our own the deadline and the answer are found at the same moment: let
        # the reader have its turn before judging.
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        if not stream.answered.is_set():
            text = f"the server did not answer a ping within {settings.pong_timeout_s:g} s"
            raise ConnectionFailed(Failure(FailureKind.SILENT, text))


async def _part(stream: DivertingStream, control: _Control) -> NoReturn:
    """Say goodbye when told to; the reader goes on to the server's own, which ends it."""
    await control.parting.wait()
    await stream.close(1000)
    await trio.sleep(PARTING_S)
    raise ConnectionFailed(
        # Perhaps it had been dead for a while: what was heard before is certain, no more.
        Failure(FailureKind.SILENT, "the server did not answer our goodbye")
    )


def _first_cause(group: BaseExceptionGroup[BaseException]) -> ConnectionFailed | None:
    """Return why the connection ended; None when it was cancelled, or by a fault of ours."""
    for exc in leaves(group):
        if isinstance(exc, ConnectionFailed):
            return exc
        if isinstance(exc, (h11.ProtocolError, wsproto.utilities.ProtocolError, UnicodeError)):
            text = f"handshake: the server's 101 is not acceptable: {_library_reason(exc)}"
            return ConnectionFailed(Failure(FailureKind.PROTOCOL, text))
    return None


def _library_reason(exc: BaseException) -> str:
    """Return what the library did not like about the 101.

    It fails while trying to answer it, which no client can; the reason is what it was handling.
    """
    at: BaseException | None = exc
    while at is not None:
        if isinstance(at, wsproto.utilities.RemoteProtocolError):
            return printable(str(at))
        at = at.__context__
    return printable(str(exc))
