"""`/livez` and `/readyz`: whether to restart the process, and whether to send it readers.

Live is who answers and whose sequencer makes its rounds (one a second, even when nothing comes).
A disk that refuses does not end that: what comes is held, and a restart would lose it. So then it
is live and not ready, and both say why.

Ready is who has enough open streams, by `http.ready_when`: "all", "any", or a share ("80%"). Those
of every enabled account count, also of a refused one, and also those that wait for a slot: ready
means that what readers get is complete, and how much less will do is for the operator to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil

from hypermux.core.http import Reply
from hypermux.model.status import SourceStatus

# A sync on a slow disk may take seconds; nobody should be restarted for that.
STUCK_S = 60.0
# A person reads the first few.
_MISSING_SHOWN = 50

SHARE = re.compile(r"([1-9]\d?|100)%")


def needed(ready_when: str, configured: int) -> int:
    """Return how many of `configured` sources have to be connected."""
    if ready_when == "all":
        return configured
    if ready_when == "any":
        return min(1, configured)
    return ceil(configured * int(ready_when.removesuffix("%")) / 100)


def livez(round_age_s: float, disk_fault: str | None) -> Reply:
    """Return the answer when the sequencer made its last round `round_age_s` ago."""
    value: dict[str, object] = {"live": True, "round_age_seconds": round(round_age_s, 3)}
    if disk_fault is not None:
        value["disk"] = disk_fault
    elif round_age_s > STUCK_S:
        value["live"] = False
        value["error"] = f"the sequencer has not made a round for {round_age_s:.0f} s"
    return Reply.json(value, 200 if value["live"] else 503)


def readyz(sources: Sequence[SourceStatus], ready_when: str, disk_fault: str | None) -> Reply:
    """Return the answer for sources in this state."""
    missing = [source for source in sources if source.connected_seconds is None]
    connected, least = len(sources) - len(missing), needed(ready_when, len(sources))
    ready = connected >= least and disk_fault is None
    value: dict[str, object] = {
        "ready": ready,
        "ready_when": ready_when,
        "configured": len(sources),
        "connected": connected,
        "needed": least,
        "missing": [
            {
                "account": source.account,
                "region": source.region,
                "state": source.state,
                "reason": source.last_failure and source.last_failure.reason,
            }
            for source in missing[:_MISSING_SHOWN]
        ],
        "missing_more": max(0, len(missing) - _MISSING_SHOWN),
    }
    if disk_fault is not None:
        value["disk"] = disk_fault
    return Reply.json(value, 200 if ready else 503)
