"""One source's states, and how long it pauses after a failure. Pure: it decides, others act.

Rules
- A source waits for a permit, dials, proves itself, and is live; see `State`.
- The attempt counter resets when a connection has been healthy for a while, not when it opens: a
  server that accepts and drops at once is backed off from like one that refuses.
- Refused for good (denied, untrusted, misconfigured): never retried hot, looked at again after
  15 min, doubling to 6 h. Whoever mends the cause ends the pause early (`mended`).
- What has worked is not given up at the first refusal. A 404, a redirect, a page in HTML or a
  strange certificate from where a source was healthy before is more often a router being redeployed
  than a configuration gone wrong: PATIENCE of them are backed off from first. A refused key gets
  two ordinary attempts: at once when a healthy connection is closed as refused, for the key was
  good a moment ago, and once within a minute, for whoever knows the keys may be starting too.
- A clock that we signed wrong with earns one more attempt with the server's time; skewed again, the
  source is denied. It is earned anew by a connection that opens and by whatever mends the cause,
  not by a probe: the correction is kept, so a probe is signed with it anyway.
- `Retry-After` is honoured to 1 h, plus jitter, so that an account's sources do not come at once,
  and a judgement's `away_s` up to the longest backoff that the operator allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from random import Random

from attrs import define, field, frozen

from hypermux.core import backoff
from hypermux.core.verdicts import Judgement, Verdict
from hypermux.model.errors import HypermuxError


class State(StrEnum):
    """Where a source is in its life."""

    WAITING = "waiting"  # for a permit
    DIALING = "dialing"  # TCP, TLS, sign, upgrade
    PROVING = "proving"  # open and counted as live, not yet healthy for long
    LIVE = "live"
    DRAINING = "draining"  # reload, rotation, shutdown
    BACKING_OFF = "backing-off"
    THROTTLED = "throttled"
    DENIED = "denied"
    UNTRUSTED = "untrusted"
    MISCONFIGURED = "misconfigured"
    STOPPED = "stopped"


_PAUSES = (
    State.BACKING_OFF,
    State.THROTTLED,
    State.DENIED,
    State.UNTRUSTED,
    State.MISCONFIGURED,
)
_END = (State.STOPPED,)

# About five minutes of backoff: longer than most redeploys, and no more than a dial every 20 s.
PATIENCE = 16

# From each state, where it may go. A failure can come while waiting: a key that cannot be read.
# What is live has worked: its refusals lead to an attempt first.
TRANSITIONS: Mapping[State, tuple[State, ...]] = {
    State.WAITING: (State.DIALING, *_PAUSES, *_END),
    State.DIALING: (State.PROVING, State.DRAINING, *_PAUSES, *_END),
    State.PROVING: (State.LIVE, State.PROVING, State.DRAINING, *_PAUSES, *_END),
    State.LIVE: (State.PROVING, State.DRAINING, State.BACKING_OFF, State.THROTTLED, *_END),
    State.DRAINING: (State.WAITING, *_PAUSES, *_END),
    **dict.fromkeys(_PAUSES, (State.WAITING, *_END)),
    State.STOPPED: (),
}

# Where each verdict leads. A skewed clock pauses like any passing trouble, once.
_PAUSE_OF: Mapping[Verdict, State] = {
    Verdict.RETRY: State.BACKING_OFF,
    Verdict.SKEWED: State.BACKING_OFF,
    Verdict.THROTTLED: State.THROTTLED,
    Verdict.DENIED: State.DENIED,
    Verdict.UNTRUSTED: State.UNTRUSTED,
    Verdict.MISCONFIGURED: State.MISCONFIGURED,
}
# When a proven source looks again at a refused key, in seconds: a restart's time later.
SECOND_LOOK_S = (20.0, 60.0)
# What a proven source meets with patience.
_PATIENT = frozenset({State.UNTRUSTED, State.MISCONFIGURED})


@frozen
class Pause:
    """What to do after a failure: stay in `state` for `delay_s` seconds, then wait for a permit."""

    state: State
    delay_s: float


@define(eq=False)
class Lifecycle:
    """One source's state, since when (monotonic seconds), and its failures in a row.

    A transition that the table does not have raises HypermuxError: a fault of ours.
    """

    _min_s: float = field(kw_only=True)
    _max_s: float = field(kw_only=True)
    _reset_after_s: float = field(kw_only=True)
    _rng: Random = field(kw_only=True)
    state: State = field(default=State.WAITING, init=False)
    since_s: float = field(default=0.0, init=False)
    attempt: int = field(default=0, init=False)
    _opened_s: float | None = field(default=None, init=False)
    _refusals: int = field(default=0, init=False)
    _skew_tried: bool = field(default=False, init=False)
    _proven: bool = field(default=False, init=False)  # has been healthy as it is configured
    _patience: int = field(default=PATIENCE, init=False)
    _second_look: bool = field(default=False, init=False)  # is granted by health

    def retime(self, min_s: float, max_s: float, reset_after_s: float) -> None:
        """Go by other times from now on; a pause that has begun keeps its length."""
        self._min_s, self._max_s, self._reset_after_s = min_s, max_s, reset_after_s

    def waiting(self, now: float) -> None:
        """Wait for a permit: a pause is over."""
        self._enter(State.WAITING, now)

    def mended(self, now: float) -> None:
        """Wait for a permit: the cause of a pause may be gone, a key or a file was changed."""
        self._enter(State.WAITING, now)
        self._forget()
        self._skew_tried = False

    def dialing(self, now: float) -> None:
        """Dial: the permit came."""
        self._enter(State.DIALING, now)

    def opened(self, now: float) -> None:
        """The server accepted; from now on health is proved."""
        self._enter(State.PROVING, now)
        self._opened_s = now
        self._skew_tried = False

    def healthy(self, now: float) -> None:
        """The connection has been healthy for `reset_after_s`: forget the failures before it."""
        self._enter(State.LIVE, now)
        self._proven = True
        self._forget()

    def replaced(self, now: float) -> None:
        """Another connection has taken the open one's place: it proves itself anew."""
        self._credit_health(now)
        self._enter(State.PROVING, now)
        self._opened_s = now

    def draining(self, now: float) -> None:
        """Our own wish: end the connection, read what is still coming."""
        self._credit_health(now)
        self._enter(State.DRAINING, now)

    def stopped(self, now: float) -> None:
        """The end."""
        self._credit_health(now)
        self._enter(State.STOPPED, now)

    def anew(self, now: float) -> Lifecycle:
        """Return one for the same source, which begins now and knows how often this one failed."""
        self._credit_health(now)
        begun = Lifecycle(
            min_s=self._min_s, max_s=self._max_s, reset_after_s=self._reset_after_s, rng=self._rng
        )
        begun.since_s, begun.attempt = now, self.attempt
        return begun

    def healthy_at(self) -> float | None:
        """Return when a connection that is proving itself will count as healthy, else None."""
        if self.state is not State.PROVING or self._opened_s is None:
            return None
        return self._opened_s + self._reset_after_s

    def failed(
        self, judgement: Judgement, now: float, *, retry_after_s: float | None = None
    ) -> Pause:
        """Enter the pause that `judgement` leads to, and return it.

        `retry_after_s` is the server's own wish, in seconds from now.
        """
        self._credit_health(now)
        was_healthy = self.state is State.LIVE or self._healthy_by(now)
        state, away_s = _PAUSE_OF[judgement.verdict], judgement.away_s
        if judgement.verdict is Verdict.SKEWED:
            if self._skew_tried:
                state = State.DENIED
            self._skew_tried = True
        elif state is State.DENIED and was_healthy:
            state = State.BACKING_OFF
        elif state is State.DENIED and self._proven and self._second_look:
            self._second_look = False
            state, away_s = State.BACKING_OFF, SECOND_LOOK_S
        elif state in _PATIENT and self._proven and self._patience > 0:
            self._patience -= 1
            state = State.BACKING_OFF
        self._enter(state, now)
        if state in (State.BACKING_OFF, State.THROTTLED):
            delay_s = backoff.full_jitter(
                self.attempt, min_s=self._min_s, max_s=self._max_s, rng=self._rng
            )
            if away_s is not None:
                spread_s = backoff.spread(away_s, max_s=self._max_s, rng=self._rng)
                delay_s = max(delay_s, spread_s)
            if retry_after_s is not None:
                delay_s += backoff.retry_after(retry_after_s)
        else:
            delay_s = backoff.probe_delay(self._refusals, rng=self._rng)
            self._refusals += 1
        self.attempt += 1
        return Pause(state, delay_s)

    def _healthy_by(self, now: float) -> bool:
        healthy_at = self.healthy_at()
        return healthy_at is not None and now >= healthy_at

    def _credit_health(self, now: float) -> None:
        if self._healthy_by(now):
            self._proven = True
            self._forget()

    def _forget(self) -> None:
        self.attempt = 0
        self._refusals = 0
        self._patience = PATIENCE
        self._second_look = True

    def _enter(self, state: State, now: float) -> None:
        if state not in TRANSITIONS[self.state]:
            raise HypermuxError(f"a source cannot go from {self.state} to {state}")
        self.state = state
        self.since_s = now
