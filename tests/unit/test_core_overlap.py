from __future__ import annotations

from collections import Counter

import hypothesis
from hypothesis import strategies as st

from hypermux.core.overlap import Overlap

# What a message of one byte is counted as; see the module.
WEIGHT = 151


def split(text: str) -> list[bytes]:
    """Return a message per character."""
    return [character.encode() for character in text]


def text(messages: list[bytes]) -> str:
    return b"".join(messages).decode()


class Both:
    """An overlap, and all that went on."""

    def __init__(self, **bounds: int) -> None:
        self.overlap = Overlap(**bounds)
        self.out = ""

    def old(self, messages: str) -> None:
        self.out += text(self.overlap.old(split(messages)))

    def new(self, messages: str) -> None:
        self.out += text(self.overlap.new(split(messages)))

    def release(self) -> None:
        self.out += text(self.overlap.release())

    def old_ended(self) -> None:
        self.out += text(self.overlap.old_ended())


def test_new_is_held_until_it_is_released_and_then_only_adds() -> None:
    both = Both()
    both.new("cd")
    assert (both.out, both.overlap.holding, both.overlap.held) == ("", True, 2)
    assert both.overlap.held_bytes == 2 * WEIGHT
    both.old("abc")
    assert both.out == "abc"
    both.release()
    assert both.out == "abcd"
    assert (both.overlap.holding, both.overlap.held, both.overlap.held_bytes) == (False, 0, 0)
    assert both.overlap.duplicates == 1


def test_after_the_release_the_first_to_bring_a_message_is_heard() -> None:
    both = Both()
    both.release()
    both.new("ab")
    both.old("abcd")
    both.new("cdef")
    both.old("e")
    assert both.out == "abcdef"
    assert both.overlap.duplicates == 5


def test_true_repeats_survive_on_whichever_side_they_come_first() -> None:
    both = Both()
    both.old("aa")
    both.new("a")
    both.release()
    both.new("aa")  # the second of old's, and a third one that old brings later
    both.old("a")
    assert both.out == "aaa"
    assert both.overlap.duplicates == 3


def test_a_batch_with_known_and_unknown_messages_keeps_its_order() -> None:
    both = Both()
    both.release()
    both.old("bd")
    both.new("abcde")
    assert both.out == "bdace"


def test_what_old_brought_before_it_ended_is_dropped_when_it_comes_on_new() -> None:
    both = Both()
    both.old("ab")
    both.new("a")
    both.old_ended()
    both.new("bc")
    assert both.out == "abc"
    assert (both.overlap.holding, both.overlap.duplicates) == (False, 2)


def test_after_old_ended_new_is_not_compared_with_itself() -> None:
    both = Both()
    both.release()
    both.new("a")
    both.old_ended()
    both.new("ab")
    both.new("ab")
    assert both.out == "aabab"
    assert both.overlap.duplicates == 0


def test_what_is_held_when_new_ends_is_left_to_old() -> None:
    both = Both()
    both.old("a")
    both.new("ab")
    both.overlap.new_ended()
    assert (both.overlap.holding, both.overlap.held, both.overlap.held_bytes) == (False, 0, 0)
    assert both.overlap.duplicates == 2
    both.old("b")
    both.old("b")
    both.release()
    assert both.out == "abb"


def test_what_new_brought_before_it_ended_is_dropped_when_it_comes_on_old() -> None:
    both = Both()
    both.release()
    both.new("ab")
    both.overlap.new_ended()
    both.old("abc")
    assert both.out == "abc"
    assert both.overlap.duplicates == 2


def test_too_much_to_hold_is_let_go() -> None:
    both = Both(hold_bytes=2 * WEIGHT)
    both.new("cd")
    assert both.out == ""
    both.new("e")
    assert (both.out, both.overlap.holding) == ("cde", False)
    both.old("bcde")  # none lost, none doubled; `b` stands behind
    assert both.out == "cdeb"


def test_too_much_to_count_forgets_the_oldest_half() -> None:
    both = Both(counted_bytes=4 * WEIGHT)
    both.release()
    both.old("abcd")
    both.new("a")
    assert both.out == "abcd"
    both.old("ef")  # b c d e f are five: three are too many
    both.new("bcdef")
    assert both.out == "abcdefbcd"
    both.new("ef")
    assert both.out == "abcdefbcdef"


def test_a_forgotten_repeat_weighs_as_often_as_it_came() -> None:
    both = Both(counted_bytes=4 * WEIGHT)
    both.release()
    both.old("aaabc")
    both.new("bc")
    assert both.out == "aaabc"
    both.new("a")
    assert both.out == "aaabca"


def test_what_the_other_has_caught_up_with_weighs_nothing() -> None:
    both = Both(counted_bytes=4 * WEIGHT)
    both.release()
    for _ in range(10):
        both.old("abcd")
        both.new("abcd")
    assert both.out == "abcd" * 10


def test_the_last_byte_that_is_not_too_much() -> None:
    for bound, doubled in ((4 * WEIGHT, ""), (4 * WEIGHT - 1, "abc")):
        both = Both(counted_bytes=bound)
        both.release()
        both.old("abcd")
        both.new("abcd")
        assert both.out == "abcd" + doubled


def test_an_end_makes_room() -> None:
    both = Both()
    both.release()
    both.new("ab")
    both.old_ended()
    both.new("cd")
    assert not both.overlap._new.counts
    both = Both()
    both.old("ab")
    both.overlap.new_ended()
    both.old("cd")
    assert not both.overlap._old.counts


def test_eight_mebibytes_are_held_and_sixteen_counted() -> None:
    messages = [bytes([number]) * (1 << 20) for number in range(16)]
    overlap = Overlap()
    assert overlap.new(messages[:7]) == []
    assert overlap.new(messages[7:8]) == messages[:8]
    assert not overlap.holding
    for count, known in ((15, 15), (16, 7)):
        overlap = Overlap()
        overlap.release()
        overlap.old(messages[:count])
        overlap.new(messages)
        assert overlap.duplicates == known


def test_what_went_on_is_a_list_of_its_own_or_the_very_batch() -> None:
    overlap = Overlap()
    batch = split("abc")
    assert overlap.old(batch) is batch
    held = split("ab")
    overlap.new(held)
    assert overlap.release() == []
    assert held == split("ab")


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.booleans(), st.text("abc", max_size=4)), max_size=20),
    st.integers(0, 20),
)
def test_each_message_goes_on_as_often_as_the_one_brought_it_that_brought_more(
    deliveries: list[tuple[bool, str]], released: int
) -> None:
    both = Both()
    brought: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for place, (is_old, messages) in enumerate(deliveries):
        if place == released:
            both.release()
        brought[is_old].update(messages)
        (both.old if is_old else both.new)(messages)
    both.release()
    assert Counter(both.out) == brought[True] | brought[False]
    total = sum(map(Counter.total, brought.values()))
    assert both.overlap.duplicates == total - len(both.out)
