"""What a running service says of itself: the document of `/status` and `hypermux status`.

The classes are the schema, their attributes the keys. Moments are RFC 3339 text in UTC, durations
are seconds and end in `_seconds`, sizes end in `_bytes`; null means that there is none. Text that
came from a server stands here as it was told in the log: printable, but no more than that.
"""

from __future__ import annotations

from attrs import frozen

# Counts its keys, so that a reader can tell a document that it does not know.
FORMAT = 1


@frozen(kw_only=True)
class Counts:
    """Events of one source since the service started.

    At all times received + synthetic = recorded + duplicate + filtered + lost + in_flight.
    `received` are all messages that came, `synthetic` what an engine's containers implied.
    `recorded` are in the journal, `unparsed` of them as text; `duplicate` came twice, over two
    connections; `filtered` are left out by `exclude_events`; `lost` found the buffer full, or
    a fault of hypermux in their way, and are in a gap. Of `redacted` ones, which are among all of
    these, `redact` took out a part.
    """

    received: int = 0
    synthetic: int = 0
    recorded: int = 0
    duplicate: int = 0
    filtered: int = 0
    redacted: int = 0
    lost: int = 0
    in_flight: int = 0
    unparsed: int = 0


@frozen(kw_only=True)
class Gaps:
    """Gap records of one source since the service started: how many, how long all together."""

    count: int = 0
    total_seconds: float = 0.0


@frozen(kw_only=True)
class LastFailure:
    """The last failure: its verdict, the word that its gap carries, and one plain sentence."""

    at: str
    verdict: str
    cause: str
    reason: str


@frozen(kw_only=True)
class SourceStatus:
    """One source.

    `state` is a word of `core.lifecycle.State`, or "quiet": connected, and without an event for
    longer than its account expects. `attempt` counts failures in a row, `next_try` is when a pause
    ends, `waits_for` is what a source waits for that is in state "waiting", or whose connection is
    to be replaced. `connected_seconds` is the age
    of the connection, `rotation_due` when it will be replaced. `tls` is "verified", "pinned",
    "unverified" or "off". `last_event` is when the newest event was received, `last_answer` when
    anything was, be it a pong or an audit's answer. `offset_seconds` is what its times are moved by
    to order them, `lag_seconds` how long after its own time the newest event was received.
    `signing_offset_seconds` is what is added to our clock for its signatures, `key_trouble` why its
    key could not be read or renewed.
    `internal_faults` are hypermux's own since it started, each of which ended a connection.
    """

    account: str
    region: str
    upstream: str
    endpoint: str
    state: str
    since: str
    attempt: int = 0
    next_try: str | None = None
    waits_for: str | None = None
    connected_seconds: float | None = None
    rotation_due: str | None = None
    tls: str | None = None
    last_event: str | None = None
    last_answer: str | None = None
    offset_seconds: float = 0.0
    lag_seconds: float | None = None
    signing_offset_seconds: float = 0.0
    key_trouble: str | None = None
    events: Counts = Counts()
    gaps: Gaps = Gaps()
    internal_faults: int = 0
    last_failure: LastFailure | None = None


@frozen(kw_only=True)
class Refusal:
    """A disk that refuses: since when, what, and how often it was tried again.

    `waiting_records` are numbered and wait to be written, `held_events` are all events received
    and not written, `lost_events` found the buffer full since then and will be in a gap.
    """

    since: str
    reason: str
    tries: int
    waiting_records: int
    held_events: int
    lost_events: int


@frozen(kw_only=True)
class JournalStatus:
    """The journal: the last record that is shown, and the last that is synced.

    `refusal` is null while the disk takes what is written.
    """

    directory: str
    epoch: str
    cursor: str
    durable_seq: int
    refusal: Refusal | None = None


@frozen(kw_only=True)
class BufferStatus:
    """What is between the sockets and the disk; `oldest_seconds`: how long the oldest event waits
    for others.
    """

    used_bytes: int
    size_bytes: int
    per_source_bytes: int
    held_events: int
    oldest_seconds: float = 0.0


@frozen(kw_only=True)
class SubscriberStatus:
    """Readers over the socket: now, and since the start."""

    active: int
    accepted: int
    refused: int
    stalled: int


@frozen(kw_only=True)
class Throttled:
    """An endpoint whose server asked for fewer dials: what of the rate is left.

    Of an account's, or where that is null of all accounts' together.
    """

    account: str | None
    endpoint: str
    connect_rate_per_second: float


@frozen(kw_only=True)
class LimitStatus:
    """The limits in force and what is taken of them; null is no limit."""

    max_connections: int | None
    connect_rate_per_second: float | None
    slots_taken: int = 0
    sources_waiting: int = 0
    throttled: tuple[Throttled, ...] = ()


@frozen(kw_only=True)
class ReloadStatus:
    """A reload: when, by whom, whether it was taken up, and what it came to, in sentences."""

    at: str
    who: str
    accepted: bool
    changes: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@frozen(kw_only=True)
class Status:
    """A whole service. `states` counts its sources by their state.

    `internal_faults` are all that its sources had since it started, removed ones too.
    """

    format: int
    version: str
    pid: int
    at: str
    started: str
    uptime_seconds: float
    config_file: str
    states: dict[str, int]
    journal: JournalStatus
    buffer: BufferStatus
    subscribers: SubscriberStatus
    limits: LimitStatus
    last_reload: ReloadStatus | None
    sources: tuple[SourceStatus, ...]
    internal_faults: int = 0
