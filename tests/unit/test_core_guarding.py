"""Whom a port answers."""

from __future__ import annotations

import pytest

from hypermux.core.guarding import Guard
from hypermux.core.http import HttpRequest
from hypermux.model.accounts import Secret

TOKEN = "correct-horse-battery"


def status(guard: Guard, **headers: str) -> int:
    refusal = guard.refusal(HttpRequest("GET", "/", headers=headers))
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("LocalHost:8787", 200),
        ("127.0.0.1", 200),
        ("127.0.0.1:8787", 200),
        ("[::1]:8787", 200),
        ("[::1]", 200),
        ("127.8.9.1:1", 200),  # the configured address
        ("evil.example.com", 421),
        ("evil.example.com:8787", 421),
        ("localhost.evil.example.com", 421),
        ("127.0.0.1.evil.example.com:8787", 421),
        ("127.0.0.1@evil.example.com", 421),
        ("evil.example.com, localhost", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_without_a_token_the_host_has_to_be_this_computer(host: str, expected: int) -> None:
    assert status(Guard("127.8.9.1", True), host=host) == expected


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer ", 401),
        ("Bearer \u00e9" * 3, 401),
        ("", 401),
    ],
)
def test_with_a_token_it_is_wanted(authorization: str, expected: int) -> None:
    for guard in (Guard("0.0.0.0", False, Secret(TOKEN)), Guard("::1", True, Secret(TOKEN))):
        found = status(guard, host="monitor.example.com", authorization=authorization)
        assert found == expected
    refusal = guard.refusal(HttpRequest("GET", "/"))
    assert refusal is not None
    assert dict(refusal.headers)["WWW-Authenticate"].startswith("Bearer")
    assert TOKEN.encode() not in refusal.body


def test_a_token_that_went_leaves_the_door_shut() -> None:
    # A reload takes a token away at once, and the address only with a restart.
    assert status(Guard("0.0.0.0", False), host="localhost") == 401
