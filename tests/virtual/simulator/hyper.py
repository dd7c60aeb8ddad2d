"""An upstream of signed WebSockets: one source's side of it.

It speaks RFC 6455 by its own few lines and checks signatures with the emulator's code, which
shares nothing with the signer.
"""

from __future__ import annotations

import base64
import hashlib
import struct

from attrs import define, field

from hypermux.emulator.verify_signature import Request, SignatureRefused, verify
from hypermux.model.accounts import Credential, Secret
from simulator.messages import Made
from simulator.network import Wire
from simulator.upstream import Peer, Upstream

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x81, 0x82, 0x88, 0x89, 0x8A


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a server's frame; `opcode` with its FIN bit."""
    size = len(payload)
    if size < 126:
        return bytes((opcode, size)) + payload
    if size < 65536:
        return struct.pack(">BBH", opcode, 126, size) + payload
    return struct.pack(">BBQ", opcode, 127, size) + payload


@define(eq=False)
class HyperUpstream(Upstream):
    """A server that takes requests signed with `secret`."""

    secret: Credential = field(kw_only=True)

    def received(self, wire: Wire, data: bytes) -> None:
        peer = self.peers.get(wire)
        if peer is None or peer.over:
            return
        peer.held += data
        if peer.session is None:
            head, end, rest = bytes(peer.held).partition(b"\r\n\r\n")
            if not end:
                return
            peer.held = bytearray(rest)
            self._asked(peer, head)
        while peer.session is not None and len(peer.held) >= 6:
            size = peer.held[1] & 0x7F
            if len(peer.held) < 6 + size:
                return
            opcode, mask = peer.held[0], peer.held[2:6]
            payload = bytes(b ^ mask[i % 4] for i, b in enumerate(peer.held[6 : 6 + size]))
            del peer.held[: 6 + size]
            self._control(peer, opcode, payload)

    def _control(self, peer: Peer, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            peer.wire.send(frame(_PONG, payload))
        elif opcode == _CLOSE:
            peer.wire.send(frame(_CLOSE, payload[:2]))
            self.over(peer, "eof")

    def _asked(self, peer: Peer, head: bytes) -> None:
        if self.misbehave(peer):
            return
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        pairs = tuple((n, v.strip()) for n, _, v in (line.partition(":") for line in lines[1:]))
        request = Request(method, target, pairs)
        try:
            claim = verify(request, self._secret_of, round(self.now_s() * 1e9))
        except SignatureRefused as refused:
            self.refuse(peer, 401, skewed="expired" in str(refused))
            return
        if claim.region != self.source.region:
            self.refuse(peer, 401)
            return
        wrong = self.mood.answer == "wrong"
        answer = self._answer(request, wrong=wrong)
        if wrong:
            peer.wire.send(answer.encode())
        else:
            self.open(peer, answer)

    def _secret_of(self, access_key: str) -> Secret | None:
        return self.secret.secret_key if access_key == self.secret.access_key else None

    def _answer(self, request: Request, *, wrong: bool) -> str:
        key = (request.header("sec-websocket-key") or "").encode()
        digest = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        if wrong:
            digest = ("y" if digest[0] == "x" else "x") + digest[1:]
        return (
            f"HTTP/1.1 101 Switching Protocols\r\n{self.date()}Upgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Accept: {digest}\r\n\r\n"
        )

    def framed(self, made: Made) -> bytes:
        opcode, raw = _TEXT if made.text else _BINARY, made.raw
        if len(raw) > 20 and self.rng.random() < 0.05:
            cut = self.rng.randrange(len(raw))
            ping = frame(_PING, b"between") if self.rng.random() < 0.5 else b""
            return frame(opcode & 0x7F, raw[:cut]) + ping + frame(0x80, raw[cut:])
        return frame(opcode, raw)

    def spoil(self, peer: Peer, how: str, code: int) -> bool:
        wire = peer.wire
        if how == "close":
            wire.send(frame(_CLOSE, struct.pack(">H", code) + b"simulated"))
            self.over(peer, "eof")
        elif how == "torn":
            whole = frame(_TEXT, b"x" * 300)
            wire.send(whole[: self.rng.randrange(1, len(whole))])
            self.over(peer, self.rng.choice(["eof", "reset"]))
        elif how == "noise":
            self.last_word(wire.send(b"\xff\xfe\xfd nothing that a frame is"))
            peer.over = True
            self.peers.pop(wire, None)
        else:
            return False
        return True
