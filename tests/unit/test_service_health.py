"""Whether to restart it, and whether to send it readers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_service_metrics import source

from hypermux.core.http import Reply
from hypermux.service.health import STUCK_S, livez, needed, readyz


def body(reply: Reply) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply.body)
    return found


@pytest.mark.parametrize(
    ("ready_when", "configured", "least"),
    [("all", 5, 5), ("all", 0, 0), ("any", 5, 1), ("any", 0, 0), ("80%", 5, 4), ("80%", 6, 5),
     ("1%", 5, 1), ("100%", 7, 7)],
)  # fmt: skip
def test_how_many_are_needed(ready_when: str, configured: int, least: int) -> None:
    assert needed(ready_when, configured) == least


def test_live() -> None:
    assert livez(1.0, None).status == 200
    stuck = livez(STUCK_S + 1, None)
    assert stuck.status == 503
    assert "round" in body(stuck)["error"]
    refusing = livez(STUCK_S + 1, "no space left")  # what it holds would be lost by a restart
    assert refusing.status == 200
    assert body(refusing)["disk"] == "no space left"


def test_ready() -> None:
    up, denied = source("r1"), source("r2", state="denied", connected_seconds=None)
    assert readyz([up], "all", None).status == 200
    reply = readyz([up, denied], "all", None)
    assert reply.status == 503
    found = body(reply)
    assert (found["configured"], found["connected"], found["needed"]) == (2, 1, 2)
    assert [(m["account"], m["region"], m["state"]) for m in found["missing"]] == [
        ("prod", "r2", "denied")
    ]
    assert readyz([up, denied], "50%", None).status == 200
    assert readyz([up], "all", "no space left").status == 503
    many = body(readyz([denied] * 80, "any", None))
    assert (len(many["missing"]), many["missing_more"]) == (50, 30)
