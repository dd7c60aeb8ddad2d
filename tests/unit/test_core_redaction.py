"""Redaction: what matches is not recorded, and all else is as it was."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.decoding import MAX_UNPARSED_TEXT, decode
from hypermux.core.patterns import fault
from hypermux.core.redaction import MARK, MAX_EXAMINED, Redaction
from hypermux.model.records import Event, Unparsed


def redact(raw: str | bytes, *patterns: str) -> str:
    data = raw.encode() if isinstance(raw, str) else raw
    return Redaction.of(patterns).event(data).decode("ascii")


@pytest.mark.parametrize(
    ("raw", "pattern", "shown"),
    [
        ('{"a":"token=abc rest"}', r"token=\S+", '{"a":"*** rest"}'),
        ('{"a": [ "x1", "y" ], "b" :"x2"}', r"x\d", '{"a": [ "***", "y" ], "b" :"***"}'),
        # Numbers, keys and the way that the rest is written stay.
        ('{"secret":1.50,"n":17e3, "o":"secret"}', "secret", '{"secret":1.50,"n":17e3, "o":"***"}'),
        (r'{"a":"\u0041\/b","c":"x"}', "x", r'{"a":"\u0041\/b","c":"***"}'),
        # A value is looked at as it reads.
        (r'{"a":"p=\"q r\" s"}', 'p="[^"]*"', '{"a":"*** s"}'),
        (r'{"a":"caf\u00e9 \u007f\t!"}', "é", r'{"a":"caf*** \u007f\t!"}'),
        (r'{"a":"\ud83d\ude00x"}', "x", r'{"a":"\ud83d\ude00***"}'),
        (r'{"a":"line\nTOP\nend"}', "(?s)TOP.*", r'{"a":"line\n***"}'),
        (r'{"a":"\\","b":"x"}', "x", r'{"a":"\\","b":"***"}'),
        # By name: only the value's part goes.
        ('{"db.password":"hunter2"}', "^db.password=.*", '{"db.password":"***"}'),
        ('{"x":{"pass":"a b"},"y":"a b"}', r"pass=\w", '{"x":{"pass":"*** b"},"y":"a b"}'),
        (r'{"a\"b":"v"}', 'a"b=v', r'{"a\"b":"***"}'),
        ('{"env":["A=1","TOKEN=2"]}', r"TOKEN=\d", '{"env":["A=1","***"]}'),
        ('{"key":"v"}', "key", '{"key":"v"}'),
        ('{"a":"b"}', "=b", '{"a":"***"}'),
        ('{"a":"bbb"}', "b", '{"a":"*********"}'),
        ('{"a":""}', "x", '{"a":""}'),
        ('{"a":"ab"}', r"(?=b)|q", '{"a":"ab"}'),  # takes nothing out
    ],
)
def test_what_is_taken_out(raw: str, pattern: str, shown: str) -> None:
    assert fault(pattern) is None
    assert redact(raw, pattern) == shown


def test_several_patterns() -> None:
    assert redact('{"a":"one two three"}', "one", "t.o", "four") == '{"a":"*** *** three"}'


def test_nothing_found_is_the_same_object() -> None:
    event = Event(b'{"a":"b"}', 5, "timeNano", "start")
    redaction = Redaction.of(["x"])
    assert redaction.item(event) is event
    assert redaction.event(event.raw) is event.raw
    text = Unparsed("abc", 3, "not JSON")
    assert redaction.item(text) is text


def test_items_keep_all_else() -> None:
    redaction = Redaction.of(["sh -c.*"])
    raw = b'{"Action":"exec_create: sh -c secret","timeNano":5}'
    event = decode(raw)
    shown = redaction.item(event)
    assert isinstance(shown, Event)
    assert shown.raw == b'{"Action":"exec_create: ***","timeNano":5}'
    assert (shown.time_ns, shown.time_from) == (5, "timeNano")
    text = redaction.item(Unparsed("run sh -c secret", 16, "not JSON"))
    assert text == Unparsed("run ***", 16, "not JSON")


def test_what_is_not_examined_is_not_recorded() -> None:
    long = "a" * (MAX_EXAMINED - 1)
    assert redact(f'{{"k":"{long}"}}', "x") == f'{{"k":"{long}"}}'
    assert redact(f'{{"k":"{long}a"}}', "x") == f'{{"k":"{MARK}"}}'
    assert redact(f'{{"{long}a":"v"}}', "x") == f'{{"{long}a":"{MARK}"}}'
    cut = decode(b"secret " + b"x" * MAX_UNPARSED_TEXT)
    assert isinstance(cut, Unparsed)
    shown = Redaction.of(["no match"]).item(cut)
    assert isinstance(shown, Unparsed)
    assert shown.text == MARK


values = st.recursive(
    st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
PATTERNS = [
    "s",
    "[^a]",
    r"\d+",
    ".",
    r"\\",
    '"',
    "é|ü",
    "(?s).+",
    "=",
    "\x7f",
    r"\s",
    "[\ud800-\udfff]",
]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), values), st.lists(st.sampled_from(PATTERNS), min_size=1))
def test_it_stays_json_of_printable_ascii(tree: dict[str, Any], patterns: list[str]) -> None:
    event = decode(json.dumps({"Action": "x", **tree}, ensure_ascii=False).encode(errors="replace"))
    if isinstance(event, Unparsed):
        return
    shown = Redaction.of(patterns).event(event.raw)
    assert all(0x20 <= byte < 0x7F for byte in shown)
    before, after = json.loads(event.raw), json.loads(shown)
    check(before, after, patterns)


def check(before: Any, after: Any, patterns: list[str]) -> None:
    """The same tree but for strings, in which nothing is left to be found but marks."""
    match before:
        case dict():
            assert before.keys() == after.keys()
            for key in before:
                check(before[key], after[key], patterns)
        case list():
            assert len(before) == len(after)
            for one, other in zip(before, after, strict=True):
                check(one, other, patterns)
        case str():
            for pattern in patterns:
                assert not re.search(pattern, after.replace("*", ""))
            if not any(re.search(pattern, before) for pattern in patterns):
                assert after in (before, MARK) or "=" in patterns or "(?s).+" in patterns
        case _:
            assert before == after


@settings(deadline=None)
@given(st.text(), st.text())
def test_a_text_without_the_pattern_is_left_alone(text: str, key: str) -> None:
    assert Redaction.of(["\0no\0such\0"]).text(text, key) == text


def test_what_is_taken_is_not_endless() -> None:
    """The worst that strangers can do to patterns of one repeat is bearable."""
    began = time.perf_counter()
    for pattern in (r"\s+x", r"\w+@", r"(?:[0-9a-f]{2}:)+z"):
        assert fault(pattern) is None
        for piece in (" ", "a", "aa:", "a."):
            text = piece * (MAX_EXAMINED // len(piece) - 1)
            assert redact(json.dumps({"k": text}), pattern) == json.dumps({"k": text})
    assert time.perf_counter() - began < 10
