from __future__ import annotations

from math import inf

from hypermux.core.quiet import Quiet

S = 1_000_000_000


def test_it_is_said_once_and_ends_with_the_next_message() -> None:
    quiet = Quiet(3600.0)
    assert quiet.due_s == inf
    quiet.opened(10.0, 10 * S)
    assert (quiet.due_s, quiet.since_ns) == (3610.0, 10 * S)
    assert not quiet.heard(100.0, 100 * S), "it was not quiet"
    assert quiet.due_s == 3700.0
    assert quiet.fell(3700.0)
    assert (quiet.quiet, quiet.since_ns) == (True, 100 * S)
    assert quiet.due_s == 7300.0
    assert not quiet.fell(7300.0), "no news"
    assert quiet.heard(8000.0, 8000 * S)
    assert not quiet.quiet
    assert not quiet.heard(8001.0, 8001 * S)
    assert (quiet.due_s, quiet.since_ns) == (8001.0 + 3600.0, 8001 * S)


def test_only_connected_time_counts_over_any_number_of_connections() -> None:
    quiet = Quiet(3600.0)
    quiet.opened(0.0, 1 * S)
    quiet.closed(1000.0)
    assert quiet.due_s == inf, "no time passes while it is down"
    quiet.opened(100_000.0, 100_000 * S)
    assert quiet.due_s == 102_600.0
    assert quiet.since_ns == 1 * S
    quiet.closed(101_000.0)
    quiet.closed(105_000.0)
    quiet.opened(200_000.0, 200_000 * S)
    assert quiet.due_s == 201_600.0
    assert quiet.fell(201_600.0)
    quiet.closed(201_600.0)
    quiet.opened(201_601.0, 201_601 * S)
    assert quiet.due_s == 205_201.0, "connecting anew by it is not hot"
    quiet.closed(205_300.0)
    quiet.opened(300_000.0, 300_000 * S)
    assert quiet.due_s == 300_000.0, "overdue at once, not early"


def test_a_message_behind_the_end_counts_and_starts_no_clock() -> None:
    quiet = Quiet(60.0)
    quiet.opened(0.0, 1 * S)
    quiet.closed(50.0)
    assert not quiet.heard(51.0, 51 * S)
    assert quiet.due_s == inf
    quiet.opened(100.0, 100 * S)
    assert quiet.due_s == 160.0
    assert quiet.since_ns == 51 * S


def test_who_expects_nothing_is_told_nothing() -> None:
    quiet = Quiet(inf)
    quiet.opened(0.0, 1 * S)
    assert quiet.due_s == inf
    assert not quiet.heard(5.0, 5 * S)
    quiet.closed(6.0)
    quiet.opened(7.0, 7 * S)
    assert quiet.due_s == inf


def test_another_patience_counts_what_was_counted() -> None:
    quiet = Quiet(100.0)
    quiet.opened(0.0, 5)
    quiet.retime(60.0, 40.0, connected=True)
    assert quiet.due_s == 60.0
    quiet.retime(30.0, 50.0, connected=True)
    assert quiet.due_s == 50.0  # it has lasted longer already
    assert quiet.fell(50.0)
    quiet.retime(inf, 55.0, connected=True)
    assert (quiet.due_s, quiet.quiet) == (inf, False)
    quiet.retime(10.0, 60.0, connected=True)
    assert quiet.due_s == 70.0
    quiet.closed(65.0)
    quiet.retime(20.0, 65.0, connected=False)
    assert quiet.due_s == inf
    quiet.opened(100.0, 5)
    assert quiet.due_s == 115.0


def test_who_expects_nothing_any_more_is_not_quiet() -> None:
    quiet = Quiet(60.0)
    quiet.opened(0.0, 1 * S)
    assert quiet.fell(60.0)
    quiet.retime(30.0, 70.0, connected=True)
    assert quiet.quiet
    quiet.retime(inf, 80.0, connected=True)
    assert (quiet.quiet, quiet.due_s) == (False, inf)
    quiet.retime(60.0, 100.0, connected=True)
    assert quiet.due_s == 160.0, "counted from now on"
