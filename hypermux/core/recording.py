r"""A record as bytes: one line of printable ASCII JSON that ends in its own checksum.

    {"seq":1042,"kind":"event","time":"…","received":"…","account":"prod","region":"us-west-1",
     "event":{…as received…},"crc":"9ae0daaf"}\n        (folded here)

Keys come in one order: seq, kind, time, at, time_from, received, account, region, late, replayed,
synthetic, durable, the payload, crc. `at` is there only when it differs from `time`, the five after
region only when they apply. The checksum is the CRC-32 of all bytes before `,"crc"`.

An event's bytes are spliced, never rebuilt, and reading a line back never parses them: no nesting
that a decoder once let through can make a line unreadable.
"""

from __future__ import annotations

import json
import re
import zlib
from datetime import datetime, timedelta
from functools import lru_cache

import msgspec
from attrs import define, field, frozen

from hypermux.model.accounts import SourceId
from hypermux.model.records import (
    Certainty,
    Checkpoint,
    Event,
    Gap,
    Item,
    Kind,
    StateChange,
    TimeFrom,
    Unparsed,
)

_SECOND = 1_000_000_000
_1970 = datetime(1970, 1, 1)
_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", re.ASCII)
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)

# `,"crc":"` + 8 hex digits + `"}\n`
_SEAL = 19
# The bytes `,"` begin a key and nothing else: inside a string the quote would be escaped, and
# behind a string's end comes a comma, a colon or a brace. So this finds the payload's own key.
_EVENT_KEY = b',"event":'


class BadLine(ValueError):
    """A line that is not a whole, unharmed record; the message says what is wrong with it."""


@lru_cache(maxsize=256)
def _prefix(seconds: int) -> str:
    return (_1970 + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def rfc3339(ns: int) -> str:
    """Return `ns` (nanoseconds since 1970) as RFC 3339 text in UTC, always with nine decimals.

    Of equal length, such texts sort as their times do. Raises OverflowError outside years 1-9999.
    """
    seconds, rest = divmod(ns, _SECOND)
    return f"{_prefix(seconds)}.{str(rest).zfill(9)}Z"  # half the cost of the format `09d`


@lru_cache(maxsize=256)
def _seconds(text: str) -> int:
    if _SECONDS.fullmatch(text) is None:
        raise ValueError("not a time")
    elapsed = datetime.fromisoformat(text) - _1970
    return elapsed.days * 86_400 + elapsed.seconds


def parse_rfc3339(text: str) -> int:
    """Return the nanoseconds since 1970 of an RFC 3339 text, exactly; decimals past nine are cut.

    Raises ValueError with the right form.
    """
    try:
        # What `rfc3339` makes. The pattern below costs three times as much.
        if len(text) == 30 and text[19] == "." and text[29] == "Z" and text.isascii():
            decimals = text[20:29]
            if decimals.isdigit():
                return _seconds(text[:19]) * _SECOND + int(decimals)
        match = _RFC3339.fullmatch(text)
        if match is not None:
            day, clock, decimals, sign, hours, minutes = match.groups()
            seconds = _seconds(f"{day}T{clock}")
            if sign is not None:
                if int(hours) > 23 or int(minutes) > 59:
                    raise ValueError("not a time zone")
                shift = int(hours) * 3600 + int(minutes) * 60
                seconds += shift if sign == "-" else -shift
            return seconds * _SECOND + int(((decimals or "") + "000000000")[:9])
    except ValueError:
        pass
    raise ValueError("a time is written like 2016-10-13T16:22:54.25Z (RFC 3339)")


def seal(body: bytes) -> bytes:
    """Return `body`, an object without its closing brace, as a line with its checksum."""
    return b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def unseal(line: bytes) -> bytes:
    """Return the body that `seal` was given. Raises BadLine when the line is not intact."""
    if line[-1:] != b"\n":
        raise BadLine("the line has no end")
    if line[-_SEAL:-11] != b',"crc":"' or line[-3:-1] != b'"}':
        raise BadLine("the line does not end in a checksum")
    body = line[:-_SEAL]
    if line[-11:-3] != b"%08x" % zlib.crc32(body):
        raise BadLine("the checksum does not match")
    return body


def _quote(text: str) -> str:
    """Return `text` as a JSON string of printable ASCII."""
    if text.isascii() and text.isprintable():
        return json.dumps(text)
    # A path that is not UTF-8 brings lone surrogates, which no strict reader takes back.
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(clean).replace("\x7f", "\\u007f")


def _payload(item: Gap | StateChange | Unparsed | Checkpoint) -> tuple[Kind, str]:
    match item:
        case Gap():
            lost = f',"lost":{item.lost}' if item.lost is not None else ""
            return Kind.GAP, (
                f',"from":"{rfc3339(item.from_ns)}","to":"{rfc3339(item.to_ns)}"'
                f',"cause":{_quote(item.cause)},"certainty":"{item.certainty}"{lost}'
            )
        case StateChange():
            parts = [f',"state":{_quote(item.state)}']
            if item.verdict is not None:
                parts.append(f',"verdict":{_quote(item.verdict)}')
            if item.cause is not None:
                parts.append(f',"cause":{_quote(item.cause)}')
            if item.from_ns is not None:
                parts.append(f',"from":"{rfc3339(item.from_ns)}"')
            if item.reason is not None:
                parts.append(f',"reason":{_quote(item.reason)}')
            if item.offset_ns is not None:
                parts.append(f',"offset_ns":{item.offset_ns}')
            if item.anchor is not None:
                parts.append(f',"anchor":{_quote(item.anchor)}')
            return Kind.STATE, "".join(parts)
        case Unparsed():
            return Kind.UNPARSED, (
                f',"text":{_quote(item.text)},"size":{item.size},"reason":{_quote(item.reason)}'
            )
        case Checkpoint():
            looked = ""
            if item.looked_ns is not None:
                looked = f',"looked":"{rfc3339(item.looked_ns)}"'
            return Kind.CHECKPOINT, f',"through":"{rfc3339(item.through_ns)}"{looked}'


@define(eq=False)
class Encoder:
    """Makes lines. It keeps what repeats from one to the next: names and the last `received`."""

    _tags: dict[SourceId | None, str] = field(factory=lambda: {None: ""})
    _received_ns: int = 0
    _received: str = field(factory=lambda: rfc3339(0))

    def encode(
        self,
        seq: int,
        item: Item | Checkpoint,
        *,
        source: SourceId | None,
        at_ns: int,
        received_ns: int,
        late: bool = False,
        durable: int | None = None,
    ) -> bytes:
        r"""Return the line of one record, checksum and `\n` included.

        `source` is None for what the service itself says. Times are nanoseconds since 1970.
        `durable` is the last synced seq, given on the first record of a batch.
        """
        if received_ns != self._received_ns:
            self._received = rfc3339(received_ns)
            self._received_ns = received_ns
        try:
            tag = self._tags[source]
        except KeyError:
            tag = self._tag(source)
        if isinstance(item, Event):
            # Every event passes here: one f-string for its head, one formatting for its line.
            time_ns, time_from = item.time_ns, item.time_from
            if time_ns is None:
                time_ns, time_from = received_ns, "received"
            head = (
                f'{{"seq":{seq},"kind":"event","time":"{rfc3339(time_ns)}"'
                f"{'' if at_ns == time_ns else _at(at_ns)}"
                f"{'' if time_from == 'timeNano' else _time_from(time_from)}"
                f',"received":"{self._received}"{tag}{_LATE if late else ""}'
                f"{_REPLAYED if item.replayed else ''}{_SYNTHETIC if item.synthetic else ''}"
                f'{"" if durable is None else _durable(durable)},"event":'
            ).encode("ascii")
            crc = zlib.crc32(item.raw, zlib.crc32(head))
            return b'%b%b,"crc":"%08x"}\n' % (head, item.raw, crc)
        kind, payload = _payload(item)
        replayed = isinstance(item, Unparsed) and item.replayed
        return seal(
            (
                f'{{"seq":{seq},"kind":"{kind}","time":"{self._received}"'
                f"{'' if at_ns == received_ns else _at(at_ns)}"
                f',"received":"{self._received}"{tag}{_LATE if late else ""}'
                f"{_REPLAYED if replayed else ''}"
                f"{'' if durable is None else _durable(durable)}{payload}"
            ).encode("ascii")
        )

    def _tag(self, source: SourceId | None) -> str:
        assert source is not None
        tag = f',"account":{_quote(source.account)},"region":{_quote(source.region)}'
        self._tags[source] = tag
        return tag


_LATE = ',"late":true'
_REPLAYED = ',"replayed":true'
_SYNTHETIC = ',"synthetic":true'


def _at(at_ns: int) -> str:
    return f',"at":"{rfc3339(at_ns)}"'


def _time_from(time_from: TimeFrom) -> str:
    return f',"time_from":"{time_from}"'


def _durable(durable: int) -> str:
    return f',"durable":{durable}'


class _Head(msgspec.Struct, frozen=True, gc=False):
    """A record's keys but `event` and `crc`; keys of later versions are passed over."""

    seq: int
    kind: Kind
    time: str
    received: str
    at: str | None = None
    time_from: TimeFrom = "timeNano"
    account: str | None = None
    region: str | None = None
    late: bool = False
    replayed: bool = False
    synthetic: bool = False
    durable: int | None = None
    from_: str | None = msgspec.field(default=None, name="from")
    to: str | None = None
    cause: str | None = None
    certainty: Certainty = "possible"
    lost: int | None = None
    state: str | None = None
    verdict: str | None = None
    reason: str | None = None
    offset_ns: int | None = None
    anchor: str | None = None
    text: str | None = None
    size: int | None = None
    through: str | None = None
    looked: str | None = None


_head_decoder = msgspec.json.Decoder(_Head)


@frozen(eq=False)
class Parsed:
    r"""A record read back. Times are nanoseconds since 1970; `line` includes its `\n`."""

    seq: int
    kind: Kind
    at_ns: int
    received_ns: int
    source: SourceId | None
    durable: int | None
    late: bool
    line: bytes
    _head: _Head

    @property
    def replayed(self) -> bool:
        """Whether it did not come as it happened."""
        return self._head.replayed

    @property
    def synthetic(self) -> bool:
        """Whether its upstream never sent it."""
        return self._head.synthetic

    @property
    def event(self) -> bytes:
        """The bytes of the event as received; empty for the other kinds."""
        return self.line.partition(_EVENT_KEY)[2][:-_SEAL]

    @property
    def item(self) -> Item | Checkpoint:
        """What the record was made of. An event comes back without its `action`.

        Raises BadLine when a key that this kind needs is missing.
        """
        head = self._head
        match self.kind:
            case Kind.EVENT:
                time_ns = None if head.time_from == "received" else _time(head.time)
                return Event(
                    self.event,
                    time_ns,
                    head.time_from,
                    replayed=head.replayed,
                    synthetic=head.synthetic,
                )
            case Kind.GAP:
                from_ns, to_ns = _time(_need(head.from_)), _time(_need(head.to))
                return Gap(from_ns, to_ns, _need(head.cause), head.certainty, head.lost)
            case Kind.STATE:
                since = None if head.from_ is None else _time(head.from_)
                return StateChange(
                    _need(head.state),
                    head.reason,
                    head.verdict,
                    head.cause,
                    since,
                    head.offset_ns,
                    head.anchor,
                )
            case Kind.UNPARSED:
                size = head.size if head.size is not None else 0
                return Unparsed(_need(head.text), size, _need(head.reason), head.replayed)
            case Kind.CHECKPOINT:
                looked_ns = None if head.looked is None else _time(head.looked)
                return Checkpoint(_time(_need(head.through)), looked_ns)


def _need(value: str | None) -> str:
    if value is None:
        raise BadLine("the record lacks a key that its kind has")
    return value


def _time(text: str) -> int:
    try:
        return parse_rfc3339(text)
    except ValueError as exc:
        raise BadLine(str(exc)) from None


def parse_line(line: bytes) -> Parsed:
    r"""Read one line, its `\n` included, and check it. Raises BadLine."""
    body = unseal(line)
    cut = body.find(_EVENT_KEY)
    try:
        head = _head_decoder.decode((body if cut < 0 else body[:cut]) + b"}")
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise BadLine(f"not a record: {exc}") from None
    if (head.kind is Kind.EVENT) != (cut >= 0):
        raise BadLine(f"the payload is not that of kind {head.kind}")
    source = None
    if head.account is not None and head.region is not None:
        source = _source(head.account, head.region)
    received_ns = _time(head.received)
    at = head.at if head.at is not None else head.time
    at_ns = received_ns if at == head.received else _time(at)
    return Parsed(
        head.seq, head.kind, at_ns, received_ns, source, head.durable, head.late, line, head
    )


@lru_cache(maxsize=4096)
def _source(account: str, region: str) -> SourceId:
    return SourceId(account, region)
