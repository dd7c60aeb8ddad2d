"""Which patterns are taken, and which could be made to take for ever."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypermux.core.patterns import fault


@pytest.mark.parametrize(
    "pattern",
    [
        r"password=\S+",
        r"(?i)(?:password|token)\s*+[=:]\s*+\S+",
        r"AKIA[0-9A-Z]{16}",
        r"\b(?:\d{1,3}\.){3}\d{1,3}\b",
        r"(?:foo|bar)",
        r"(?:ab)+",
        r"(?:[0-9a-f]{2}:)+",
        r"(?:foo|bar)++",
        r"(?P<name>a++)=(?P=name)",
        r"(a++)=\1",
        r"(?s)^(?=.*password).+",
        r"a+|b+|c+",
        r"(?:a+|b++)c",
        r"(?>a+b)c+",
        r"[\d.]{7,40}x",
        r"https?://\S+",
        r"x(?:a+)?",
        r"[+*]+",
        r"[]a]+",
        r"\(+x",
        r"(?#a+*)b",
        r"a(?=b+)",
        r"(?<!a)b",
        r"(a)(?(1)b|c)",
        r"a{2,5}b{3}",
        r"a{,3}b",
        r"a{x}{",
        r"()+a",
        r"eyJ[\w-]++\.[\w-]++\.[\w-]+",
        "[[a]b",
    ],
)
def test_patterns_that_are_taken(pattern: str) -> None:
    assert fault(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+",
        r"(?:a|a)*b",
        r"(?:a?b?)+c",
        r"(?:ab?)*c",
        r"(\w+\s?)*!",
        r"((ab)*c)*d",
        r"(a+){2}",
        r"(?:a{1,30}){1,30}b",
        r"(?:a{1,3}){999999}b",
        r"(?i:(?:x|y)+?)z",
        r"(?:(?=a)a|a)+b",
        r"(?P<n>[ab]+|c)+d",
    ],
)
def test_patterns_that_may_take_for_ever(pattern: str) -> None:
    assert "may take for ever" in (fault(pattern) or "")


@pytest.mark.parametrize(
    "pattern",
    [
        r".*password.*",
        r"a+b+",
        r"a*x{0,40}b",
        r"(?:a+|b)c+",
        r"(?:a++b|a)*+c",
        r"(?:(?=a+)a)+",
        r"(?:(?>\w+)\.)+x",
        r"(?:ab)+c*d",
        r"x(?:a+)?b+",
        r"(?:a+)b++c",
        r"a+(?=b+)",
        r"a+(?:b++c)",
        r"(a+)=\1",
        r"(?P<name>a+)=(?P=name)",
        r"a?b?c?d?e?f?g?h?i?j?k",
        r"\d{1,15}x?\d{1,15}x?\d{1,15}",
    ],
)
def test_patterns_that_may_take_very_long(pattern: str) -> None:
    assert "may take very long" in (fault(pattern) or "")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "not a regular expression: missing )"),
        ("a(b", "at character 2"),
        ("a{99999999999999}", "not a regular expression: it is too large"),
        ("(" * 3000, "is not a regular expression"),
        ("", "matches what is empty"),
        ("x*", "matches what is empty"),
        ("x?|y*", "matches what is empty"),
        ("(?x) a + b", "has the flag x"),
    ],
)
def test_patterns_that_are_wrong(pattern: str, says: str) -> None:
    assert says in (fault(pattern) or "")


@settings(deadline=None)
@given(st.text(alphabet="ab()[]{}*+?|\\^$.,0123:=!<>P#-iw", max_size=30))
def test_no_pattern_breaks_the_counting(pattern: str) -> None:
    fault(pattern)
