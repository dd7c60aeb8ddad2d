"""What a failure means: the one table from transports' terms to verdicts.

    retry          the network's or the server's passing trouble: again, with backoff
    throttled      the server asks for fewer dials: slow down, `Retry-After` honoured
    denied         the credentials are refused: no hot retry
    skewed         a 401 whose verified `Date` shows our clock wrong by 4 min or more: sign with
                   the offset and try once more
    untrusted      the certificate, or TLS itself
    misconfigured  something answers, but not what was configured

Rows are looked up in order, the first that holds the code wins, and the last row of each part
holds all, so every failure has a verdict. What nobody foresaw is retried with backoff: wrong
patience costs a dial a minute, wrong despair costs events.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import inf

from attrs import frozen

from hypermux.model.errors import Failure, FailureKind

# A signature holds for 5 minutes; a clock wrong by less than 4 is not why it was refused.
SKEW_NS = 4 * 60 * 1_000_000_000


class Verdict(StrEnum):
    """What a failure means for the next attempt; the module's docstring has the words."""

    RETRY = "retry"
    THROTTLED = "throttled"
    DENIED = "denied"
    SKEWED = "skewed"
    UNTRUSTED = "untrusted"
    MISCONFIGURED = "misconfigured"


@frozen
class Judgement:
    """A verdict, the word its gap carries as cause, and one plain sentence.

    `offset_ns` is set for a skewed clock alone: the server's clock less ours, in nanoseconds.
    """

    verdict: Verdict
    cause: str
    reason: str
    offset_ns: int | None = None


@frozen
class Row:
    """One row: codes from `first` to `last`, what they mean, in one clause."""

    first: float
    last: float
    verdict: Verdict
    cause: str
    meaning: str


_ALL = (-inf, inf)

# Statuses other than the expected one, of a WebSocket upgrade or of `GET /events`.
HTTP_ROWS: tuple[Row, ...] = (
    Row(400, 400, Verdict.MISCONFIGURED, "misconfigured", "the server rejects the request"),
    Row(401, 401, Verdict.DENIED, "denied", "the server refuses the credentials"),
    Row(403, 403, Verdict.DENIED, "denied", "the server forbids this to the credentials"),
    Row(404, 404, Verdict.MISCONFIGURED, "misconfigured", "the server has no such path"),
    Row(408, 408, Verdict.RETRY, "refused", "the server gave up waiting for the request"),
    Row(425, 425, Verdict.RETRY, "refused", "the server asks for the request again"),
    Row(429, 429, Verdict.THROTTLED, "throttled", "the server asks for fewer connections"),
    Row(500, 599, Verdict.RETRY, "refused", "the server fails"),
    Row(300, 399, Verdict.MISCONFIGURED, "misconfigured", "the server points elsewhere"),
    Row(400, 499, Verdict.MISCONFIGURED, "misconfigured", "the server rejects the request"),
    Row(*_ALL, Verdict.MISCONFIGURED, "misconfigured", "what answers is no event stream"),
)

# Codes of close frames. 1005 and 1006 are never sent: they stand for no code, and for no frame.
CLOSE_ROWS: tuple[Row, ...] = (
    Row(1000, 1000, Verdict.RETRY, "closed", "the server ended the stream"),
    Row(1001, 1001, Verdict.RETRY, "closed", "the server goes away"),
    Row(1005, 1006, Verdict.RETRY, "closed", "the server ended the stream without a reason"),
    Row(1008, 1008, Verdict.DENIED, "denied", "the server refuses by its policy"),
    Row(1011, 1011, Verdict.RETRY, "closed", "the server fails"),
    Row(1012, 1012, Verdict.RETRY, "closed", "the server restarts"),
    Row(1013, 1013, Verdict.THROTTLED, "throttled", "the server asks to come back later"),
    Row(3000, 4999, Verdict.RETRY, "closed", "the server closed with a code of its own"),
    Row(*_ALL, Verdict.RETRY, "closed", "the server closed the stream"),
)

# Failures without a code, once the server has accepted the connection.
KIND_ROWS: Mapping[FailureKind, Row] = {
    FailureKind.RESOLVE: Row(*_ALL, Verdict.RETRY, "unreachable", "the name has no address"),
    FailureKind.CONNECT: Row(*_ALL, Verdict.RETRY, "unreachable", "nothing accepts the connection"),
    FailureKind.TIMEOUT: Row(*_ALL, Verdict.RETRY, "timeout", "the server took too long"),
    FailureKind.TLS: Row(*_ALL, Verdict.UNTRUSTED, "untrusted", "the server is not to be trusted"),
    FailureKind.EOF: Row(*_ALL, Verdict.RETRY, "dropped", "the stream ended without a goodbye"),
    FailureKind.RESET: Row(0, 0, Verdict.RETRY, "dropped", "the connection broke"),
    FailureKind.SILENT: Row(*_ALL, Verdict.RETRY, "silent", "the server fell silent"),
    FailureKind.PROTOCOL: Row(*_ALL, Verdict.RETRY, "garbage", "the server broke the protocol"),
    FailureKind.CREDENTIAL: Row(
        *_ALL, Verdict.MISCONFIGURED, "credential", "our own key cannot be read"
    ),
}

# The same before it has: a peer that never spoke the protocol is not the one that was meant.
HANDSHAKE_ROWS: Mapping[FailureKind, Row] = {
    FailureKind.PROTOCOL: Row(
        *_ALL, Verdict.MISCONFIGURED, "garbage", "what answers does not speak the protocol"
    ),
}

_CODED: Mapping[FailureKind, tuple[Row, ...]] = {
    FailureKind.HTTP: HTTP_ROWS,
    FailureKind.CLOSE: CLOSE_ROWS,
}


def judge(failure: Failure, *, secure: bool, now_utc_ns: int, opened: bool = False) -> Judgement:
    """Return what `failure` means.

    `secure`: the server proved who it is, so that its `Date` may be believed. `now_utc_ns`: our
    clock when the failure came. `opened`: the server had accepted the connection before it failed.
    """
    offset_ns = None if failure.date_ns is None else failure.date_ns - now_utc_ns
    if (
        failure.kind is FailureKind.HTTP
        and failure.code == 401
        and secure
        and offset_ns is not None
        and abs(offset_ns) >= SKEW_NS
    ):
        way = "behind" if offset_ns > 0 else "ahead of"
        seconds = abs(offset_ns) // 1_000_000_000
        reason = f"our clock is {seconds} s {way} the server's: {failure.detail}"
        return Judgement(Verdict.SKEWED, "denied", reason, offset_ns)
    row = _row(failure, opened)
    return Judgement(row.verdict, row.cause, f"{row.meaning}: {failure.detail}")


def _row(failure: Failure, opened: bool) -> Row:
    rows = _CODED.get(failure.kind)
    if rows is not None:
        code = -1 if failure.code is None else failure.code
        return next(row for row in rows if row.first <= code <= row.last)
    if not opened and failure.kind in HANDSHAKE_ROWS:
        return HANDSHAKE_ROWS[failure.kind]
    return KIND_ROWS[failure.kind]
