"""What a journal implies about an engine's containers, and what an outage kept from it.

After an outage that the engine's memory of events does not bridge, its list of containers still
tells part of what happened. Whatever it shows that the journal (with all that is about to be told)
does not imply becomes an event in Docker's shape, with the engine's own time.

All comparisons are of times of the engine's clock, from `from_ns`, when the outage began there:

    create    in the list, created in the outage, its creation not known
    die       finished in the outage, later than its last known die
    start     started in the outage, later than its last known start
    destroy   known, and not in the list any more; a die before it when it was known to run

A die and a start of one container come in the order that its state says: of one that runs the
start is the last. Times of one run are not compared with each other: Podman takes the end from a
coarser clock.

Not covered: a container created and removed in the outage; of several runs in it all but the last
end and start; pauses, renames, exec, health; the time of a removal, and of the end before it; the
exit code of a run that another one followed. A container last heard of over MAX_CONTAINERS others
ago is forgotten, and its removal with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from attrs import define, field, frozen

from hypermux.core.filters import Filters
from hypermux.core.recording import parse_rfc3339

# About 200 bytes each, on disk beside each segment too. Hosts run tens to hundreds.
MAX_CONTAINERS = 4096
_END_NS = 1 << 63
_GONE = ("destroy", "remove")  # Docker's word, and Podman's
_TOLD = frozenset({"create", "start", "die", "rename", *_GONE})


@define
class Container:
    """What is known of one container: names, and the times of its last start and end.

    Times are the events' own, nanoseconds since 1970; 0: none seen. `created`: its creation was.
    """

    name: str = ""
    image: str = ""
    created: bool = False
    running: bool = False
    started_ns: int = 0
    died_ns: int = 0


Packed = tuple[str, str, str, bool, bool, int, int]


class _Head(msgspec.Struct):
    Type: str = ""
    Action: str = ""
    status: str = ""
    timeNano: int | float = 0  # noqa: N815 - the wire's name
    Actor: msgspec.Raw = msgspec.Raw(b"null")


class _Attributes(msgspec.Struct):
    name: str = ""
    image: str = ""
    exitCode: str = ""  # noqa: N815


class _Actor(msgspec.Struct):
    ID: str = ""
    Attributes: _Attributes = msgspec.field(default_factory=_Attributes)


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_actor = msgspec.json.Decoder(_Actor).decode


@define
class Implied:
    """The containers that a source's events imply, by id, the longest unheard-of first."""

    containers: dict[str, Container] = field(factory=dict)

    def apply(self, raw: bytes) -> None:
        """Take in the next event of the source; most mean nothing here."""
        if b'"container"' not in raw:
            return
        try:
            head = _decode_head(raw)
            action = head.Action or head.status
            if head.Type != "container" or action not in _TOLD:
                return
            actor = _decode_actor(head.Actor)
        except (msgspec.DecodeError, RecursionError):
            return  # another dialect
        if actor.ID:
            nano = head.timeNano
            time_ns = nano if isinstance(nano, int) and 0 < nano < _END_NS else 0
            self._told(actor.ID, action, time_ns, actor.Attributes)

    def _told(self, key: str, action: str, time_ns: int, attributes: _Attributes) -> None:
        known = self.containers.pop(key, None)
        if action in _GONE:
            return
        if known is None:
            known = Container()
            if len(self.containers) >= MAX_CONTAINERS:
                del self.containers[next(iter(self.containers))]
        self.containers[key] = known
        known.name = attributes.name or known.name
        known.image = attributes.image or known.image
        if action == "create":
            known.created = True
        elif action == "start":
            known.running, known.started_ns = True, time_ns
        elif action == "die":
            known.running, known.died_ns = False, time_ns

    def copy(self) -> Implied:
        """Return another one that implies the same."""
        return Implied.unpack(self.pack())

    def pack(self) -> list[Packed]:
        """Return all of it as plain values."""
        return [
            (key, c.name, c.image, c.created, c.running, c.started_ns, c.died_ns)
            for key, c in self.containers.items()
        ]

    @classmethod
    def unpack(cls, packed: Iterable[Packed]) -> Implied:
        """Take what `pack` gave."""
        return cls({entry[0]: Container(*entry[1:]) for entry in packed})


@frozen
class Listed:
    """A container as the engine's list has it. `status` is its sentence for people."""

    id: str
    name: str
    image: str
    running: bool
    created_ns: int
    status: str
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class Inspected:
    """What only a look at one container tells. Times are nanoseconds since 1970; 0: never."""

    running: bool
    created_ns: int
    started_ns: int
    finished_ns: int
    exit_code: int


@frozen
class Happening:
    """Something that the stream does not tell of. `time_ns` is the engine's own, None: unknown."""

    action: str
    time_ns: int | None
    id: str
    name: str
    image: str
    labels: Mapping[str, str] = field(factory=dict)
    exit_code: int | None = None

    def event(self) -> dict[str, Any]:
        """Return it as an event in Docker's shape."""
        attributes = {**self.labels}
        if self.exit_code is not None:
            attributes["exitCode"] = str(self.exit_code)
        attributes |= {"image": self.image, "name": self.name}
        event: dict[str, Any] = {
            "status": self.action,
            "id": self.id,
            "from": self.image,
            "Type": "container",
            "Action": self.action,
            "Actor": {"ID": self.id, "Attributes": attributes},
            "scope": "local",
        }
        if self.time_ns is not None:
            event["time"] = self.time_ns // 1_000_000_000
            event["timeNano"] = self.time_ns
        return event


# What Docker and Podman say of a state that began at least about half an hour ago.
_LONG_AGO = re.compile(r"\b\d+ (?:hours|days|weeks|months|years)\b")
_LONG_NS = 1_800_000_000_000
_SECOND = 1_000_000_000


def to_inspect(
    listed: Sequence[Listed], implied: Implied, *, from_ns: int, now_ns: int
) -> list[str]:
    """Return whom to look at more closely: whoever may have started, ended or begun to be since.

    Those go first that differ from what is implied: there may be no time for all.
    """
    short = now_ns - from_ns < _LONG_NS
    differ: list[Listed] = []
    may: list[Listed] = []
    for container in listed:
        known = implied.containers.get(container.id)
        if known is None:
            # The list tells it in whole seconds.
            recent = container.created_ns >= from_ns - _SECOND
            (differ if recent else may).append(container)
        else:
            (differ if known.running is not container.running else may).append(container)
    unsure = [c for c in may if not (short and _LONG_AGO.search(c.status))]
    return [c.id for c in (*differ, *unsure)]


@frozen
class Outage:
    """An outage on the engine's clock: it began at `from_ns`.

    What happened from `before_ns` on is on the live stream, whether it has come or not.
    """

    from_ns: int
    before_ns: int | None

    def holds(self, time_ns: int) -> bool:
        """Say whether something may have happened in it."""
        before = self.before_ns is None or time_ns < self.before_ns
        return before and time_ns >= self.from_ns


def missing(
    listed: Sequence[Listed],
    inspected: Mapping[str, Inspected],
    before: Implied,
    told: Implied,
    outage: Outage,
) -> list[Happening]:
    """Return what the engine's list shows and nothing tells, in order of time, removals last.

    `before` is what was implied when the list was asked for; `told` all that is known by now,
    from whatever is about to be told.
    """
    found: list[tuple[int, int, Happening]] = []
    for container in listed:
        look = inspected.get(container.id)
        if look is None:
            continue
        at_ns = 0
        known = told.containers.get(container.id, _UNKNOWN)
        for number, (action, time_ns) in enumerate(_steps(look, known, outage)):
            code = look.exit_code if action == "die" and not look.running else None
            happening = Happening(
                action, time_ns, container.id, container.name, container.image,
                container.labels, code,
            )  # fmt: skip
            at_ns = max(at_ns, time_ns)  # a coarse clock must not turn a container's life round
            found.append((at_ns, number, happening))
    found.sort(key=lambda entry: entry[:2])
    happenings = [happening for *_, happening in found]
    present = {container.id for container in listed}
    for key, known in told.containers.items():
        if key in before.containers and key not in present:
            if known.running:
                happenings.append(Happening("die", None, key, known.name, known.image))
            happenings.append(Happening("destroy", None, key, known.name, known.image))
    return happenings


def _steps(look: Inspected, known: Container, outage: Outage) -> list[tuple[str, int]]:
    """Return what of one container's life is missing, in order, with the engine's times."""
    create, start, die = look.created_ns, look.started_ns, look.finished_ns
    steps = []
    if not known.created and outage.holds(create):
        steps.append(("create", create))
    starts = [("start", start)] if start > known.started_ns and outage.holds(start) else []
    ends = [("die", die)] if die > known.died_ns and outage.holds(die) else []
    return steps + (ends + starts if look.running else starts + ends)


_UNKNOWN = Container()


def selected(happenings: Iterable[Happening], filters: Filters) -> list[bytes]:
    """Return the events that the source's filters let through, as messages.

    The engine judges by labels that a removed container has no more; but what is known of it came
    through the same filters.
    """
    without = Filters(tuple((name, v) for name, v in filters.fields if name != "label"))
    messages = []
    for happening in happenings:
        event = happening.event()
        judge = without if happening.time_ns is None else filters
        if judge.matches(event):
            messages.append(json.dumps(event, separators=(",", ":")).encode())
    return messages


def read_list(body: bytes) -> list[Listed]:
    """Read an answer to `/containers/json?all=1`. Raises ValueError when it is none."""
    try:
        entries = msgspec.json.decode(body, type=list[_ListEntry])
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(f"the engine's list of containers is not one: {exc}") from None
    return [
        Listed(
            entry.Id,
            entry.Names[0].removeprefix("/") if entry.Names else "",
            entry.Image,
            entry.State in ("running", "paused"),
            entry.Created * 1_000_000_000,
            entry.Status,
            entry.Labels or {},
        )
        for entry in entries
    ]


def read_inspection(body: bytes) -> Inspected:
    """Read an answer to `/containers/{id}/json`. Raises ValueError when it is none."""
    try:
        found = msgspec.json.decode(body, type=_Inspection)
        state = found.State
        return Inspected(
            state.Running,
            max(0, parse_rfc3339(found.Created)),
            max(0, parse_rfc3339(state.StartedAt)),
            max(0, parse_rfc3339(state.FinishedAt)),
            state.ExitCode,
        )
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise ValueError(f"the engine's word on a container is not readable: {exc}") from None


class _ListEntry(msgspec.Struct):
    Id: str
    Names: list[str] | None = None
    Image: str = ""
    Created: int = 0
    State: str = ""
    Status: str = ""
    Labels: dict[str, str] | None = None


class _State(msgspec.Struct):
    Running: bool = False
    StartedAt: str = "0001-01-01T00:00:00Z"
    FinishedAt: str = "0001-01-01T00:00:00Z"
    ExitCode: int = 0


class _Inspection(msgspec.Struct):
    Created: str
    State: _State
