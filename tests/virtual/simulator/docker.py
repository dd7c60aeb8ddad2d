"""A Docker Engine: its event stream, its ring of the last 256 events, and questions beside it.

`GET /events` streams from now on, one chunk an event; with `since=0&until=0` it gives the ring and
ends. The ring is empty after a restart. A message that a stream skips is in the ring all the same.
"""

from __future__ import annotations

from collections import deque
from urllib.parse import parse_qs, urlsplit

import trio
from attrs import define, field

from simulator.messages import Made
from simulator.network import Wire
from simulator.truth import Message
from simulator.upstream import Peer, Upstream

RING = 256


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@define(eq=False)
class DockerUpstream(Upstream):
    """One engine. `restarts`: when its ring was emptied."""

    ring: deque[Message] = field(factory=lambda: deque(maxlen=RING))
    restarts: list[float] = field(factory=list)
    keepalive: bool = True
    remembers: bool = True

    def restart(self) -> None:
        """Forget all events."""
        self.ring.clear()
        self.restarts.append(trio.current_time())

    def happened(self, message: Message) -> None:
        self.ring.append(message)

    def received(self, wire: Wire, data: bytes) -> None:
        peer = self.peers.get(wire)
        if peer is None:
            return
        peer.held += data
        while not peer.over and peer.session is None:
            head, end, rest = bytes(peer.held).partition(b"\r\n\r\n")
            if not end:
                return
            peer.held = bytearray(rest)
            self._asked(peer, head)

    def _asked(self, peer: Peer, head: bytes) -> None:
        if self.misbehave(peer):
            return
        target = urlsplit(head.decode("latin-1").split(" ")[1])
        if target.path == "/events" and not target.query:
            self.open(peer, self._head("Transfer-Encoding: chunked"))
        elif target.path == "/events":
            assert parse_qs(target.query) == {"since": ["0"], "until": ["0"]}
            self._remember(peer)
        else:
            body = b"OK" if target.path == "/_ping" else b"[]"
            length = f"Content-Length: {len(body)}"
            peer.wire.send(self._head(length).encode() + body)

    def _head(self, framing: str) -> str:
        kind = "Content-Type: application/json"
        return f"HTTP/1.1 200 OK\r\n{kind}\r\n{self.date()}{framing}\r\n\r\n"

    def _remember(self, peer: Peer) -> None:
        ring, life = tuple(self.ring), peer.wire.life

        def read() -> None:
            now = trio.current_time()
            for message in ring:
                message.was_read(now, life)

        lines = [message.raw + b"\n" for message in ring]
        # A chunk for each, as an engine has it, is a tenth of what a seed costs: most go together.
        chunks = [*lines[:3], b"".join(lines[3:])] if len(lines) > 3 else lines
        data = self._head("Transfer-Encoding: chunked").encode() + b"".join(map(_chunk, chunks))
        peer.wire.send(data + b"0\r\n\r\n", read)

    def framed(self, made: Made) -> bytes:
        data = made.raw + b"\n"
        if self.rng.random() < 0.05:
            cut = self.rng.randrange(1, len(data))
            return _chunk(data[:cut]) + _chunk(data[cut:])
        return _chunk(data)

    def spoil(self, peer: Peer, how: str, code: int) -> bool:
        wire = peer.wire
        if how == "close":
            wire.send(b"0\r\n\r\n")
            self.over(peer, "eof")
        elif how == "torn":
            whole = _chunk(b'{"x":"%b"}\n' % (b"x" * 300))
            wire.send(whole[: self.rng.randrange(1, 5)])
            self.over(peer, self.rng.choice(["eof", "reset"]))
        elif how == "noise":
            self.last_word(wire.send(b"nothing that a chunk is\r\n"))
            peer.over = True
            self.peers.pop(wire, None)
        else:
            return False
        return True
