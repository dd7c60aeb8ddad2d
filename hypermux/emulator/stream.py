"""The byte stream below one WebSocket: what the library uses, and what faults act on.

The library keeps handshake, pings and the closing handshake. Events do not go through it: they
are framed here and sent many at a time, because a router that is slower than its clients
measures itself.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from contextlib import suppress

import trio

_TEXT = 0x81  # FIN and the opcode of a text frame (RFC 6455, 5.2)
_CLOSE = b"\x88"

# The other side's part of closing TLS and TCP; what comes after it is a forceful close.
CLOSE_DEADLINE_S = 1.0


def text_frames(messages: Iterable[bytes]) -> bytes:
    """Return the messages as whole, unmasked text frames."""
    parts = []
    for message in messages:
        size = len(message)
        if size < 126:
            parts.append(bytes((_TEXT, size)))
        elif size < 65536:
            parts.append(struct.pack(">BBH", _TEXT, 126, size))
        else:
            parts.append(struct.pack(">BBQ", _TEXT, 127, size))
        parts.append(message)
    return b"".join(parts)


class ServerStream(trio.abc.Stream):
    """A stream whose first bytes are given, that can go deaf, and that can break off."""

    def __init__(self, inner: trio.abc.Stream, first: bytes) -> None:
        self._inner = inner
        self._first = first
        # The library and the sender of events take turns, each with whole frames.
        self._turn = trio.StrictFIFOLock()
        self._hears = trio.Event()
        self._hears.set()
        self._said_goodbye = False

    @property
    def deaf(self) -> bool:
        """Whether nothing is read, so that no ping is answered."""
        return not self._hears.is_set()

    def set_deaf(self, deaf: bool) -> None:
        """Stop or resume reading; sending goes on."""
        if deaf and self._hears.is_set():
            self._hears = trio.Event()
        elif not deaf:
            self._hears.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the given first bytes, then what comes, unless deaf."""
        if self._first:
            await trio.lowlevel.checkpoint()
            first, self._first = self._first, b""
            return first
        data = bytes(await self._inner.receive_some(max_bytes))
        # What a read under way brought after it went deaf waits here.
        await self._hears.wait()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send the library's frames."""
        async with self._turn:
            if bytes(data[:1]) == _CLOSE:
                self._said_goodbye = True
            await self._inner.send_all(data)

    async def send_events(self, messages: Iterable[bytes]) -> None:
        """Send messages as text frames. Raises ClosedResourceError after a close frame."""
        data = text_frames(messages)
        async with self._turn:
            if self._said_goodbye:
                raise trio.ClosedResourceError("a close frame was sent")
            await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room below."""
        await self._inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close in order within CLOSE_DEADLINE_S, else by force."""
        await close_stream(self._inner)

    async def abort(self) -> None:
        """Break off without a goodbye: a TCP reset where there is TCP."""
        below = self._inner
        if isinstance(below, trio.SSLStream):
            below = below.transport_stream
        if isinstance(below, trio.SocketStream):
            linger = struct.pack("ii", 1, 0)
            with suppress(OSError):  # closed already
                below.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await trio.aclose_forcefully(self._inner)


async def close_stream(stream: trio.abc.AsyncResource) -> None:
    """Close within CLOSE_DEADLINE_S, else by force; a stream broken already is closed."""
    try:
        with trio.move_on_after(CLOSE_DEADLINE_S):
            await stream.aclose()
    except (trio.BrokenResourceError, trio.BusyResourceError):
        await trio.aclose_forcefully(stream)
