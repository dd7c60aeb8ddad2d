"""A subscriber's request: one JSON object on one line.

    after      "EPOCH:SEQ", "start" or "live"
    since      RFC 3339 text, seconds[.nanoseconds] since 1970, or a duration back from now, 1h30m
    until      likewise; the stream ends when nothing more is expected before it
    accounts   globs, a list of texts; so are `regions`
    kinds      a list of record kinds
    filters    Docker's form, as an object or as its text
    follow     false: end at what is there now
    limit      end after so many records
    heartbeat  a duration, 1s to 1h: when nothing was sent for so long, a line with the cursor is

`after` defaults to "live", or to "start" where that would show nothing (`since`, `until`,
`follow: false`). All texts in errors are sentences for whoever typed the request.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from attrs import Factory, frozen

from hypermux.core.filters import FilterError, Filters
from hypermux.core.moments import duration_ns, moment_ns
from hypermux.core.selection import Selection
from hypermux.model.records import Cursor, Kind

T = TypeVar("T")

# One a second from a thousand readers is 1 % of a core; in over an hour a network forgets us.
HEARTBEAT_MIN_S, HEARTBEAT_MAX_S = 1, 3600


class BadRequest(ValueError):
    """A request that cannot be served: one clear sentence."""


@frozen
class Request:
    """Where a reader starts, what it selects and when it ends."""

    after: Cursor | Literal["start", "live"] = "live"
    selection: Selection = Factory(Selection)
    follow: bool = True
    limit: int | None = None
    heartbeat_s: float | None = None

    @classmethod
    def parse(cls, line: bytes, now_ns: int) -> Request:
        """Read a request line; durations count back from `now_ns`. Raises BadRequest."""
        try:
            given = json.loads(line)
        except (ValueError, RecursionError):
            raise BadRequest(
                'the request is not JSON: send one line such as {"after":"start"}'
            ) from None
        if not isinstance(given, dict):
            raise BadRequest("the request has to be one JSON object on one line")
        return cls.of(given, now_ns)

    @classmethod
    def of(cls, given: dict[str, Any], now_ns: int) -> Request:
        """Read a request's keys and values, as JSON has them. See `parse`."""
        for key in given:
            if key not in _KEYS:
                raise BadRequest(f"{_quote(key)} is not a request key{_nearest(key, _KEYS)}")
        values = {key: _take(given, key, read) for key, read in _KEYS.items()}
        since_ns, until_ns = (_moment(key, values[key], now_ns) for key in ("since", "until"))
        if since_ns is not None and until_ns is not None and until_ns < since_ns:
            raise BadRequest("until: it is before since, so that nothing can be between them")
        follow = values["follow"] is not False
        backward = not follow or values["since"] is not None or values["until"] is not None
        return cls(
            after=values["after"] or ("start" if backward else "live"),
            selection=Selection(
                accounts=values["accounts"] or (),
                regions=values["regions"] or (),
                kinds=values["kinds"] or (),
                filters=values["filters"] or Filters(),
                since_ns=since_ns,
                until_ns=until_ns,
            ),
            follow=follow,
            limit=values["limit"],
            heartbeat_s=values["heartbeat"],
        )


def _take(given: dict[str, Any], key: str, read: Callable[[Any], T]) -> T | None:
    value = given.get(key)
    if value is None:  # null is as good as absent
        return None
    try:
        return read(value)
    except ValueError as error:
        raise BadRequest(f"{key}: {error}") from None


def _after(value: Any) -> Cursor | str:
    if value in ("start", "live"):
        return str(value)
    if not isinstance(value, str):
        raise ValueError('it is "start", "live" or a cursor, EPOCH:SEQ')
    return Cursor.parse(value)


def _time(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        # A float has not the digits for nanoseconds.
        raise ValueError("a time is a text, or a whole number of seconds since 1970")
    return str(value)


def _moment(key: str, text: str | None, now_ns: int) -> int | None:
    try:
        return None if text is None else moment_ns(text, now_ns)
    except ValueError as error:
        raise BadRequest(f"{key}: {error}") from None


def _texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ValueError('a list of texts is wanted, such as ["prod*"]')
    return tuple(values)


def _kinds(value: Any) -> tuple[str, ...]:
    kinds = _texts(value)
    for kind in kinds:
        if kind not in list(Kind):
            raise ValueError(f"{_quote(kind)} is not a kind of record{_nearest(kind, list(Kind))}")
    return kinds


def _filters(value: Any) -> Filters:
    try:
        return Filters.parse_json(value if isinstance(value, str) else json.dumps(value))
    except FilterError as error:
        raise ValueError(str(error)) from None


def _follow(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it is true or false")
    return value


def _limit(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("it is a number of records, 1 or more")
    return value


def _heartbeat(value: Any) -> float:
    if not isinstance(value, str):
        raise ValueError('a duration is a text, such as "30s"')
    found_s = duration_ns(value) / 1e9
    if not HEARTBEAT_MIN_S <= found_s <= HEARTBEAT_MAX_S:
        raise ValueError(f"it is from {HEARTBEAT_MIN_S} s to {HEARTBEAT_MAX_S // 3600} h")
    return found_s


_KEYS: dict[str, Callable[[Any], Any]] = {
    "after": _after,
    "since": _time,
    "until": _time,
    "accounts": _texts,
    "regions": _texts,
    "kinds": _kinds,
    "filters": _filters,
    "follow": _follow,
    "limit": _limit,
    "heartbeat": _heartbeat,
}


def _quote(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else text[:40] + "...")


def _nearest(text: str, known: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(text[:40], [str(k) for k in known], n=1)
    return f"; did you mean {_quote(near[0])}?" if near else f": known are {', '.join(known)}"
