"""The fields of a control request: what is missing, of another kind or unknown is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from attrs import define

from hypermux.emulator.connection import Message


class BadOrder(Exception):
    """A request that cannot be carried out; one sentence."""


@define
class Order:
    """A request's fields, each asked for once; what is left over is a mistake."""

    _fields: dict[str, Any]

    def take(self, name: str, default: object = None) -> Any:
        """Return a field of any kind."""
        if name not in self._fields and default is None:
            raise BadOrder(f"{name} is missing")
        value = self._fields.pop(name, None)
        return default if value is None else value

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text."""
        value = self.take(name, default)
        if not isinstance(value, str):
            raise BadOrder(f"{name} is a text")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """Return a whole number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadOrder(f"{name} is a whole number")
        return value

    def finish(self) -> None:
        """Refuse fields that nobody asked for."""
        if self._fields:
            raise BadOrder(f"unknown: {', '.join(self._fields)}")


class Emission(msgspec.Struct):
    """The part of an `emit` that keeps its bytes."""

    events: list[msgspec.Raw]


def read_event(event: object) -> tuple[Message, object]:
    """Return what is sent for one entry of `events`, and what filters see of it."""
    if isinstance(event, msgspec.Raw):
        # As it was written over the socket: a text there is sent without its quotes.
        raw = bytes(event)
        if raw.startswith(b'"'):
            return read_event(msgspec.json.decode(raw, type=str))
        if not raw.startswith(b"{"):
            raise BadOrder("events holds objects and texts")
    elif isinstance(event, str):
        try:
            raw = event.encode()
        except UnicodeEncodeError:
            raise BadOrder("a text of events is not Unicode") from None
    elif isinstance(event, Mapping):
        raw = json.dumps(event, separators=(",", ":")).encode()
    else:
        raise BadOrder("events holds objects and texts")
    try:
        parsed = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        parsed = None
    one_line = isinstance(parsed, dict) and b"\n" not in raw and b"\r" not in raw
    return Message(raw, splices=one_line), parsed
