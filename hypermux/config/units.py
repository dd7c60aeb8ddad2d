"""Durations, sizes and rates as people write them: a number and a unit, never a bare number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

# Decimal, so that "0.1s" is exactly the float 0.1 and "500ms" exactly 0.5. The number of digits
# is bounded, so no text becomes infinite or costs time.
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,24})?)"
_MEASURE = re.compile(_NUMBER + r" ?([A-Za-z]+)")
_RATE = re.compile(_NUMBER + r" ?/ ?([a-z]+)")
_BARE = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,24})?")

_SECONDS = {
    "us": Decimal("0.000001"),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "min": Decimal(60),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_BYTES = {
    "b": Decimal(1),
    **{f"{p}ib": Decimal(1024**n) for n, p in enumerate("kmgt", 1)},
    **{f"{p}b": Decimal(1000**n) for n, p in enumerate("kmgt", 1)},
}
_PER_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600}

_DURATION_FORM = 'a duration is a number and one of us, ms, s, min, h, d: write "10s"'
_SIZE_FORM = 'a size is a number and one of B, KiB, MiB, GiB, kB, MB, GB: write "64MiB"'
_RATE_FORM = 'a rate is a number per s, min or h: write "10/s"'


class UnitError(ValueError):
    """Text that is not a duration, size or rate; the message shows the right form."""


def _measure(text: str, units: Mapping[str, Decimal], form: str) -> Decimal:
    if _BARE.fullmatch(text):
        raise UnitError(bare_number(text, form))
    match = _MEASURE.fullmatch(text)
    unit = units.get(match[2]) if match else None
    if match is None or unit is None:
        raise UnitError(form)
    return Decimal(match[1]) * unit


def bare_number(number: object, form: str) -> str:
    """Return the message for a number without a unit; `form` ends in the form's own example."""
    example = form.rpartition('"')[0].rpartition('"')[2]
    return f'has no unit: write "{number}{example.lstrip("0123456789")}"'


def parse_duration(text: str) -> float:
    """Return the seconds of `"10s"`, `"500ms"`, `"1.5h"`, `"1d"`. Raises UnitError."""
    return float(_measure(text, _SECONDS, _DURATION_FORM))


def parse_size(text: str) -> int:
    """Return the bytes of `"64MiB"`, `"10GB"`, `"512B"`, whatever the case. Raises UnitError."""
    if not text.isascii():
        raise UnitError(_SIZE_FORM)
    size = _measure(text.lower(), _BYTES, _SIZE_FORM)
    if size != int(size):
        raise UnitError("a size is a whole number of bytes")
    return int(size)


def parse_rate(text: str) -> float:
    """Return the times per second of `"10/s"`, `"30/min"`, `"600/h"`. Raises UnitError."""
    if _BARE.fullmatch(text):
        raise UnitError(bare_number(text, _RATE_FORM))
    match = _RATE.fullmatch(text)
    per = _PER_SECONDS.get(match[2]) if match else None
    if match is None or per is None:
        raise UnitError(_RATE_FORM)
    return float(Decimal(match[1]) / per)


def duration_without_unit(number: object) -> str:
    """Return what to say of a bare number where a duration belongs."""
    return bare_number(number, _DURATION_FORM)


def size_without_unit(number: object) -> str:
    """Return what to say of a bare number where a size belongs."""
    return bare_number(number, _SIZE_FORM)


def rate_without_unit(number: object) -> str:
    """Return what to say of a bare number where a rate belongs."""
    return bare_number(number, _RATE_FORM)


def format_duration(seconds: float) -> str:
    """Write seconds in the largest unit that needs no fraction: `"20h"`, `"90s"`, `"500ms"`."""
    exact = Decimal(repr(float(seconds)))
    if not exact:
        return "0s"
    for unit in ("d", "h", "min", "s", "ms", "us"):
        count = exact / _SECONDS[unit]
        if count == count.to_integral_value():
            return f"{int(count)}{unit}"
    return f"{exact:f}s"


def format_size(size: int) -> str:
    """Write bytes in the largest unit that needs no fraction: `"64MiB"`, `"10GB"`, `"1001B"`."""
    for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB"):
        count, rest = divmod(size, int(_BYTES[unit.lower()]))
        if count and not rest:
            return f"{count}{unit}"
    return f"{size}B"


def format_rate(per_second: float) -> str:
    """Write a rate in whole numbers if one of the units allows it: `"10/s"`, `"30/min"`."""
    for unit in ("s", "min", "h"):
        count = round(per_second * _PER_SECONDS[unit])
        if count and count / _PER_SECONDS[unit] == per_second:
            return f"{count}/{unit}"
    return f"{Decimal(repr(float(per_second))):f}/s"
