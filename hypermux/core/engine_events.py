"""Records as a Docker Engine's events: what the clients of its API are shown.

    event      as the upstream sent it, with `hypermux.account` and `hypermux.region` among its
               attributes (and `hypermux.synthetic`, of what the upstream never sent); dialect B,
               and what lacks something, in Docker's shape, with the words that it came with
    gap        Type `hypermux`, Action `gap`, the source as Actor.ID ("hypermux" when it is that of
               all of them); cause, certainty, from, to and lost are attributes
    unparsed   likewise, Action `unparsed`: reason and size
    others     nothing: they have no counterpart

Clients of API 1.51 count on `time`, `timeNano`, and for containers and images on the older
`status`, `id` and `from`: what is missing of them is added, from the record's time, Action, Actor.

Filters are the Engine's and are asked of the event as it is shown. So gaps are shown unless a
filter leaves them out, as `type=container` does; a gap of all sources is one of any account and
region that a label filter asks for. `since` and `until` compare `time`, both inclusive; a gap
passes when any part of it lies between them.

Nearly every event has the shape that an Engine gives it. One typed decode proves that, and then the
attributes are spliced in; all others take a slow way. An upstream's own attribute of one of these
names is never shown: a container's label must not say whose it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec
from attrs import define, field, frozen

from hypermux.core import lines
from hypermux.core.filters import Filters, Subject
from hypermux.core.recording import parse_rfc3339, rfc3339

ACCOUNT, REGION, SYNTHETIC = "hypermux.account", "hypermux.region", "hypermux.synthetic"
_OURS = frozenset({ACCOUNT, REGION, SYNTHETIC})

_LOSSES = ("gap", "unparsed")
# Keys of a record's head; behind the second comes an event's own time, in a text of one length.
_TIME, _TIME_SIZE = b',"time":"', 30
_ACCOUNT, _DURABLE, _EVENT = b',"account":', b',"durable":', b',"event":'
_SEAL_SIZE = 19  # `,"crc":"`, 8 hex digits, `"}` and the line feed
_ATTRIBUTES = b'"Attributes":{'
# An escape that stands for a letter: nobody's encoder writes that.
_spelled = re.compile(rb"\\u00[4-7]").search
_LEGACY_TYPES = ("container", "image")
# All of a record's times lie between these, and all that `rfc3339` makes have one length.
_LEAST_NS, _LARGEST_NS = 0, parse_rfc3339("9999-12-31T23:59:59.999999999Z")


class _Actor(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    ID: str
    Attributes: dict[str, str]


class _Engine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event as Docker and Podman send it. Everything else goes the slow way."""

    Type: str
    Action: str
    Actor: _Actor
    time: int
    timeNano: int  # noqa: N815 - the wire's name
    scope: str = ""
    status: str = ""
    id: str = ""
    from_: str = msgspec.field(name="from", default="")
    HealthStatus: str = ""


_decode_engine = msgspec.json.Decoder(_Engine).decode


@frozen
class EventsQuery:
    """What a client of `/events` asked for. Times are nanoseconds since 1970, None is no bound.

    An `until` of 0 or before is an end and no bound: so an Engine's whole memory is asked for.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    filters: Filters = field(factory=Filters)


@define(eq=False)
class EngineEvents:
    """Shows one client the records that it asked for."""

    query: EventsQuery
    _since: bytes = field(init=False)
    _until: bytes = field(init=False)
    _of_any_source: Filters = field(init=False)
    # By what a record's head says from the account on; there are few such.
    _tags: dict[bytes, tuple[bytes, dict[str, str]]] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        until_ns = self.query.until_ns
        self._since = _bound(self.query.since_ns or _LEAST_NS)
        self._until = _bound(until_ns if until_ns is not None and until_ns > 0 else _LARGEST_NS)
        self._of_any_source = _of_any_source(self.query.filters)

    def show(self, block: bytes) -> list[bytes]:
        """Return the events of the whole lines in `block` that are to be shown, one line each."""
        shown = []
        for line in block.splitlines(keepends=True):
            kind = lines.kind_of(line)
            if kind == "event":
                event = self._event(line)
            elif kind in _LOSSES:
                event = self._loss(line)
            else:
                continue
            if event is not None:
                shown.append(event)
        return shown

    def _event(self, line: bytes) -> bytes | None:
        start = line.index(_TIME) + len(_TIME)
        if not self._since <= line[start : start + _TIME_SIZE] <= self._until:
            return None
        cut = line.index(_EVENT)
        raw = line[cut + len(_EVENT) : -_SEAL_SIZE]
        text, ours = self._tag(line, cut)
        filters = self.query.filters
        try:
            event = _decode_engine(raw)
        except (msgspec.MsgspecError, RecursionError):
            return self._converted(line, raw, ours)
        attributes = event.Actor.Attributes
        before, found, after = raw.partition(_ATTRIBUTES)
        # No known key but one has an object of that name, so one place of it is the place; unless a
        # key is there twice, or spelled with escapes: then readers differ in what it means.
        twice = raw.count(b'"Attributes"') != 1 or raw.count(b'"Actor"') != 1
        if not found or twice or _spelled(raw) or not _OURS.isdisjoint(attributes):
            return self._converted(line, raw, ours)
        if event.timeNano <= 0 or event.time <= 0:
            return self._converted(line, raw, ours)
        if filters:
            image = attributes.get("name" if event.Type == "image" else "image", "")
            subject = Subject(
                type=event.Type,
                scope=event.scope,
                actions=(event.Action,),
                id=event.Actor.ID,
                name=attributes.get("name", ""),
                image=image or event.from_,
                labels={**attributes, **ours},
            )
            if not filters.select(subject):
                return None
        comma = b"," if attributes and text else b""
        if not event.status and event.Type in _LEGACY_TYPES:
            before = b"{" + _legacy(event) + before[before.index(b"{") + 1 :]
        return b"".join((before, found, text, comma, after, b"\n"))

    def _converted(self, line: bytes, raw: bytes, ours: dict[str, str]) -> bytes | None:
        event, actions = _docker_shape(lines.parse_event(raw), lines.head_of(line).time)
        actor = event["Actor"]
        attributes = actor["Attributes"]
        for name in _OURS:
            attributes.pop(name, None)
        actor["Attributes"] = attributes = {**ours, **attributes}
        filters = self.query.filters
        if filters:
            image = "name" if event["Type"] == "image" else "image"
            subject = Subject(
                type=event["Type"],
                scope=_text(event, "scope"),
                actions=actions,
                id=actor["ID"],
                name=attributes.get("name", ""),
                image=attributes.get(image, "") or _text(event, "from"),
                labels=attributes,
            )
            if not filters.select(subject):
                return None
        return _encode(event)

    def _loss(self, line: bytes) -> bytes | None:
        """Show a gap, or what was received and could not be read."""
        head = lines.head_of(line)
        first = last = head.time
        told: dict[str, str] = {}
        if head.kind == "gap":
            first, last = head.from_ or first, head.to or last
            told |= {"cause": head.cause or "", "certainty": head.certainty or "possible"}
            told |= {"from": first, "to": last}
            if head.lost is not None:
                told["lost"] = str(head.lost)
        else:
            told |= {"reason": head.reason or "", "size": str(head.size or 0)}
        if first.encode() > self._until or last.encode() < self._since:
            return None
        attributes = {**_ours(head), **told}
        if head.account is None:
            source, filters = "hypermux", self._of_any_source
        else:
            source, filters = f"{head.account}/{head.region}", self.query.filters
        subject = Subject("hypermux", "local", (head.kind,), source, "", "", attributes)
        if not filters.select(subject):
            return None
        time_ns = parse_rfc3339(head.time)
        return _encode(
            {
                "Type": "hypermux",
                "Action": head.kind,
                "Actor": {"ID": source, "Attributes": attributes},
                "scope": "local",
                "time": time_ns // 10**9,
                "timeNano": time_ns,
            }
        )

    def _tag(self, line: bytes, cut: int) -> tuple[bytes, dict[str, str]]:
        """Return what to add to an event's attributes, as bytes and as a mapping."""
        start = line.find(_ACCOUNT, 0, cut)
        key = line[start:cut] if start >= 0 else b""
        try:
            return self._tags[key]
        except KeyError:
            ours = _ours(lines.head_of(line))
            tag = _encode(ours)[1:-2], ours
            if _DURABLE not in key:  # that is another one every time
                self._tags[key] = tag
            return tag


def _ours(head: lines.Head) -> dict[str, str]:
    named = ((ACCOUNT, head.account), (REGION, head.region))
    ours = {name: value for name, value in named if value is not None}
    if head.synthetic:
        ours[SYNTHETIC] = "true"
    return ours


def _of_any_source(filters: Filters) -> Filters:
    """Return `filters` without what they ask of account and region."""
    kept = []
    for name, values in filters.fields:
        if name == "label":
            values = tuple(v for v in values if v[0].partition("=")[0] not in (ACCOUNT, REGION))
        if values:
            kept.append((name, values))
    return Filters(tuple(kept))


def _bound(ns: int) -> bytes:
    return rfc3339(min(max(ns, _LEAST_NS), _LARGEST_NS)).encode()


def _legacy(event: _Engine) -> bytes:
    """Return the older names of an event's Action and Actor, which newer Engines leave out."""
    older = {"status": event.Action, "id": event.Actor.ID}
    if event.Type == "container":
        older["from"] = event.Actor.Attributes.get("image", "")
    return _encode(older)[1:-2] + b","


def _docker_shape(event: Mapping[str, Any], time: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return any event in Docker's shape, and the words that `event` filters look at."""
    given_actor = _mapping(event.get("Actor"))
    given = _mapping(given_actor.get("Attributes"))
    labels = given.get("Labels")
    attributes: dict[str, str] = {}
    if isinstance(labels, Mapping) or ("Labels" in given and labels is None):
        attributes |= {key: _as_text(value) for key, value in _mapping(labels).items()}
        given = {_LOWER.get(k, k): v for k, v in given.items() if k != "Labels"}
    attributes |= {key: _as_text(value) for key, value in given.items()}
    action = _text(event, "Action", "status", "Status")
    status = _text(event, "status", "Status") or action
    # The oldest Engines named no type; containers alone have an image that they are from.
    kind = _text(event, "Type") or ("container" if "from" in event else "image")
    older_id = _text(event, "id", "Id")
    actor_id = _text(given_actor, "ID", "Id")
    if not actor_id and "ID" not in given_actor:  # an ID may well be empty: a prune has none
        actor_id = older_id
    shape: dict[str, Any] = {}
    if kind in _LEGACY_TYPES:
        shape |= {"status": status, "id": older_id or actor_id}
    if kind == "container":
        shape["from"] = _text(event, "from", "From") or attributes.get("image", "")
    shape |= {
        "Type": kind,
        "Action": action,
        "Actor": {"ID": actor_id, "Attributes": attributes},
    }
    shape |= {key: value for key, value in event.items() if key.casefold() not in _KNOWN}
    time_ns = parse_rfc3339(time)
    seconds, nano = event.get("time"), event.get("timeNano")
    shape["time"] = seconds if _is_time(seconds) else time_ns // 10**9
    shape["timeNano"] = nano if _is_time(nano) else time_ns
    return shape, (action,) if status == action else (action, status)


# Dialect B's own names, and what is written again whatever it was. Clients in Go take a key in any
# case for the one that they know.
_LOWER = {"Name": "name", "Image": "image", "ExitCode": "exitCode"}
_KNOWN = frozenset({"type", "action", "actor", "from", "id", "status", "time", "timenano"})


def _is_time(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 63


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, separators=(",", ":"))


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _text(mapping: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = mapping.get(name)
        if isinstance(value, str) and value:
            return value
    return ""
