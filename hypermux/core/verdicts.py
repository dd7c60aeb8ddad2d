"""What a failure means: the one table from transports' terms to verdicts.

    retry          the network's or the server's passing trouble: again, with backoff
    throttled      the server asks for fewer dials: slow down, `Retry-After` honoured
    denied         the credentials are refused: no hot retry
    skewed         a 401 whose verified `Date` shows that we signed with a time wrong by 4 min or
                   more: sign with the server's and try once more
    untrusted      the certificate, or TLS itself
    misconfigured  something answers, but not what was configured

Rows are looked up in order, the first that holds the code wins, and the last row of each part
holds all, so every failure has a verdict. What nobody foresaw is retried with backoff: wrong
patience costs a dial a minute, wrong despair costs events. So are the codes that blame us (1002,
1003, 1007, 1009, 1010): we send the same few frames to everyone, a server that dislikes them has
more often a bad moment than a reason, and if it has one, the backoff keeps us polite.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import inf

from attrs import frozen

from hypermux.model.errors import Failure, FailureKind

_SECOND = 1_000_000_000
# A signature holds for 5 minutes; a clock wrong by less than 4 is not why it was refused.
SKEW_NS = 4 * 60 * _SECOND
# Servers check a signature's age and not its youth: one that is dated a day ahead lets in for a
# day. Nobody's `Date` makes us sign further away than that (and what a `Date`, whole seconds that
# were on their way, is off by).
MAX_SKEW_NS = (24 * 3600 + 60) * _SECOND

# How long a server that asked for it is left alone, in seconds. Whoever registered 1012 wished for
# this range, at random, so that clients that were all cut at once do not all come at once.
AWAY_S = (5.0, 30.0)


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
    `away_s`: stay away for a time between these two, in seconds, however short the backoff is.
    """

    verdict: Verdict
    cause: str
    reason: str
    offset_ns: int | None = None
    away_s: tuple[float, float] | None = None


@frozen
class Row:
    """One row: codes from `first` to `last`, what they mean, in one clause."""

    first: float
    last: float
    verdict: Verdict
    cause: str
    meaning: str
    away_s: tuple[float, float] | None = None


_ALL = (-inf, inf)

# Statuses other than the expected one, of a WebSocket upgrade or of `GET /events`. No redirect is
# followed: a signed request is for the one it was signed for.
HTTP_ROWS: tuple[Row, ...] = (
    Row(400, 400, Verdict.MISCONFIGURED, "misconfigured", "the server rejects the request"),
    Row(401, 401, Verdict.DENIED, "denied", "the server refuses the credentials"),
    Row(403, 403, Verdict.DENIED, "denied", "the server forbids this to the credentials"),
    Row(404, 404, Verdict.MISCONFIGURED, "misconfigured", "the server has no such path"),
    Row(407, 407, Verdict.MISCONFIGURED, "misconfigured", "a proxy on the way wants a login"),
    Row(408, 408, Verdict.RETRY, "refused", "the server gave up waiting for the request"),
    Row(421, 421, Verdict.RETRY, "refused", "the server passed the request to a wrong place"),
    Row(425, 425, Verdict.RETRY, "refused", "the server asks for the request again"),
    Row(426, 426, Verdict.MISCONFIGURED, "misconfigured", "the server wants another protocol"),
    Row(429, 429, Verdict.THROTTLED, "throttled", "the server asks for fewer connections"),
    Row(502, 502, Verdict.RETRY, "refused", "a gateway cannot reach the server behind it"),
    Row(503, 503, Verdict.RETRY, "refused", "the server is not available now"),
    Row(504, 504, Verdict.RETRY, "refused", "a gateway got no answer from the server behind it"),
    Row(500, 599, Verdict.RETRY, "refused", "the server fails"),
    Row(300, 399, Verdict.MISCONFIGURED, "misconfigured", "the server points elsewhere"),
    Row(400, 499, Verdict.MISCONFIGURED, "misconfigured", "the server rejects the request"),
    Row(*_ALL, Verdict.MISCONFIGURED, "misconfigured", "what answers is no event stream"),
)

# Codes of close frames, by RFC 6455 section 7.4 and the IANA registry. 1005 stands for a frame
# without a code; 1004, 1006 and 1015 are for no frame, and whoever sends them errs.
CLOSE_ROWS: tuple[Row, ...] = (
    Row(1000, 1000, Verdict.RETRY, "closed", "the server ended the stream"),
    Row(1001, 1001, Verdict.RETRY, "closed", "the server goes away"),
    Row(1002, 1002, Verdict.RETRY, "closed", "the server says that we broke the protocol"),
    Row(1003, 1003, Verdict.RETRY, "closed", "the server says that it cannot take what we sent"),
    Row(1005, 1005, Verdict.RETRY, "closed", "the server ended the stream without a reason"),
    Row(1007, 1007, Verdict.RETRY, "closed", "the server says that what we sent is malformed"),
    Row(1008, 1008, Verdict.DENIED, "denied", "the server refuses by its policy"),
    Row(1009, 1009, Verdict.RETRY, "closed", "the server met a message that is too large for it"),
    Row(1010, 1010, Verdict.RETRY, "closed", "the server misses an extension"),
    Row(1011, 1011, Verdict.RETRY, "closed", "the server fails"),
    Row(1012, 1012, Verdict.RETRY, "closed", "the server restarts", AWAY_S),
    Row(1013, 1013, Verdict.THROTTLED, "throttled", "the server asks to come back later", AWAY_S),
    Row(1014, 1014, Verdict.RETRY, "closed", "a gateway lost the server behind it"),
    Row(3000, 3000, Verdict.DENIED, "denied", "the server refuses the credentials"),
    Row(3003, 3003, Verdict.DENIED, "denied", "the server forbids this to the credentials"),
    Row(3008, 3008, Verdict.RETRY, "closed", "the server waited too long for something"),
    Row(3000, 3999, Verdict.RETRY, "closed", "the server closed with a code of its framework"),
    Row(4000, 4999, Verdict.RETRY, "closed", "the server closed with a code of its own"),
    Row(*_ALL, Verdict.RETRY, "closed", "the server closed with a code that means nothing"),
)

# Failures without a code, once the server has accepted the connection.
KIND_ROWS: Mapping[FailureKind, Row] = {
    FailureKind.SHORTAGE: Row(*_ALL, Verdict.RETRY, "shortage", "this computer has run short"),
    FailureKind.RESOLVE: Row(*_ALL, Verdict.RETRY, "unreachable", "the name has no address"),
    FailureKind.CONNECT: Row(*_ALL, Verdict.RETRY, "unreachable", "nothing accepts the connection"),
    FailureKind.TIMEOUT: Row(*_ALL, Verdict.RETRY, "timeout", "the server took too long"),
    FailureKind.TLS: Row(*_ALL, Verdict.UNTRUSTED, "untrusted", "the server is not to be trusted"),
    FailureKind.EOF: Row(*_ALL, Verdict.RETRY, "dropped", "the stream ended"),
    FailureKind.RESET: Row(*_ALL, Verdict.RETRY, "dropped", "the connection broke"),
    FailureKind.SILENT: Row(*_ALL, Verdict.RETRY, "silent", "the server fell silent"),
    FailureKind.PROTOCOL: Row(*_ALL, Verdict.RETRY, "garbage", "the server broke the protocol"),
    FailureKind.CREDENTIAL: Row(
        *_ALL, Verdict.MISCONFIGURED, "credential", "our own key cannot be read"
    ),
    FailureKind.INTERNAL: Row(*_ALL, Verdict.RETRY, "internal", "hypermux itself failed"),
    FailureKind.ACCESS: Row(*_ALL, Verdict.DENIED, "denied", "the way to the server is barred"),
    FailureKind.SETUP: Row(
        *_ALL, Verdict.MISCONFIGURED, "misconfigured", "there is no way to the server"
    ),
}

# The same before it has: a peer that never spoke the protocol is not the one that was meant.
HANDSHAKE_ROWS: Mapping[FailureKind, Row] = {
    FailureKind.EOF: Row(*_ALL, Verdict.RETRY, "dropped", "the server hung up"),
    FailureKind.PROTOCOL: Row(
        *_ALL, Verdict.MISCONFIGURED, "garbage", "what answers does not speak the protocol"
    ),
}

_CODED: Mapping[FailureKind, tuple[Row, ...]] = {
    FailureKind.HTTP: HTTP_ROWS,
    FailureKind.CLOSE: CLOSE_ROWS,
}


def judge(
    failure: Failure,
    *,
    secure: bool,
    now_utc_ns: int,
    signed_offset_ns: int = 0,
    opened: bool = False,
) -> Judgement:
    """Return what `failure` means.

    `secure`: the server proved who it is, so that its `Date` may be believed. `now_utc_ns`: our
    clock when the failure came; `signed_offset_ns` was added to it for the signature. `opened`: the
    server had accepted the connection before it failed.
    """
    row = _row(failure, opened)
    reason = f"{row.meaning}: {failure.detail}"
    if failure.kind is FailureKind.HTTP and failure.code == 401 and secure:
        offset_ns = None if failure.date_ns is None else failure.date_ns - now_utc_ns
        if offset_ns is not None and abs(offset_ns - signed_offset_ns) >= SKEW_NS:
            words = _clock_words(offset_ns)
            if abs(offset_ns) <= MAX_SKEW_NS:
                return Judgement(Verdict.SKEWED, "denied", f"{words}: {failure.detail}", offset_ns)
            reason = f"{words}, too far to follow, set one of them right: {failure.detail}"
    return Judgement(row.verdict, row.cause, reason, away_s=row.away_s)


def _clock_words(offset_ns: int) -> str:
    """Return how the server's clock differs from ours; `offset_ns`: its time less ours."""
    if abs(offset_ns) < SKEW_NS:
        return "our clock is right again and its correction was not"
    way = "behind" if offset_ns > 0 else "ahead of"
    return f"our clock is {abs(offset_ns) // _SECOND} s {way} the server's"


def _row(failure: Failure, opened: bool) -> Row:
    rows = _CODED.get(failure.kind)
    if rows is not None:
        code = -1 if failure.code is None else failure.code
        return next(row for row in rows if row.first <= code <= row.last)
    if not opened and failure.kind in HANDSHAKE_ROWS:
        return HANDSHAKE_ROWS[failure.kind]
    return KIND_ROWS[failure.kind]
