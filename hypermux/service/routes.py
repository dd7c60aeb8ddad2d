"""What HTTP can ask the service for, beside the engine's own API.

GET  /records   the stream, as lines or server-sent events
GET  /status    the state of every source, as JSON
GET  /metrics   how it fares, for Prometheus
GET  /livez     whether it works at all
GET  /readyz    whether enough sources are connected
POST /reload    take up the accounts file as it is now
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice
from typing import TYPE_CHECKING

import msgspec
import trio

from hypermux.core.http import HttpRequest, Reply
from hypermux.core.routes import Table
from hypermux.downstream.http import Handler
from hypermux.downstream.records import Records
from hypermux.model.accounts import SourceId
from hypermux.model.status import SourceStatus
from hypermux.service.health import livez, readyz
from hypermux.service.metrics import SourceFamilies, of_the_whole, process_families, write
from hypermux.service.reporting import source_states

if TYPE_CHECKING:
    from hypermux.service import Service

# Sources whose state is gathered between two awaits: some 5 ms of work, so that ten thousand of
# them hold up no ping. Their thirty samples each take longer.
_STATES_AT_ONCE, _SAMPLED_AT_ONCE = 200, 40


def own_table(service: Service, *, read_only: bool = False) -> Table[Handler]:
    """Return the routes of a running service; `read_only`: those that change nothing."""

    async def gather(each: Callable[[SourceStatus], None], at_once: int = _STATES_AT_ONCE) -> None:
        states = source_states(service.supervisor, service.sequencer)
        while some := list(islice(states, at_once)):
            for source in some:
                each(source)
            await trio.lowlevel.checkpoint()

    async def status(_: HttpRequest) -> Reply:
        sources: list[SourceStatus] = []
        await gather(sources.append)
        return Reply(200, msgspec.json.encode(service.report(sources)) + b"\n")

    async def metrics(request: HttpRequest) -> Reply:
        sources: list[SourceStatus] = []
        families = SourceFamilies()

        def add(source: SourceStatus) -> None:
            name = SourceId(source.account, source.region)
            share = service.sequencer.inbox.budget.shares.get(name)
            families.add(
                source,
                dials=service.counting.dials.get(name, {}),
                reconnects=service.counting.reconnects.get(name, {}),
                gaps={} if share is None else share.recorded.causes,
            )
            sources.append(source)

        await gather(add, _SAMPLED_AT_ONCE)
        whole = service.whole(service.report(sources))
        every = chain(of_the_whole(whole), families, process())
        body, content_type = await write(every, request.headers.get("accept", ""))
        return Reply(200, body, content_type)

    async def live(_: HttpRequest) -> Reply:
        return livez(service.round_age_s, service.disk_fault)

    async def ready(_: HttpRequest) -> Reply:
        sources: list[SourceStatus] = []
        await gather(sources.append)
        return readyz(sources, service.reloading.settings.http.ready_when, service.disk_fault)

    async def reload(request: HttpRequest) -> Reply:
        if not request.ours:
            return Reply.error(403, f"{request.who} may read, and not reload")
        outcome = await service.reload(request.who)
        return Reply(200 if outcome.accepted else 422, msgspec.json.encode(outcome) + b"\n")

    process = process_families()
    subscribers = service.subscribers
    records = Records(
        service.published, subscribers.subscribe, subscribers.leave, service.seams.clock.now_ns
    )
    routes: dict[str, dict[str, Handler]] = {
        "/records": {"GET": records},
        "/status": {"GET": status},
        "/metrics": {"GET": metrics},
        "/livez": {"GET": live},
        "/readyz": {"GET": ready},
    }
    if not read_only:
        routes["/reload"] = {"POST": reload}
    return Table(routes)
