"""Opening byte streams: unix sockets, TCP, TLS, through a proxy, over ssh.

Names are resolved in threads with a limiter of their own: a resolver that hangs must not hold up
the journal's thread. Certificates are loaded once per distinct `Tls` (34 ms each) and again when a
file of it has changed; a disk that hangs holds up those alone who need a file of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import trio
from attrs import define, field

from hypermux.core import pins
from hypermux.model.accounts import Endpoint, Tls, uses_tls
from hypermux.model.errors import ConnectionFailed, Failure, FailureKind
from hypermux.upstream import faults, ssh, tunnel
from hypermux.upstream.transport import Trust

# Threads for names, and as many for certificates: a few slow ones must not stop all others.
_THREADS = 16
# RFC 8305: how long an address may keep the next one waiting.
_STAGGER_S = 0.25
# A dead host is noticed after 15 + 3 x 5 s: Docker's stream has no ping of its own.
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))

Address: TypeAlias = tuple[int, Any]  # family, socket address
_Stamp: TypeAlias = tuple[tuple[str, int, int], ...]


def trust_of(endpoint: Endpoint, tls: Tls) -> Trust:
    """Return how far the peer's identity is known."""
    if not uses_tls(endpoint, tls):
        return "off"
    if tls.pins:
        return "pinned"
    return "verified" if tls.verify else "unverified"


@define(eq=False, kw_only=True)
class SocketDialer:
    """Dials for real.

    Loading certificates, resolving with TCP, and TLS may each take `dial_timeout_s` seconds.
    """

    dial_timeout_s: float
    _resolving: trio.CapacityLimiter = field(
        init=False, factory=partial(trio.CapacityLimiter, _THREADS)
    )
    _reading: trio.CapacityLimiter = field(
        init=False, factory=partial(trio.CapacityLimiter, _THREADS)
    )
    # One at a time for each: a thousand sources with one `ca` read it once.
    _loading: dict[Tls, trio.Lock] = field(init=False, factory=lambda: defaultdict(trio.Lock))
    _contexts: dict[Tls, tuple[_Stamp, ssl.SSLContext]] = field(init=False, factory=dict)

    async def dial(self, endpoint: Endpoint, tls: Tls) -> trio.abc.Stream:
        """Return a connected stream. Raises ConnectionFailed (resolve, connect, tls, timeout)."""
        if endpoint.scheme == "unix":
            return await self._dial_unix(endpoint.path)
        if endpoint.scheme == "ssh":
            return await ssh.dial_ssh(endpoint, self.dial_timeout_s)
        context = await self._context(tls) if uses_tls(endpoint, tls) else None
        stream = await self._reach(endpoint)
        return stream if context is None else await self._secure(stream, endpoint, context, tls)

    async def _reach(self, endpoint: Endpoint) -> trio.SocketStream:
        """Return a TCP connection to the endpoint, or through its proxy."""
        proxy = endpoint.proxy
        at = endpoint if proxy is None else proxy
        name = at.address if proxy is None else f"the proxy {at.address}"
        stage = f"resolving {at.host}"
        with trio.move_on_after(self.dial_timeout_s):
            addresses = await self._resolve(at.host, at.port)
            stage = f"connecting to {name}"
            stream = await _connect(addresses, name)
            stage = ""
        if stage:
            raise self._too_slow(stage)
        if proxy is None:
            return stream
        try:
            with trio.move_on_after(self.dial_timeout_s):
                await tunnel.open_tunnel(stream, endpoint, proxy)
                return stream
            raise self._too_slow(f"{name} connecting to {endpoint.address}")
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    async def _dial_unix(self, path: str) -> trio.abc.Stream:
        with trio.move_on_after(self.dial_timeout_s):
            try:
                return await trio.open_unix_socket(path)
            except (OSError, ValueError) as exc:
                raise ConnectionFailed(faults.unix_failure(path, exc)) from exc
        raise self._too_slow(f"connecting to {path}")

    async def _resolve(self, host: str, port: int) -> list[Address]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            try:
                found = look_up(flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
            except socket.gaierror:
                found = await trio.to_thread.run_sync(
                    look_up, limiter=self._resolving, abandon_on_cancel=True
                )
        except (OSError, UnicodeError) as exc:
            raise ConnectionFailed(faults.resolve_failure(host, exc)) from exc
        return _interleave([(family, address) for family, _, _, _, address in found])

    async def _context(self, tls: Tls) -> ssl.SSLContext:
        with trio.move_on_after(self.dial_timeout_s):
            async with self._loading[tls]:
                return await trio.to_thread.run_sync(
                    self._load, tls, limiter=self._reading, abandon_on_cancel=True
                )
        raise self._too_slow("reading the certificate files")

    def _load(self, tls: Tls) -> ssl.SSLContext:
        """Return the context for `tls`; runs in a thread."""
        stamp = tuple(map(_stamp, tls.files))
        known = self._contexts.get(tls)
        if known is None or known[0] != stamp:
            known = self._contexts[tls] = (stamp, _make_context(tls))
        return known[1]

    async def _secure(
        self, stream: trio.SocketStream, endpoint: Endpoint, context: ssl.SSLContext, tls: Tls
    ) -> trio.abc.Stream:
        """Do the TLS handshake, and look at the pin; close `stream` when it fails."""
        try:
            # https_compatible: an end without close_notify is an end; both protocols above say
            # themselves whether it came in the middle of something.
            secured = trio.SSLStream(
                _LastWords(stream),
                context,
                server_hostname=endpoint.host,
                https_compatible=True,
            )
            with trio.move_on_after(self.dial_timeout_s):
                await secured.do_handshake()
                _check_pin(secured, endpoint, tls)
                return secured
            raise self._too_slow(f"the TLS handshake with {endpoint.address}")
        except (trio.BrokenResourceError, ValueError) as exc:
            await trio.aclose_forcefully(stream)
            raise ConnectionFailed(faults.handshake_failure(endpoint, exc)) from exc
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    def _too_slow(self, stage: str) -> ConnectionFailed:
        text = f"{stage} took longer than {self.dial_timeout_s:g} s"
        return ConnectionFailed(Failure(FailureKind.TIMEOUT, text))


@define(eq=False)
class _LastWords(trio.abc.Stream):
    """Leaves it to the next read to tell of a failed write.

    A server that refuses our certificate sends an alert and resets the connection; the request on
    its way then fails first, and TLS would never look at the alert, which says why.
    """

    inner: trio.SocketStream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()


def _check_pin(stream: trio.SSLStream[_LastWords], endpoint: Endpoint, tls: Tls) -> None:
    """Raise ConnectionFailed (tls) unless the server's key is pinned, or no key is."""
    if not tls.pins:
        return
    try:
        shown = pins.of_certificate(stream.getpeercert(binary_form=True) or b"")
    except ValueError as exc:
        text = f"{endpoint.address}: the server's certificate cannot be read: {exc}"
        raise ConnectionFailed(Failure(FailureKind.TLS, text)) from exc
    if shown not in tls.pins:
        text = f"{endpoint.address}: the server's key is not the pinned one; it shows {shown}"
        raise ConnectionFailed(Failure(FailureKind.TLS, text))


async def _connect(addresses: list[Address], name: str) -> trio.SocketStream:
    """Connect to the first address that answers, later ones starting a little later."""
    won: list[trio.SocketStream] = []
    errors: list[OSError] = []

    async def attempt(family: int, address: Any, ended: trio.Event) -> None:
        try:
            sock = trio.socket.socket(family, socket.SOCK_STREAM)
            try:
                _keep_alive(sock)
                await sock.connect(address)
                if won:
                    sock.close()
                else:
                    won.append(trio.SocketStream(sock))
                    nursery.cancel_scope.cancel()
            except BaseException:
                sock.close()
                raise
        except OSError as exc:
            errors.append(exc)
        ended.set()

    try:
        async with trio.open_nursery() as nursery:
            for family, address in addresses:
                ended = trio.Event()
                nursery.start_soon(attempt, family, address, ended)
                with trio.move_on_after(_STAGGER_S):
                    await ended.wait()
    except BaseException:
        for stream in won:  # cancelled in the very moment of success
            await trio.aclose_forcefully(stream)
        raise
    if won:
        return won[0]
    raise ConnectionFailed(faults.connect_failure(name, errors))


def _interleave(addresses: list[Address]) -> list[Address]:
    """Take turns between the families, as RFC 8305 has it: one that is broken costs little."""
    first = addresses[0][0]
    same = [a for a in addresses if a[0] == first]
    other = [a for a in addresses if a[0] != first]
    turns: list[Address] = []
    for i in range(max(len(same), len(other))):
        turns += same[i : i + 1] + other[i : i + 1]
    return turns


def _keep_alive(sock: trio.socket.SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if (option := getattr(socket, name, None)) is not None:  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _stamp(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
        with open(path, "rb"):  # ssl's own errors do not name the file
            pass
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    return path, status.st_mtime_ns, status.st_ino


def _make_context(tls: Tls) -> ssl.SSLContext:
    if tls.ca is None:
        context = ssl.create_default_context()
    else:
        context = _loaded(
            tls.ca, "holds no certificate in PEM form", ssl.create_default_context, cafile=tls.ca
        )
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.client_cert is not None:
        _loaded(
            tls.client_cert,
            "and its key do not belong together, are encrypted, or are not in PEM form",
            context.load_cert_chain,
            tls.client_cert,
            tls.client_key,
            password="",  # never ask at a terminal
        )
    return context


def _loaded(path: str, wrong: str, load: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return load(*args, **options)
    except ssl.SSLError as exc:
        raise _tls_file(path, wrong) from exc
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: str, exc: OSError) -> ConnectionFailed:
    if exc.errno in faults.SHORTAGES:
        return ConnectionFailed(faults.shortage(exc, f"reading {path}"))
    return _tls_file(path, f"cannot be read: {faults.os_words(exc)}")


def _tls_file(path: str, wrong: str) -> ConnectionFailed:
    return ConnectionFailed(Failure(FailureKind.TLS, f"the file {path} {wrong}"))
