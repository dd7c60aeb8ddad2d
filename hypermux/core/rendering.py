r"""A record as people read it: one line of text, or indented JSON.

Whatever servers sent is shown escaped: control characters (C0, C1, DEL), characters that reorder
or hide text, and line breaks appear as `\x1b`, `\u202e` and their like, so that no event can
steer a terminal. Colours come from outside, as ready pairs of escape sequences.

    16:22:54.255 prod/us-west-1  container start  test4 (f296a1b2c3d4)  busybox  exitCode=0
    16:23:10.001 prod/us-west-1  GAP 12.3 s, possible loss: dropped (16:22:57.700 to 16:23:10.000)
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from datetime import date, datetime, tzinfo
from typing import Any, TypeAlias

import msgspec
from attrs import define, field, frozen

from hypermux.core import lines
from hypermux.core.recording import parse_rfc3339
from hypermux.model.records import Kind

Paint: TypeAlias = tuple[str, str]

# Long enough for any name or image that people choose; a label of 200 KiB is not to be read.
MAX_FIELD = 160
# Tags are padded to the longest seen so far, up to this.
MAX_TAG = 32
# What explains an event at a glance, in this order; dialect B's spelling beside Docker's.
_TELLING = (
    ("exitCode", "exitCode"),
    ("ExitCode", "exitCode"),
    ("signal", "signal"),
    ("oldName", "oldName"),
    ("container", "container"),
)
_HEX_ID = re.compile(r"(?:sha256:)?([0-9a-f]{12})[0-9a-f]{20,}", re.ASCII)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[][{},:]|[^][{},:\s"]+')


@frozen
class Palette:
    """Pairs of what to print before and after; empty pairs for a plain terminal."""

    tags: tuple[Paint, ...] = (("", ""),)
    time: Paint = ("", "")
    action: Paint = ("", "")
    dim: Paint = ("", "")
    gap: Paint = ("", "")
    warning: Paint = ("", "")

    def tag(self, text: str) -> Paint:
        """Return the colour of a tag: the same in every run and on every machine."""
        return self.tags[zlib.crc32(text.encode("utf-8", "replace")) % len(self.tags)]


PLAIN = Palette()


def escape(text: str, *, limit: int | None = MAX_FIELD) -> str:
    """Return `text` with everything escaped that is not plainly visible, cut to `limit`."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def pretty(raw: bytes) -> bytes:
    r"""Return one JSON value indented by two, ending in `\n`, every number and text as it stands.

    It moves tokens and never reads them: integers over 2^53 and odd escapes stay exact. Only
    printable ASCII comes out, which is what the journal holds.
    """
    out: list[str] = []
    depth, opened = 0, False
    for token in _TOKEN.findall(raw.decode("ascii", "backslashreplace")):
        if token in "]}":
            depth -= 1
            out.append(token if opened else "\n" + "  " * depth + token)
            opened = False
            continue
        if opened:
            out.append("\n" + "  " * depth)
            opened = False
        if token in "[{":
            depth += 1
            opened = True
            out.append(token)
        elif token == ",":
            out.append(",\n" + "  " * depth)
        else:
            out.append(": " if token == ":" else escape(token, limit=None))
    out.append("\n")
    return "".join(out).encode("ascii")


def duration(ns: int) -> str:
    """Write nanoseconds for people: `340 ms`, `12.3 s`, `4 min 5 s`, `2 h 3 min`, `1 d 2 h`."""
    seconds = max(ns, 0) / 1e9
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, below, small in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    raise AssertionError("unreachable: a minute or more has a unit")


@define(eq=False)
class LineRenderer:
    """Renders record lines one by one.

    `zone` None is this machine's local time. A record of another day than `today` shows its
    date, too.
    """

    palette: Palette = PLAIN
    zone: tzinfo | None = None
    today: date | None = None
    _width: int = 0
    _second: int = -1
    _clock: str = ""
    _tags: dict[tuple[str | None, str | None], tuple[str, int]] = field(factory=dict)

    def render(self, line: bytes) -> str | None:
        """Return one line of text without its end, None for a checkpoint."""
        kind = lines.kind_of(line)
        if kind == Kind.CHECKPOINT:
            return None
        try:
            head = lines.head_of(line)
        except (msgspec.MsgspecError, RecursionError):
            return self._paint(
                self.palette.warning, escape(line.decode("ascii", "backslashreplace").rstrip("\n"))
            )
        match kind:
            case Kind.EVENT:
                text = self._event(lines.parse_event(lines.event_of(line) or b""), line)
            case Kind.GAP:
                # Every source has one from its start to its first connection: no alarm.
                usual = head.cause == "start"
                text = self._paint(self.palette.dim if usual else self.palette.gap, self._gap(head))
            case Kind.STATE:
                text = self._paint(self.palette.dim, _state(head))
            case Kind.UNPARSED:
                what = f"unparsed message of {head.size} bytes, {escape(head.reason or '')}: "
                text = self._paint(self.palette.warning, what + escape(head.text or ""))
            case _:
                text = self._paint(self.palette.dim, escape(kind))
        told = {"late": head.late, "replayed": head.replayed, "synthetic": head.synthetic}
        flags = " ".join(word for word, on in told.items() if on)
        if flags:
            text += "  " + self._paint(self.palette.dim, flags)
        clock = self._paint(self.palette.time, self._time(head.time))
        return f"{clock} {self._tag(head)}  {text}"

    @staticmethod
    def _paint(paint: Paint, text: str) -> str:
        return f"{paint[0]}{text}{paint[1]}"

    def _time(self, text: str) -> str:
        try:
            second, rest = divmod(parse_rfc3339(text), 10**9)
            if second != self._second:
                local = datetime.fromtimestamp(second, self.zone)
                form = "%H:%M:%S" if local.date() == (self.today or local.date()) else "%F %T"
                self._second, self._clock = second, local.strftime(form)
        except (ValueError, OverflowError, OSError):
            return "--:--:--.---"
        return f"{self._clock}.{rest // 10**6:03d}"

    def _tag(self, head: lines.Head) -> str:
        key = (head.account, head.region)
        found = self._tags.get(key)
        if found is None:
            name = "hypermux" if head.account is None else f"{head.account}/{head.region or ''}"
            plain = escape(name)
            paint = self.palette.dim if head.account is None else self.palette.tag(name)
            found = self._tags[key] = self._paint(paint, plain), len(plain)
            self._width = max(self._width, min(len(plain), MAX_TAG))
        return found[0] + " " * (self._width - found[1])

    def _event(self, event: Mapping[str, Any], line: bytes) -> str:
        actor = _mapping(event.get("Actor"))
        attributes = _mapping(actor.get("Attributes"))
        action = _text(event, "Action", "status", "Status")
        parts = [
            f"{escape(_text(event, 'Type'))} {self._paint(self.palette.action, escape(action))}"
        ]
        if not action:
            raw = lines.event_of(line) or b""
            return self._paint(
                self.palette.warning, escape(raw.decode("ascii", "backslashreplace"))
            )
        status = _text(event, "Status")  # dialect B: MODIFIED says little without it
        if status and status != action:
            parts[0] += f" {escape(status)}"
        ident = _short(_text(actor, "ID", "Id") or _text(event, "id", "Id"))
        name = _text(attributes, "name", "Name")
        if name and _short(name) != ident:
            parts.append(escape(name) + (f" ({escape(ident)})" if ident else ""))
        elif ident:
            parts.append(escape(ident))
        image = _text(attributes, "image", "Image") or _text(event, "from", "From")
        if image:
            parts.append(escape(_short(image)))
        for key, shown in _TELLING:
            value = attributes.get(key)
            if isinstance(value, str) and value:
                told = f"{shown}={escape(_short(value))}"
                failed = shown == "exitCode" and value != "0"
                parts.append(self._paint(self.palette.warning, told) if failed else told)
        return "  ".join(parts)

    def _gap(self, head: lines.Head) -> str:
        try:
            length = duration(parse_rfc3339(head.to or "") - parse_rfc3339(head.from_ or ""))
        except ValueError:
            length = "of unknown length"
        if head.lost is not None:
            loss = f"{head.lost} events lost"
        else:
            loss = "events lost" if head.certainty == "proven" else "possible loss"
        span = f"{self._time(head.from_ or '')} to {self._time(head.to or '')}"
        return f"GAP {length}, {loss}: {escape(head.cause or 'unknown cause')} ({span})"


def _state(head: lines.Head) -> str:
    text = escape(head.state or "")
    detail = dict.fromkeys(escape(t) for t in (head.verdict, head.cause) if t)
    if detail:
        text += f" ({', '.join(detail)})"
    return f"{text}: {escape(head.reason)}" if head.reason else text


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(mapping: Mapping[str, Any], *keys: str) -> str:
    for key in keys:
        value = mapping.get(key)
        if isinstance(value, str) and value:
            return value
    return ""


def _short(text: str) -> str:
    """Return a hash's first twelve digits; other text as it is."""
    match = _HEX_ID.fullmatch(text)
    return match[1] if match else text
