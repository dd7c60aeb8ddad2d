"""The Docker Engine transport: `GET /events` over one connection, Podman's too.

An engine that is not read for 100 ms drops events without a word, and slows down for everyone:
the reader hands bytes on by plain calls and reads again, whatever happens downstream. There is no
ping on this stream; TCP keepalive (see `dialing`) finds a dead host. Nor has it a goodbye: a host
that is parted with may have been dead for as long as keepalive takes to find that out.

With a keeper (`docker_memory`) the stream is first held, but read, until what the engine remembers
has been compared with what was seen; then it is audited from time to time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import NoReturn

import h11
import trio
from attrs import define, evolve, field

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core.decoding import LineSplitter
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import answers, dialing, faults
from hypermux.upstream.diverting import READ_SIZE, read_body, unread
from hypermux.upstream.docker_engine import WHO, events_target, request
from hypermux.upstream.docker_memory import Keeper
from hypermux.upstream.groups import is_cancellation
from hypermux.upstream.transport import Dialer, Listener, Opened, Resumption

# What keepalive takes at the most, TCP's own and that of ssh. Through a proxy it is the proxy's.
_DEAD_S = 30.0
_CUT = "the engine's connection ended in the middle of the stream: it stopped or restarts"


async def stream_docker(
    source: Source,
    *,
    dialer: Dialer,
    listener: Listener,
    settings: ConnectionSettings,
    keeper: Keeper | None = None,
) -> NoReturn:
    """Connect to the engine of `source` and hand its events to `listener` until the end.

    Raises ConnectionFailed. When cancelled it tells the listener that the host may have been dead.
    """
    stream = await dialer.dial(source.endpoint, source.tls)
    events = _Events(stream, listener, source, keeper)
    try:
        await events.read(settings)
    except BaseException as exc:
        # A socket of this host ends with its engine, and is read to its end.
        far = source.endpoint.scheme != "unix"
        if far and events.opened.is_set() and is_cancellation(exc):
            listener.unanswered(dead_s=_DEAD_S if source.endpoint.proxy is None else inf)
        raise
    finally:
        await trio.aclose_forcefully(stream)


@define(eq=False)
class _Events:
    stream: trio.abc.Stream
    listener: Listener
    source: Source
    keeper: Keeper | None
    http: h11.Connection = field(factory=lambda: h11.Connection(h11.CLIENT))
    accepted: Opened | None = None  # the engine's answer
    accepted_s: float = 0.0
    opened: trio.Event = field(factory=trio.Event)  # the listener has it
    headers: answers.Headers = ()
    refusal: answers.Refusal | None = None  # as soon as its head is known: time may run out
    ended: bool = False  # the engine's side of the connection is at its end
    over: bool = False  # the stream came to its end before the listener had it
    more: bool = False
    told_more: bool = False
    failure: Failure | None = None

    async def read(self, settings: ConnectionSettings) -> NoReturn:
        timeout_s = settings.dial_timeout_s
        with trio.move_on_after(timeout_s):
            await self._ask()
        if self.refusal is not None:
            raise ConnectionFailed(self.refusal.failure())
        if self.accepted is None:
            text = f"handshake: the engine did not answer GET /events within {timeout_s:g} s"
            raise ConnectionFailed(Failure(FailureKind.TIMEOUT, text))
        splitter = LineSplitter(settings.max_message_size)
        if self.keeper is None:
            self._open(None)
            await self._follow(splitter)
        else:
            async with trio.open_nursery() as nursery:
                keep = partial(self._keep, self.keeper)
                nursery.start_soon(self._until_failure, keep, nursery.cancel_scope)
                follow = partial(self._follow, splitter)
                nursery.start_soon(self._until_failure, follow, nursery.cancel_scope)
        assert self.failure is not None  # one of the two has ended
        raise ConnectionFailed(self.failure)

    async def _until_failure(
        self, job: Callable[[], Awaitable[None]], scope: trio.CancelScope
    ) -> None:
        try:
            await job()
        except ConnectionFailed as exc:
            self.failure = self.failure or exc.failure
            scope.cancel()

    async def _keep(self, keeper: Keeper) -> None:
        resumption = await keeper.resume(self.headers)
        if self.over:
            # What came of it counts, and what happened since the stream's end is in the gap.
            resumption = evolve(resumption, complete=False)
        if keeper.unsure_from_ns is not None:
            self.listener.recovered([], unsure_from_ns=keeper.unsure_from_ns)
        self._open(resumption)
        await keeper.watch(self.listener)

    def _open(self, resumption: Resumption | None) -> None:
        """Tell that the stream is open, and hand on what was held."""
        assert self.accepted is not None
        assert not self.opened.is_set()
        self.opened.set()
        date_ns = self.accepted.date_ns
        if date_ns is not None:  # meanwhile the engine's clock went on
            date_ns += int((trio.current_time() - self.accepted_s) * 1e9)
        self.listener.opened(evolve(self.accepted, date_ns=date_ns, resumption=resumption))
        if self.keeper is None:
            return
        self.keeper.heard(None if resumption is None else resumption.as_of_ns)
        if held := self._unseen(self.keeper.release()):
            self.told_more = self.more
            self.listener.received(held, more=self.more)

    async def _follow(self, splitter: LineSplitter) -> NoReturn:
        """Read the stream to its end."""
        try:
            while True:
                messages, failure = self._drain(splitter)
                self._hand_on(messages)
                if failure is not None:
                    raise ConnectionFailed(failure)
                await self._read()
        except ConnectionFailed:
            # Half an event is no event, but it has come: the stream shows it as unparsed.
            self.more = False
            self._hand_on(splitter.finish())
            if not self.opened.is_set():
                # The resume may be in its last step, and takes for told what it has found: it
                # alone tells, at once.
                assert self.keeper is not None
                self.over = True
                self.keeper.hurry()
                await self.opened.wait()
            raise

    def _hand_on(self, messages: list[bytes]) -> None:
        if not self.opened.is_set():
            assert self.keeper is not None
            self.keeper.hold(messages)
            return
        messages = self._unseen(messages)
        # Without messages too when the socket is empty at last: others wait for that word.
        if messages or (self.told_more and not self.more):
            self.told_more = self.more
            self.listener.received(messages, more=self.more)

    def _unseen(self, messages: list[bytes]) -> list[bytes]:
        """Return the live messages that were not handed on as remembered ones."""
        if self.keeper is None:
            return messages
        kept = self.keeper.arrived(messages)
        if len(kept) < len(messages):
            self.listener.repeated(len(messages) - len(kept))
        return kept

    async def _ask(self) -> None:
        """Send the request and read the head of its answer."""
        http = self.http
        sent = (http.send(request(self.source, events_target(self.source))) or b"") + (
            http.send(h11.EndOfMessage()) or b""
        )
        self.listener.asking()
        # The engine may have refused before it read the request: see what it said.
        with contextlib.suppress(trio.BrokenResourceError):
            await self.stream.send_all(sent)
        response = await self._answer()
        trust = dialing.trust_of(self.source.endpoint, self.source.tls)
        self.headers = response.headers
        if response.status_code != 200:
            self.refusal = answers.Refusal(response.status_code, self.headers, WHO, trust)
            await read_body(self.stream, self.http, self.refusal.body)
            return
        self.accepted, self.accepted_s = (
            Opened(answers.date_ns(self.headers), trust),
            trio.current_time(),
        )
        self.listener.replied()

    async def _answer(self) -> h11.Response:
        first = b""
        while True:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError as exc:
                raise ConnectionFailed(answers.not_http(first, who=WHO)) from exc
            if isinstance(event, h11.Response):
                return event
            if event is h11.NEED_DATA:  # otherwise 100 or 103: the real answer is still to come
                data = await self._read()
                if not data:
                    text = "handshake: the engine ended the connection without an answer"
                    raise ConnectionFailed(Failure(FailureKind.EOF, text))
                first = first or data

    async def _read(self) -> bytes:
        try:
            data = bytes(await self.stream.receive_some(READ_SIZE))
        except trio.BrokenResourceError as exc:
            accepted = self.accepted is not None
            raise ConnectionFailed(faults.broken(exc, opened=accepted)) from exc
        self.more = unread(self.stream, len(data))
        self.ended = not data
        if self.opened.is_set() and data:
            self.listener.heard()
            if self.keeper is not None:
                self.keeper.heard()
        if data or self.accepted is not None:
            self.http.receive_data(data)
        return data

    def _drain(self, splitter: LineSplitter) -> tuple[list[bytes], Failure | None]:
        """Return the messages that have come, and why there will be no more."""
        messages: list[bytes] = []
        while True:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError:
                # An end where more must follow is a protocol error to h11, and common here.
                if self.ended:
                    return messages, Failure(FailureKind.EOF, _CUT)
                text = "the engine's stream is not chunked properly"
                return messages, Failure(FailureKind.PROTOCOL, text)
            if isinstance(event, h11.Data):
                messages += splitter.feed(bytes(event.data))
            elif event is h11.NEED_DATA:
                return messages, None
            else:
                return messages, Failure(FailureKind.EOF, "the engine ended the stream")
