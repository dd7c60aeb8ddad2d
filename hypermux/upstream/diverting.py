"""The stream between a socket and the WebSocket library: messages leave the bytes here.

The library sees the 101 and the control frames only: it checks the handshake and answers pings
and closes. All messages, fragmented and binary ones too, are cut out by `core.frames` and handed
to the listener in bulk, from within `receive_some`. So nothing can be overtaken, no queue of the
library ever holds up its reader, and no message is limited or refused in two places.

How a connection ends is decided here too, because the library does not tell: every end is raised
from `receive_some` as ConnectionFailed. (Left to itself the library waits for ever when a server
hangs up during the handshake, and gathers an endless body of a refusal.)
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
import termios

import h11
import trio
from attrs import define, field
from wsproto.frame_protocol import FrameProtocol

from hypermux.core.frames import FrameSplitter
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import answers, faults
from hypermux.upstream.transport import Control, Listener, Opened, Trust

# Reads over 128 KiB cost three times as much each.
READ_SIZE = 65536
_PING_SIZE = 8
_WHO = "the server"


def unread(stream: trio.abc.Stream, got: int) -> bool:
    """Say whether a read of READ_SIZE that brought `got` bytes left some behind, as far as known.

    A TLS stream gives one record per read and keeps the following ones in its own buffer. A socket
    is asked after a full read only: an exact fit must not count as unread until the next event.
    """
    incoming = getattr(stream, "_incoming", None)
    if incoming is not None and incoming.pending > 0:
        return True
    if got < READ_SIZE:
        return False
    source = stream.socket if isinstance(stream, trio.SocketStream) else stream
    if not hasattr(source, "fileno"):
        return True
    count = fcntl.ioctl(source.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(count, sys.byteorder) > 0


@define(eq=False)
class DivertingStream(trio.abc.Stream):
    """Reads `raw` for the library. The listener hears of the opening once the library accepted.

    Pings are sent here too, each with its number as payload. A peer may leave out the pongs of all
    but the last of several pings (RFC 6455 section 5.5.3), so a pong answers the earlier ones as
    well. For the health of a connection any byte is an answer.
    """

    raw: trio.abc.Stream
    listener: Listener
    splitter: FrameSplitter
    trust: Trust
    control: Control | None = None
    opened: bool = False
    answered: trio.Event = field(factory=trio.Event)
    refusal: answers.Refusal | None = None  # as soon as its head is known: time may run out
    _upgraded: Opened | None = None
    _rest: bytes = b""  # what came behind the 101 in the same read
    _sending: trio.StrictFIFOLock = field(factory=trio.StrictFIFOLock)
    _closing: bool = False  # a close frame was sent: the last of ours
    _torn: bool = False  # a frame was sent in part: nothing can follow it
    _more: bool = False  # what the listener was last told
    _pinged: int = 0  # the number of the last ping
    _ponged: int = 0  # the greatest number that came back
    _pong: trio.Event = field(factory=trio.Event)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the 101, then control frames; raises ConnectionFailed at the end, never b""."""
        if self._upgraded is None:
            return await self._read_upgrade()
        if not self.opened:
            # The library asks for more after a 101 that it accepted; for another it has raised.
            self.opened = True
            self.listener.opened(self._upgraded)
        while self.splitter.ended is None:
            data, self._rest = self._rest or await self._read(), b""
            messages, control = self.splitter.feed(data)
            # Without messages too when the socket is empty at last: others wait for that word.
            more = unread(self.raw, len(data))
            if messages or (self._more and not more):
                self._more = more
                self.listener.received(messages, more=more)
            if self.splitter.pongs:
                self._take_pongs()
            if control:
                return control
        raise ConnectionFailed(self.splitter.ended)

    async def _read_upgrade(self) -> bytes:
        """Read the answer to the upgrade request; return its 101, keep what follows it.

        Raises ConnectionFailed (http, protocol, eof, tls).
        """
        http = h11.Connection(h11.CLIENT)
        # The request itself goes through the library; h11 only has to know what was asked for.
        asked = [("Host", "-"), ("Connection", "Upgrade"), ("Upgrade", "websocket")]
        http.send(h11.Request(method="GET", target="/", headers=asked))
        http.send(h11.EndOfMessage())
        seen = bytearray()
        while True:
            data = await _read_answer(self.raw)
            if not data:
                text = "handshake: the server ended the connection without an answer"
                raise ConnectionFailed(Failure(FailureKind.EOF, text))
            seen += data
            try:
                http.receive_data(data)
                while isinstance(event := http.next_event(), h11.InformationalResponse):
                    rest = http.trailing_data[0]
                    if event.status_code == 101:
                        self._rest = rest
                        self._upgraded = Opened(
                            answers.date_ns(event.headers), self.trust, self.control
                        )
                        return bytes(seen[: len(seen) - len(rest)])
                    seen = bytearray(rest)  # 100, 103: the real answer is still to come
            except h11.RemoteProtocolError as exc:
                raise ConnectionFailed(answers.not_http(bytes(seen[:64]), who=_WHO)) from exc
            if isinstance(event, h11.Response):
                status, headers = event.status_code, event.headers
                self.refusal = answers.Refusal(status, headers, _WHO, self.trust)
                await read_body(self.raw, http, self.refusal.body)
                raise ConnectionFailed(self.refusal.failure())

    async def _read(self) -> bytes:
        try:
            data = await self.raw.receive_some(READ_SIZE)
        except trio.BrokenResourceError as exc:
            raise ConnectionFailed(faults.broken(exc, opened=True)) from exc
        if not data:
            text = "the server ended the connection without a close frame"
            raise ConnectionFailed(Failure(FailureKind.EOF, text))
        self.listener.heard()
        self.answered.set()
        return bytes(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send whole frames, one sender after another."""
        async with self._sending:
            if self._torn:
                raise trio.BrokenResourceError("an earlier frame was cut short")
            self._torn = True
            try:
                await self.raw.send_all(data)
            except trio.BrokenResourceError:
                if self.opened:
                    raise
                # The server may have refused before it read the request: see what it said.
            self._torn = False

    async def ping(self) -> None:
        """Send a ping and return when any byte has come after it.

        It does not go through the library, which remembers each ping until its own pong comes.
        """
        self.answered = trio.Event()
        await self._send_ping()
        await self.answered.wait()

    async def ping_through(self) -> None:
        """Send a ping and return when it is answered: all sent before has been handed over.

        Does not return when the connection ends.
        """
        number = await self._send_ping()
        while self._ponged < number:
            await self._pong.wait()

    async def _send_ping(self) -> int:
        self._pinged += 1
        number = self._pinged
        payload = number.to_bytes(_PING_SIZE, "big")
        # Of a failure to send, the reader is about to find the reason, and tells it better.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.send_all(FrameProtocol(client=True, extensions=[]).ping(payload))
        return number

    def _take_pongs(self) -> None:
        """Note the numbers that came back. A pong that nobody asked for has none of ours."""
        for payload in self.splitter.pongs:
            number = int.from_bytes(payload, "big") if len(payload) == _PING_SIZE else 0
            if self._ponged < number <= self._pinged:
                self._ponged = number
                self._pong.set()
                self._pong = trio.Event()

    async def close(self, code: int) -> None:
        """Send a close frame if one may still be sent; never raises."""
        ended = self.splitter.ended
        closed = self._closing or (ended is not None and ended.kind is FailureKind.CLOSE)
        if not self.opened or closed:
            return
        self._closing = True
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.send_all(FrameProtocol(client=True, extensions=[]).close(code))

    async def read_out(self) -> None:
        """Read what still comes, to its end; for an open connection that nobody else reads."""
        with contextlib.suppress(ConnectionFailed):
            while self.opened:
                await self.receive_some()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room in the socket's buffer."""
        await self.raw.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the socket at once."""
        await trio.aclose_forcefully(self.raw)


async def _read_answer(raw: trio.abc.Stream) -> bytes:
    try:
        return bytes(await raw.receive_some(READ_SIZE))
    except trio.BrokenResourceError as exc:
        raise ConnectionFailed(faults.broken(exc, opened=False)) from exc


async def read_body(raw: trio.abc.Stream, http: h11.Connection, body: bytearray) -> None:
    """Add the start of a refusal's body to `body`: what comes soon enough, and is not too much."""
    # The status has been read; a body that breaks off explains it less, no more.
    with (
        trio.move_on_after(answers.BODY_PATIENCE_S),
        contextlib.suppress(trio.BrokenResourceError, h11.RemoteProtocolError),
    ):
        while len(body) < answers.MAX_BODY:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await raw.receive_some(READ_SIZE)))
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
