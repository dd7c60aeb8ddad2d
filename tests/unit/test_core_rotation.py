"""When a connection is to be replaced."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from hypermux.core.backoff import PROBE_MIN_S
from hypermux.core.rotation import SPARE_PATIENCE, SPREAD, Rotation
from hypermux.core.verdicts import Verdict

HOUR = 3600.0


def rotation(rotate_after_s: float | None = 20 * HOUR, seed: int = 1) -> Rotation:
    return Rotation(rotate_after_s, min_s=0.5, max_s=60.0, rng=Random(seed))


def test_connections_of_one_moment_are_due_over_the_spread() -> None:
    ages = []
    for seed in range(1000):
        schedule = rotation(seed=seed)
        schedule.opened(100.0)
        ages.append(schedule.due_s - 100.0)
    assert SPREAD == 0.15
    least, most = 17 * HOUR, 20 * HOUR
    assert least <= min(ages) < least + 0.02 * HOUR
    assert most - 0.02 * HOUR < max(ages) <= most
    in_the_first_half = sum(age < (least + most) / 2 for age in ages)
    assert 450 < in_the_first_half < 550


def test_all_is_over_before_a_server_cuts_at_a_day() -> None:
    schedule = rotation()
    schedule.opened(0.0)
    assert schedule.patient_until(20 * HOUR) == pytest.approx(20.4 * HOUR)


def test_nothing_is_due_by_age_where_nothing_is_configured() -> None:
    schedule = rotation(None)
    assert schedule.due_s == inf
    schedule.opened(5.0)
    assert schedule.due_s == inf
    assert schedule.patient_until(5.0) == inf


def test_a_renewed_credential_is_due_now_and_hands_nothing_over_before_its_age() -> None:
    schedule = rotation()
    schedule.opened(0.0)
    old_s = schedule.due_s
    schedule.renew(50.0)
    assert (schedule.due_s, schedule.cause) == (50.0, "credential")
    assert schedule.patient_until(50.0) == pytest.approx(old_s + SPARE_PATIENCE * 20 * HOUR)
    schedule.opened(60.0)
    assert schedule.cause == "rotation"
    assert schedule.patient_until(60.0) == pytest.approx(60.0 + SPARE_PATIENCE * 20 * HOUR)


def test_a_renewed_credential_past_its_age_waits_from_now() -> None:
    schedule = rotation()
    assert (schedule.due_s, schedule.patient_until(5.0)) == (inf, 5.0 + 0.4 * HOUR)
    schedule.opened(0.0)
    schedule.renew(21 * HOUR)
    assert schedule.patient_until(21 * HOUR) == pytest.approx(21.4 * HOUR)


def test_a_renewed_credential_is_tried_without_the_delays_of_the_last_one() -> None:
    schedule = rotation()
    for _ in range(10):
        schedule.failed(Verdict.RETRY, 0.0)
    schedule.renew(5.0)
    schedule.failed(Verdict.RETRY, 5.0)
    assert 5.5 < schedule.due_s <= 6.0


def test_other_times_count_from_the_next_connection_on() -> None:
    schedule = rotation()
    schedule.opened(0.0)
    due_s = schedule.due_s
    schedule.retime(2 * HOUR, 100.0, 200.0)
    assert schedule.due_s == due_s
    schedule.failed(Verdict.RETRY, 0.0)
    assert 100.0 <= schedule.due_s <= 200.0
    schedule.opened(0.0)
    assert 1.7 * HOUR <= schedule.due_s <= 2 * HOUR
    schedule.renew(1.0)
    schedule.retime(None, 100.0, 200.0)
    schedule.opened(0.0)
    assert schedule.due_s == inf


def test_a_replacement_that_fails_is_tried_again_with_backoff() -> None:
    schedule = rotation()
    now = 0.0
    for failure in range(40):
        schedule.failed(Verdict.RETRY, now)
        assert 0.5 <= schedule.due_s - now <= min(60.0, 2.0**failure)
        now = schedule.due_s
    schedule.failed(Verdict.THROTTLED, now, retry_after_s=300.0)
    assert 300.5 <= schedule.due_s - now <= 360.0


@pytest.mark.parametrize("verdict", [Verdict.DENIED, Verdict.UNTRUSTED, Verdict.MISCONFIGURED])
def test_a_replacement_that_is_refused_for_good_is_probed(verdict: Verdict) -> None:
    schedule = rotation()
    schedule.failed(verdict, 0.0)
    assert schedule.due_s >= PROBE_MIN_S
    first = schedule.due_s
    schedule.failed(verdict, first)
    assert schedule.due_s - first >= 2 * PROBE_MIN_S


def test_a_clock_that_stays_off_is_not_asked_about_hot() -> None:
    schedule = rotation()
    schedule.failed(Verdict.SKEWED, 0.0)
    assert schedule.due_s < 60.0
    schedule.failed(Verdict.SKEWED, 10.0)
    assert schedule.due_s >= 10.0 + PROBE_MIN_S
    schedule = rotation()
    for verdict in (Verdict.SKEWED, Verdict.RETRY, Verdict.SKEWED):
        schedule.failed(verdict, 0.0)
        assert schedule.due_s < 60.0
    schedule.opened(0.0)  # that one passed: the next may be corrected once more
    schedule.failed(Verdict.SKEWED, 0.0)
    assert schedule.due_s < 60.0


def test_an_opened_one_forgets_failures() -> None:
    schedule = rotation()
    for _ in range(10):
        schedule.failed(Verdict.RETRY, 0.0)
    schedule.opened(0.0)
    schedule.failed(Verdict.RETRY, 0.0)
    assert 0.5 < schedule.due_s <= 1.0
