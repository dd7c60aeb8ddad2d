r"""Message bytes to `Event` or `Unparsed`: both of Hyper's dialects, Docker and Podman.

A message's bytes are not rebuilt. What is printable ASCII already, as nearly all are, is validated
by one typed decode and kept as it is. Anything else is rewritten as text: other characters as
`\uXXXX`, white space between tokens as spaces. Numbers, key order and duplicate keys stay.

What no common reader could take is `Unparsed`: invalid UTF-8, unpaired surrogates, nesting beyond
`MAX_DEPTH`, numbers beyond `MAX_DIGITS`. No input raises.
"""

from __future__ import annotations

import re
from decimal import Decimal

import msgspec

from hypermux.core.splitting import LineSplitter, Oversize
from hypermux.model.records import Event, TimeFrom, Unparsed

__all__ = ["MAX_DEPTH", "MAX_DIGITS", "MAX_UNPARSED_TEXT", "LineSplitter", "decode", "decode_batch"]

# What an unparsed message shows of itself, in characters: enough to recognise it by.
MAX_UNPARSED_TEXT = 4096
# Real events nest three deep; a record adds one. The strictest common readers stop at 100.
MAX_DEPTH = 96
# Objects alone take at least five bytes a level to nest: `{"":` and `}`.
_SHALLOW = 5 * MAX_DEPTH
# Python's own limit on reading an integer.
MAX_DIGITS = 4300

# Times outside 1970 to 2261 count as missing: a zero Go time, a counter, a clock never set.
_END_S = 9_214_646_400  # 2262-01-01
_END_NS = _END_S * 10**9

# Stripped; spaces may stay: what needs no rewriting is the same bytes on every way.
_LINE_ENDS = b"\t\r\n"
# White space apart, msgspec lets no control character through but this one.
_NOT_PLAIN = (b"\n", b"\r", b"\t", b"\x7f")
_REWRITTEN = re.compile(r"[^ -~]+")
_WHITE = str.maketrans("\t\r\n", "   ")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (MAX_DIGITS + 1))


class _Fields(msgspec.Struct):
    """What a usual event is read for. Other shapes of these go the careful way."""

    Action: str = ""
    status: str = ""
    timeNano: int | float = 0  # noqa: N815 - the wire's name
    TimeNano: int | float = 0


class _RawFields(msgspec.Struct):
    """The same of any dialect, as text, so that no value's type or precision matters."""

    Action: msgspec.Raw = msgspec.Raw(b"null")
    status: msgspec.Raw = msgspec.Raw(b"null")
    Status: msgspec.Raw = msgspec.Raw(b"null")
    timeNano: msgspec.Raw = msgspec.Raw(b"null")  # noqa: N815
    TimeNano: msgspec.Raw = msgspec.Raw(b"null")
    time: msgspec.Raw = msgspec.Raw(b"null")
    Time: msgspec.Raw = msgspec.Raw(b"null")


_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_raw_fields = msgspec.json.Decoder(_RawFields).decode


def decode_batch(messages: list[bytes]) -> list[Event | Unparsed]:
    """Decode what one read brought, in order; one result for each message."""
    joined = b"".join(messages)
    if b"[" not in joined and _plain(joined):
        return [_decode_quickly(message) or decode(message) for message in messages]
    return [_decode_one(message) for message in messages]


def _decode_one(message: bytes) -> Event | Unparsed:
    """Find the way that one message can take when a batch cannot take the quick one as a whole."""
    if type(message) is not bytes:  # stripped, it would be
        return decode(message)
    body = message.strip(_LINE_ENDS)
    quick = _decode_quickly(body) if b"[" not in body and _plain(body) else None
    return quick or decode(message)


def _plain(data: bytes) -> bool:
    return data.isascii() and not any(c in data for c in _NOT_PLAIN)


def _decode_quickly(message: bytes) -> Event | None:
    """Decode a usual event of printable ASCII without arrays; None for all that needs care."""
    if type(message) is not bytes:
        return None  # the beginning of an oversize one can look like an event
    size = len(message)
    if size > _SHALLOW and (size > MAX_DIGITS or message.count(b"{") > MAX_DEPTH):
        return None  # may hold what the typed decode does not refuse
    try:
        fields = _decode_fields(message)
    except (msgspec.DecodeError, RecursionError):
        return None
    nano = fields.timeNano or fields.TimeNano
    if type(nano) is int and 0 < nano < _END_NS and (action := fields.Action or fields.status):
        return Event(message, nano, "timeNano", action)
    return None


def decode(message: bytes) -> Event | Unparsed:
    """Decode one message of any kind, taking care of all that is unusual."""
    if isinstance(message, Oversize):
        return _unparsed(message, "over the size limit", message.size)
    body = message.strip(_LINE_ENDS)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return _unparsed(message, "not UTF-8")
    try:
        fields = _decode_raw_fields(body)
    except msgspec.ValidationError:
        return _unparsed(message, "not a JSON object")
    except msgspec.DecodeError as exc:
        return _unparsed(message, f"not JSON: {str(exc).removeprefix('JSON is malformed: ')}")
    except RecursionError:
        return _unparsed(message, "nested too deep")
    if _too_deep(body):
        return _unparsed(message, "nested too deep")
    if len(body) > MAX_DIGITS and _LONG_NUMBER.search(_STRING.sub(b'""', body)):
        return _unparsed(message, f"a number of over {MAX_DIGITS} digits")
    time_ns, time_from = _time(fields)
    action = _string(fields.Action) or _string(fields.status) or _string(fields.Status)
    raw = _REWRITTEN.sub(_rewrite, text).encode("ascii")
    return Event(raw, time_ns, time_from, action)


def _unparsed(message: bytes, reason: str, size: int | None = None) -> Unparsed:
    # A character has at most four bytes.
    text = message[: 4 * MAX_UNPARSED_TEXT].decode(errors="replace")[:MAX_UNPARSED_TEXT]
    return Unparsed(text, len(message) if size is None else size, reason)


def _too_deep(body: bytes) -> bool:
    """Say whether valid JSON nests beyond MAX_DEPTH. Strings may hold brackets."""
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in re.findall(rb"[\[\]{}]", _STRING.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _rewrite(found: re.Match[str]) -> str:
    """Return a run of characters of valid JSON in printable ASCII."""
    run = found[0]
    if run[0] in "\t\r\n":
        # Valid between tokens only, and there nothing else of a run is.
        return run.translate(_WHITE)
    return "\\u" + run.encode("utf-16-be").hex(" ", 2).replace(" ", "\\u")


def _time(fields: _RawFields) -> tuple[int | None, TimeFrom]:
    """Return an event's time in nanoseconds, and where it is from: the finest usable field."""
    for raw in (fields.timeNano, fields.TimeNano):
        nano = _number(raw)
        if nano is not None and 1 <= nano < _END_NS:
            return int(nano), "timeNano" if isinstance(nano, int) else "float"
    for raw in (fields.time, fields.Time):
        seconds = _number(raw)
        if seconds is not None and 0 < seconds < _END_S and (time_ns := int(seconds * 10**9)):
            return time_ns, "time" if isinstance(seconds, int) else "float"
    return None, "received"


def _number(raw: msgspec.Raw) -> int | Decimal | None:
    """Return a JSON number without loss, None for any other value."""
    text = bytes(raw).decode()
    if text[0] not in "-0123456789":
        return None
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        return Decimal(text)
    except ArithmeticError:  # an exponent beyond all bounds
        return None


def _string(raw: msgspec.Raw) -> str:
    text = bytes(raw)
    return msgspec.json.decode(text, type=str) if text.startswith(b'"') else ""
