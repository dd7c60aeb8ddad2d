"""The Docker transport against real engines."""

from __future__ import annotations

import json
import math
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import dockerd
import pytest
import trio
import trustme
from attrs import define, evolve, field

from hypermux.config.settings import ConnectionSettings, Source
from hypermux.core.filters import Filters
from hypermux.model.accounts import Endpoint, SourceId, Tls
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream.dialing import SocketDialer
from hypermux.upstream.docker import stream_docker
from hypermux.upstream.transport import Opened

pytestmark = [pytest.mark.live, pytest.mark.slow]

WAIT_S = 30.0


@define(eq=False)
class Heard:
    """A listener that keeps the messages."""

    messages: list[bytes] = field(factory=list)
    openings: list[Opened] = field(factory=list)
    failure: Failure | None = None
    changed: trio.Event = field(factory=trio.Event)

    def asking(self) -> None: ...

    def opened(self, opened: Opened) -> None:
        self.openings.append(opened)
        self._change()

    def heard(self) -> None:
        pass

    def replied(self) -> None:
        pass

    def received(self, messages: list[bytes], *, more: bool) -> None:
        self.messages += messages
        self._change()

    def repeated(self, count: int) -> None:
        raise AssertionError

    def recovered(self, messages: list[bytes], *, unsure_from_ns: int | None) -> None:
        raise AssertionError

    def unanswered(self, *, dead_s: float = math.inf) -> None: ...

    def _change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(WAIT_S):
            while not condition():
                await self.changed.wait()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(message) for message in self.messages]

    @property
    def actions(self) -> list[str]:
        return [f"{event['Type']} {event['Action']}" for event in self.events]


@define(eq=False)
class TlsEngine:
    engine: dockerd.Engine
    port: int
    tls: Tls


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsEngine]:
    """One dockerd for the module, on a unix socket and with mutual TLS on a port."""
    home = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost"), authority.issue_cert("me@example.org")
    authority.cert_pem.write_to_path(str(home / "ca.pem"))
    for name, cert in (("server", server), ("client", client)):
        cert.private_key_pem.write_to_path(str(home / f"{name}-key.pem"))
        cert.cert_chain_pems[0].write_to_path(str(home / f"{name}.pem"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    extra = (
        f"--host=tcp://127.0.0.1:{port}",
        "--tlsverify",
        f"--tlscacert={home}/ca.pem",
        f"--tlscert={home}/server.pem",
        f"--tlskey={home}/server-key.pem",
    )
    tls = Tls(
        ca=f"{home}/ca.pem", client_cert=f"{home}/client.pem", client_key=f"{home}/client-key.pem"
    )
    with dockerd.running_dockerd(extra) as engine:
        yield TlsEngine(engine, port, tls)


@pytest.fixture
def engine(secured: TlsEngine) -> dockerd.Engine:
    return secured.engine


def source_of(url: str, tls: Tls | None = None, *filters: str) -> Source:
    return Source(
        SourceId("ci", "lab"),
        "docker",
        Endpoint.parse(url),
        tls=tls or Tls(),
        filters=Filters.parse_flags(filters),
    )


@asynccontextmanager
async def streaming(source: Source) -> AsyncIterator[Heard]:
    """Stream `source`, open, for the length of the block."""
    heard = Heard()

    async def stream() -> None:
        try:
            await stream_docker(
                source,
                dialer=SocketDialer(dial_timeout_s=10),
                listener=heard,
                settings=ConnectionSettings(),
            )
        except ConnectionFailed as failed:
            heard.failure = failed.failure
            heard._change()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream)
        await heard.until(lambda: bool(heard.openings) or heard.failure is not None)
        yield heard
        nursery.cancel_scope.cancel()


async def in_thread(call: Callable[..., Any], *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(lambda: call(*arguments))


async def test_what_happens_comes_once_and_in_order(engine: dockerd.Engine) -> None:
    async with streaming(source_of(engine.url)) as heard:
        assert heard.openings[0].trust == "off"
        await in_thread(engine.run, "volume", "create", "first")
        await in_thread(engine.import_image)
        command = ("run", "--rm", "--network", "none", dockerd.IMAGE, "/bin/sh", "-c", "exit 3")
        with pytest.raises(AssertionError):  # the client exits as its container did
            await in_thread(engine.run, *command)
        await in_thread(engine.run, "volume", "rm", "first")
        await heard.until(lambda: "volume destroy" in heard.actions)
        ring = (await in_thread(engine.ask, "GET", "/events?since=0&until=0")).splitlines()
    kinds = [action for action in heard.actions if not action.startswith("network")]
    assert [action for action in kinds if not action.startswith("image")] == [
        "volume create",
        "container create",
        "container attach",
        "container start",
        "container die",
        "container destroy",
        "volume destroy",
    ]
    assert {"image import", "image tag"} == {a for a in kinds if a.startswith("image")}
    assert Counter(heard.messages) == Counter(ring[-len(heard.messages) :])
    died = next(event for event in heard.events if event["Action"] == "die")
    assert died["Actor"]["Attributes"]["exitCode"] == "3"


async def test_a_burst_over_tls(secured: TlsEngine) -> None:
    names = [f"burst-{n:03}" for n in range(200)]

    def burst() -> None:
        for name in names:
            body = json.dumps({"Name": name}).encode()
            secured.engine.ask("POST", "/volumes/create", body)

    source = source_of(f"tcp://localhost:{secured.port}", secured.tls, "type=volume")
    async with streaming(source) as heard:
        assert heard.openings[0].trust == "verified"
        await in_thread(burst)
        await heard.until(lambda: len(heard.messages) >= len(names))
        await in_thread(secured.engine.run, "volume", "prune", "-f")
        await heard.until(lambda: "volume prune" in heard.actions)
    created = [e["Actor"]["ID"] for e in heard.events if e["Action"] == "create"]
    assert created == names


async def test_filters_are_the_engines(engine: dockerd.Engine) -> None:
    source = source_of(engine.url, None, "type=volume", "event=destroy", "volume=kept")
    async with streaming(source) as heard:
        for name in ("kept-1", "other", "kept-2"):
            await in_thread(engine.run, "volume", "create", name)
            await in_thread(engine.run, "volume", "rm", name)
        await heard.until(lambda: len(heard.messages) >= 2)
    assert [event["Actor"]["ID"] for event in heard.events] == ["kept-1", "kept-2"]
    assert heard.failure is None


async def test_refusals_in_plain_words(secured: TlsEngine) -> None:
    async def failure_of(source: Source) -> Failure:
        async with streaming(source) as heard:
            assert heard.failure is not None
            return heard.failure

    url = f"tcp://localhost:{secured.port}"
    plain = await failure_of(source_of(url))
    assert (plain.kind, plain.code) == (FailureKind.HTTP, 400)
    assert "wants TLS on this port" in plain.detail
    without = await failure_of(source_of(url, Tls(ca=secured.tls.ca)))
    assert without.kind is FailureKind.TLS
    assert "client certificate" in without.detail
    stranger = await failure_of(source_of(url, evolve(secured.tls, ca=None)))
    assert stranger.kind is FailureKind.TLS
    assert "not trusted" in stranger.detail
    wrong = await failure_of(source_of(f"tcp://127.0.0.1:{secured.port}", secured.tls))
    assert "not for the address 127.0.0.1" in wrong.detail
    url = f"https://localhost:{secured.port}/v9.99"
    refused = await failure_of(source_of(url, secured.tls))
    assert (refused.kind, refused.code) == (FailureKind.HTTP, 400)
    assert "too new" in refused.detail
    assert refused.date_ns is not None


async def test_an_engine_that_stops() -> None:
    with dockerd.running_dockerd() as engine:
        async with streaming(source_of(engine.url)) as heard:
            await in_thread(engine.run, "volume", "create", "once")
            await heard.until(lambda: bool(heard.messages))
            await in_thread(engine.stop)
            await heard.until(lambda: heard.failure is not None)
            assert heard.failure is not None
            assert heard.failure.kind is FailureKind.EOF
        async with streaming(source_of(engine.url)) as heard:
            assert heard.failure is not None
            assert heard.failure.kind is FailureKind.CONNECT
            assert "start" in heard.failure.detail
    assert heard.actions == []


async def test_podman() -> None:
    with dockerd.running_podman() as engine:
        async with streaming(source_of(engine.url)) as heard:
            await in_thread(engine.run, "volume", "create", "first")
            await in_thread(engine.import_image)
            options = ("--rm", "--network=none", *dockerd.LIMITS)
            command = ("run", *options, dockerd.IMAGE, "/bin/sh", "-c", "true")
            await in_thread(engine.run, *command)
            await in_thread(engine.run, "volume", "rm", "first")
            await heard.until(lambda: "volume remove" in heard.actions)
        lives = [a for a in heard.actions if a.startswith("container")]
        assert [a for a in lives if a.endswith((" create", " start", " die", " remove"))] == [
            "container create",
            "container start",
            "container die",
            "container remove",
        ], lives
        actions = [action for action in heard.actions if action.startswith("volume")]
        assert actions == ["volume create", "volume remove"]
        assert all(event["timeNano"] < math.inf for event in heard.events)
        assert len(set(heard.messages)) == len(heard.messages)
