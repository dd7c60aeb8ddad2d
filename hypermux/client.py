r"""Read the stream of a hypermux service: one file, standard library alone, Python 3.9 or later.

Import it where hypermux is installed, or copy the file into a project.

    cursor = read_it_from_where_the_outcome_is_kept()          # None the first time
    with Client("/run/hypermux/hypermux.sock", after=cursor or "start") as records:
        for record in records:
            if record.kind == "gap":
                ...                        # record.value: from, to, cause, certainty
            elif record.kind == "event":
                ...                        # record.account, record.region, record.event
            keep(record.cursor)            # with the outcome; a service is read on from there

What a reader can count on:

    records       in the order of the journal, each one once; only what is durable is shown
    restarts      a service that goes away is waited for and read on by cursor
    losses        are records, too: `gap` records tell what sources lost, and those with the causes
                  `retention` and `rewritten` what this reader can no longer have. What is selected
                  never hides them, unless `kinds` leaves them out
    at least once a reader that keeps the cursor after it has done its work does that of one record
                  again when it dies in between

Nothing here knows anything of hypermux but what its socket speaks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeAlias

    # RFC 3339 text or seconds since 1970; a timedelta counts back from now.
    Moment: TypeAlias = str | int | float | datetime | timedelta

__all__ = [
    "Client",
    "ClientError",
    "CursorFile",
    "Record",
    "Refused",
    "Unavailable",
    "event_id",
]

# One try is one connect on a local socket, which costs nobody anything; ten seconds at most are
# between a service's return and ours.
RETRY_MIN_S, RETRY_MAX_S = 0.2, 10.0
# A service answers within milliseconds; a search by time in a journal without an index reads it.
ANSWER_S = 60.0
# With heartbeats: so many in a row that did not come are a service that hangs.
MISSED = 3
# What a busy machine may add to them.
GRACE_S = 5.0
# An event's limit is a setting and may be large; no record comes near this.
MAX_LINE = 64 * 1024 * 1024
_READ = 128 * 1024

_CURSOR = re.compile(r"[^\s:]{1,40}:[0-9]{1,20}")
_DURATION_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?(ms|s|min|m|h|d) ?")
_DURATION = re.compile(f"(?:{_DURATION_PART.pattern})+")
_UNITS_S = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EVENT_KEY = b',"event":'
# `,"crc":"` + 8 hex digits + `"}` + a line feed
_SEAL = 19


class ClientError(Exception):
    """The root: one clear sentence."""


class Unavailable(ClientError):
    """No service answers, or it cannot serve now. Iterating on tries again."""


class Refused(ClientError):
    """The service refuses what was asked, or who asks.

    `cause` is "request", "cursor" (a place that the journal does not have) or "denied".
    """

    def __init__(self, sentence: str, cause: str) -> None:
        super().__init__(sentence)
        self.cause = cause


@dataclass(frozen=True)
class Record:
    """One record: `line` is as in the journal, byte for byte; `value` is what it says.

    `cursor` is the reader's place behind it, empty for a line that did not come from a service.
    """

    line: bytes
    value: dict[str, Any]
    cursor: str = ""

    @classmethod
    def parse(cls, line: bytes, cursor: str = "") -> Record:
        """Read a record line, of the socket's or of a journal's file. Raises ClientError."""
        value = _object(line)
        if not isinstance(value.get("seq"), int) or not isinstance(value.get("kind"), str):
            raise ClientError("this is no record: it has no seq and kind")
        return cls(line, value, cursor)

    @property
    def seq(self) -> int:
        """Its number in the stream."""
        return int(self.value["seq"])

    @property
    def kind(self) -> str:
        """`event`, `gap`, `state`, `unparsed` or `checkpoint`."""
        return str(self.value["kind"])

    @property
    def time(self) -> str:
        """When it happened, RFC 3339 with nine decimals; see `at` in `value` for its place."""
        return str(self.value["time"])

    @property
    def account(self) -> str | None:
        """The account's name; None for what the service says of itself."""
        return self.value.get("account")

    @property
    def region(self) -> str | None:
        """The region, or the Docker host's name; None for what the service says of itself."""
        return self.value.get("region")

    @property
    def event(self) -> dict[str, Any] | None:
        """The event as its server sent it (integers exact); None for other kinds."""
        return self.value.get("event")

    @property
    def event_bytes(self) -> bytes | None:
        """The event as it is in the line, byte for byte; None for other kinds."""
        # The first `,"event":` is the key itself: inside a JSON string a quote is escaped.
        cut = self.line.find(_EVENT_KEY)
        return None if cut < 0 else self.line[cut + len(_EVENT_KEY) : -_SEAL]


def event_id(record: Record) -> str | None:
    r"""Return an id that is the same wherever the same event was recorded; None for other kinds.

    For the consumers of two hypermux instances that read the same sources: what has the same id
    is the same event. It is the first 32 hex digits of the SHA-256 of

        ACCOUNT \n REGION \n EVENT         (the names in UTF-8, the event's bytes as in the record)

    It does not depend on `seq`, `received`, `at`, `late` or `replayed`, which each instance has its
    own of. It is the same in two instances that give the source the same names, use the same
    version of the upstream's API and redact alike. There is no counting of occurrences, because
    two instances that did not see the same outages would count differently: events of one source
    that are the same byte for byte, down to the nanosecond, have one id. Events flagged
    `synthetic` were made from what an instance found, and another need not have made the same.
    Gap, state, unparsed and checkpoint records tell of the instance itself: they have none.
    """
    event = record.event_bytes
    if event is None:
        return None
    names = f"{record.account}\n{record.region}\n".encode("utf-8", "surrogatepass")
    return hashlib.sha256(names + event).hexdigest()[:32]


class Client(Iterator[Record]):
    """Iterates the records that were asked for, over a service's restarts.

    Ends when what was asked for is complete (`until`, `limit`, `follow=False`) or after `close`,
    which any thread and any signal handler may call. `cursor` is the place of the last record that
    was returned; heartbeats move it, too, over what was not selected.

    path          the service's unix socket
    after         a cursor, "start" or "live" (the default: from now on)
    since, until  RFC 3339 text, seconds since 1970, a datetime, or back from now: a timedelta or
                  "1h30m"
    accounts, regions    globs; any of them
    kinds         kinds of records; by default what is selected never hides gaps and states
    filters       as `docker events` has them: {"event": ["start", "die"], "label": ["env=prod"]}
    follow        False: end at what is there now
    limit         end after so many records
    heartbeat_s   have the service send its cursor so often (1 s to 1 h) while nothing else is
                  sent, to `on_heartbeat`; one that misses three is taken for gone
    wait          wait for a service that is not there yet, too
    reconnect     False: raise Unavailable when the service goes away
    told          is given one sentence when the service goes away and when it is back
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        after: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        accounts: Sequence[str] = (),
        regions: Sequence[str] = (),
        kinds: Sequence[str] = (),
        filters: Mapping[str, Sequence[str] | Mapping[str, bool]] | None = None,
        follow: bool = True,
        limit: int | None = None,
        heartbeat_s: float | None = None,
        on_heartbeat: Callable[[str], None] = lambda cursor: None,
        wait: bool = False,
        reconnect: bool = True,
        told: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.cursor: str | None = None
        self.path = os.fspath(path)
        self._request: dict[str, Any] = {
            "after": after,
            "since": _moment(since),
            "until": _moment(until),
            "accounts": _texts(accounts),
            "regions": _texts(regions),
            "kinds": _texts(kinds),
            "filters": None if filters is None else dict(filters),
            "follow": None if follow else False,
            "limit": limit,
            "heartbeat": None if heartbeat_s is None else f"{heartbeat_s:.3f}s",
        }
        self._silence_s = None if heartbeat_s is None else MISSED * heartbeat_s + GRACE_S
        self._on_heartbeat = on_heartbeat
        self._wait, self._reconnect, self._told = wait, reconnect, told
        self._rng = random.Random()
        self._left = limit
        self._epoch = ""
        self._sock: socket.socket | None = None
        self._lines: deque[bytes] = deque()
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._missing = self._over = False
        self._fruitless = 0  # connections in a row that gave nothing
        self._closing = threading.Event()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        self._hang_up()

    def close(self) -> None:
        """End the iteration, from any thread."""
        self._closing.set()
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __iter__(self) -> Client:
        return self

    def __next__(self) -> Record:
        """Return the next record; waits for it. Raises Unavailable and Refused."""
        while not self._closing.is_set():
            if self._lines:
                record = self._take(self._lines.popleft())
                if record is not None:
                    return record
            elif self._over:
                break
            elif self._sock is None:
                self._connect()
            else:
                self._receive()
        self._hang_up()
        raise StopIteration

    # One connection

    def _connect(self) -> None:
        """Subscribe, behind the last record if there was one; wait for a service if that is due."""
        waits = self._wait if self.cursor is None else self._reconnect
        attempt = 0
        while not self._closing.is_set():
            try:
                self._subscribe()
            except Unavailable as error:
                self._hang_up()
                if not waits:
                    raise
                self._miss(error)
                # Full jitter: the readers of one service all come back when it does.
                ceiling = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(attempt + 1, 64))
                self._closing.wait(self._rng.uniform(RETRY_MIN_S, ceiling))
                attempt += 1
            except BaseException:
                self._hang_up()
                raise
            else:
                if self._missing:
                    self._missing = False
                    self._told(f"connected, reading on from {self.cursor}")
                return

    def _miss(self, error: Unavailable) -> None:
        if not self._missing:
            self._missing = True
            self._told(f"{error}; waiting for it")

    def _subscribe(self) -> None:
        self._lines.clear()
        self._rest, self._rest_size = [], 0
        self._sock = sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self.path)
        except OSError as error:
            raise Unavailable(_no_service(self.path, error)) from error
        asked = {**self._request, "after": self.cursor or self._request["after"]}
        asked["limit"] = self._left
        given = {key: value for key, value in asked.items() if value is not None}
        # A service that turns us away says why, and that can still be read.
        with contextlib.suppress(OSError):
            sock.sendall(json.dumps(given, separators=(",", ":")).encode() + b"\n")
        sock.settimeout(ANSWER_S)
        while not self._lines:
            self._read(f"the service at {self.path} does not answer")
            if self._sock is None:
                raise Unavailable(f"the service at {self.path} closed without an answer")
        first = _object(self._lines.popleft())
        if first.get("kind") != "subscribed":
            raise _fault(first)
        begun = _cursor(first)
        self._epoch = begun.partition(":")[0]
        # A cursor that was asked with stands until something has come: the first thing may be the
        # gap that tells of records that were cut off, and behind it nobody is told again.
        self.cursor = begun if asked["after"] in (None, "start", "live") else asked["after"]
        sock.settimeout(self._silence_s)

    def _receive(self) -> None:
        try:
            self._read(f"the service at {self.path} hangs: it misses its heartbeats")
            if self._sock is None and not self._closing.is_set():
                raise Unavailable(f"the service at {self.path} closed the connection")
        except Unavailable as error:
            self._hang_up()
            if not self._reconnect:
                raise
            self._miss(error)
            # Whoever accepts and closes at once is asked less and less often.
            ceiling = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(self._fruitless + 1, 64))
            self._closing.wait(self._rng.uniform(RETRY_MIN_S, ceiling))
            self._fruitless += 1

    def _read(self, silent: str) -> None:
        """Take in what comes next; at the end the socket is gone. Raises Unavailable."""
        assert self._sock is not None
        try:
            data = self._sock.recv(_READ)
        except TimeoutError:  # socket.timeout is the same from Python 3.10 on
            raise Unavailable(silent) from None
        except OSError as error:
            if isinstance(error, socket.timeout):
                raise Unavailable(silent) from None
            data = b""
        end = data.rfind(b"\n") + 1
        if not data:
            self._hang_up()
        elif end:
            # A long line comes in many reads: they are joined once, not added up one by one.
            whole = b"".join([*self._rest, data[:end]])
            self._lines.extend(whole.splitlines(keepends=True))
            self._rest = [data[end:]]
            self._rest_size = len(data) - end
        else:
            self._rest.append(data)
            self._rest_size += len(data)
            if self._rest_size > MAX_LINE:
                raise Unavailable(f"{self.path} is no hypermux socket: its line does not end")

    def _take(self, line: bytes) -> Record | None:
        """Return the record in a line; what the service itself says is heeded here."""
        self._fruitless = 0
        if line.startswith(b'{"seq":'):
            record = Record.parse(line)
            cursor = f"{self._epoch}:{record.seq}"
            self.cursor = cursor
            if self._left is not None:
                self._left -= 1
                self._over = self._left == 0
            return Record(line, record.value, cursor)
        said = _object(line)
        kind = said.get("kind")
        if kind == "heartbeat":
            self.cursor = _cursor(said)
            self._on_heartbeat(self.cursor)
        elif kind == "end":
            self.cursor = _cursor(said)
            self._over = True
        elif kind == "error":
            self._hang_up()
            raise _fault(said)
        return None  # what a later version may say beside records is no record

    def _hang_up(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()


class CursorFile:
    r"""A reader's place in a file, which one process at a time may hold.

        with CursorFile("consumer.cursor") as place:
            with Client(path, after=place.load() or "start") as records:
                for record in records:
                    ...
                    place.save(record.cursor)

    The file is one line, `EPOCH:SEQ`, padded with spaces to 64 bytes and written in place: that is
    one page for whoever kills this process and one sector for whoever pulls the plug, so the old
    cursor or the new one is there, never a part. (Writing another file and renaming it costs a
    hundred times as much, and without a sync before each rename some file systems leave an empty
    one behind.) `save` survives the end of the process; `sync` makes it survive a power cut.
    Raises ClientError for what is no cursor, and OSError.
    """

    SIZE = 64

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._prepare()
        except BaseException:
            os.close(self._fd)
            raise

    def _prepare(self) -> None:
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise ClientError(f"{self.path} is no plain file: a cursor cannot be kept there")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClientError(f"another reader keeps its cursor in {self.path}") from None
        self._cursor = self._read()
        if found.st_size != self.SIZE:
            # The bytes that are there stay as they are, so that this may be cut off anywhere.
            self.save(self._cursor or "")
            os.fsync(self._fd)
            folder = os.open(os.path.dirname(os.path.realpath(self.path)), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _read(self) -> str | None:
        data = os.pread(self._fd, self.SIZE + 1, 0)
        text = data.decode("ascii", "replace").strip(" \r\n\0")
        if len(data) > self.SIZE or (text and not _CURSOR.fullmatch(text)):
            raise ClientError(f"{self.path} holds no cursor, EPOCH:SEQ: remove it to begin anew")
        return text or None

    def load(self) -> str | None:
        """Return the cursor that the file had when it was opened or was given since."""
        return self._cursor

    def save(self, cursor: str) -> None:
        """Put another cursor in its place."""
        if cursor and not _CURSOR.fullmatch(cursor):
            raise ClientError("a cursor is written EPOCH:SEQ")
        line = cursor.encode("ascii").ljust(self.SIZE - 1) + b"\n"
        os.pwrite(self._fd, line, 0)
        self._cursor = cursor or None

    def sync(self) -> None:
        """Have it survive a power cut, too."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)

    def __enter__(self) -> CursorFile:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ClientError("this is no hypermux socket: it sent a line that is no JSON object")
    return value


def _cursor(said: Mapping[str, Any]) -> str:
    cursor = said.get("cursor")
    if not isinstance(cursor, str) or not _CURSOR.fullmatch(cursor):
        raise ClientError("this is no hypermux socket: it names no cursor")
    return cursor


def _fault(said: Mapping[str, Any]) -> ClientError:
    cause = str(said.get("cause"))
    sentence = f"the service refuses: {said.get('error', 'without a reason')}"
    if cause in ("request", "cursor", "denied"):
        return Refused(sentence, cause)
    return Unavailable(sentence)


def _no_service(path: str, error: OSError) -> str:
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        return f"no hypermux serves {path}"
    if isinstance(error, PermissionError):
        return f"no permission for {path}: its [socket] table says who may read beside its user"
    return f"cannot connect to {path}: {error.strerror or error}"


def _texts(values: Sequence[str]) -> list[str] | None:
    if isinstance(values, str):  # or its letters would be the globs
        values = [values]
    return list(values) or None


def _moment(moment: Moment | None) -> str | None:
    """Return a time as the service takes it. What counts from now counts from now for good."""
    if moment is None:
        return None
    if isinstance(moment, str):
        if not _DURATION.fullmatch(moment):
            return moment
        parts = _DURATION_PART.findall(moment)
        moment = timedelta(seconds=sum(float(number) * _UNITS_S[unit] for number, unit in parts))
    if isinstance(moment, timedelta):
        moment = time.time() - moment.total_seconds()
    elif isinstance(moment, datetime):
        # Microseconds, exactly; without a zone it is this machine's time.
        micros = (moment.astimezone() - _EPOCH) // timedelta(microseconds=1)
        return f"{micros // 10**6}.{micros % 10**6:06d}"
    return str(moment) if isinstance(moment, int) else f"{moment:.6f}"


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
