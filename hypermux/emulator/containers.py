"""Containers of one account and region, and the events that they cause.

The bytes of an event differ from those of the container's last event of that kind in their times
alone, so they are made once (`EventText`) and completed per event.

Dialect A is Docker's shape. Dialect B, the early one, knows pods: an action ADDED, MODIFIED or
DELETED with a status, so that a stop is one event there and two (die, stop) in A.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any, Literal

from attrs import Factory, define, field, frozen

from hypermux.core.filters import Filters

Dialect = Literal["a", "b"]
Happening = Literal["create", "start", "die", "stop", "destroy"]

# Dialect B's action and status per happening; None: B says nothing about it.
_PODS: dict[Happening, tuple[str, str] | None] = {
    "create": ("ADDED", "Pending"),
    "start": ("MODIFIED", "Running"),
    "die": ("MODIFIED", "Succeeded"),
    "stop": None,
    "destroy": ("DELETED", "Succeeded"),
}


class ContainerFault(Exception):
    """What was asked of the containers cannot be done; one sentence."""


@frozen(eq=False)
class EventText:
    """An event but for its times: its bytes around them, and what filters look at."""

    head: bytes = field(repr=False)
    nano: bytes = field(repr=False)
    tail: bytes = field(repr=False)
    fields: Mapping[str, Any] = field(repr=False)
    image_ids: tuple[str, ...] = ()

    @classmethod
    def make(
        cls,
        before: Mapping[str, Any],
        times: tuple[str, str],
        after: Mapping[str, Any],
        image_ids: tuple[str, ...],
    ) -> EventText:
        """Make it of the fields before and after the two that are named `times`."""
        seconds, nano = times
        return cls(
            f'{_dump(before)[:-1]},"{seconds}":'.encode(),
            f',"{nano}":'.encode(),
            (f",{_dump(after)[1:]}" if after else "}").encode(),
            {**before, **after},
            image_ids,
        )

    def at(self, time_ns: int) -> bytes:
        """Return the event's bytes at that time (ns since 1970)."""
        return b"%b%d%b%d%b" % (self.head, time_ns // 1_000_000_000, self.nano, time_ns, self.tail)

    def passes(self, filters: Filters) -> bool:
        """Whether a connection with these filters gets the event."""
        return filters.matches(self.fields, image_ids=self.image_ids)


@define(eq=False)
class Container:
    """One container. `state` is created, running or exited."""

    id: str
    image: str
    name: str
    labels: Mapping[str, str]
    dialect: Dialect = "a"
    exit_code: int = 0
    state: str = "created"
    _texts: dict[Happening, EventText] = field(factory=dict, repr=False)

    @property
    def image_id(self) -> str:
        """The image's full id: the emulator's images are what their names hash to."""
        return hashlib.sha256(self.image.encode()).hexdigest()

    def texts(self, *happenings: Happening) -> list[EventText]:
        """Return what is said about these happenings in the container's dialect."""
        found = []
        for happening in happenings:
            if self.dialect == "b" and _PODS[happening] is None:
                continue
            text = self._texts.get(happening)
            if text is None:
                text = self._texts[happening] = self._make(happening)
            found.append(text)
        return found

    def _make(self, happening: Happening) -> EventText:
        # A filter gives the image's id in full, with or without its algorithm, or its first 12.
        full = self.image_id
        ids = (full, f"sha256:{full}", full[:12])
        pod = _PODS[happening]
        if self.dialect == "a" or pod is None:
            return EventText.make(self._docker_shape(happening), ("time", "timeNano"), {}, ids)
        shape = self._pod_shape(happening, *pod)
        return EventText.make(shape, ("Time", "TimeNano"), {"Type": "container"}, ids)

    def _docker_shape(self, happening: Happening) -> dict[str, Any]:
        # As in Docker, a label named `image` or `name` loses against the container's own.
        attributes = {**self.labels, "image": self.image, "name": self.name}
        if happening == "die":
            attributes["exitCode"] = str(self.exit_code)
        return {
            "status": happening,
            "id": self.id,
            "from": self.image,
            "Type": "container",
            "Action": happening,
            "Actor": {"ID": self.id, "Attributes": dict(sorted(attributes.items()))},
        }

    def _pod_shape(self, happening: Happening, action: str, status: str) -> dict[str, Any]:
        attributes = {
            "ExitCode": str(self.exit_code) if happening == "die" else "",
            "Image": self.image,
            "Labels": dict(sorted(self.labels.items())) or None,
            "Name": self.name,
        }
        return {
            "Action": action,
            "Actor": {"Attributes": attributes, "Id": self.id},
            "From": self.image,
            "Id": self.id,
            "Status": status,
        }


@define(eq=False)
class Fleet:
    """The containers of one account and region, in the order they were made."""

    rng: random.Random
    containers: dict[str, Container] = Factory(dict)
    made: int = 0

    def create(
        self,
        image: str,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        dialect: Dialect = "a",
        exit_code: int = 0,
    ) -> tuple[Container, list[EventText]]:
        """Make a container. Raises ContainerFault when the name is taken."""
        self.made += 1
        name = name or f"c{self.made}"
        if any(other.name == name for other in self.containers.values()):
            raise ContainerFault(f"the name {name} is in use")
        made = Container(
            f"{self.rng.getrandbits(256):064x}", image, name, labels or {}, dialect, exit_code
        )
        self.containers[made.id] = made
        return made, made.texts("create")

    def start(self, container: Container) -> list[EventText]:
        """Start it. Raises ContainerFault when it runs."""
        if container.state == "running":
            raise ContainerFault(f"{container.name} is running already")
        container.state = "running"
        return container.texts("start")

    def stop(self, container: Container) -> list[EventText]:
        """Stop it. Raises ContainerFault when it does not run."""
        if container.state != "running":
            raise ContainerFault(f"{container.name} is not running")
        container.state = "exited"
        return container.texts("die", "stop")

    def remove(self, container: Container) -> list[EventText]:
        """Remove it. Raises ContainerFault while it runs."""
        if container.state == "running":
            raise ContainerFault(f"{container.name} is running: stop it first")
        del self.containers[container.id]
        return container.texts("destroy")

    def find(self, reference: str) -> Container:
        """Return the container of that id, name or unambiguous id prefix, else ContainerFault."""
        if reference in self.containers:
            return self.containers[reference]
        for container in self.containers.values():
            if container.name == reference:
                return container
        found = [c for c in self.containers.values() if reference and c.id.startswith(reference)]
        if len(found) != 1:
            what = "several containers" if found else "no container"
            raise ContainerFault(f"{what} with the id or name {reference!r}")
        return found[0]


# As Go writes it: other alphabets unescaped.
_dump = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
