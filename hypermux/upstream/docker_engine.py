"""Requests of a Docker Engine, or Podman, and their answers: over one connection, one by one."""

from __future__ import annotations

import contextlib

import h11
import trio
from attrs import define, field, frozen

from hypermux.config.settings import Source
from hypermux.core.containers import Inspected, Listed, read_inspection, read_list
from hypermux.core.decoding import LineSplitter
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import answers, dialing, faults
from hypermux.upstream.diverting import READ_SIZE

WHO = "the engine"
# What an answer may hold, in bytes: thousands of containers, or a Podman's whole file of events.
MAX_ANSWER = 16 << 20

_SECOND = 1_000_000_000


def request(source: Source, target: str) -> h11.Request:
    """Return the request for `target`, behind whatever path the endpoint has."""
    endpoint = source.endpoint
    path = "" if endpoint.to_socket else endpoint.path.rstrip("/")
    host = "docker" if endpoint.to_socket else endpoint.netloc
    headers = [("Host", host), ("User-Agent", "hypermux")]
    return h11.Request(method="GET", target=f"{path}{target}", headers=headers)


def events_target(source: Source, *parameters: str) -> str:
    """Return the target for the source's events, with its filters."""
    query = "&".join(part for part in (*parameters, source.filters.query()) if part)
    return f"/events{f'?{query}' if query else ''}"


def is_podman(headers: answers.Headers) -> bool:
    """Say whether the engine behind an answer is Podman: its backlog is asked for differently."""
    return any(name.lower() == b"libpod-api-version" for name, _ in headers)


@frozen
class Answer:
    """A whole answer."""

    status: int
    headers: answers.Headers
    body: bytes


@define(eq=False)
class Engine:
    """Asks over one connection. Every method raises ConnectionFailed; the caller sets deadlines."""

    source: Source
    stream: trio.abc.Stream
    max_message_size: int
    http: h11.Connection = field(factory=lambda: h11.Connection(h11.CLIENT))

    async def ping(self) -> bool:
        """Return when the engine answered at all; False: it takes no more questions."""
        await self._get("/_ping")
        return self.http.our_state is not h11.MUST_CLOSE

    async def events(self, *, podman: bool, since_ns: int) -> list[bytes]:
        """Return the events that the engine remembers, oldest first.

        Of Docker all; of Podman those from the second of `since_ns` on.
        """
        # Podman answers nothing at all to an `until` that has passed; Docker knows no `stream`.
        backlog = (f"since={since_ns // _SECOND}", "stream=false")
        ring = ("since=0", "until=0")
        body = await self._body(events_target(self.source, *(backlog if podman else ring)))
        splitter = LineSplitter(self.max_message_size)
        return splitter.feed(body) + splitter.finish()

    async def containers(self) -> list[Listed]:
        """Return all containers, whatever their state."""
        body = await self._body("/containers/json?all=1")
        try:
            return read_list(body)
        except ValueError as exc:
            raise ConnectionFailed(Failure(FailureKind.PROTOCOL, str(exc))) from exc

    async def inspect(self, key: str) -> Inspected | None:
        """Return the state of one container, None when it is gone."""
        answer = await self._get(f"/containers/{key}/json")
        if answer.status == 404:
            return None
        try:
            return read_inspection(self._accepted(answer))
        except ValueError as exc:
            raise ConnectionFailed(Failure(FailureKind.PROTOCOL, str(exc))) from exc

    async def _body(self, target: str) -> bytes:
        return self._accepted(await self._get(target))

    def _accepted(self, answer: Answer) -> bytes:
        if answer.status == 200:
            return answer.body
        trust = dialing.trust_of(self.source.endpoint, self.source.tls)
        body = answer.body[: answers.MAX_BODY]
        failure = answers.http_failure(answer.status, answer.headers, body, who=WHO, trust=trust)
        raise ConnectionFailed(failure)

    async def _get(self, target: str) -> Answer:
        http = self.http
        if http.our_state is not h11.IDLE:
            try:
                http.start_next_cycle()
            except h11.LocalProtocolError as exc:
                text = "the engine answers one question a connection only"
                raise ConnectionFailed(Failure(FailureKind.PROTOCOL, text)) from exc
        data = (http.send(request(self.source, target)) or b"") + (
            http.send(h11.EndOfMessage()) or b""
        )
        with contextlib.suppress(trio.BrokenResourceError):  # see what it says
            await self.stream.send_all(data)
        response: h11.Response | None = None
        body = bytearray()
        while True:
            try:
                event = http.next_event()
            except h11.RemoteProtocolError as exc:
                text = "the engine's answer broke off, or is not HTTP"
                raise ConnectionFailed(Failure(FailureKind.PROTOCOL, text)) from exc
            if event is h11.NEED_DATA:
                http.receive_data(await self._read())
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_ANSWER:
                    text = f"the engine's answer is over {MAX_ANSWER >> 20} MiB"
                    raise ConnectionFailed(Failure(FailureKind.PROTOCOL, text))
            elif isinstance(event, h11.EndOfMessage):
                assert response is not None  # h11 has no other order
                return Answer(response.status_code, response.headers, bytes(body))
            elif isinstance(event, h11.ConnectionClosed):
                text = "the engine ended the connection without an answer"
                raise ConnectionFailed(Failure(FailureKind.EOF, text))

    async def _read(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some(READ_SIZE))
        except trio.BrokenResourceError as exc:
            raise ConnectionFailed(faults.broken(exc, opened=False)) from exc
