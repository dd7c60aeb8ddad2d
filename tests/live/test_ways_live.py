"""Pins and proxies for real: TLS on loopback, and a small CONNECT proxy in front of it."""

from __future__ import annotations

import base64
import contextlib
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from attrs import define, evolve, field
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from loopback import context_of, dial_failure, serving, tls_files, tls_handler
from processes import FAST, HYPERMUX, emulator, place

from hypermux.core import pins
from hypermux.model.accounts import Endpoint, Proxy, Secret, Tls
from hypermux.model.errors import FailureKind
from hypermux.upstream.dialing import SocketDialer, trust_of

pytestmark = pytest.mark.live

LOGIN = Secret("me:canary-pass")


def pin_of(certificate: trustme.LeafCert) -> str:
    """Return the pin of a certificate's key, by another way than the one under test."""
    key = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).public_key()
    info = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(info)
    return "sha256:" + base64.b64encode(digest.finalize()).decode()


@asynccontextmanager
async def tls_server(
    authority: trustme.CA, name: str = "localhost"
) -> AsyncIterator[tuple[int, str]]:
    """Serve TLS; give the port and the pin of its key."""
    certificate = authority.issue_cert(name)
    context = context_of(authority, name)
    certificate.configure_cert(context)
    async with serving(tls_handler(context)) as port:
        yield port, pin_of(certificate)


async def greet(endpoint: Endpoint, tls: Tls) -> bytes:
    stream = await SocketDialer(dial_timeout_s=5).dial(endpoint, tls)
    async with stream:
        await stream.send_all(b"?")
        return bytes(await stream.receive_some())


async def test_a_pin_beside_verification(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = tls_files(tmp_path, authority)
    async with tls_server(authority) as (port, pin):
        endpoint = Endpoint.parse(f"wss://localhost:{port}/")
        other = pins.parse(f"sha256:{'00' * 32}")
        for good in ((pin,), (other, pin)):  # the second: while keys are changed
            assert await greet(endpoint, evolve(tls, pins=good)) == b"hello"
            assert trust_of(endpoint, evolve(tls, pins=good)) == "pinned"
        failure = await dial_failure(endpoint, evolve(tls, pins=(other,)))
        assert failure.kind is FailureKind.TLS
        assert failure.detail == (
            f"localhost:{port}: the server's key is not the pinned one; it shows {pin}"
        )
        # A pin is no way around verification.
        assert "not trusted" in (await dial_failure(endpoint, Tls(pins=(pin,)))).detail


async def test_a_pin_alone() -> None:
    async with tls_server(trustme.CA(), "other.example") as (port, pin):
        endpoint = Endpoint.parse(f"tcp://localhost:{port}")
        assert await greet(endpoint, Tls(verify=False, pins=(pin,))) == b"hello"
        wrong = Tls(verify=False, pins=(pins.parse(f"sha256:{'00' * 32}"),))
        failure = await dial_failure(endpoint, wrong)
        assert failure.kind is FailureKind.TLS
        assert pin in failure.detail


async def test_a_server_without_the_pinned_key_hears_nothing() -> None:
    heard = []

    async def listen(stream: trio.abc.Stream) -> None:
        secured = trio.SSLStream(stream, context_of(trustme.CA(), "x"), server_side=True)
        with contextlib.suppress(trio.BrokenResourceError):
            heard.append(bytes(await secured.receive_some()))

    async with serving(listen) as port:
        wrong = Tls(verify=False, pins=(pins.parse(f"sha256:{'00' * 32}"),))
        await dial_failure(Endpoint.parse(f"wss://127.0.0.1:{port}/"), wrong)
    assert heard in ([], [b""])


@define(eq=False)
class ConnectProxy:
    """A proxy that does CONNECT; `answer` replaces its usual one."""

    login: Secret | None = None
    answer: bytes = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n"
    piece: int = 1 << 16
    heads: list[bytes] = field(factory=list)

    async def __call__(self, stream: trio.abc.Stream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        self.heads.append(head)
        if self.login is not None:
            login = base64.b64encode(self.login.reveal().encode())
            if b"Proxy-Authorization: Basic " + login not in head:
                await stream.send_all(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                    b'Proxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
                )
                return
        for at in range(0, len(self.answer), self.piece):
            await stream.send_all(self.answer[at : at + self.piece])
        if b" 200 " not in self.answer[:15] or not self.answer.endswith(b"\r\n\r\n"):
            await stream.receive_some()
            return
        method, target, version = head.split(b"\r\n")[0].split()
        assert (method, version) == (b"CONNECT", b"HTTP/1.1")
        host, _, port = target.decode().rpartition(":")
        onward = await trio.open_tcp_stream(host.strip("[]"), int(port))
        async with onward, trio.open_nursery() as nursery:
            nursery.start_soon(pump, stream, onward, nursery.cancel_scope)
            nursery.start_soon(pump, onward, stream, nursery.cancel_scope)


async def pump(source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await source.receive_some():
            await sink.send_all(data)
    scope.cancel()


def through(endpoint: Endpoint, port: int, login: Secret | None = None) -> Endpoint:
    return evolve(endpoint, proxy=Proxy("127.0.0.1", port, login))


@pytest.mark.parametrize("piece", [1 << 16, 1])
async def test_tls_through_a_proxy(tmp_path: Path, piece: int) -> None:
    authority = trustme.CA()
    tls = tls_files(tmp_path, authority)
    proxy = ConnectProxy(piece=piece)
    async with tls_server(authority) as (port, pin), serving(proxy) as proxy_port:
        endpoint = through(Endpoint.parse(f"wss://localhost:{port}/"), proxy_port)
        assert await greet(endpoint, evolve(tls, pins=(pin,))) == b"hello"
        # Verified against the server's name, not the proxy's.
        wrong = through(Endpoint.parse(f"wss://127.0.0.1:{port}/"), proxy_port)
        assert "not for the address 127.0.0.1" in (await dial_failure(wrong, tls)).detail
    assert proxy.heads[0].startswith(f"CONNECT localhost:{port} HTTP/1.1\r\n".encode())
    assert f"Host: localhost:{port}\r\n".encode() in proxy.heads[0]
    assert b"Proxy-Authorization" not in proxy.heads[0]


async def test_plain_tcp_through_a_proxy() -> None:
    async def echo(stream: trio.abc.Stream) -> None:
        await stream.send_all(await stream.receive_some())

    async with serving(echo) as port, serving(ConnectProxy()) as proxy_port:
        endpoint = through(Endpoint.parse(f"ws://127.0.0.1:{port}/"), proxy_port)
        assert await greet(endpoint, Tls()) == b"?"


async def test_a_proxy_with_a_password(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = tls_files(tmp_path, authority)
    async with tls_server(authority) as (port, _), serving(ConnectProxy(LOGIN)) as proxy_port:
        endpoint = Endpoint.parse(f"wss://localhost:{port}/")
        assert await greet(through(endpoint, proxy_port, LOGIN), tls) == b"hello"
        missing = await dial_failure(through(endpoint, proxy_port), tls)
        assert missing.kind is FailureKind.ACCESS
        assert missing.detail.startswith(f"the proxy 127.0.0.1:{proxy_port} wants a user and pass")
        wrong = await dial_failure(through(endpoint, proxy_port, Secret("me:canary-no")), tls)
        assert wrong.kind is FailureKind.ACCESS
        assert "refuses the user and password (407 " in wrong.detail
        assert "canary" not in f"{missing}{wrong}"


async def test_a_whole_watch_through_a_proxy(tmp_path: Path) -> None:
    proxy = ConnectProxy(LOGIN)
    with emulator(tmp_path, "--accounts", "2", "--regions", "us", "--rate", "20") as emulated:
        async with serving(proxy) as port:
            where = place(
                tmp_path,
                emulated.accounts,
                FAST,
                "[defaults]",
                f'proxy = "http://{LOGIN.reveal()}@127.0.0.1:{port}"',
            )
            command = [*HYPERMUX, "watch", "-c", str(where.config), "-o", "json"]
            async with trio.open_nursery() as nursery:
                run = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
                child = await nursery.start(partial(run, capture_stderr=False, stderr=None))
                seen = b""
                with trio.fail_after(30):
                    while len(set(re.findall(rb'"event",.*?"account":"([^"]+)"', seen))) < 2:
                        seen += await child.stdout.receive_some()
                child.terminate()
                async for _ in child.stdout:
                    pass
    heads = b"".join(proxy.heads)
    assert len(proxy.heads) == heads.count(b"CONNECT 127.0.0.1:") == 2
    assert b"canary" not in seen


REFUSALS = [
    (b"HTTP/1.1 403 Forbidden\r\n\r\n", FailureKind.ACCESS, "refuses to connect to h.example:443"),
    (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", FailureKind.CONNECT, "does not reach h.example:443 (502"),
    (b"HTTP/1.1 503 x\r\nContent-Length: 9\r\n\r\n<html>", FailureKind.CONNECT, "(503 "),
    (b"HTTP/1.1 504 x\r\n\r\n", FailureKind.CONNECT, "does not reach"),
    (b"HTTP/1.1 405 x\r\n\r\n", FailureKind.SETUP, "does not do CONNECT to h.example:443 (405 "),
    (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", FailureKind.SETUP, "(302 Found)"),
    (b"HTTP/1.1 799 x\r\n\r\n", FailureKind.SETUP, "(799)"),
    (b"HTTP/1.1 429 x\r\nRetry-After: 7\r\n\r\n", FailureKind.HTTP, "answered 429 Too Many"),
    (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", FailureKind.SETUP, "did not answer in HTTP (it begins 'SSH"),
    (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000, FailureKind.SETUP, "did not answer in HTTP"),
    (b"HTTP/1.1 200 OK\r\n\r\nhello", FailureKind.SETUP, "talks behind its answer"),
]


@pytest.mark.parametrize(("answer", "kind", "says"), REFUSALS)
async def test_a_proxy_that_refuses(answer: bytes, kind: FailureKind, says: str) -> None:
    async with serving(ConnectProxy(answer=answer)) as port:
        failure = await dial_failure(through(Endpoint.parse("wss://h.example/"), port))
    assert failure.kind is kind
    assert failure.detail.startswith(f"the proxy 127.0.0.1:{port} ")
    assert says in failure.detail
    if kind is FailureKind.HTTP:
        assert (failure.code, failure.retry_after_s) == (429, 7.0)


async def ends(stream: trio.abc.Stream) -> None:
    await stream.receive_some()


async def resets(stream: trio.abc.Stream) -> None:
    pass  # with our request unread, the system answers it with a reset


async def stalls(stream: trio.abc.Stream) -> None:
    await stream.send_all(b"HTTP/1.1 200 O")
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("handler", "kind", "says"),
    [
        (ends, FailureKind.EOF, "ended the connection without an answer"),
        (resets, FailureKind.EOF, ""),
        (stalls, FailureKind.TIMEOUT, "connecting to h.example:443 took longer than 0.3 s"),
    ],
)
async def test_a_proxy_that_fails(
    handler: Callable[[trio.abc.Stream], Awaitable[None]], kind: FailureKind, says: str
) -> None:
    async with serving(handler) as port:
        endpoint = through(Endpoint.parse("wss://h.example/"), port)
        failure = await dial_failure(endpoint, timeout_s=0.3 if handler is stalls else 5.0)
    assert failure.kind is kind
    assert failure.detail.startswith(f"the proxy 127.0.0.1:{port}")
    assert says in failure.detail


async def test_no_proxy_there() -> None:
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        failure = await dial_failure(through(Endpoint.parse("wss://h.example/"), port))
    assert failure.kind is FailureKind.CONNECT
    assert (
        failure.detail == f"the proxy 127.0.0.1:{port}: connection refused: nothing listens there"
    )
    nameless = evolve(Endpoint.parse("wss://h.example/"), proxy=Proxy("no-such.invalid", 1))
    assert (await dial_failure(nameless)).detail == "the name no-such.invalid has no address"


async def test_the_environment_is_not_asked_for_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def echo(stream: trio.abc.Stream) -> None:
        await stream.send_all(await stream.receive_some())

    async with serving(echo) as port:
        assert await greet(Endpoint.parse(f"ws://127.0.0.1:{port}/"), Tls()) == b"?"


async def test_cancelling_closes_what_was_opened() -> None:
    ended = trio.Event()
    asked = trio.Event()

    async def watch(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        asked.set()
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        ended.set()

    async with serving(watch) as port, trio.open_nursery() as nursery:
        endpoint = through(Endpoint.parse("wss://h.example/"), port)
        nursery.start_soon(SocketDialer(dial_timeout_s=5).dial, endpoint, Tls())
        await asked.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(5):
            await ended.wait()
