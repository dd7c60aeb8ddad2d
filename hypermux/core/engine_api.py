"""The Docker Engine's API, as far as it is spoken here: versions, headers, errors, the query.

    /_ping      GET and HEAD
    /version    GET
    /events     GET; since, until, filters

each with `/vX.Y` before it or without. It is read only, and all else is `page not found`, as the
Engine puts it. Answers are those of API 1.51, which has the last Engines' words for errors; where
those call it a fault of their own (500) that a time does not parse, it is the client's here (400).
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote_plus

from hypermux import __version__
from hypermux.core.engine_events import EventsQuery
from hypermux.core.filters import FilterError, Filters
from hypermux.core.http import Reply

API_VERSION = "1.51"
MIN_API_VERSION = "1.24"
# What may stand before each path. It owns what begins with it: the routes of others do not.
VERSIONED = re.compile(r"/v[0-9.]+(?=/)", re.ASCII)

# Clients take the operating system from the form of `Server`.
HEADERS = (
    ("Api-Version", API_VERSION),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", f"Docker/hypermux-{__version__} (linux)"),
)
_PING_HEADERS = (
    *HEADERS,
    ("Cache-Control", "no-cache, no-store, must-revalidate"),
    ("Pragma", "no-cache"),
    ("Swarm", "inactive"),
)
_TEXT = "text/plain; charset=utf-8"
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_SECOND = 1_000_000_000


class BadQuery(ValueError):
    """A request that an Engine refuses with 400; the message is the Engine's."""


def error(status: int, sentence: str) -> Reply:
    """Return a refusal in the Engine's form, which knows a wrong path and a wrong method as one."""
    if status in (404, 405):
        status, sentence = 404, "page not found"
    body = json.dumps({"message": sentence}, separators=(",", ":")).encode() + b"\n"
    return Reply(status, body, headers=HEADERS)


def refuse_version(path: str) -> Reply | None:
    """Return what a request is answered whose `/vX.Y` is not served, None when it is, or has none.

    A client below 1.24 is told in plain text: it shows an answer as it is.
    """
    found = VERSIONED.match(path)
    if found is None:
        return None
    asked = found[0][2:]
    if _numbers(asked) < _numbers(MIN_API_VERSION):
        sentence = (
            f"client version {asked} is too old. Minimum supported API version is "
            f"{MIN_API_VERSION}, please upgrade your client to a newer version"
        )
        return Reply(400, sentence.encode() + b"\n", _TEXT, HEADERS)
    if _numbers(asked) > _numbers(API_VERSION):
        return error(
            400,
            f"client version {asked} is too new. Maximum supported API version is {API_VERSION}",
        )
    return None


def _numbers(version: str) -> list[int]:
    numbers = [int(part[:9] or "0") for part in version.split(".")[:8]]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def ping(method: str) -> Reply:
    """Return the answer to `/_ping`."""
    return Reply(200, b"" if method == "HEAD" else b"OK", _TEXT, _PING_HEADERS)


def version(arch: str, kernel: str) -> Reply:
    """Return the answer to `/version`; `arch` is in Go's words."""
    own: dict[str, Any] = {
        "Version": __version__,
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": kernel,
    }
    details = {name: own[name] for name in ("ApiVersion", "MinAPIVersion", "Os", "Arch")}
    details["Experimental"] = "false"
    component = {"Name": "Engine", "Version": __version__, "Details": details}
    shown = {"Platform": {"Name": "hypermux"}, "Components": [component], **own}
    return Reply(200, json.dumps(shown).encode() + b"\n", headers=HEADERS)


def parse_events_query(query: str) -> EventsQuery:
    """Read the query of `/events`. Raises BadQuery.

    `until` without `since` begins with the oldest that is kept; an `until` of 0 or before is an end
    and no bound.
    """
    given = _parameters(query)
    since, until = given.get("since", ""), given.get("until", "")
    since_ns, until_ns = _moment(since), _moment(until)
    if until_ns is not None and since_ns is not None and until_ns < since_ns:
        raise BadQuery(f"`since` time ({since}) cannot be after `until` time ({until})")
    filters = given.get("filters", "")
    try:
        # Fields that an Engine does not know it passes over.
        parsed = Filters.parse_json("" if filters == "null" else filters, fields=None)
    except FilterError as exc:
        raise BadQuery(f"invalid filter: {exc}") from None
    return EventsQuery(since_ns, until_ns, parsed)


def _parameters(query: str) -> dict[str, str]:
    """Return the first value of each parameter."""
    given: dict[str, str] = {}
    for part in query.split("&"):
        if bad := _ESCAPE.search(part):
            raise BadQuery(f'invalid URL escape "{part[bad.start() : bad.start() + 3]}"')
        name, _, value = part.partition("=")
        given.setdefault(unquote_plus(name), unquote_plus(value))
    return given


def _moment(text: str) -> int | None:
    """Read `seconds[.nanoseconds]`; clients turn all other forms into this. Raises BadQuery."""
    if not text:
        return None
    seconds, point, fraction = text.partition(".")
    ns = _integer(seconds) * _SECOND
    if point:
        # As a fraction of a second, cut: what is finer has been asked for by nobody.
        ns += _integer(fraction) * _SECOND // 10 ** len(fraction)
    return ns


def _integer(text: str) -> int:
    shown = json.dumps(text, ensure_ascii=False)
    if not _INTEGER.fullmatch(text):
        raise BadQuery(f"strconv.ParseInt: parsing {shown}: invalid syntax")
    value = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise BadQuery(f"strconv.ParseInt: parsing {shown}: value out of range")
    return value
