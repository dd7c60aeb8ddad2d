"""A thousand sources in imagined time; and that each oracle sees what it is there to see."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import fleet
import pytest
from agenda import Agenda, Signal, Task, signal, until
from fleet_scenarios import SCENARIOS, Report, blackholes, mass_loss, rotation, throttled

from hypermux.core import backoff, heartbeat, limiter, overlap, pacing, rates, throttling, turns
from hypermux.core import rotation as rotating

HOUR = 3600.0


@pytest.mark.parametrize("addresses", [1, 3])
def test_all_cut_at_once_come_back_at_the_rate_in_fair_order_and_unrefused(addresses: int) -> None:
    report = mass_loss(1, addresses=addresses)
    assert report.violations == []
    assert 99.0 < report.figures["recovery_s"] < 106.5


@pytest.mark.slow
def test_a_thousand_silent_peers_are_noticed_and_no_storm_follows() -> None:
    report = blackholes(1)
    assert report.violations == []
    assert 20.0 < report.figures["noticed_s"] <= 26.6


@pytest.mark.parametrize("part", [1.1, 2.0])
@pytest.mark.parametrize(("accounts", "whole"), [(4, False), (100, True), (1000, True)])
def test_a_server_that_lets_in_less_settles_and_is_told(
    part: float, accounts: int, whole: bool
) -> None:
    assert throttled(1, 1000, part, accounts, whole=whole).violations == []


@pytest.mark.slow
def test_three_days_of_rotation_with_a_slot_to_spare_leave_no_trace() -> None:
    report = rotation(1)
    assert report.violations == []
    assert report.figures["replaced"] > 3000
    assert report.figures["gaps"] == 0


@pytest.mark.slow
def test_without_a_slot_to_spare_each_rotation_is_one_short_gap() -> None:
    report = rotation(1, spare=0)
    assert report.violations == []
    assert report.figures["replaced"] == 0
    assert report.figures["gaps"] > 3000


def _whole_bursts(patch: pytest.MonkeyPatch) -> None:
    def gate(self: pacing.Pacer, rate: float | None) -> rates.Gcra | None:
        burst = self._limits.connect_burst
        return None if rate is None else rates.Gcra(rate, burst, self._since)

    patch.setattr(pacing.Pacer, "_gate", gate)


def _unpaced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pacing.Pacer, "reserve", lambda self, account, address, now: now)


def _first_come(patch: pytest.MonkeyPatch) -> None:
    def order(self: turns.Line, place: turns.Place | None = None) -> turns.Order:
        return self.rank, 0, self.queue[self.head]

    patch.setattr(turns.Line, "order", order)


def _slow_rate(patch: pytest.MonkeyPatch) -> None:
    take = rates.Gcra.take

    def take_more(self: rates.Gcra, now: float) -> None:
        take(self, now)
        self._tat += 0.2 * self._interval

    patch.setattr(rates.Gcra, "take", take_more)


def _no_rates(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rates.Gcra, "ready_at", lambda self, now: now)


def _lazy_pings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(heartbeat, "SPREAD", 0.3)


def _hot_retries(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(backoff, "full_jitter", lambda attempt, **more: 0.01)


def _no_decrease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rates.Throttle, "decrease", lambda self, limit, dialed_at, now: False)
    patch.setattr(rates.Throttle, "stop", staticmethod(lambda limit, retry_after_s, now: None))


def _hasty_recovery(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rates, "RECOVERY", 1.0)
    patch.setattr(rates.Throttle, "stop", staticmethod(lambda limit, retry_after_s, now: None))


def _no_crowd(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(throttling, "CROWD", 1_000_000)


def _no_patience(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rotating, "SPARE_PATIENCE", 1e-5)
    patch.setattr(rotating, "SPREAD", 1e-4)


def _too_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rotating, "SPREAD", -0.5)


def _everything_goes_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(overlap.Overlap, "old", lambda self, messages: messages)


def _nothing_is_held(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(overlap.Overlap, "new", lambda self, messages: [])


def _handover_takes_a_slot(patch: pytest.MonkeyPatch) -> None:
    request = limiter.Allocator.request

    def without(self: limiter.Allocator, *args: Any, handover: bool = False) -> None:
        request(self, *args)

    patch.setattr(limiter.Allocator, "request", without)


def _late_gaps(patch: pytest.MonkeyPatch) -> None:
    part = fleet.Life._part

    def late(self: fleet.Life, link: fleet.Link, cause: str) -> Task:
        yield from part(self, link, cause)
        assert self.outage is not None
        self.outage = self.outage[0] + 0.2, self.outage[1]

    patch.setattr(fleet.Life, "_part", late)


SMALL: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], Report], str]] = [
    (_whole_bursts, partial(mass_loss, 1, 300, 1), "times 429"),
    (_unpaced, partial(mass_loss, 1, 300, 1), "times 429"),
    (_first_come, partial(mass_loss, 1, 300, 1), "got a slot before"),
    (_slow_rate, partial(mass_loss, 1, 300, 1), "the recovery took"),
    (_no_rates, partial(blackholes, 1, 100), "a storm of dials"),
    (_lazy_pings, partial(blackholes, 1, 100), "was noticed after"),
    (_hot_retries, partial(blackholes, 1, 60), "one source dialed"),
    (_no_decrease, partial(throttled, 1, 1000, 2.0), "429 was the answer"),
    (_hasty_recovery, partial(throttled, 1, 1000, 2.0), "429 was the answer"),
    (_no_crowd, partial(throttled, 1, 1000, 2.0, 100, whole=True), "429 was the answer"),
    (_no_patience, partial(rotation, 1, 50), "has gaps: {'rotation': "),
    (_too_late, partial(rotation, 1, 50), "a server cut"),
    (_everything_goes_on, partial(rotation, 1, 50), "brought twice or out of order"),
    (_nothing_is_held, partial(rotation, 1, 50), "no gap says so"),
    (_handover_takes_a_slot, partial(rotation, 1, 50, spare=0), "a server cut"),
    (_late_gaps, partial(rotation, 1, 50, spare=0), "no gap says so"),
]


@pytest.mark.parametrize(
    ("damage", "scenario", "expected"), SMALL, ids=[damage.__name__[1:] for damage, _, _ in SMALL]
)
def test_damage_is_seen(
    damage: Callable[[pytest.MonkeyPatch], None],
    scenario: Callable[[], Report],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert scenario().violations == []
    damage(monkeypatch)
    assert expected in "\n".join(scenario().violations)


def test_the_same_seed_does_the_same() -> None:
    for scenario in SCENARIOS.values():
        assert scenario(7, 40) == scenario(7, 40)


def test_tasks_wait_for_moments_and_signals() -> None:
    agenda, happened, told = Agenda(), Signal(), []

    def task(name: str) -> Task:
        told.append((name, agenda.now))
        yield until(agenda.now + 2.0, happened)
        told.append((name, agenda.now))
        yield signal(happened)
        told.append((name, agenda.now))
        yield until(agenda.now + 1.0)
        told.append((name, agenda.now))

    agenda.start(task("a"))
    agenda.at(1.0, happened.fire)
    agenda.at(1.0, partial(agenda.start, task("b")))
    agenda.run(1.5)
    assert (agenda.now, told[-1]) == (1.5, ("b", 1.0))
    agenda.run(9.0)
    assert told[:6] == [("a", 0.0), ("a", 1.0), ("b", 1.0), ("a", 1.0), ("b", 1.0), ("b", 1.0)]
    assert told[6:] == [("a", 2.0), ("b", 2.0)]
