"""Reading record lines cheaply: what readers need of a line that our own journal published.

No checksum is looked at here (recovery did that, see `recording`), and the payload of an event is
found by its place instead of being parsed: the key order of a record is fixed, and inside a JSON
string a quote is always escaped, so the first `,"event":` can only be the key itself.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

_EVENT = b',"event":'
_KIND = b'"kind":"'
# `,"crc":"` and 8 hex digits and `"}`, which end every record (a line feed follows).
_CRC_SIZE = 18


class Head(msgspec.Struct, gc=False):
    """All of a record but an event's payload; times are RFC 3339 text as written."""

    seq: int
    kind: str
    time: str = ""
    at: str | None = None
    account: str | None = None
    region: str | None = None
    late: bool = False
    replayed: bool = False
    synthetic: bool = False
    from_: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    cause: str | None = None
    certainty: str | None = None
    lost: int | None = None
    state: str | None = None
    verdict: str | None = None
    reason: str | None = None
    text: str | None = None
    size: int | None = None
    through: str | None = None


_decode_head = msgspec.json.Decoder(Head).decode
_decode_any = msgspec.json.Decoder().decode


def head_of(line: bytes) -> Head:
    """Return the head of a record line. Raises msgspec.DecodeError when it is not a record."""
    cut = line.find(_EVENT)
    return _decode_head(line if cut < 0 else line[:cut] + b"}")


def kind_of(line: bytes) -> str:
    """Return a record line's kind, "" when it has none."""
    start = line.find(_KIND) + len(_KIND)
    if start < len(_KIND):
        return ""
    return line[start : line.find(b'"', start)].decode("ascii", "replace")


def seq_of(line: bytes) -> int:
    """Return a record line's seq. Raises ValueError when it has none."""
    if not line.startswith(b'{"seq":'):
        raise ValueError("a record starts with its seq")
    return int(line[7 : line.index(b",", 7)])


def last_seq(block: bytes) -> int:
    """Return the seq of the last of the whole lines in `block`."""
    return seq_of(block[block.rfind(b"\n", 0, len(block) - 1) + 1 :])


def event_of(line: bytes) -> bytes | None:
    """Return an event record's payload byte for byte, None for other records."""
    cut = line.find(_EVENT)
    return None if cut < 0 else line.rstrip(b"\n")[cut + len(_EVENT) : -_CRC_SIZE]


def parse_event(raw: bytes) -> dict[str, Any]:
    """Return an event's payload as a mapping, empty when it cannot be had.

    Lone surrogates and numbers out of range are legal JSON that msgspec refuses.
    """
    try:
        event = _decode_any(raw)
    except msgspec.MsgspecError:
        try:
            event = json.loads(raw)
        except (ValueError, RecursionError):
            return {}
    except RecursionError:
        return {}
    return event if isinstance(event, dict) else {}
