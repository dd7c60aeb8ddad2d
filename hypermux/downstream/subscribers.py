"""Readers over the unix socket.

Each reads the journal at its own speed, from its own cursor up to the horizon; there is no queue
for any of them. One that stops reading costs a block of memory and a slot until the stall timeout
closes it, and nobody's time.

A connection is two tasks: one hears the peer (a request may come at any time, and the end of the
input is not the end of the stream), one speaks. They meet in `_answer`: the hearer sets it, the
speaker looks at it between two blocks, so that no line is ever cut. One that speaks HTTP is
handed over to `downstream.http`, bytes and all.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence

import trio
from attrs import define, field, frozen

from hypermux.config.settings import SocketSettings
from hypermux.core.request import Request
from hypermux.core.subscription import (
    Answer,
    Conversation,
    Http,
    Refusal,
    end_line,
    heartbeat_line,
    subscribed_line,
)
from hypermux.downstream import sockets
from hypermux.downstream.activation import Passed
from hypermux.downstream.http import HttpServer, Routes
from hypermux.downstream.peer import (
    LINGER_S,
    Credentials,
    Peer,
    PeerGone,
    PeerStalled,
)
from hypermux.downstream.sending import send_stretch
from hypermux.downstream.streaming import Published, Stream, StreamRefused
from hypermux.downstream.stretches import Stretch
from hypermux.model.errors import DamagedData, HypermuxError

log = logging.getLogger("hypermux.subscribers")

# Connections beside the subscribers: whoever asks for the state by HTTP must get in when all their
# places are taken. What a connection is shows in its first bytes, so it is accepted first.
SPARE_CONNECTIONS = 16
# Without file descriptors accepting fails until somebody leaves. There is one listener, so there
# is nothing to spread with jitter; doubling keeps a long shortage cheap.
ACCEPT_RETRY_MIN_S, ACCEPT_RETRY_MAX_S = 0.05, 2.0

_FOREVER = 2**63


@frozen
class Statistics:
    """Subscribers now and since the start; `refused` are those for whom there was no place."""

    active: int
    accepted: int
    refused: int
    stalled: int


@define(eq=False)
class Subscribers:
    """Serves every reader of one socket. `routes` are what HTTP can ask for."""

    settings: SocketSettings
    published: Published
    routes: Routes = ()
    http: HttpServer = field(init=False)
    _bound: sockets.BoundSocket | None = field(init=False, default=None)
    _connections: int = 0
    _active: int = 0
    _accepted: int = 0
    _refused: int = 0
    _stalled: int = 0

    def __attrs_post_init__(self) -> None:
        self.http = HttpServer(self.routes, self.settings.stall_timeout_s)

    def statistics(self) -> Statistics:
        """Return the counts as they are now."""
        return Statistics(self._active, self._accepted, self._refused, self._stalled)

    def change(self, settings: SocketSettings) -> None:
        """Go on with other settings but the path. Who is connected stays."""
        before, self.settings = self.settings, settings
        self.http.stall_timeout_s = settings.stall_timeout_s
        if self._bound is not None and (settings.mode, settings.group) != (
            before.mode,
            before.group,
        ):
            try:
                self._bound.permit(settings.mode, settings.group)
            except HypermuxError as error:
                log.error("%s", error)

    async def run(
        self,
        passed: Sequence[Passed] = (),
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until the horizon has ended and every reader has what remains.

        On the sockets that were `passed`, or else on one of our own. Started when it accepts.
        Raises Unreachable and ConfigurationFault.
        """
        listeners: Sequence[Passed | sockets.BoundSocket] = passed or [await self._bind()]
        for one in listeners:
            log.info("readers are served at %s", one)
        path = str(self.settings.path)
        if path not in [str(one.path) for one in listeners]:
            log.warning("socket.path is not used: whoever looks for us at %s has to be told", path)
        try:
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as accepting:
                    for one in listeners:
                        accepting.start_soon(self._accept, one.sock, nursery)
                    task_status.started()
                    await self.published.horizon.wait_beyond(_FOREVER)
                    accepting.cancel_scope.cancel()
                self.http.end()
        finally:
            for one in listeners:
                one.close()

    async def _bind(self) -> sockets.BoundSocket:
        settings = self.settings
        self._bound = await self.published.run_sync(
            sockets.bind, settings.path, settings.mode, settings.group
        )
        return self._bound

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        pause_s = ACCEPT_RETRY_MIN_S
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                continue
            except OSError as error:
                log.warning("cannot accept a subscriber: %s", error.strerror)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, ACCEPT_RETRY_MAX_S)
                continue
            pause_s = ACCEPT_RETRY_MIN_S
            sock.setblocking(False)
            self._admit(Peer(sock), nursery)

    def _admit(self, peer: Peer, nursery: trio.Nursery) -> None:
        who = peer.credentials()
        if not self._may_read(who):
            gids = ", ".join(map(str, sorted(who.gids)))
            log.warning("refused a connection of %s, groups %s: not allowed to read", who, gids)
            self._turn_away(peer, Refusal("denied", f"uid {who.uid} may not read this socket"))
        elif self._connections >= self.settings.max_subscribers + SPARE_CONNECTIONS:
            log.warning("refused a connection of %s: there are %d", who, self._connections)
            self._turn_away(peer, self._busy())
        else:
            log.debug("a connection of %s", who)
            self._connections += 1
            nursery.start_soon(self._serve, _Subscriber(self, peer))

    def _may_read(self, who: Credentials) -> bool:
        settings = self.settings
        if who.ours or who.uid in settings.allow_uids:
            return True
        return not who.gids.isdisjoint(settings.reader_gids)

    def _busy(self) -> Refusal:
        most = self.settings.max_subscribers
        return Refusal("busy", f"there are {self._active} subscribers; the limit is {most}")

    def subscribe(self, who: Credentials | str) -> Refusal | None:
        """Count a connection as a subscriber; return why it cannot be one."""
        if self._active >= self.settings.max_subscribers:
            self._refused += 1
            log.warning("refused a subscriber, %s: there are %d", who, self._active)
            return self._busy()
        self._active += 1
        self._accepted += 1
        return None

    def leave(self) -> None:
        """Count a subscriber as gone."""
        self._active -= 1

    def stalled(self) -> None:
        """Count a reader that was closed because it read nothing."""
        self._stalled += 1

    def _turn_away(self, peer: Peer, refusal: Refusal) -> None:
        self._refused += 1
        peer.send_now(refusal.line)
        peer.close()

    async def _serve(self, subscriber: _Subscriber) -> None:
        try:
            await subscriber.run()
        except PeerStalled:
            self.stalled()
            log.warning(
                "closed a subscriber, %s, that read nothing for %g s",
                subscriber.peer.credentials(),
                self.settings.stall_timeout_s,
            )
        except PeerGone:
            pass
        except Exception:  # whatever it is, it is this reader's alone
            log.exception("serving a subscriber failed")
        finally:
            subscriber.peer.close()
            self._connections -= 1
            if subscriber.counted:
                self.leave()


@define(eq=False)
class _Subscriber:
    """One connection. Its stream stands where the journal is shown up to when it is accepted."""

    server: Subscribers
    peer: Peer
    _stream: Stream = field(init=False)
    _conversation: Conversation = field(
        init=False, factory=lambda: Conversation.begin(trio.current_time())
    )
    _answer: Answer | None = None
    _answered: trio.Event = field(factory=trio.Event)
    _nap: trio.CancelScope | None = None
    _input_ended: trio.Event = field(factory=trio.Event)
    counted: bool = False

    def __attrs_post_init__(self) -> None:
        self._stream = self.server.published.open()

    async def run(self) -> None:
        """Serve it to its end. Raises PeerGone, PeerStalled."""
        gone: PeerGone | PeerStalled | None = None
        async with trio.open_nursery() as nursery:
            # Both tasks end here with the same few exceptions, so no group is wanted of them.
            try:
                nursery.start_soon(self._hear, nursery.cancel_scope)
                await self._speak()
            except (PeerGone, PeerStalled) as error:
                gone = error
            finally:
                self._stream.close()
            nursery.cancel_scope.cancel()
        if gone is not None:
            raise gone

    async def _hear(self, all_of_it: trio.CancelScope) -> None:
        conversation, now_ns = self._conversation, self.server.published.now_ns
        try:
            while True:
                data = await self.peer.receive(conversation.deadline_s)
                if data:
                    answer = conversation.receive(data, trio.current_time(), now_ns())
                elif data is None:
                    answer = conversation.expire()
                else:
                    self._input_ended.set()
                    answer = conversation.end(now_ns())
                if answer is not None:
                    self._answer = answer
                    self._answered.set()
                if self._nap is not None:
                    self._nap.cancel()
                if isinstance(answer, Http):
                    return
                if self._input_ended.is_set():
                    await self.peer.wait_gone()
                    break
        except PeerGone:
            pass
        all_of_it.cancel()

    async def _speak(self) -> None:
        await self._answered.wait()
        while True:
            answer = self._answer
            assert answer is not None
            if isinstance(answer, Http):
                await self.server.http.serve(self.peer, answer.data)
                return
            if isinstance(answer, Request):
                refusal = None if self.counted else self.server.subscribe(self.peer.credentials())
                if refusal is None:
                    self.counted = True
                    refusal = await self._send_stream(answer)
                if refusal is None and self._answer is not answer:
                    continue  # a late request, or a fault in one
            else:
                refusal = answer
            if refusal is not None:
                await self._send(refusal.line)
            self.peer.finish()
            if refusal is not None:
                with trio.move_on_after(LINGER_S):
                    await self._input_ended.wait()
            return

    async def _send_stream(self, request: Request) -> Refusal | None:
        """Send what `request` asks for, until its end or until there is another answer."""
        stream = self._stream
        try:
            await stream.ask(request)
            await self._send(subscribed_line(request, stream.cursor))
            while self._answer is request:
                chosen: bytes | Stretch | None = b""
                with trio.CancelScope() as self._nap:  # another answer ends it
                    chosen = await stream.next_piece()
                self._nap = None
                if chosen is None:
                    break
                if isinstance(chosen, Stretch):
                    await self._send_stretch(chosen)
                elif chosen:
                    await self._send(chosen)
                elif stream.beat():
                    await self._send(heartbeat_line(stream.cursor))
        except StreamRefused as error:
            return error.refusal
        if stream.complete:
            await self._send(end_line(stream.cursor))
        return None

    async def _send_stretch(self, stretch: Stretch) -> None:
        server = self.server
        try:
            await send_stretch(
                self.peer, stretch, server.settings.stall_timeout_s, server.published.run_sync
            )
        except (OSError, DamagedData) as error:
            # A line may have been cut, so that no other can follow: the end has to tell enough.
            log.error("a subscriber's journal read failed: %s", error)
            raise PeerGone from error

    async def _send(self, data: bytes) -> None:
        await self.peer.send(data, self.server.settings.stall_timeout_s)
