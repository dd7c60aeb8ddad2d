"""A byte stream of JSON values to messages: one value each, however the stream separates them.

The rules, whatever the reads were:

- A value that begins with `{` or `[` ends with its closing bracket. Nothing, white space, line ends
  or the 0x1e of `application/json-seq` may come before the next: Docker, Podman and proxies differ.
- Anything else runs to the end of its line.
- 0x1e, and a line end inside a string, cannot be part of JSON: they end whatever was under way.
- Of a value beyond the limit only the beginning is kept. A line end ends such a one too, so that a
  stream that went wrong finds its way back.
"""

from __future__ import annotations

import re
from enum import Enum, auto

import msgspec
from attrs import define, field

# How much of an oversize message is kept, in bytes: what an unparsed record can show.
KEPT_OF_OVERSIZE = 16_384

_WHITE = b" \t\r\n\x1e"

_validate = msgspec.json.Decoder(msgspec.Raw).decode


class Oversize(bytes):
    """The beginning of a message beyond the limit; `size` is what the whole had, in bytes."""

    size: int

    def __new__(cls, beginning: bytes, size: int) -> Oversize:
        """Make one of what was kept and the true size."""
        made = super().__new__(cls, beginning)
        made.size = size
        return made


class _Mode(Enum):
    BETWEEN = auto()  # before a value
    VALUE = auto()  # in brackets
    STRING = auto()  # in a string in brackets
    ESCAPE = auto()  # behind a backslash in such a string
    TEXT = auto()  # something else, up to the line end


# Where each mode looks up from skipping bytes.
_STOPS = {
    _Mode.BETWEEN: re.compile(rb"[^ \t\r\n\x1e]"),
    _Mode.VALUE: re.compile(rb'["{}\[\]\n\x1e]'),
    _Mode.STRING: re.compile(rb'["\\\n\x1e]'),
    _Mode.ESCAPE: re.compile(rb"[\s\S]"),
    _Mode.TEXT: re.compile(rb"[\n\x1e]"),
}


@define(eq=False)
class LineSplitter:
    """Cuts a stream into messages, each of at most `max_message_size` bytes."""

    max_message_size: int
    _mode: _Mode = field(default=_Mode.BETWEEN, init=False)
    _depth: int = field(default=0, init=False)
    _kept: bytearray = field(factory=bytearray, init=False)
    _size: int = field(default=0, init=False)

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """Take the next bytes; return the messages that they completed, in order."""
        data = bytes(data)  # free for bytes; a message must not be part of a caller's buffer
        messages: list[bytes] = []
        at = next_line = 0
        while at < len(data):
            if self._mode is not _Mode.BETWEEN:
                at = self._scan(data, at, messages)
            elif at < next_line:
                at = self._begin(data, at)
            else:
                # The usual stream, whole lines of one value each, needs no scan of its own.
                end = data.find(b"\n", at)
                next_line = end + 1 or len(data)
                if 0 <= end - at <= self.max_message_size:
                    line = data[at:end].strip(_WHITE)
                    if _is_value(line):
                        messages.append(line)
                        at = next_line
        return messages

    def finish(self) -> list[bytes]:
        """Return what the end of the stream left unfinished, if anything, and start over."""
        messages: list[bytes] = []
        if self._mode is not _Mode.BETWEEN:
            self._end(messages)
        return messages

    def _begin(self, data: bytes, at: int) -> int:
        """Skip what is between values, or begin one; return where to go on."""
        found = _STOPS[_Mode.BETWEEN].search(data, at)
        if found is None:
            return len(data)
        if found.start() == at:
            self._mode = _Mode.VALUE if data[at] in b"{[" else _Mode.TEXT
        return found.start()

    def _scan(self, data: bytes, at: int, messages: list[bytes]) -> int:
        """Keep bytes up to the next one that matters, act on that; return where to go on."""
        found = _STOPS[self._mode].search(data, at)
        if found is None:
            self._keep(data[at:])
            return len(data)
        stop, byte = found.start(), found[0]
        self._keep(data[at:stop])
        broken = byte == b"\x1e" or (
            byte == b"\n" and (self._mode is not _Mode.VALUE or self._size > self.max_message_size)
        )
        if not broken:
            self._keep(byte)
            self._mode, self._depth = _after(self._mode, self._depth, byte)
        if broken or self._depth == 0:
            self._end(messages)
        return stop + 1

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self.max_message_size:
            self._kept += data
        else:
            self._kept += data[: max(0, KEPT_OF_OVERSIZE - len(self._kept))]
            del self._kept[KEPT_OF_OVERSIZE:]

    def _end(self, messages: list[bytes]) -> None:
        kept = bytes(self._kept)
        if self._size > self.max_message_size:
            # Never the whole, so that it cannot pass for a message.
            messages.append(Oversize(kept[: self._size - 1], self._size))
        else:
            messages.append(kept.rstrip(_WHITE))
        self._kept.clear()
        self._size = self._depth = 0
        self._mode = _Mode.BETWEEN


def _after(mode: _Mode, depth: int, byte: bytes) -> tuple[_Mode, int]:
    """Return the mode and depth behind a byte that `mode` stops at and that ends nothing early."""
    match mode, byte:
        case _Mode.VALUE, b"{" | b"[":
            return mode, depth + 1
        case _Mode.VALUE, b"}" | b"]":
            return mode, depth - 1
        case _Mode.VALUE, b'"':
            return _Mode.STRING, depth
        case _Mode.STRING, b"\\":
            return _Mode.ESCAPE, depth
        case (_Mode.STRING, _) | (_Mode.ESCAPE, _):
            return (_Mode.VALUE if mode is _Mode.STRING else _Mode.STRING), depth
    return mode, depth


def _is_value(line: bytes) -> bool:
    try:
        _validate(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
