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

from attrs import define, frozen

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
READ = 128 * 1024
# Error lines that another request would not get: the fault is in what was asked.
_OURS = ("request", "cursor")

_RECORD, _OWN = b'{"seq":', b'{"kind":'

# May wait until the socket can be read, and raise when nobody wants what comes.
Wait: TypeAlias = Callable[[socket.socket], None]


@frozen
class Block:
    """Whole record lines and the cursor behind them.

    None at all when the service only told its place: what lies before it was not selected.
    """

    lines: bytes
    cursor: Cursor


@define(eq=False)
class Stream:
    """One subscription. `cursor` is that of the last block given, or where it began."""

    sock: socket.socket
    cursor: Cursor
    before_wait: Wait
    read_size: int = READ
    complete: bool = False
    _rest: bytes = b""

    @classmethod
    def open(
        cls,
        path: Path,
        request: Mapping[str, Any],
        before_wait: Wait = lambda _: None,
        read_size: int = READ,
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
            stream = cls(sock, Cursor("", 0), before_wait, read_size)
            first = stream._first_line()
            if first.get("kind") != "subscribed":
                raise _refused(first)
            stream.cursor = _cursor_of(first)
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

    def blocks(self) -> Iterator[Block]:
        """Yield blocks until the stream ends.

        `complete` then tells whether that was the end of what was asked for. Raises
        HypermuxError for a fault that the service reports.
        """
        held, self._rest = self._rest, b""
        while True:
            cut = held.rfind(b"\n") + 1
            if cut:
                whole, held = held[:cut], held[cut:]
                yield from self._blocks_of(whole)
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

    def _blocks_of(self, whole: bytes) -> Iterator[Block]:
        """Yield the blocks in whole lines. What the service says itself may stand anywhere."""
        last, at = whole.rfind(b"\n", 0, -1) + 1, 0
        while at < len(whole):
            own = whole.find(b"\n" + _OWN, at) + 1
            if whole.startswith(_OWN, at):
                own = at
            elif not own:
                # Also what is no line of ours at all.
                own = len(whole) if whole.startswith(_RECORD, last) else last
            if own > at:
                lines, at = whole[at:own], own
                self.cursor = Cursor(self.cursor.epoch, last_seq(lines))
                yield Block(lines, self.cursor)
            else:
                line, at = whole[at : whole.index(b"\n", at) + 1], whole.index(b"\n", at) + 1
                self._take_own(line)
                yield Block(b"", self.cursor)

    def _take_own(self, line: bytes) -> None:
        """Take what the service says itself. Raises what an error line says."""
        said = _own_line(line)
        if said.get("kind") not in ("end", "heartbeat"):
            raise _refused(said)
        self.cursor = _cursor_of(said)
        self.complete = said["kind"] == "end"

    def _receive(self) -> bytes:
        self.before_wait(self.sock)
        try:
            return self.sock.recv(self.read_size)
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
    read_size: int = READ,
) -> Iterator[Block]:
    """Yield blocks, each record once, until the request is fulfilled.

    A service that goes away is waited for and read on by cursor; `notice` is told in one
    sentence, and `began` of where it begins. Raises Unreachable when there is none to begin
    with, UsageFault for a refused request.
    """
    stream = Stream.open(path, request, before_wait, read_size)
    began(stream.cursor)
    place = _begin(request, stream.cursor)
    left: int | None = request.get("limit")
    fruitless = 0  # connections in a row that gave nothing: a journal that does not read, say
    while True:
        fruitless += 1
        try:
            for block in stream.blocks():
                fruitless = 0
                if left is not None:
                    left -= block.lines.count(b"\n")
                place = block.cursor
                yield block
        finally:
            stream.close()
        if stream.complete or left == 0:
            return
        rest = {**request, "after": str(place)}
        if left is not None:
            rest["limit"] = left
        notice(f"the service closed the connection; waiting for it, to read on from {place}")
        stream = _reopen(path, rest, before_wait, read_size, fruitless, sleep=sleep, rng=rng)
        notice("connected again")


def _begin(request: Mapping[str, Any], subscribed: Cursor) -> Cursor:
    """Return the place of a reader that was given nothing yet.

    A cursor that was asked with counts, not the one that the service begins at: what comes first
    may be the gap that tells of records that were cut off, and only the former has it told again.
    """
    after = request.get("after")
    return subscribed if after in (None, "start", "live") else Cursor.parse(after)


def _reopen(
    path: Path,
    request: Mapping[str, Any],
    before_wait: Wait,
    read_size: int,
    attempt: int,
    *,
    sleep: Callable[[float], None],
    rng: random.Random,
) -> Stream:
    while True:
        sleep(full_jitter(attempt, min_s=RETRY_MIN_S, max_s=RETRY_MAX_S, rng=rng))
        try:
            return Stream.open(path, request, before_wait, read_size)
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
        return f"no permission for {path}: its [socket] table says who may read beside its user"
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


def _cursor_of(said: Mapping[str, Any]) -> Cursor:
    try:
        return Cursor.parse(str(said.get("cursor")))
    except ValueError as exc:
        raise Unreachable(f"the service names no cursor: {exc}") from None


def _refused(line: Mapping[str, Any]) -> HypermuxError:
    # Whoever listens there wrote it, and it will be shown on a terminal.
    sentence = escape(f"the service refuses: {line.get('error', 'without a reason')}", limit=1000)
    return UsageFault(sentence) if line.get("cause") in _OURS else Unreachable(sentence)
