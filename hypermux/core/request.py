"""A subscriber's request: one JSON object on one line.

    after      "EPOCH:SEQ", "start" or "live"
    since      RFC 3339 text, or seconds[.nanoseconds] since 1970
    until      likewise; the stream ends when nothing more is expected before it
    accounts   globs, a list of texts; so are `regions`
    kinds      a list of record kinds
    filters    Docker's form, as an object or as its text
    follow     false: end at what is there now
    limit      end after so many records

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
from hypermux.core.lines import moment_ns
from hypermux.core.selection import Selection
from hypermux.model.records import Cursor, Kind

T = TypeVar("T")


class BadRequest(ValueError):
    """A request that cannot be served: one clear sentence."""


@frozen
class Request:
    """Where a reader starts, what it selects and when it ends."""

    after: Cursor | Literal["start", "live"] = "live"
    selection: Selection = Factory(Selection)
    follow: bool = True
    limit: int | None = None

    @classmethod
    def parse(cls, line: bytes) -> Request:
        """Read a request line. Raises BadRequest."""
        try:
            given = json.loads(line)
        except (ValueError, RecursionError):
            raise BadRequest(
                'the request is not JSON: send one line such as {"after":"start"}'
            ) from None
        if not isinstance(given, dict):
            raise BadRequest("the request has to be one JSON object on one line")
        return cls.of(given)

    @classmethod
    def of(cls, given: dict[str, Any]) -> Request:
        """Read a request's keys and values, as JSON has them. Raises BadRequest."""
        for key in given:
            if key not in _KEYS:
                raise BadRequest(f"{_quote(key)} is not a request key{_nearest(key, _KEYS)}")
        values = {key: _take(given, key, read) for key, read in _KEYS.items()}
        follow = values["follow"] is not False
        backward = not follow or values["since"] is not None or values["until"] is not None
        return cls(
            after=values["after"] or ("start" if backward else "live"),
            selection=Selection(
                accounts=values["accounts"] or (),
                regions=values["regions"] or (),
                kinds=values["kinds"] or (),
                filters=values["filters"] or Filters(),
                since_ns=values["since"],
                until_ns=values["until"],
            ),
            follow=follow,
            limit=values["limit"],
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


def _moment(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        # A float cannot hold nanoseconds.
        raise ValueError("a time is a text, or a whole number of seconds since 1970")
    return moment_ns(str(value))


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


_KEYS: dict[str, Callable[[Any], Any]] = {
    "after": _after,
    "since": _moment,
    "until": _moment,
    "accounts": _texts,
    "regions": _texts,
    "kinds": _kinds,
    "filters": _filters,
    "follow": _follow,
    "limit": _limit,
}


def _quote(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else text[:40] + "...")


def _nearest(text: str, known: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(text[:40], [str(k) for k in known], n=1)
    return f"; did you mean {_quote(near[0])}?" if near else f": known are {', '.join(known)}"
