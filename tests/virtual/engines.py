"""An engine in memory, for tests in virtual time: its ring, streams, containers and troubles."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio
from attrs import define, field

EPOCH_S = 1_500_000_000


def volume(name: str, time_ns: int = 1) -> bytes:
    """Return the event of a volume's creation."""
    tree = {"Type": "volume", "Action": "create", "Actor": {"ID": name}, "timeNano": time_ns}
    return json.dumps(tree, separators=(",", ":")).encode()


def life(action: str, key: str, time_ns: int, **attributes: str) -> bytes:
    """Return an event of a container's life."""
    of = {"image": "img", "name": key, **attributes}
    tree = {
        "status": action, "id": key, "Type": "container", "Action": action,
        "Actor": {"ID": key, "Attributes": of}, "timeNano": time_ns,
    }  # fmt: skip
    return json.dumps(tree, separators=(",", ":")).encode()


@define(eq=False)
class ScriptedEngine:
    """What a test makes happen goes to the ring and to whoever streams.

    `mute` answers nothing at all; `statuses` are answers to paths that are not 200; `held` answers
    to other questions than `/events` come when the event is set, and to single paths when theirs
    of `held_paths` is. `closes` ends each connection behind its answer. `podman` gives a backlog by
    time.
    """

    podman: bool = False
    mute: bool = False
    closes: bool = False
    date: bool = True
    statuses: dict[str, int] = field(factory=dict)
    held: trio.Event | None = None
    held_paths: dict[str, trio.Event] = field(factory=dict)
    ring: deque[bytes] = field(factory=lambda: deque(maxlen=256))
    containers: dict[str, dict[str, Any]] = field(factory=dict)
    requests: list[str] = field(factory=list)
    streams: list[trio.abc.Stream] = field(factory=list)
    clock_s: float = 0.0  # ahead of ours
    inspect_s: float = 0.0  # what a look at one container takes
    pinged: trio.Event = field(factory=trio.Event)

    def now_ns(self) -> int:
        return int((EPOCH_S + trio.current_time() + self.clock_s) * 1e9)

    async def happen(self, *events: bytes, live: bool = True, ring: bool = True) -> None:
        """Let events happen; `live=False`: the streams do not bring them."""
        if ring:
            self.ring += events
        for stream in list(self.streams) if live else ():
            try:
                await stream.send_all(b"".join(_chunk(event + b"\n") for event in events))
            except trio.BrokenResourceError:
                self.streams.remove(stream)

    async def cut(self) -> None:
        """End all streams."""
        streams, self.streams = self.streams, []
        for stream in streams:
            await stream.aclose()

    def restart(self) -> None:
        """Lose what only memory has."""
        self.ring.clear()

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer one connection."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._serve(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        data = bytearray()
        while True:
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some()
                if not more:
                    return
                data += more
            head, _, rest = bytes(data).partition(b"\r\n\r\n")
            data = bytearray(rest)
            target = head.split(b" ")[1].decode()
            self.requests.append(target)
            if target == "/_ping":
                self.pinged.set()
            if self.mute:
                await trio.sleep_forever()
            if not await self._answer(stream, target):
                return

    async def _answer(self, stream: trio.abc.Stream, target: str) -> bool:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if path == "/events" and "since" not in query:
            status = self.statuses.get(path, 200)
            more = "Libpod-Api-Version: 4.3.1\r\n" if self.podman else ""
            await stream.send_all(self._head(status, f"{more}Transfer-Encoding: chunked\r\n"))
            self.streams.append(stream)
            return False
        if self.held is not None:
            await self.held.wait()
        name = "ring" if path == "/events" else path
        if name in self.held_paths:
            await self.held_paths[name].wait()
        status, body = self.statuses.get(name, 200), b"OK"
        if path == "/events":
            body = b"".join(event + b"\n" for event in self._remembered(query))
        elif path == "/containers/json":
            body = json.dumps([entry["listed"] for entry in self.containers.values()]).encode()
        elif path.startswith("/containers/"):
            await trio.sleep(self.inspect_s)
            entry = self.containers.get(path.split("/")[2])
            status = 404 if entry is None else status
            body = json.dumps({} if entry is None else entry["inspected"]).encode()
        more = f"Content-Length: {len(body)}\r\n" + ("Connection: close\r\n" if self.closes else "")
        await stream.send_all(self._head(status, more) + body)
        return not self.closes

    def _remembered(self, query: dict[str, list[str]]) -> list[bytes]:
        if not self.podman:
            assert query["since"] == query["until"] == ["0"]
            return list(self.ring)
        assert query["stream"] == ["false"]
        since_ns = int(query["since"][0]) * 10**9
        return [e for e in self.ring if json.loads(e)["timeNano"] >= since_ns]

    def _head(self, status: int, more: str) -> bytes:
        now = datetime.fromtimestamp(self.now_ns() // 10**9, UTC)
        date = f"Date: {format_datetime(now, usegmt=True)}\r\n" if self.date else ""
        return f"HTTP/1.1 {status} X\r\n{date}{more}\r\n".encode()

    def container(
        self,
        key: str,
        *,
        created_ns: int,
        started_ns: int = 0,
        finished_ns: int = 0,
        running: bool = False,
        code: int = 0,
    ) -> None:
        """Have a container, as the engine's list and inspection show it."""
        self.containers[key] = {
            "listed": {
                "Id": key, "Names": [f"/{key}"], "Image": "img", "Created": created_ns // 10**9,
                "State": "running" if running else "exited", "Status": "", "Labels": {"a": "b"},
            },
            "inspected": {
                "Created": _time(created_ns),
                "State": {
                    "Running": running, "StartedAt": _time(started_ns),
                    "FinishedAt": _time(finished_ns), "ExitCode": code,
                },
            },
        }  # fmt: skip


def _time(time_ns: int) -> str:
    if not time_ns:
        return "0001-01-01T00:00:00Z"
    seconds, rest = divmod(time_ns, 10**9)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest:09}Z"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
