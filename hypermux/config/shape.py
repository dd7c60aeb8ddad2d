"""Reading TOML values strictly: every fault at once, each with its path and what would be right.

A *reader* takes one TOML value and returns what it means, or raises `Wrong`. `table` makes the
reader of a table from an attrs class; cattrs matches the keys, fills the defaults and collects the
faults, but no value is ever coerced, and no message holds a value that could be a secret.
"""

from __future__ import annotations

import datetime
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs
from attrs import evolve, frozen
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError, override
from cattrs.gen import make_dict_structure_fn

from hypermux.config import units

T = TypeVar("T")
Reader = Callable[[Any], T]

_SHOWN_CHARACTERS = 60
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@frozen
class Fault:
    """One thing wrong, at a path below the table that is being read."""

    path: tuple[str | int, ...]
    message: str
    value: str | None = None


class Wrong(Exception):
    """The faults that a reader found."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("; ".join(fault.message for fault in faults))

    @classmethod
    def value(cls, message: str, value: object = None) -> Wrong:
        """Make the fault of one value; give `value` only when it may be shown."""
        return cls(Fault((), message, None if value is None else show(value)))

    def under(self, step: str | int) -> Wrong:
        """Return the same faults, one key or index further from the root."""
        return Wrong(*(evolve(fault, path=(step, *fault.path)) for fault in self.faults))

    def hidden(self) -> Wrong:
        """Return the same faults without the values."""
        return Wrong(*(evolve(fault, value=None) for fault in self.faults))


def show(value: object) -> str:
    """Write a TOML value for a message: escaped, on one line, short."""
    match value:
        case str():
            text = json.dumps(value[: _SHOWN_CHARACTERS + 1]).replace("\x7f", "\\u007f")
            return text if len(value) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
        case bool():
            return "true" if value else "false"
        case int():
            # Hexadecimal TOML integers have no bound, and str() of a large one raises.
            return str(value) if abs(value) < 1 << 64 else "a very large number"
        case float():
            return repr(value)
        case datetime.date() | datetime.time():
            return "a date or time"
        case list():
            return "an array" if value else "[]"
        case _:
            return "a table"


def key_path(path: Iterable[str | int]) -> str:
    """Write a path as TOML would: `accounts.prod.regions[1]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _BARE_KEY.fullmatch(step) else show(step))
    return text


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` was most likely meant to be, None if none is close."""
    # Only the start is compared: difflib takes time by the square of the length.
    close = difflib.get_close_matches(name[:64].lower(), sorted(known), n=1, cutoff=0.6)
    return close[0] if close else None


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return what to say of an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean {close}?" if close else f"known are {', '.join(names)}"
    return f"is not a known {what}; {hint}"


@frozen
class Key:
    """Under which key an attribute stands in the file, and how it is read."""

    name: str
    read: Reader[Any]

    def structure(self, value: Any, _type: Any) -> Any:
        """Read the value; its faults come out under the key. (A hook of cattrs.)"""
        try:
            return self.read(value)
        except Wrong as wrong:
            raise wrong.under(self.name) from None


def table(cls: type[T], **attributes: Key) -> Reader[T]:
    """Return the reader of a table into `cls`; `attributes` has a `Key` for each attribute."""
    names = {attribute.name for attribute in attrs.fields(cls)}  # type: ignore[arg-type]
    if names != attributes.keys():
        raise TypeError(f"{cls.__name__}: not the same attributes: {names ^ attributes.keys()}")
    known = [key.name for key in attributes.values()]
    overrides = {
        attribute: override(rename=key.name, struct_hook=key.structure)
        for attribute, key in attributes.items()
    }
    structure = make_dict_structure_fn(
        cls,
        Converter(),
        _cattrs_forbid_extra_keys=True,
        _cattrs_detailed_validation=True,
        **overrides,  # type: ignore[arg-type]
    )

    def read(value: Any) -> T:
        if not isinstance(value, dict):
            raise Wrong.value(f"is not a table; its keys are {', '.join(sorted(known))}", value)
        try:
            return structure(value, cls)
        except ClassValidationError as group:
            raise Wrong(*_faults(group, known)) from None

    return read


def _faults(group: ClassValidationError, known: Iterable[str]) -> list[Fault]:
    faults: list[Fault] = []
    for error in group.exceptions:
        if isinstance(error, Wrong):
            faults.extend(error.faults)
        elif isinstance(error, ForbiddenExtraKeysError):
            # The value of a key we do not know may be anything, a secret too: it is not shown.
            extras = sorted(error.extra_fields)
            faults.extend(Fault((extra,), unknown("key", extra, known)) for extra in extras)
        else:  # a reader raised something else: a bug, and no user's fault
            raise error
    return faults


def salvage(read: Reader[T], values: dict[str, Any]) -> tuple[T, tuple[Fault, ...]]:
    """Read a table as far as it goes: the keys with faults are left out, and their faults told.

    So that what follows from the other keys can be checked in the same run.
    """
    try:
        return read(values), ()
    except Wrong as wrong:
        bad = {fault.path[0] for fault in wrong.faults}
        return read({k: v for k, v in values.items() if k not in bad}), wrong.faults


def text(value: Any) -> str:
    """Read text that is not empty and has no control characters."""
    if not isinstance(value, str):
        raise Wrong.value("is not text: write it in quotes", value)
    if not value.strip():
        raise Wrong.value("is empty")
    if not value.isprintable():
        raise Wrong.value("holds a control character or an unusual space")
    return value


def hidden(read: Reader[T]) -> Reader[T]:
    """Return the same reader for values that no message may show."""

    def read_hidden(value: Any) -> T:
        try:
            return read(value)
        except Wrong as wrong:
            raise wrong.hidden() from None

    return read_hidden


def name(value: Any) -> str:
    """Read a name that stands in every record: of an account, a region, a host."""
    if not _NAME.fullmatch(text(value)):
        raise Wrong.value(
            "is not a name: up to 64 letters, digits, '.', '_', '-', the first a letter or digit",
            value,
        )
    return str(value)


def flag(value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise Wrong.value("is neither true nor false", value)
    return value


def integer(least: int, most: int) -> Reader[int]:
    """Return a reader of whole numbers from `least` to `most`."""

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise Wrong.value(f"is not a whole number from {least} to {most}", value)
        return value

    return read


def choice(*words: str) -> Reader[Any]:
    """Return a reader of one of `words`."""

    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in words:
            close = nearest(value, words) if isinstance(value, str) else None
            hint = f"; did you mean {close}?" if close else ""
            raise Wrong.value(f"is none of {', '.join(words)}{hint}", value)
        return value

    return read


def sequence(read: Reader[T]) -> Reader[tuple[T, ...]]:
    """Return a reader of arrays."""

    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            form = "write it in brackets" if isinstance(value, str) else "write [ … ]"
            raise Wrong.value(f"is not an array: {form}", value)
        return tuple(_each(enumerate(value), read).values())

    return read_all


def mapping(read: Reader[T], *, names: Reader[str] = text) -> Reader[Mapping[str, T]]:
    """Return a reader of tables with keys of the user's own, which `names` checks."""

    def read_all(value: Any) -> Mapping[str, T]:
        if not isinstance(value, dict):
            raise Wrong.value("is not a table: write { name = … }", value)
        _each(((k, k) for k in value), names)
        return _each(value.items(), read)

    return read_all


def _each(items: Iterable[tuple[Any, Any]], read: Reader[T]) -> dict[Any, T]:
    found: dict[Any, T] = {}
    faults: list[Fault] = []
    for step, value in items:
        try:
            found[step] = read(value)
        except Wrong as wrong:
            faults.extend(wrong.under(step).faults)
    if faults:
        raise Wrong(*faults)
    return found


def _measured(
    parse: Callable[[str], T],
    bare: Callable[[object], str],
    write: Callable[[T], str],
    least: T,
    most: T,
) -> Reader[T]:
    def read(value: Any) -> T:
        if not isinstance(value, str):
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            number = show(value) if plain and 0.001 <= value < 1e15 else "1"
            raise Wrong.value(bare(number), value)
        try:
            found = parse(value)
        except units.UnitError as error:
            raise Wrong.value(str(error), value) from None
        if not least <= found <= most:  # type: ignore[operator]
            raise Wrong.value(f"is not from {write(least)} to {write(most)}", value)
        return found

    return read


def duration(least: str, most: str) -> Reader[float]:
    """Return a reader of durations, in seconds, from `least` to `most`."""
    return _measured(
        units.parse_duration,
        units.duration_without_unit,
        units.format_duration,
        units.parse_duration(least),
        units.parse_duration(most),
    )


def size(least: str, most: str) -> Reader[int]:
    """Return a reader of sizes, in bytes, from `least` to `most`."""
    return _measured(
        units.parse_size,
        units.size_without_unit,
        units.format_size,
        units.parse_size(least),
        units.parse_size(most),
    )


def rate(least: str, most: str) -> Reader[float]:
    """Return a reader of rates, in times per second, from `least` to `most`."""
    return _measured(
        units.parse_rate,
        units.rate_without_unit,
        units.format_rate,
        units.parse_rate(least),
        units.parse_rate(most),
    )
