from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random

import hypothesis
import pytest
from hypothesis import strategies as st

from hypermux.core import verdicts
from hypermux.core.lifecycle import PATIENCE, TRANSITIONS, Lifecycle, State
from hypermux.core.verdicts import Judgement, Verdict, judge
from hypermux.model.errors import Failure, FailureKind, HypermuxError

S = 1_000_000_000
NOW = 1_700_000_000 * S


# -- the table of verdicts

HTTP = FailureKind.HTTP
CLOSE = FailureKind.CLOSE


@pytest.mark.parametrize(
    ("kind", "codes", "verdict", "cause"),
    [
        (HTTP, [401, 403], Verdict.DENIED, "denied"),
        (HTTP, [429], Verdict.THROTTLED, "throttled"),
        (HTTP, [408, 421, 425, 500, 501, 502, 503, 504, 599], Verdict.RETRY, "refused"),
        (HTTP, [400, 402, 404, 405, 406, 407, 410, 422, 426, 431, 451, 499], None, None),
        (HTTP, [None, 0, -7, 100, 103, 200, 204, 299, 301, 307, 399, 600, 999999], None, None),
        (CLOSE, [1008, 3000, 3003], Verdict.DENIED, "denied"),
        (CLOSE, [1013], Verdict.THROTTLED, "throttled"),
        (CLOSE, [1000, 1001, 1005, 1011, 1012, 1014], Verdict.RETRY, "closed"),
        (CLOSE, [1002, 1003, 1007, 1009, 1010], Verdict.RETRY, "closed"),
        (CLOSE, [3001, 3002, 3004, 3008, 3999, 4000, 4003, 4999], Verdict.RETRY, "closed"),
        (CLOSE, [None, 0, 999, 1004, 1006, 1015, 1016, 2999, 5000, 65535], Verdict.RETRY, "closed"),
    ],
)
@pytest.mark.parametrize("opened", [False, True])
def test_every_code_has_its_verdict(
    kind: FailureKind,
    codes: list[int | None],
    verdict: Verdict | None,
    cause: str | None,
    opened: bool,
) -> None:
    for code in codes:
        judgement = judge(Failure(kind, "x", code), secure=True, now_utc_ns=NOW, opened=opened)
        assert judgement.verdict == (verdict or Verdict.MISCONFIGURED)
        assert judgement.cause == (cause or "misconfigured")
        assert judgement.offset_ns is None


@pytest.mark.parametrize(
    ("kind", "verdict", "cause"),
    [
        (FailureKind.SHORTAGE, Verdict.RETRY, "shortage"),
        (FailureKind.RESOLVE, Verdict.RETRY, "unreachable"),
        (FailureKind.CONNECT, Verdict.RETRY, "unreachable"),
        (FailureKind.TIMEOUT, Verdict.RETRY, "timeout"),
        (FailureKind.TLS, Verdict.UNTRUSTED, "untrusted"),
        (FailureKind.EOF, Verdict.RETRY, "dropped"),
        (FailureKind.RESET, Verdict.RETRY, "dropped"),
        (FailureKind.SILENT, Verdict.RETRY, "silent"),
        (FailureKind.PROTOCOL, Verdict.RETRY, "garbage"),
        (FailureKind.CREDENTIAL, Verdict.MISCONFIGURED, "credential"),
        (FailureKind.INTERNAL, Verdict.RETRY, "internal"),
        (FailureKind.ACCESS, Verdict.DENIED, "denied"),
        (FailureKind.SETUP, Verdict.MISCONFIGURED, "misconfigured"),
    ],
)
def test_every_kind_has_its_verdict(kind: FailureKind, verdict: Verdict, cause: str) -> None:
    for opened in (True, False):
        judgement = judge(Failure(kind, "x"), secure=False, now_utc_ns=NOW, opened=opened)
        if kind is FailureKind.PROTOCOL and not opened:
            assert judgement.verdict is Verdict.MISCONFIGURED
        else:
            assert judgement.verdict is verdict
        assert judgement.cause == cause


def test_a_judgement_says_what_it_means_and_what_was_seen() -> None:
    failure = Failure(HTTP, "the server answered 403 Forbidden", 403)
    judgement = judge(failure, secure=True, now_utc_ns=NOW)
    assert judgement.reason == (
        "the server forbids this to the credentials: the server answered 403 Forbidden"
    )


@pytest.mark.parametrize(
    ("kind", "codes", "says"),
    [
        (HTTP, [None, -1, 0, 299, 600, 700], "what answers is no event stream"),
        (HTTP, [402, 499], "the server rejects the request"),
        (HTTP, [501, 505, 599], "the server fails"),
        (HTTP, [503], "the server is not available now"),
        (CLOSE, [None, 999, 1004, 1006, 1015, 2999, 5000], "a code that means nothing"),
        (CLOSE, [1000], "the server ended the stream"),
        (CLOSE, [501, 600], "a code that means nothing"),
        (CLOSE, [3001, 3999], "a code of its framework"),
        (CLOSE, [4000, 4999], "a code of its own"),
    ],
)
def test_a_code_outside_the_registry_is_called_that(
    kind: FailureKind, codes: list[int | None], says: str
) -> None:
    for code in codes:
        reason = judge(Failure(kind, "x", code), secure=True, now_utc_ns=NOW).reason
        assert reason.endswith(f"{says}: x"), code


def test_a_failure_is_of_the_handshake_unless_said_otherwise() -> None:
    failure = Failure(FailureKind.EOF, "x")
    assert judge(failure, secure=True, now_utc_ns=NOW).reason == "the server hung up: x"


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    st.sampled_from(FailureKind),
    st.one_of(st.none(), st.integers(-1000, 70000), st.integers()),
    st.one_of(st.none(), st.integers(0, 2**62)),
    st.booleans(),
    st.booleans(),
)
def test_every_failure_whatever_it_is_gets_a_verdict(
    kind: FailureKind, code: int | None, date_ns: int | None, secure: bool, opened: bool
) -> None:
    failure = Failure(kind, "detail", code, date_ns=date_ns)
    judgement = judge(failure, secure=secure, now_utc_ns=NOW, opened=opened)
    assert judgement.cause
    assert judgement.reason.endswith(": detail")
    assert (judgement.verdict is Verdict.SKEWED) == (judgement.offset_ns is not None)


def test_each_row_has_a_sentence_of_its_own() -> None:
    for rows in (verdicts.HTTP_ROWS, verdicts.CLOSE_ROWS, verdicts.KIND_ROWS.values()):
        said = [row.meaning for row in rows]
        assert len(said) - len(set(said)) <= 1, "only 400 says what the rest of the 4xx say"


@pytest.mark.parametrize("code", [1012, 1013])
def test_who_asks_for_time_gets_it(code: int) -> None:
    judgement = judge(Failure(CLOSE, "x", code), secure=True, now_utc_ns=NOW, opened=True)
    assert judgement.away_s == (5.0, 30.0)
    delays = []
    for seed in range(200):
        life = lifecycle(seed)
        life.dialing(0.0)
        life.opened(0.0)
        delays.append(life.failed(judgement, 1.0).delay_s)
    assert 5.0 <= min(delays) < 7.0
    assert 28.0 < max(delays) <= 30.0
    # The operator's longest backoff counts for it too.
    hasty = Lifecycle(min_s=0.1, max_s=2.0, reset_after_s=60.0, rng=Random(1))
    hasty.dialing(0.0)
    hasty.opened(0.0)
    assert hasty.failed(judgement, 1.0).delay_s == 2.0


def test_the_rows_are_in_order_and_the_last_holds_all() -> None:
    for rows in (verdicts.HTTP_ROWS, verdicts.CLOSE_ROWS):
        assert all(row.first <= row.last for row in rows)
        for number, row in enumerate(rows):
            # No row is hidden by an earlier one.
            before = rows[:number]
            assert not any(x.first <= row.first and row.last <= x.last for x in before)


MINUTE = 60 * S


DAY = 24 * 60 * MINUTE


@pytest.mark.parametrize(
    ("offset_ns", "skewed"),
    [
        (4 * MINUTE, True),
        (-4 * MINUTE, True),
        (4 * MINUTE - 1, False),
        (1 - 4 * MINUTE, False),
        (3 * MINUTE + 59 * S, False),
        (DAY, True),
        (-DAY, True),
        (DAY + MINUTE, True),
        (DAY + MINUTE + 1, False),
        (-DAY - MINUTE - 1, False),
        (0, False),
    ],
)
def test_a_401_with_a_far_date_is_skewed(offset_ns: int, skewed: bool) -> None:
    failure = Failure(HTTP, "x", 401, date_ns=NOW + offset_ns)
    judgement = judge(failure, secure=True, now_utc_ns=NOW)
    assert judgement.verdict is (Verdict.SKEWED if skewed else Verdict.DENIED)
    assert judgement.cause == "denied"
    assert judgement.offset_ns == (offset_ns if skewed else None)
    # Nobody's word for the time but the server's own; and only a 401 is about it.
    assert judge(failure, secure=False, now_utc_ns=NOW).verdict is Verdict.DENIED
    other = Failure(HTTP, "x", 403, date_ns=NOW + offset_ns)
    assert judge(other, secure=True, now_utc_ns=NOW).verdict is Verdict.DENIED


def test_what_counts_is_the_time_that_was_signed_with() -> None:
    failure = Failure(HTTP, "x", 401, date_ns=NOW + 600 * S)
    corrected = judge(failure, secure=True, now_utc_ns=NOW, signed_offset_ns=599 * S)
    assert corrected.verdict is Verdict.DENIED
    mended = Failure(HTTP, "x", 401, date_ns=NOW + S)
    judgement = judge(mended, secure=True, now_utc_ns=NOW, signed_offset_ns=-600 * S)
    assert (judgement.verdict, judgement.offset_ns) == (Verdict.SKEWED, S)
    assert judgement.reason == "our clock is right again and its correction was not: x"


def test_a_skewed_clock_says_which_way() -> None:
    ahead = Failure(HTTP, "401", 401, date_ns=NOW - 300 * S)
    assert judge(ahead, secure=True, now_utc_ns=NOW).reason == (
        "our clock is 300 s ahead of the server's: 401"
    )
    behind = Failure(HTTP, "401", 401, date_ns=NOW + 300 * S)
    assert judge(behind, secure=True, now_utc_ns=NOW).reason == (
        "our clock is 300 s behind the server's: 401"
    )
    least = Failure(HTTP, "401", 401, date_ns=NOW - 4 * MINUTE)
    assert judge(least, secure=True, now_utc_ns=NOW).reason == (
        "our clock is 240 s ahead of the server's: 401"
    )
    far = Failure(HTTP, "401", 401, date_ns=NOW + 3 * DAY)
    assert judge(far, secure=True, now_utc_ns=NOW).reason == (
        "our clock is 259200 s behind the server's, too far to follow, set one of them right: 401"
    )


# -- the table of states


def lifecycle(seed: int = 1) -> Lifecycle:
    return Lifecycle(min_s=0.5, max_s=60.0, reset_after_s=60.0, rng=Random(seed))


def verdict(word: Verdict) -> Judgement:
    return Judgement(word, "cause", "reason")


RETRY = verdict(Verdict.RETRY)
THROTTLED = verdict(Verdict.THROTTLED)
DENIED = verdict(Verdict.DENIED)
SKEWED = verdict(Verdict.SKEWED)

ENTER: dict[State, Callable[[Lifecycle], object]] = {
    State.WAITING: lambda life: life.waiting(1.0),
    State.DIALING: lambda life: life.dialing(1.0),
    State.PROVING: lambda life: life.opened(1.0),
    State.LIVE: lambda life: life.healthy(1.0),
    State.DRAINING: lambda life: life.draining(1.0),
    State.BACKING_OFF: lambda life: life.failed(RETRY, 1.0),
    State.THROTTLED: lambda life: life.failed(THROTTLED, 1.0),
    State.DENIED: lambda life: life.failed(DENIED, 1.0),
    State.UNTRUSTED: lambda life: life.failed(verdict(Verdict.UNTRUSTED), 1.0),
    State.MISCONFIGURED: lambda life: life.failed(verdict(Verdict.MISCONFIGURED), 1.0),
    State.STOPPED: lambda life: life.stopped(1.0),
}

# The table of the design, by hand.
FAILURES = {
    State.BACKING_OFF,
    State.THROTTLED,
    State.DENIED,
    State.UNTRUSTED,
    State.MISCONFIGURED,
}
MAY: dict[State, set[State]] = {
    State.WAITING: {State.DIALING, State.STOPPED} | FAILURES,
    State.DIALING: {State.PROVING, State.DRAINING, State.STOPPED} | FAILURES,
    State.PROVING: {State.PROVING, State.LIVE, State.DRAINING, State.STOPPED} | FAILURES,
    State.LIVE: {
        State.PROVING,
        State.DRAINING,
        State.BACKING_OFF,
        State.THROTTLED,
        State.STOPPED,
    },
    State.DRAINING: {State.WAITING, State.STOPPED} | FAILURES,
    **{pause: {State.WAITING, State.STOPPED} for pause in FAILURES},
    State.STOPPED: set(),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_only_the_transitions_of_the_table_are_legal(before: State, after: State) -> None:
    assert (after in TRANSITIONS[before]) == (after in MAY[before])
    life = lifecycle()
    life.state = before
    if before is State.LIVE and after in FAILURES - MAY[before]:
        life._proven = True
        ENTER[after](life)
        assert life.state is State.BACKING_OFF
    elif after in MAY[before]:
        ENTER[after](life)
        assert life.state is after
        assert life.since_s == 1.0
    else:
        with pytest.raises(HypermuxError, match=f"from {before} to {after}"):
            ENTER[after](life)
        assert life.state is before


def fail(life: Lifecycle, judgement: Judgement, now: float = 0.0) -> tuple[State, float]:
    life.dialing(now)
    pause = life.failed(judgement, now)
    life.waiting(now)
    return pause.state, pause.delay_s


def test_a_replaced_connection_proves_itself_anew_and_forgets_nothing_unproven() -> None:
    life = lifecycle()
    fail(life, RETRY)
    life.dialing(10.0)
    life.opened(10.0)
    life.replaced(20.0)
    assert (life.state, life.attempt, life.healthy_at()) == (State.PROVING, 1, 80.0)
    life.replaced(80.0)  # healthy by then, though nothing was heard
    assert (life.state, life.attempt, life.healthy_at()) == (State.PROVING, 0, 140.0)
    life.healthy(140.0)
    life.replaced(200.0)
    assert (life.state, life.since_s, life.healthy_at()) == (State.PROVING, 200.0, 260.0)


def test_it_begins_waiting() -> None:
    assert lifecycle().state is State.WAITING
    assert lifecycle().since_s == 0.0
    assert lifecycle().attempt == 0


def test_failures_in_a_row_are_backed_off_from() -> None:
    life = lifecycle()
    for attempt in range(40):
        assert life.attempt == attempt
        state, delay = fail(life, RETRY)
        assert state is State.BACKING_OFF
        assert 0.5 <= delay <= min(60.0, 2.0**attempt)


def connect(life: Lifecycle, opened: float, ended: float) -> float:
    """Open, never say healthy, fail; return the delay."""
    life.dialing(opened)
    life.opened(opened)
    pause = life.failed(RETRY, ended)
    life.waiting(ended)
    return pause.delay_s


def test_the_counter_resets_after_health_not_when_a_connection_opens() -> None:
    life = lifecycle()
    for _ in range(10):
        fail(life, RETRY)
    connect(life, 100.0, 159.9)
    assert life.attempt == 11
    connect(life, 200.0, 260.0)  # healthy for as long as it takes, though nobody said so
    assert life.attempt == 1
    fail(life, RETRY)
    life.dialing(300.0)
    life.opened(300.0)
    assert life.healthy_at() == 360.0
    assert life.attempt == 2
    life.healthy(360.0)
    assert life.healthy_at() is None
    assert life.attempt == 0
    life.draining(400.0)
    life.waiting(401.0)


def test_health_before_draining_counts() -> None:
    life = lifecycle()
    fail(life, RETRY)
    life.dialing(0.0)
    life.opened(0.0)
    life.draining(61.0)
    assert life.attempt == 0
    life.waiting(62.0)
    # And it has worked: a refusal is not believed at once.
    assert fail(life, verdict(Verdict.MISCONFIGURED), 63.0)[0] is State.BACKING_OFF


@pytest.mark.parametrize("word", [Verdict.DENIED, Verdict.UNTRUSTED, Verdict.MISCONFIGURED])
def test_the_refused_are_probed_ever_less(word: Verdict) -> None:
    life = lifecycle()
    for shortest in (900.0, 1800.0, 3600.0, 7200.0, 14400.0, 21600.0, 21600.0):
        state, delay = fail(life, verdict(word))
        assert state.value == word.value
        assert shortest <= delay <= min(21600.0, shortest * 1.1)
    # Passing trouble in between changes nothing, health does.
    fail(life, RETRY)
    assert fail(life, verdict(word))[1] == 21600.0
    connect(life, 0.0, 100.0)
    assert fail(life, verdict(word))[1] < 1000.0


def test_retry_after_is_added_to_the_jitter() -> None:
    for judgement in (THROTTLED, RETRY):
        life = lifecycle()
        life.dialing(0.0)
        pause = life.failed(judgement, 0.0, retry_after_s=30.0)
        assert 30.5 <= pause.delay_s <= 31.0
    life = lifecycle()
    life.dialing(0.0)
    assert 3600.5 <= life.failed(THROTTLED, 0.0, retry_after_s=1e12).delay_s <= 3601.0
    assert life.state is State.THROTTLED


def test_a_skewed_clock_gets_one_more_attempt() -> None:
    life = lifecycle()
    state, delay = fail(life, SKEWED)
    assert state is State.BACKING_OFF
    assert delay <= 1.0
    state, delay = fail(life, SKEWED)
    assert state is State.DENIED
    assert delay >= 900.0
    life.dialing(0.0)
    life.opened(0.0)  # so that was the cause
    assert life.failed(SKEWED, 1.0).state is State.BACKING_OFF


def test_a_probe_of_a_skewed_source_earns_no_attempt_more() -> None:
    life = lifecycle()
    states = [fail(life, SKEWED) for _ in range(6)]
    assert [state for state, _ in states] == [State.BACKING_OFF] + [State.DENIED] * 5
    delays = [delay for state, delay in states if state is State.DENIED]
    assert delays[0] >= 900.0
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(delays))


def test_whatever_mends_the_cause_starts_anew() -> None:
    life = lifecycle()
    for judgement in (SKEWED, SKEWED, DENIED):
        life.dialing(0.0)
        life.failed(judgement, 0.0)
        life.waiting(0.0)
    life.dialing(0.0)
    life.failed(DENIED, 0.0)
    life.mended(5.0)
    assert (life.state, life.attempt) == (State.WAITING, 0)
    assert fail(life, SKEWED)[0] is State.BACKING_OFF
    assert 900.0 <= fail(life, DENIED)[1] <= 990.0


def healthy(life: Lifecycle, now: float = 0.0) -> None:
    life.dialing(now)
    life.opened(now)
    life.healthy(now + 60.0)


@pytest.mark.parametrize("word", [Verdict.MISCONFIGURED, Verdict.UNTRUSTED])
def test_what_has_worked_is_not_given_up_at_the_first_refusal(word: Verdict) -> None:
    new = lifecycle()
    assert fail(new, verdict(word))[0] is not State.BACKING_OFF
    life = lifecycle()
    healthy(life)
    first = life.failed(verdict(word), 61.0)
    life.waiting(61.0)
    pauses = [(first.state, first.delay_s)] + [fail(life, verdict(word)) for _ in range(20)]
    states = [state for state, _ in pauses]
    assert PATIENCE == 16
    assert states[:PATIENCE] == [State.BACKING_OFF] * PATIENCE
    assert State.BACKING_OFF not in states[PATIENCE:]
    assert 120.0 < sum(delay for _, delay in pauses[:PATIENCE]) < 900.0
    assert pauses[PATIENCE][1] >= 900.0
    # Healthy again, patient again; other failures in between change nothing.
    healthy(life, 1000.0)
    life.failed(RETRY, 2000.0)
    life.waiting(2000.0)
    states = [
        fail(life, judgement)[0] for _ in range(PATIENCE) for judgement in (verdict(word), RETRY)
    ]
    assert set(states) == {State.BACKING_OFF}
    assert fail(life, verdict(word))[0] is not State.BACKING_OFF


def test_a_key_that_was_good_gets_two_ordinary_attempts() -> None:
    life = lifecycle()
    healthy(life)
    pause = life.failed(DENIED, 100.0)
    assert pause.state is State.BACKING_OFF
    assert pause.delay_s <= 1.0, "at once: it was good a moment ago"
    life.waiting(101.0)
    state, delay = fail(life, DENIED, 102.0)
    assert state is State.BACKING_OFF
    assert 20.0 <= delay <= 60.0, "whoever knows the keys may be starting too"
    assert fail(life, DENIED, 140.0)[0] is State.DENIED
    # Health is what counts, not who noticed it.
    life.dialing(200.0)
    life.opened(200.0)
    assert life.failed(DENIED, 260.0).delay_s <= 1.0
    life.waiting(261.0)
    life.dialing(262.0)
    life.opened(262.0)
    assert life.failed(DENIED, 321.0).state is State.BACKING_OFF
    life.waiting(350.0)
    assert fail(life, DENIED, 360.0)[0] is State.DENIED
    assert fail(life, DENIED, 2000.0)[0] is State.DENIED
    delays = []
    for seed in range(300):
        life = Lifecycle(min_s=0.5, max_s=120.0, reset_after_s=60.0, rng=Random(seed))
        healthy(life)
        life.failed(RETRY, 100.0)
        life.waiting(100.0)
        delays.append(fail(life, DENIED, 100.0)[1])
    assert 20.0 <= min(delays) < 20.5
    assert 59.5 < max(delays) <= 60.0
    # A key that never was gets none.
    assert fail(lifecycle(), DENIED)[0] is State.DENIED


def test_other_timings_count_from_the_next_pause_on() -> None:
    life = lifecycle()
    life.retime(2.0, 3.0, 10.0)
    assert all(2.0 <= fail(life, RETRY)[1] <= 3.0 for _ in range(20))
    life.dialing(0.0)
    life.opened(5.0)
    assert life.healthy_at() == 15.0


def test_other_times_count_from_now_on() -> None:
    life = lifecycle()
    life.retime(7.0, 7.0, 20.0)
    life.dialing(0.0)
    life.opened(0.0)
    assert life.healthy_at() == 20.0
    assert life.failed(RETRY, 1.0).delay_s == 7.0


def test_what_begins_behind_a_fault_knows_the_failures_before_it() -> None:
    fault = judge(Failure(FailureKind.INTERNAL, "x"), secure=False, now_utc_ns=NOW)
    first = Lifecycle(min_s=1.0, max_s=64.0, reset_after_s=60.0, rng=Random(1))
    first.dialing(10.0)
    first.failed(fault, 11.0)
    second = first.anew(12.0)
    assert (second.state, second.since_s, second.attempt) == (State.WAITING, 12.0, 1)
    assert second.failed(fault, 13.0).state is State.BACKING_OFF
    second.waiting(20.0)
    second.dialing(21.0)
    second.opened(22.0)
    assert second.anew(81.0).attempt == 2
    second.stopped(83.0)
    assert second.anew(84.0).attempt == 0, "it had been healthy by its end"
