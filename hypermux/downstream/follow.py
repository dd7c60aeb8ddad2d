"""The other end of the socket: reading a running service's records, across its restarts.

Plain blocking calls: a slow stdout then slows the reading, and the service holds no more for it
than for any slow subscriber.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from attrs import define

from hypermux.core.backoff import full_jitter
from hypermux.core.lines import last_seq
from hypermux.core.rendering import escape
from hypermux.model.errors import HypermuxError, Unreachable, UsageFault
from hypermux.model.records import Cursor

# One try is one connect on a local socket, which costs nobody anything; ten seconds at most are
# between a service's return and ours.
RETRY_MIN_S, RETRY_MAX_S = 0.2, 10.0
# An event's limit is a setting and may be large; no record comes near this.
MAX_LINE = 64 * 1024 * 1024
_READ = 128 * 1024
# Error lines that another request would not get: the fault is in what was asked.
_OURS = ("request", "cursor")

# May wait until the socket can be read, and raise when nobody wants what comes.
Wait: TypeAlias = Callable[[socket.socket], None]


@define(eq=False)
class Stream:
    """One subscription. `cursor` is the last record that `blocks` gave, or where it began."""

    sock: socket.socket
    cursor: Cursor
    before_wait: Wait
    complete: bool = False
    _rest: bytes = b""

    @classmethod
    def open(
        cls, path: Path, request: Mapping[str, Any], before_wait: Wait = lambda _: None
    ) -> Stream:
        """Connect and subscribe; `before_wait` is called before every read of the socket.

        Raises Unreachable, and UsageFault for a refused request.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                sock.connect(str(path))
            except OSError as exc:
                raise Unreachable(no_service(path, exc)) from exc
            # A service that turns us away says why, and that can still be read.
            with contextlib.suppress(OSError):
                sock.sendall(json.dumps(request, separators=(",", ":")).encode() + b"\n")
            stream = cls(sock, Cursor("", 0), before_wait)
            first = stream._first_line()
            if first.get("kind") != "subscribed":
                raise _refused(first)
            try:
                stream.cursor = Cursor.parse(str(first.get("cursor")))
            except ValueError as exc:
                raise Unreachable(f"the service's first line has no cursor: {exc}") from None
            return stream
        except BaseException:
            sock.close()
            raise

    def _first_line(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            data = self._receive()
            if not data:
                raise Unreachable("the service closed the connection without an answer")
            self._rest += data
            if len(self._rest) > MAX_LINE:
                raise Unreachable("this is not a hypermux socket: its first line does not end")
        line, _, self._rest = self._rest.partition(b"\n")
        return _own_line(line)

    def blocks(self) -> Iterator[bytes]:
        """Yield blocks of whole record lines until the stream ends.

        `complete` then tells whether that was the end of what was asked for. Raises
        HypermuxError for a fault that the service reports.
        """
        held, self._rest = self._rest, b""
        while True:
            cut = held.rfind(b"\n") + 1
            if cut:
                block, held = held[:cut], held[cut:]
                own = block.rfind(b"\n", 0, -1) + 1
                if block.startswith(b'{"seq":', own):
                    own = len(block)  # the last line is a record, too
                if own:
                    self.cursor = Cursor(self.cursor.epoch, last_seq(block[:own]))
                    yield block[:own]
                if own < len(block):
                    self._take_own(block[own:])
            if len(held) > MAX_LINE:
                raise Unreachable(f"the service sent a line of over {MAX_LINE >> 20} MiB")
            # A long line comes in many reads: they are joined once, not added up one by one.
            pieces, size = [held], len(held)
            while True:
                data = self._receive()
                pieces.append(data)
                size += len(data)
                if not data or b"\n" in data or size > MAX_LINE:
                    break
            held = b"".join(pieces)
            if not data:
                return

    def _take_own(self, line: bytes) -> None:
        """Take the service's own last line. Raises what an error line says."""
        last = _own_line(line)
        if last.get("kind") != "end":
            raise _refused(last)
        self.complete = True

    def _receive(self) -> bytes:
        self.before_wait(self.sock)
        try:
            return self.sock.recv(_READ)
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()


def follow(
    path: Path,
    request: Mapping[str, Any],
    *,
    notice: Callable[[str], None],
    sleep: Callable[[float], None],
    rng: random.Random,
    before_wait: Wait = lambda _: None,
    began: Callable[[Cursor], None] = lambda _: None,
) -> Iterator[bytes]:
    """Yield blocks of whole record lines, each record once, until the request is fulfilled.

    A service that goes away is waited for and read on by cursor; `notice` is told in one
    sentence, and `began` of where it begins. Raises Unreachable when there is none to begin
    with, UsageFault for a refused request.
    """
    stream = Stream.open(path, request, before_wait)
    began(stream.cursor)
    left: int | None = request.get("limit")
    while True:
        try:
            for block in stream.blocks():
                if left is not None:
                    left -= block.count(b"\n")
                yield block
        finally:
            stream.close()
        if stream.complete or left == 0:
            return
        rest = {**request, "after": str(stream.cursor)}
        if left is not None:
            rest["limit"] = left
        notice(
            f"the service closed the connection; waiting for it, to read on from {stream.cursor}"
        )
        stream = _reopen(path, rest, sleep=sleep, rng=rng, before_wait=before_wait)
        notice("connected again")


def _reopen(
    path: Path,
    request: Mapping[str, Any],
    *,
    sleep: Callable[[float], None],
    rng: random.Random,
    before_wait: Wait,
) -> Stream:
    attempt = 0
    while True:
        sleep(full_jitter(attempt, min_s=RETRY_MIN_S, max_s=RETRY_MAX_S, rng=rng))
        try:
            return Stream.open(path, request, before_wait)
        except Unreachable:
            attempt += 1


def no_service(path: Path, error: OSError) -> str:
    """Say why nothing could be reached at the socket, and what to do."""
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return (
            f"no hypermux serves {path}: start one with `hypermux run`, "
            "or name its socket with --socket PATH"
        )
    if isinstance(error, PermissionError):
        return f"no permission for {path}: read it as the user who runs the service"
    return f"cannot connect to {path}: {error.strerror or error}"


def _own_line(line: bytes) -> dict[str, Any]:
    """Return what the service itself says, beside records."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Unreachable("this is not a hypermux socket: it sent a line that is not a JSON object")
    return value


def _refused(line: Mapping[str, Any]) -> HypermuxError:
    # Whoever listens there wrote it, and it will be shown on a terminal.
    sentence = escape(f"the service refuses: {line.get('error', 'without a reason')}", limit=1000)
    return UsageFault(sentence) if line.get("cause") in _OURS else Unreachable(sentence)
