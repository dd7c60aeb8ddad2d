"""Times and durations as readers write them.

    2016-10-13T16:22:54.255Z     RFC 3339, with any offset from UTC
    1476375774.255155116         seconds since 1970, with up to nine digits behind the point
    10m, 1h30m, 2.5d             so long before now: h, m (or min), s, ms, us, ns, d, any of them

All of it is exact to the nanosecond; nothing here goes through a float.
"""

from __future__ import annotations

import re
from contextlib import suppress
from decimal import Decimal

from hypermux.core.recording import parse_rfc3339

# Numbers are bounded, so that none costs time; 12 digits of seconds are 30,000 years.
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?(ns|us|µs|μs|ms|s|min|m|h|d) ?")
_SECONDS = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?")
_NS = {
    **dict.fromkeys(("us", "µs", "μs"), 10**3),
    **dict.fromkeys(("m", "min"), 60 * 10**9),
    "ns": 1,
    "ms": 10**6,
    "s": 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_DURATION_FORM = "a duration is written 90s, 10m or 1h30m"
_MOMENT_FORM = (
    "a time is written 2016-10-13T16:22:54.255Z, as seconds[.nanoseconds] since 1970, "
    "or as a duration back from now: 10m, 1h30m"
)


def duration_ns(text: str) -> int:
    """Return the nanoseconds of `90s`, `1h30m`, `1.5h`. Raises ValueError with the right form."""
    total, at = Decimal(0), 0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            break
        total += Decimal(part[1]) * _NS[part[2]]
        at = part.end()
    if not text or at < len(text) or text.endswith(" "):
        raise ValueError(_DURATION_FORM)
    return int(total)


def moment_ns(text: str, now_ns: int) -> int:
    """Return a time in nanoseconds since 1970; durations count back from `now_ns`.

    Raises ValueError with the right forms, for what lies before 1970, too.
    """
    if found := _SECONDS.fullmatch(text):
        return int(found[1]) * 10**9 + int((found[2] or "").ljust(9, "0"))
    with suppress(ValueError):
        return parse_rfc3339(text)
    with suppress(ValueError):
        ago_ns = duration_ns(text)
        if ago_ns <= now_ns:
            return now_ns - ago_ns
    raise ValueError(_MOMENT_FORM)
