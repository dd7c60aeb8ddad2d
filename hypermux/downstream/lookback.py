"""Where the last N records of a selection begin: looked for backwards from the end.

The service reads forwards only, so the end is read again and again, each time from eight times as
far back: all of it together costs an eighth more than the last reading, and that is at most eight
times longer than it had to be. Only numbers of records are kept.

A selection of which there is little would have the whole journal read. So the search ends
`LOOKED_BACK` records back, and whoever asked is told; `since` names a place to begin instead, and
there is nothing to look for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypermux.core import lines
from hypermux.downstream.follow import Stream, Wait
from hypermux.model.errors import Unreachable
from hypermux.model.records import Cursor, Kind

# Some 300 MB of journal: a second or two of a service's time.
LOOKED_BACK = 1_000_000
# A second reading costs more than some records too many.
_LEAST, _WIDER = 1000, 8
_PLACE = ("after", "limit", "follow", "heartbeat")


def begin_of_last(
    path: Path,
    request: Mapping[str, Any],
    count: int,
    *,
    notice: Callable[[str], None],
    before_wait: Wait = lambda _: None,
) -> str:
    """Return the `after` of a request that shows the last `count` records, and what comes later.

    Raises Unreachable, and UsageFault for a refused request.
    """
    asked = {key: value for key, value in request.items() if key not in _PLACE}
    asked["follow"] = False
    end = _end(path, before_wait)
    if count == 0:
        return str(end)
    if "since" in asked:
        found, began = _read(path, {**asked, "after": "start"}, count, before_wait)
        return _place(found, began)
    width = count if asked.keys() == {"follow"} else max(4 * count, _LEAST)
    while width < end.seq:
        after = str(Cursor(end.epoch, end.seq - width))
        found, began = _read(path, {**asked, "after": after}, count, before_wait)
        if began is None:
            break
        if len(found) == count:
            return _place(found, began)
        if width >= LOOKED_BACK:
            notice(
                f"the last {width} records have {len(found)} of the {count} asked for; "
                "--since looks further back"
            )
            return _place(found, began)
        width = min(_WIDER * width, max(LOOKED_BACK, count))
    found, began = _read(path, {**asked, "after": "start"}, count, before_wait)
    return _place(found, began) if len(found) == count else "start"


def _end(path: Path, before_wait: Wait) -> Cursor:
    """Return the last record that the service shows."""
    stream = Stream.open(path, {"after": "live"}, before_wait)
    stream.close()
    return stream.cursor


def _read(
    path: Path, request: Mapping[str, Any], count: int, before_wait: Wait
) -> tuple[deque[int], Cursor | None]:
    """Return the last `count` numbers of what is selected, and the cursor at the end.

    None for it when the beginning of what was asked for is no longer kept: then all that is kept
    is to be read, not the gap that stands for the rest.
    """
    found: deque[int] = deque(maxlen=count)
    stream = Stream.open(path, request, before_wait)
    first = request["after"] != "start"
    try:
        for block in stream.blocks():
            for line in block.lines.splitlines(keepends=True):
                if first and _removed(line):
                    return found, None
                first = False
                found.append(lines.seq_of(line))
    finally:
        stream.close()
    if not stream.complete:
        raise Unreachable("the service went away during the search for the last records")
    return found, stream.cursor


def _removed(line: bytes) -> bool:
    return lines.kind_of(line) == Kind.GAP and lines.head_of(line).cause == "retention"


def _place(found: deque[int], end: Cursor | None) -> str:
    assert end is not None  # "start" has everything that is kept
    return str(Cursor(end.epoch, found[0] - 1) if found else end)
