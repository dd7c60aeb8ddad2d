"""`GET /records`: the stream that the socket has as lines, by HTTP.

A reader takes one of the same places as the socket's. What can be refused is refused before the
answer begins, each cause with its status:

    request   400   the parameters make no sense
    cursor    409   it is of another journal, or ahead of this one. Not 410 (Gone): what is asked
                    for is here, and a cursor that is ahead may come true; and 410 may be cached
    busy      503   with Retry-After: no place is free
    fault     500   the journal does not read

A cursor older than what is kept is no error: the stream begins with the gap.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import define

from hypermux.core.http import HttpRequest, Reply, Send, Streamed
from hypermux.core.query import FORMS, Asked, Form
from hypermux.core.request import BadRequest
from hypermux.core.subscription import Refusal
from hypermux.downstream.http import Cut
from hypermux.downstream.streaming import Published, Stream, StreamRefused

# Places are held for hours or for a moment; nobody gains by asking more often.
RETRY_AFTER_S = 5

_STATUSES = {"request": 400, "cursor": 409, "busy": 503, "denied": 403, "fault": 500}
# The stream is never to be kept by a cache, nor held together in a proxy's buffer.
_HEADERS = (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no"))


def refused(refusal: Refusal) -> Reply:
    """Return the reply for a refusal."""
    if refusal.cause == "busy":
        return Reply.error(503, refusal.error, Retry_After=str(RETRY_AFTER_S))
    return Reply.error(_STATUSES[refusal.cause], refusal.error)


@define(eq=False)
class Records:
    """The handler of `/records`.

    `enter(who)` takes a subscriber's place or says why there is none, `leave` gives it back.
    """

    published: Published
    enter: Callable[[str], Refusal | None]
    leave: Callable[[], None]
    now_ns: Callable[[], int]

    async def __call__(self, request: HttpRequest) -> Reply | Streamed:
        """Answer one request."""
        try:
            asked = Asked.parse(request.query, request.headers, self.now_ns())
        except BadRequest as error:
            return Reply.error(400, str(error))
        if (refusal := self.enter(request.who)) is not None:
            return refused(refusal)
        stream = self.published.open()
        over = partial(self._over, stream)
        try:
            await stream.ask(asked.request)
        except StreamRefused as error:
            over()
            return refused(error.refusal)
        except BaseException:
            over()
            raise
        form = FORMS[asked.format]
        body = partial(_send_records, stream, asked, form)
        return Streamed(200, form.content_type, _HEADERS, body, over)

    def _over(self, stream: Stream) -> None:
        stream.close()
        self.leave()


async def _send_records(stream: Stream, asked: Asked, form: Form, send: Send) -> None:
    epoch = stream.cursor.epoch
    await send(form.begin(asked.request, stream.cursor))
    try:
        while (chosen := await stream.next()) is not None:
            if chosen:
                await send(form.records(chosen, epoch))
            elif stream.beat():
                await send(form.beat(stream.cursor))
    except StreamRefused as error:
        await send(form.fault(error.refusal))
        raise Cut from error
    if stream.complete:
        await send(form.end(stream.cursor))
