"""The Docker Engine transport: `GET /events` over one connection, Podman's too.

An engine that is not read for 100 ms drops events without a word, and slows down for everyone:
the reader hands bytes on by plain calls and reads again, whatever happens downstream. There is no
ping on this stream; TCP keepalive (see `dialing`) finds a dead host.
"""

from __future__ import annotations

import contextlib
from typing import NoReturn

import h11
import trio
from attrs import define, field

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core.decoding import LineSplitter
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import answers, dialing, faults
from hypermux.upstream.diverting import READ_SIZE, read_body, unread
from hypermux.upstream.transport import Dialer, Listener, Opened

_WHO = "the engine"
_CUT = "the engine's connection ended in the middle of the stream: it stopped or restarts"


async def stream_docker(
    source: Source, *, dialer: Dialer, listener: Listener, settings: ConnectionSettings
) -> NoReturn:
    """Connect to the engine of `source` and hand its events to `listener` until the end.

    Raises ConnectionFailed.
    """
    stream = await dialer.dial(source.endpoint, source.tls)
    try:
        await _Events(stream, listener, source).read(settings)
    finally:
        await trio.aclose_forcefully(stream)


@define(eq=False)
class _Events:
    stream: trio.abc.Stream
    listener: Listener
    source: Source
    http: h11.Connection = field(factory=lambda: h11.Connection(h11.CLIENT))
    opened: bool = False
    refusal: answers.Refusal | None = None  # as soon as its head is known: time may run out
    ended: bool = False  # the engine's side of the connection is at its end
    more: bool = False

    async def read(self, settings: ConnectionSettings) -> NoReturn:
        timeout_s = settings.dial_timeout_s
        with trio.move_on_after(timeout_s):
            await self._ask()
        if self.refusal is not None:
            raise ConnectionFailed(self.refusal.failure())
        if not self.opened:
            text = f"handshake: the engine did not answer GET /events within {timeout_s:g} s"
            raise ConnectionFailed(Failure(FailureKind.TIMEOUT, text))
        splitter = LineSplitter(settings.max_message_size)
        told_more = False
        try:
            while True:
                messages, failure = self._drain(splitter)
                # Without messages too when the socket is empty at last: others wait for that word.
                if messages or (told_more and not self.more):
                    told_more = self.more
                    self.listener.received(messages, more=self.more)
                if failure is not None:
                    raise ConnectionFailed(failure)
                await self._read()
        except ConnectionFailed:
            # Half an event is no event, but it has come: the stream shows it as unparsed.
            if rest := splitter.finish():
                self.listener.received(rest, more=False)
            raise

    async def _ask(self) -> None:
        """Send the request and read the head of its answer."""
        endpoint = self.source.endpoint
        local = endpoint.to_socket
        path = "" if local else endpoint.path.rstrip("/")
        query = self.source.filters.query()
        request = h11.Request(
            method="GET",
            target=f"{path}/events{f'?{query}' if query else ''}",
            headers=[("Host", "docker" if local else endpoint.netloc), ("User-Agent", "hypermux")],
        )
        sent = (self.http.send(request) or b"") + (self.http.send(h11.EndOfMessage()) or b"")
        self.listener.asking()
        # The engine may have refused before it read the request: see what it said.
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(sent)
        response = await self._answer()
        trust = dialing.trust_of(endpoint, self.source.tls)
        if response.status_code != 200:
            status, headers = response.status_code, response.headers
            self.refusal = answers.Refusal(status, headers, _WHO, trust)
            await read_body(self.stream, self.http, self.refusal.body)
            return
        self.opened = True
        self.listener.opened(Opened(answers.date_ns(response.headers), trust))

    async def _answer(self) -> h11.Response:
        first = b""
        while True:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError as exc:
                raise ConnectionFailed(answers.not_http(first, who=_WHO)) from exc
            if isinstance(event, h11.Response):
                return event
            if event is h11.NEED_DATA:  # otherwise 100 or 103: the real answer is still to come
                data = await self._read()
                if not data:
                    text = "handshake: the engine ended the connection without an answer"
                    raise ConnectionFailed(Failure(FailureKind.EOF, text))
                first = first or data

    async def _read(self) -> bytes:
        try:
            data = bytes(await self.stream.receive_some(READ_SIZE))
        except trio.BrokenResourceError as exc:
            raise ConnectionFailed(faults.broken(exc, opened=self.opened)) from exc
        self.more = unread(self.stream, len(data))
        self.ended = not data
        if self.opened and data:
            self.listener.heard()
        if data or self.opened:
            self.http.receive_data(data)
        return data

    def _drain(self, splitter: LineSplitter) -> tuple[list[bytes], Failure | None]:
        """Return the messages that have come, and why there will be no more."""
        messages: list[bytes] = []
        while True:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError:
                # An end where more must follow is a protocol error to h11, and common here.
                if self.ended:
                    return messages, Failure(FailureKind.EOF, _CUT)
                text = "the engine's stream is not chunked properly"
                return messages, Failure(FailureKind.PROTOCOL, text)
            if isinstance(event, h11.Data):
                messages += splitter.feed(bytes(event.data))
            elif event is h11.NEED_DATA:
                return messages, None
            else:
                return messages, Failure(FailureKind.EOF, "the engine ended the stream")
