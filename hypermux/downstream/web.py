"""HTTP over TCP, for those who cannot use the unix socket: browsers, Prometheus.

The kernel does not tell who is there, so nothing here changes anything (the routes are given), and
`core.guarding` decides who is answered. Limits and deadlines are the socket's: as many connections,
ten seconds for a request, the stall timeout for an answer that is not taken.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable

import trio
from attrs import define, field

from hypermux.config.settings import HttpSettings, SocketSettings
from hypermux.core.guarding import Guard
from hypermux.core.http import HttpRequest, Reply
from hypermux.downstream.horizon import Horizon
from hypermux.downstream.http import HttpServer, Routes
from hypermux.downstream.peer import PeerGone, PeerStalled, TcpPeer
from hypermux.model.errors import ConfigurationFault, Problem, Unreachable

log = logging.getLogger("hypermux.http")

BACKLOG = 128
# As in `downstream.subscribers`: without descriptors accepting fails until somebody leaves.
ACCEPT_RETRY_S = 0.5
_FOREVER = 2**63
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)


@define(eq=False)
class WebListener:
    """Serves `routes` at `settings.listen` until the horizon has ended.

    `stalled` is told of each peer that was closed because it read nothing.
    """

    settings: HttpSettings
    limits: SocketSettings
    horizon: Horizon
    routes: Routes
    stalled: Callable[[], None] = lambda: None
    server: HttpServer = field(init=False)
    _guard: Guard = field(init=False)
    _connections: int = 0

    def __attrs_post_init__(self) -> None:
        self.server = HttpServer(self.routes, self.limits.stall_timeout_s, self._refusal)
        self._guard = self._guarded(self.settings)

    def change(self, settings: HttpSettings, limits: SocketSettings) -> None:
        """Go on with another token and other limits; the address stays as it is."""
        self.limits = limits
        self.server.stall_timeout_s = limits.stall_timeout_s
        self._guard = self._guarded(settings)

    def _guarded(self, settings: HttpSettings) -> Guard:
        host = self.settings.host
        name = f"[{host}]" if ":" in host else host
        return Guard(name, self.settings.loopback, settings.token)

    def _refusal(self, request: HttpRequest) -> Reply | None:
        return self._guard.refusal(request)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve. Started when the port accepts; raises Unreachable and ConfigurationFault."""
        listener = bind(self.settings)
        with listener:
            async with trio.open_nursery() as nursery:
                accepting = trio.CancelScope()
                nursery.start_soon(self._accept, listener, nursery, accepting)
                log.info("HTTP at %s", self.settings.listen)
                task_status.started()
                await self.horizon.wait_beyond(_FOREVER)
                accepting.cancel()
                self.server.end()

    async def _accept(
        self, listener: socket.socket, nursery: trio.Nursery, scope: trio.CancelScope
    ) -> None:
        with scope:
            while True:
                await trio.lowlevel.wait_readable(listener)
                try:
                    sock, address = listener.accept()
                except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                    continue
                except OSError as error:
                    log.warning("cannot accept over TCP: %s", error.strerror)
                    await trio.sleep(ACCEPT_RETRY_S)
                    continue
                sock.setblocking(False)
                # Records go out one by one, and a peer that vanished has to be noticed some time.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                peer = TcpPeer(sock, f"{address[0]} port {address[1]}")
                if self._connections >= self.limits.max_subscribers:
                    log.warning("refused %s: there are %d", peer.address, self._connections)
                    peer.send_now(_BUSY)
                    peer.close()
                    continue
                self._connections += 1
                nursery.start_soon(self._serve, peer)

    async def _serve(self, peer: TcpPeer) -> None:
        try:
            await self.server.serve(peer, None)
        except PeerStalled:
            self.stalled()
            log.warning("closed %s, that read nothing", peer.address)
        except PeerGone:
            pass
        except Exception:  # whatever it is, it is this peer's alone
            log.exception("serving %s failed", peer.address)
        finally:
            peer.close()
            self._connections -= 1


def bind(settings: HttpSettings) -> socket.socket:
    """Listen at an address. Raises Unreachable when the port is taken, ConfigurationFault."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((settings.host, settings.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Unreachable(
                f"something else listens at {settings.listen}: end it, or choose another port "
                "with http.listen"
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        problem = Problem(str(settings.listen), "http.listen", f"cannot listen: {reason}")
        raise ConfigurationFault([problem]) from error
    except BaseException:
        sock.close()
        raise
    return sock
