"""What HTTP can ask the service for, beside the engine's own API.

GET  /records   the stream, as lines or server-sent events
GET  /status    the state of every source, as JSON
POST /reload    take up the accounts file as it is now; for the service's own user, and root
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from hypermux.core.http import HttpRequest, Reply
from hypermux.core.routes import Table
from hypermux.downstream.http import Handler
from hypermux.downstream.records import Records
from hypermux.service.reporting import source_states

if TYPE_CHECKING:
    from hypermux.service import Service

# Sources whose state is gathered between two awaits: some 5 ms of work, so that ten thousand of
# them hold up no ping.
_STATES_AT_ONCE = 200


def own_table(service: Service) -> Table[Handler]:
    """Return the routes of a running service."""

    async def status(_: HttpRequest) -> Reply:
        sources = []
        for source in source_states(service.supervisor, service.sequencer):
            sources.append(source)
            if len(sources) % _STATES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return Reply(200, msgspec.json.encode(service.report(sources)) + b"\n")

    async def reload(request: HttpRequest) -> Reply:
        if not request.ours:
            return Reply.error(403, f"{request.who} may read, and not reload")
        outcome = await service.reload(request.who)
        return Reply(200 if outcome.accepted else 422, msgspec.json.encode(outcome) + b"\n")

    subscribers = service.subscribers
    records = Records(
        service.published, subscribers.subscribe, subscribers.leave, service.seams.clock.now_ns
    )
    return Table(
        {
            "/records": {"GET": records},
            "/status": {"GET": status},
            "/reload": {"POST": reload},
        }
    )
