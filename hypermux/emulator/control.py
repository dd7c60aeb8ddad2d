"""Orders from outside: containers to change, events to send, faults to make.

One request is one JSON object on a line, its reply another: `{"ok":true,…}` or
`{"ok":false,"error":"…"}`. The same requests work in process (`Control.handle`).

    create   account region image [name labels dialect]   -> id, name
    start, stop, remove   account region id               id: the id, a prefix of it, or the name
    ps       account region                               -> containers (those made by `create`)
    emit     account region events                        objects and texts, sent as they are
    close    code [reason] TARGET                         a close frame
    drop     TARGET                                       a TCP reset, no goodbye
    deaf     on TARGET                                    the connections of now stop reading
    mute     on TARGET                                    they answer, but what happens is not sent
    refuse   status [count retry_after reason location] TARGET
                                                          handshakes; no count: all, 0: none
    delay    seconds TARGET                               handshakes are answered late; 0 ends it
    clock    seconds                                      handshakes are judged and dated by a clock
                                                          that is so far ahead (or behind, negative)
    rekey    account secret                               the account's secret key from now on
    connections [TARGET]                                  -> connections

TARGET is any of account, region and (but for handshakes) connection; left out, it is all. The
latest refusal or delay that covers a handshake counts, and each replaces its target's last one.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import trio
from attrs import define, field

from hypermux.emulator.connection import Connection, Goodbye
from hypermux.emulator.containers import Container, ContainerFault, EventText
from hypermux.emulator.faults import Target
from hypermux.emulator.handshake import Answer
from hypermux.emulator.orders import BadOrder, Emission, Order, read_event
from hypermux.emulator.router import Router
from hypermux.model.accounts import Secret
from hypermux.model.errors import Unreachable

Reply: TypeAlias = dict[str, Any]

# One request with all its events; a test that emits more sends it in parts.
MAX_REQUEST = 16 * 1024 * 1024
# What a close frame may carry (RFC 6455, 7.4): 1005, 1006 and 1015 never travel.
_UNSENDABLE = (1005, 1006, 1015)
_MAX_REASON = 123


@define(eq=False)
class Control:
    """Carries out requests on a router."""

    router: Router
    _ops: dict[str, Callable[[Order], Reply]] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._ops = {
            "create": self._create,
            "start": self._start,
            "stop": self._stop,
            "remove": self._remove,
            "ps": self._ps,
            "emit": self._emit,
            "close": self._close,
            "drop": self._drop,
            "deaf": self._deaf,
            "mute": self._mute,
            "clock": self._clock,
            "rekey": self._rekey,
            "refuse": self._refuse,
            "delay": self._delay,
            "connections": self._connections,
        }

    def handle(self, request: Mapping[str, Any]) -> Reply:
        """Carry out one request and return its reply; no request raises."""
        try:
            order = Order(dict(request))
            op = order.text("op")
            if op not in self._ops:
                raise BadOrder(f"no such op; there are {', '.join(self._ops)}")
            reply = self._ops[op](order)
            order.finish()
        except (BadOrder, ContainerFault) as problem:
            return {"ok": False, "error": str(problem)}
        return {"ok": True, **reply}

    def handle_line(self, line: bytes) -> bytes:
        """Carry out a request as it comes over the socket."""
        try:
            request = msgspec.json.decode(line)
            if not isinstance(request, dict):
                raise BadOrder("a request is a JSON object")
            if isinstance(request.get("events"), list):
                # Objects are sent as they were written, down to the digits of their numbers.
                request["events"] = msgspec.json.decode(line, type=Emission).events
            reply = self.handle(request)
        except (msgspec.MsgspecError, RecursionError, BadOrder) as problem:
            reply = {"ok": False, "error": f"not a request: {problem}"}
        return json.dumps(reply, separators=(",", ":")).encode() + b"\n"

    def _create(self, order: Order) -> Reply:
        account, region = self._source(order)
        image, name = order.text("image"), order.text("name", "")
        labels = order.take("labels", {})
        if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
            raise BadOrder("labels is an object of texts")
        dialect = order.text("dialect", "a")
        if dialect not in ("a", "b"):
            raise BadOrder("dialect is a or b")
        order.finish()
        fleet = self.router.source(account, region).fleet
        made, texts = fleet.create(image, name, labels, "b" if dialect == "b" else "a")
        return {"id": made.id, "name": made.name, "sent": self._happen(account, region, texts)}

    def _start(self, order: Order) -> Reply:
        account, region, container = self._container(order)
        texts = self.router.source(account, region).fleet.start(container)
        return {"id": container.id, "sent": self._happen(account, region, texts)}

    def _stop(self, order: Order) -> Reply:
        account, region, container = self._container(order)
        texts = self.router.source(account, region).fleet.stop(container)
        return {"id": container.id, "sent": self._happen(account, region, texts)}

    def _remove(self, order: Order) -> Reply:
        account, region, container = self._container(order)
        texts = self.router.source(account, region).fleet.remove(container)
        return {"id": container.id, "sent": self._happen(account, region, texts)}

    def _ps(self, order: Order) -> Reply:
        account, region = self._source(order)
        containers = self.router.source(account, region).fleet.containers.values()
        return {
            "containers": [
                {
                    "id": container.id,
                    "image": container.image,
                    "image_id": container.image_id,
                    "name": container.name,
                    "state": container.state,
                    "labels": dict(container.labels),
                }
                for container in containers
            ]
        }

    def _emit(self, order: Order) -> Reply:
        account, region = self._source(order)
        events = order.take("events")
        if not isinstance(events, list):
            raise BadOrder("events is a list of objects and texts")
        messages = [read_event(event) for event in events]
        order.finish()
        sent = sum(self.router.publish(account, region, *message) for message in messages)
        return {"sent": sent}

    def _close(self, order: Order) -> Reply:
        code, reason = order.whole("code"), order.text("reason", "")
        if not 1000 <= code <= 4999 or code in _UNSENDABLE:
            raise BadOrder("a close code is 1000 to 4999, without 1005, 1006 and 1015")
        if len(reason.encode()) > _MAX_REASON:
            raise BadOrder(f"a close reason has at most {_MAX_REASON} bytes")
        return self._end(order, Goodbye(code, reason))

    def _drop(self, order: Order) -> Reply:
        return self._end(order, Goodbye(None))

    def _end(self, order: Order, goodbye: Goodbye) -> Reply:
        targets = self._targets(order)
        for connection in targets:
            connection.end(goodbye)
        return {"connections": [connection.number for connection in targets]}

    def _deaf(self, order: Order) -> Reply:
        on, targets = self._switch(order)
        for connection in targets:
            connection.stream.set_deaf(on)
        return {"connections": [connection.number for connection in targets]}

    def _mute(self, order: Order) -> Reply:
        on, targets = self._switch(order)
        for connection in targets:
            connection.mute = on
        return {"connections": [connection.number for connection in targets]}

    def _switch(self, order: Order) -> tuple[bool, list[Connection]]:
        on = order.take("on", True)
        if not isinstance(on, bool):
            raise BadOrder("on is true or false")
        return on, self._targets(order)

    def _refuse(self, order: Order) -> Reply:
        status, count = order.whole("status"), order.whole("count", -1)
        if not 300 <= status <= 599:
            raise BadOrder("a refusal's status is 300 to 599")
        retry_after = order.whole("retry_after", -1)
        reason, location = order.text("reason", "refused by order"), order.text("location", "")
        if not location.isascii() or not (location.isprintable() or not location):
            raise BadOrder("a location is printable ASCII")
        wait_s = None if retry_after < 0 else retry_after
        answer = Answer(status, reason, wait_s, location or None)
        target = self._handshakes(order)
        self.router.faults.refuse(target, answer, None if count < 0 else count)
        return {}

    def _delay(self, order: Order) -> Reply:
        seconds = order.take("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
            raise BadOrder("seconds is a number, 0 or more")
        self.router.faults.delay(self._handshakes(order), float(seconds))
        return {}

    def _clock(self, order: Order) -> Reply:
        seconds = order.take("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise BadOrder("seconds is a number")
        order.finish()
        self.router.ahead_ns = round(seconds * 1e9)
        return {}

    def _rekey(self, order: Order) -> Reply:
        account, secret = order.text("account"), order.text("secret")
        order.finish()
        self._known(account, None)
        self.router.rekey(account, Secret(secret))
        return {}

    def _connections(self, order: Order) -> Reply:
        return {
            "connections": [
                {
                    "connection": connection.number,
                    "account": connection.account,
                    "region": connection.region,
                    "ordinal": connection.ordinal,
                    "filters": connection.filters.encode(),
                    "sent": connection.sent,
                    "queued": connection.queued,
                    "deaf": connection.stream.deaf,
                    "opened": connection.opened_ns,
                }
                for connection in self._targets(order)
            ]
        }

    def _source(self, order: Order) -> tuple[str, str]:
        account, region = order.text("account"), order.text("region")
        self._known(account, region)
        return account, region

    def _known(self, account: str | None, region: str | None) -> None:
        accounts = [a for a in self.router.accounts if account in (None, a.name)]
        if not accounts:
            raise BadOrder(f"no account {account!r}")
        if not any(region in (None, *a.regions) for a in accounts):
            raise BadOrder(f"no region {region!r} there")

    def _container(self, order: Order) -> tuple[str, str, Container]:
        account, region = self._source(order)
        container = self.router.source(account, region).fleet.find(order.text("id"))
        order.finish()
        return account, region, container

    def _handshakes(self, order: Order) -> Target:
        account, region = order.text("account", "") or None, order.text("region", "") or None
        order.finish()
        self._known(account, region)
        return Target(account, region)

    def _targets(self, order: Order) -> list[Connection]:
        number = order.whole("connection", -1)
        where = self._handshakes(order)
        target = Target(where.account, where.region, None if number < 0 else number)
        return [
            connection
            for connection in self.router.connections.values()
            if not connection.over
            and target.covers(connection.account, connection.region, connection.number)
        ]

    def _happen(self, account: str, region: str, texts: list[EventText]) -> int:
        return self.router.happen(account, region, texts)


async def serve_control(
    path: Path, control: Control, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the control socket (mode 0600) until cancelled. Raises Unreachable."""
    listener = trio.SocketListener(_listen(path))
    try:
        task_status.started()

        async def serve_client(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await _serve_client(stream, control)

        await trio.serve_listeners(serve_client, [listener])
    finally:
        _remove(path)


async def _serve_client(stream: trio.SocketStream, control: Control) -> None:
    async with stream:
        data = bytearray()
        async for chunk in stream:
            data += chunk
            if b"\n" not in chunk and len(data) <= MAX_REQUEST:
                continue
            *lines, rest = data.split(b"\n")
            for line in lines:
                if line.strip():
                    await stream.send_all(control.handle_line(bytes(line)))
            data = rest
            if len(data) > MAX_REQUEST:
                await stream.send_all(b'{"ok":false,"error":"the request is too long"}\n')
                return


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _listen(path: Path) -> trio.socket.SocketType:
    """Bind the socket, replacing one that nobody serves."""
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
        listening = socket.socket(socket.AF_UNIX)
        # Nobody else is to get in between bind and chmod.
        mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(mask)
        listening.listen(16)
    except OSError as problem:
        raise Unreachable(f"cannot serve the control socket {path}: {problem}") from problem
    return trio.socket.from_stdlib_socket(listening)


def call(path: str | Path, request: Mapping[str, Any], timeout_s: float = 10.0) -> Reply:
    """Send one request to a control socket and return the reply; blocking, for scripts and tests.

    Raises OSError when nobody answers within `timeout_s`.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout_s)
        client.connect(str(path))
        client.sendall(json.dumps(request).encode() + b"\n")
        with client.makefile("rb") as replies:
            line = replies.readline()
    if not line:
        raise ConnectionError("the emulator closed the control connection without a reply")
    reply: Reply = json.loads(line)
    return reply
