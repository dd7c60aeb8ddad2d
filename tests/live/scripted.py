"""A service of which only its words are real: for readers' tests of what may come."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from hypermux.core.recording import Encoder
from hypermux.model.accounts import SourceId
from hypermux.model.records import Checkpoint, Event, Item

NS = 1476375774255155116
RAW = b'{"Type":"container","Action":"start","Actor":{"ID":"f2","Attributes":{"name":"web"}}}'


def record(seq: int, item: Item | Checkpoint | None = None) -> bytes:
    return Encoder().encode(
        seq,
        item or Event(RAW, NS, "timeNano"),
        source=SourceId("prod", "us-west-1"),
        at_ns=NS,
        received_ns=NS,
    )


def subscribed(cursor: str) -> bytes:
    return b'{"kind":"subscribed","mode":"replay","cursor":"%s"}\n' % cursor.encode()


def end(cursor: str) -> bytes:
    return b'{"kind":"end","cursor":"%s"}\n' % cursor.encode()


def unheard(_: str) -> None:
    """Take a notice that a test does not look at."""


class Service:
    """A service that answers each connection by a script of bytes, and keeps the requests."""

    def __init__(self, path: Path, *answers: list[bytes], hold: bool = False) -> None:
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self._hold = hold
        self._answers = answers
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._released = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for pieces in self._answers:
            connection, _ = self._sock.accept()
            with connection, connection.makefile("rb") as lines:
                self.requests.append(json.loads(lines.readline()))
                with contextlib.suppress(ConnectionError):
                    for piece in pieces:
                        connection.sendall(piece)
                if self._hold:
                    self._released.acquire(timeout=30)

    def release_one(self) -> None:
        """Let go of a connection that is held."""
        self._released.release()

    def close(self) -> None:
        self._released.release(len(self._answers))
        self._thread.join(30)
        self._sock.close()
        self.path.unlink(missing_ok=True)


Start: TypeAlias = Callable[..., Service]


@contextmanager
def short_folder() -> Iterator[Path]:
    """Give a folder whose sockets have short paths."""
    path = Path(tempfile.mkdtemp(prefix="hm-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def services(folder: Path) -> Iterator[Start]:
    """Give what starts a service in `folder`; end all of them."""
    started: list[Service] = []

    def begin(*answers: list[bytes], hold: bool = False) -> Service:
        started.append(Service(folder / "h.sock", *answers, hold=hold))
        return started[-1]

    try:
        yield begin
    finally:
        for service in started:
            service.close()
