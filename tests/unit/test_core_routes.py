"""Which handler answers a request, and in whose form it is refused."""

from __future__ import annotations

import json
import re

import pytest

from hypermux.core.http import HttpRequest, Reply
from hypermux.core.routes import Route, Table, route


def message(status: int, sentence: str) -> Reply:
    body = json.dumps({"message": sentence}).encode()
    return Reply(status, body, headers=(("Api-Version", "1.51"),))


OWN = Table({"/status": {"GET": "status"}, "/reload": {"POST": "reload"}})
ENGINE = Table(
    {"/events": {"GET": "events"}, "/_ping": {"GET": "ping", "HEAD": "bare ping"}},
    prefix=re.compile(r"/v\d+\.\d+(?=/)"),
    error=message,
)


def ask(method: str, path: str) -> Route[str]:
    return route(HttpRequest(method, path), (OWN, ENGINE))


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/status", "status"),
        ("HEAD", "/status", "status"),
        ("POST", "/reload", "reload"),
        ("GET", "/events", "events"),
        ("GET", "/v1.43/events", "events"),
        ("HEAD", "/v1.51/events", "events"),
        ("GET", "/_ping", "ping"),
        ("HEAD", "/_ping", "bare ping"),
    ],
)
def test_found(method: str, path: str, answer: str) -> None:
    assert ask(method, path).answer == answer


@pytest.mark.parametrize(
    ("method", "path", "status", "key"),
    [
        ("GET", "/reload", 405, "error"),
        ("HEAD", "/reload", 405, "error"),
        ("DELETE", "/status", 405, "error"),
        ("GET", "/statu", 404, "error"),
        ("GET", "", 404, "error"),
        ("GET", "/v1", 404, "error"),
        ("POST", "/events", 405, "message"),
        ("GET", "/v1.43/nothing", 404, "message"),
        ("GET", "/v1.43/status", 404, "message"),  # ours has no versions
        ("GET", "/v1.43/v1.43/events", 404, "message"),
    ],
)
def test_refused(method: str, path: str, status: int, key: str) -> None:
    found = ask(method, path)
    assert isinstance(found.answer, Reply)
    assert found.answer.status == status
    assert set(json.loads(found.answer.body)) == {key}
    assert set(json.loads(found.error(500, "x").body)) == {key}
    headers = dict(found.answer.headers)
    assert ("Api-Version" in headers) == (key == "message")
    if status == 405:
        assert headers["Allow"] == ("POST" if path == "/reload" else "GET, HEAD")


def test_what_there_is_is_said() -> None:
    found = ask("GET", "/nothing")
    assert isinstance(found.answer, Reply)
    assert all(path in found.answer.body.decode() for path in ("/status", "/events"))
    assert isinstance(route(HttpRequest("GET", "/"), ()).answer, Reply)
