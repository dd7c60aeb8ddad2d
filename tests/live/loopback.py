"""What tests of dialling share: servers on loopback, TLS with certificates made here."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from hypermux.model.accounts import Endpoint, Tls
from hypermux.model.errors import ConnectionFailed, Failure
from hypermux.upstream.dialing import SocketDialer


def context_of(
    authority: trustme.CA, *names: str, clients: trustme.CA | None = None, **options: object
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **options).configure_cert(context)  # type: ignore[arg-type]
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@asynccontextmanager
async def serving(
    handler: Callable[[trio.abc.Stream], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Serve raw connections; give the port."""

    async def guarded(stream: trio.SocketStream) -> None:
        async with stream:
            await handler(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        nursery.start_soon(trio.serve_listeners, guarded, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def tls_handler(
    context: ssl.SSLContext, answer: bytes = b""
) -> Callable[[trio.abc.Stream], Awaitable[None]]:
    async def handle(stream: trio.abc.Stream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await secured.do_handshake()
            await secured.receive_some()
            await secured.send_all(answer or b"hello")
            await secured.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client did not like us, or the other way round

    return handle


@asynccontextmanager
async def blocking_server(context: ssl.SSLContext, answer: bytes) -> AsyncIterator[int]:
    """Serve TLS from a thread: trio's own server does not send the alert of a failed handshake."""

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            connection.settimeout(5)
            with connection, contextlib.suppress(OSError):
                if not connection.recv(1, socket.MSG_PEEK):
                    return
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(4096)
                    secured.sendall(answer)
                    secured.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve)
            try:
                yield port
            finally:
                socket.create_connection(("127.0.0.1", port)).close()


async def dial_failure(
    endpoint: Endpoint, tls: Tls | None = None, *, timeout_s: float = 5.0
) -> Failure:
    with pytest.raises(ConnectionFailed) as failed:
        await SocketDialer(dial_timeout_s=timeout_s).dial(endpoint, tls or Tls())
    return failed.value.failure


def tls_files(tmp_path: Path, authority: trustme.CA) -> Tls:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return Tls(ca=str(tmp_path / "ca.pem"))
