from __future__ import annotations

from hypermux.core.correction import Corrections
from hypermux.core.verdicts import MAX_SKEW_NS

S = 1_000_000_000
MINUTE = 60 * S


def test_nothing_is_added_before_somebody_was_refused() -> None:
    corrections = Corrections()
    assert corrections.of("a:443") == 0
    assert not corrections.accepted("a:443", 600 * S), "it was accepted: all is well"
    assert corrections.of("a:443") == 0
    assert corrections.in_force == {}


def test_an_endpoint_has_its_own_and_all_its_sources_share_it() -> None:
    corrections = Corrections()
    assert corrections.refused("a:443", -600 * S)
    assert corrections.of("a:443") == -600 * S
    assert corrections.of("b:443") == 0
    # The next source of the same endpoint was on its way: nothing new.
    assert not corrections.refused("a:443", -599 * S)
    assert corrections.in_force == {"a:443": -600 * S}


def test_a_clock_that_moves_on_is_followed_and_one_that_is_mended_ends_it() -> None:
    corrections = Corrections()
    corrections.refused("a:443", 600 * S)
    assert not corrections.accepted("a:443", 660 * S)
    assert corrections.of("a:443") == 600 * S
    assert corrections.accepted("a:443", 900 * S)
    assert corrections.of("a:443") == 900 * S
    assert not corrections.accepted("a:443", MAX_SKEW_NS + 1), "too far to be believed"
    assert corrections.of("a:443") == 900 * S
    assert corrections.accepted("a:443", 2 * MINUTE - 1)
    assert (corrections.of("a:443"), corrections.in_force) == (0, {})
    assert not corrections.accepted("a:443", 0)


def test_a_refusal_that_shows_a_mended_clock_ends_it() -> None:
    corrections = Corrections()
    corrections.refused("a:443", 600 * S)
    assert corrections.refused("a:443", S)
    assert corrections.of("a:443") == 0
    assert not corrections.refused("a:443", S)


def test_what_is_left_alone_is_less_than_two_minutes() -> None:
    corrections = Corrections()
    corrections.refused("a:443", 600 * S)
    assert not corrections.accepted("a:443", 720 * S - 1)
    assert not corrections.accepted("a:443", 480 * S + 1)
    assert corrections.accepted("a:443", 720 * S)
    assert corrections.of("a:443") == 720 * S
    assert corrections.accepted("a:443", 2 * MINUTE)
    assert corrections.of("a:443") == 2 * MINUTE
    assert corrections.accepted("a:443", MAX_SKEW_NS)
    assert corrections.accepted("a:443", -MAX_SKEW_NS)
    assert corrections.of("a:443") == -MAX_SKEW_NS
