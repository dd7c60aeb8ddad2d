"""The client's side of RFC 6455 frames, sans-I/O: messages are taken out, control frames go on.

The WebSocket library below which this works costs 40 to 130 µs a message; cutting messages out of
the bytes before it sees them costs 1 µs. The rule:

    a text or binary message    taken out, whole or assembled from its fragments
    ping, pong, close           passed on, unchanged and whole
    anything that is neither    the end, with its reason

Every message is taken out here, fragmented ones too, so none can overtake another. The splitter
is bounded: of a message over the limit it keeps the beginning and counts the rest, and gives an
`Oversize` in its place. One that would never end is a fault: frames so long mean that the stream
is out of step, and all that follows would vanish in them.
Invalid UTF-8 is left to whoever decodes the message: one bad text does not end a stream.
"""

from __future__ import annotations

from attrs import define, field

from hypermux.core.splitting import KEPT_OF_OVERSIZE, Oversize
from hypermux.core.wording import printable
from hypermux.model.errors import Failure, FailureKind

_FIN, _CONTROL, _RESERVED, _OPCODE = 0x80, 0x08, 0x70, 0x0F
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_KNOWN = frozenset((_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG))
_WHOLE_TEXT = _FIN | _TEXT
_MAX_CONTROL = 125
# No event comes near it; at 100 Mbit/s even so much is passed over within 90 s.
MAX_SENSIBLE = 1 << 30

# RFC 6455 section 7.4.1 and the IANA registry.
_CLOSE_NAMES = {
    1000: "normal closure",
    1001: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    1005: "no status",
    1007: "invalid data",
    1008: "policy violation",
    1009: "message too big",
    1010: "extension missing",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
    3000: "unauthorized",
    3003: "forbidden",
    3008: "timeout",
}
NO_STATUS = 1005


@define(eq=False)
class FrameSplitter:
    """Splits what a server sends after its 101. `max_message_size` is in bytes.

    `ended` is set once the server sent a close frame or something that no frame is; what came
    before it is still returned by `feed`, what comes after it is ignored.
    """

    max_message_size: int
    ended: Failure | None = None
    pongs: list[bytes] = field(factory=list)  # payloads of the last call's, in order
    _held: bytearray = field(factory=bytearray)  # the start of an unfinished frame
    _need: int = 0  # bytes that _held must have before looking at it again is of use
    _fragments: bytearray | None = None  # of the message under way; its beginning, when oversize
    _size: int = 0  # of the message under way, up to the end of the last frame begun
    _left: int = 0  # bytes still to come of a frame of an oversize message
    _last: bool = False  # that frame is the last of its message

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Take bytes; return the messages that they complete, and the control frames."""
        if self.pongs:
            self.pongs.clear()
        if self.ended is not None:
            return [], b""
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return [], b""
            data = bytes(self._held)
            self._held.clear()
        messages: list[bytes] = []
        control = bytearray()
        at, end = self._pass_over(data, 0, messages) if self._left else 0, len(data)
        append, limit, fragmented = messages.append, self.max_message_size, self._fragments
        while True:
            left = end - at
            if left < 2:
                need = 2
                break
            first, size, start = data[at], data[at + 1], at + 2
            if size == 126:
                if left < 4:
                    need = 4
                    break
                size, start = data[at + 2] << 8 | data[at + 3], at + 4
                minimal = size > 125
            elif size == 127:
                if left < 10:
                    need = 10
                    break
                size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
                minimal = size > 0xFFFF
            else:
                minimal = True  # or masked: 128 and more
            ordinary = first == _WHOLE_TEXT and fragmented is None and minimal and size <= limit
            if not ordinary or data[at + 1] > 127:
                self.ended = self._fault(first, data[at + 1], size, minimal)
                if self.ended is not None:
                    return messages, bytes(control)
                if not first & _CONTROL and self._size + size > limit:
                    self._begin_oversize(first, size)
                    at = self._pass_over(data, start, messages)
                    fragmented = self._fragments
                    continue
            stop = start + size
            if stop > end:
                need = stop - at
                break
            if ordinary:
                append(data[start:stop])
            elif first & _CONTROL:
                control += data[at:stop]
                if first & _OPCODE == _CLOSE:
                    self.ended = _closed(data[start:stop])
                    return messages, bytes(control)
                if first & _OPCODE == _PONG:
                    self.pongs.append(data[start:stop])
            else:
                self._join(first, data[start:stop], messages)
                fragmented = self._fragments
            at = stop
        if at < end:
            self._held += data[at:] if at else data
            self._need = need
        return messages, bytes(control)

    def _fault(self, first: int, second: int, size: int, minimal: bool) -> Failure | None:
        """Return what is wrong with a frame that begins so, None when nothing is."""
        opcode = first & _OPCODE
        if second & 0x80:
            return _garbage("the server masked a frame")
        if first & _RESERVED:
            return _garbage("the server used an extension that was not agreed on")
        if opcode not in _KNOWN:
            return _garbage(f"the server sent a frame of unknown type {opcode:#x}")
        if opcode & _CONTROL:
            if not first & _FIN or second > _MAX_CONTROL:
                return _garbage("the server sent a control frame that is fragmented or too long")
            return None
        if (opcode == _CONTINUATION) != (self._fragments is not None):
            return _garbage("the server mixed up the fragments of its messages")
        if not minimal:
            return _garbage("the server sent a frame with a padded length")
        if self._size + size > MAX_SENSIBLE:
            total = self._size + size
            return _garbage(f"the server announced a message of {total} bytes: that is no event")
        return None

    def _join(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        """Take in a data frame that is not a whole text message."""
        if self._fragments is None:
            if first & _FIN:
                messages.append(payload)
            else:
                self._fragments = bytearray(payload)
                self._size = len(payload)
            return
        self._fragments += payload
        self._size += len(payload)
        if first & _FIN:
            messages.append(bytes(self._fragments))
            self._fragments = None
            self._size = 0

    def _begin_oversize(self, first: int, size: int) -> None:
        """Note a frame of `size` bytes that takes its message over the limit, or is behind one."""
        if self._fragments is None:
            self._fragments = bytearray()
        del self._fragments[KEPT_OF_OVERSIZE:]
        self._size += size
        self._left, self._last = size, bool(first & _FIN)

    def _pass_over(self, data: bytes, at: int, messages: list[bytes]) -> int:
        """Pass over payload of an oversize message from `at`; return where to go on."""
        assert self._fragments is not None
        stop = min(at + self._left, len(data))
        self._left -= stop - at
        room = KEPT_OF_OVERSIZE - len(self._fragments)
        self._fragments += data[at : min(stop, at + room)]
        if not self._left and self._last:
            # Never the whole, so that it cannot pass for a message.
            messages.append(Oversize(bytes(self._fragments[: self._size - 1]), self._size))
            self._fragments = None
            self._size = 0
        return stop


def _garbage(detail: str) -> Failure:
    return Failure(FailureKind.PROTOCOL, detail)


def _closed(payload: bytes) -> Failure:
    """Return what a close frame says."""
    if len(payload) == 1:
        return _garbage("the server sent a close frame with half a code")
    code = int.from_bytes(payload[:2], "big") if payload else NO_STATUS
    reason = printable(payload[2:].decode(errors="replace"))
    name = _CLOSE_NAMES.get(code, "")
    text = f"the server closed the connection: {code}{f' {name}' if name else ''}"
    return Failure(FailureKind.CLOSE, f"{text} ({reason})" if reason else text, code)
