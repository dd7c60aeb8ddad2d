"""Containers, their events, and the traffic of one connection."""

from __future__ import annotations

import json
import math
import random

import pytest

from hypermux.core.filters import HYPER_FIELDS, Filters
from hypermux.emulator.containers import ContainerFault, Fleet
from hypermux.emulator.faults import HandshakeFaults, RateLimit, Target
from hypermux.emulator.handshake import Answer
from hypermux.emulator.router import Account
from hypermux.emulator.traffic import Traffic

TIME_NS = 1476375774255155116


def fleet() -> Fleet:
    return Fleet(random.Random("test"))


def traffic(rate: float = 10.0, limit: int | None = None, dialect: str = "a") -> Traffic:
    return Traffic(random.Random("test"), rate, limit, dialect, 100.0)


def test_an_event_of_dialect_a_is_docker_shaped() -> None:
    made, (text,) = fleet().create("busybox", "test4", {"": "", "test3": "test3=test3"})
    assert json.loads(text.at(TIME_NS)) == {
        "status": "create",
        "id": made.id,
        "from": "busybox",
        "Type": "container",
        "Action": "create",
        "Actor": {
            "ID": made.id,
            "Attributes": {
                "": "",
                "image": "busybox",
                "name": "test4",
                "test3": "test3=test3",
            },
        },
        "time": 1476375774,
        "timeNano": TIME_NS,
    }


def test_an_event_of_dialect_b_is_pod_shaped() -> None:
    ships = fleet()
    made, (text,) = ships.create("busybox", "test2", None, "b")
    assert json.loads(text.at(TIME_NS)) == {
        "Action": "ADDED",
        "Actor": {
            "Attributes": {"ExitCode": "", "Image": "busybox", "Labels": None, "Name": "test2"},
            "Id": made.id,
        },
        "From": "busybox",
        "Id": made.id,
        "Status": "Pending",
        "Time": 1476375774,
        "TimeNano": TIME_NS,
        "Type": "container",
    }
    assert [json.loads(t.at(1))["Status"] for t in ships.start(made)] == ["Running"]
    assert [json.loads(t.at(1))["Status"] for t in ships.stop(made)] == ["Succeeded"]
    assert [json.loads(t.at(1))["Action"] for t in ships.remove(made)] == ["DELETED"]


def test_hostile_labels_do_not_disturb_the_times() -> None:
    labels = {'","timeNano":': "\0", "time": "0", "ü\n": '"', "image": "lie"}
    for dialect in ("a", "b"):
        _, (text,) = fleet().create("busybox", "x", labels, dialect)
        event = json.loads(text.at(TIME_NS))
        assert event.get("timeNano", event.get("TimeNano")) == TIME_NS
        assert b"\n" not in text.at(TIME_NS)


def test_a_life_in_order() -> None:
    ships = fleet()
    made, _ = ships.create("busybox", "web")
    with pytest.raises(ContainerFault, match="in use"):
        ships.create("busybox", "web")
    with pytest.raises(ContainerFault, match="not running"):
        ships.stop(made)
    assert [json.loads(t.at(1))["Action"] for t in ships.start(made)] == ["start"]
    with pytest.raises(ContainerFault, match="running already"):
        ships.start(made)
    with pytest.raises(ContainerFault, match="stop it first"):
        ships.remove(made)
    assert [json.loads(t.at(1))["Action"] for t in ships.stop(made)] == ["die", "stop"]
    for reference in (made.id, made.id[:6], "web"):
        assert ships.find(reference) is made
    assert [json.loads(t.at(1))["Action"] for t in ships.remove(made)] == ["destroy"]
    with pytest.raises(ContainerFault, match="no container"):
        ships.find("web")


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ('{"image":{"IMAGE":true}}', True),
        ('{"image":{"IMAGE12":true}}', True),
        ('{"image":{"sha256:IMAGE":true}}', True),
        ('{"image":{"busybox":true}}', True),
        ('{"image":{"busy":true}}', False),
        ('{"container":{"we":true}}', True),
        ('{"label":{"team=a":true,"":true}}', True),
        ('{"label":{"team=a":true,"other":true}}', False),
        ('{"event":{"start":true}}', False),
    ],
)
def test_filters_know_the_image_id(filters: str, passes: bool) -> None:
    made, (text,) = fleet().create("busybox", "web", {"team": "a", "": ""})
    wire = filters.replace("IMAGE12", made.image_id[:12]).replace("IMAGE", made.image_id)
    assert text.passes(Filters.parse_json(wire, fields=HYPER_FIELDS)) is passes


@pytest.mark.parametrize("dialect", ["a", "b", "mixed"])
def test_traffic_follows_from_its_seed_and_has_the_usual_size(dialect: str) -> None:
    first, second = (
        [text.at(TIME_NS) for text in traffic(dialect=dialect).take(500)] for _ in range(2)
    )
    assert first == second
    assert 300 < sum(map(len, first)) / 500 < 500
    shapes = {"status" in json.loads(raw) for raw in first}
    assert shapes == {"a": {True}, "b": {False}, "mixed": {True, False}}[dialect]


def test_traffic_is_due_at_its_rate_and_ends() -> None:
    flow = traffic(rate=10, limit=25)
    assert flow.due(99.0, 1000) == 0
    at = flow.next_at(99.0)
    assert 100.0 <= at < 100.1
    assert flow.due(at, 1000) == 1
    flow.take(1)
    assert flow.due(at + 1.0, 1000) == 10
    assert flow.due(at + 1.0, 3) == 3
    assert flow.due(at + 60.0, 1000) == 24
    flow.take(24)
    assert flow.due(at + 60.0, 1000) == 0
    assert flow.next_at(at) == math.inf


def test_traffic_without_a_rate_and_without_a_bound() -> None:
    assert (traffic(rate=0).due(200.0, 10), traffic(rate=0).next_at(0)) == (0, math.inf)
    assert (traffic(rate=math.inf).due(100.0, 10), traffic(rate=math.inf).next_at(100.0)) == (
        10,
        100.0,
    )


def test_accounts_follow_from_the_seed() -> None:
    one, same = Account.derive("s", 1, ["a"]), Account.derive("s", 1, ["a"])
    other = Account.derive("t", 1, ["a"])
    assert one == same
    assert one.name == "acct-001"
    assert one.access_key != other.access_key
    assert one.secret_key.reveal() not in repr(one)
    assert len(one.secret_key.reveal()) == 40


def test_the_rate_limit_admits_a_burst_and_then_its_rate() -> None:
    limit = RateLimit(10.0, 3)
    assert [limit.admit(0.0) == 0 for _ in range(4)] == [True, True, True, False]
    assert limit.admit(0.0) == pytest.approx(0.1)
    assert limit.admit(0.1) == 0
    admitted = sum(limit.admit(1 + n / 1000) == 0 for n in range(2000))
    assert admitted == 3 + 19


def test_the_latest_rule_that_covers_a_handshake_counts() -> None:
    faults = HandshakeFaults()
    faults.refuse(Target(), Answer(500), None)
    faults.refuse(Target("a"), Answer(429), 2)
    assert [faults.refusal("a", "r") for _ in range(3)] == [Answer(429), Answer(429), Answer(500)]
    assert faults.refusal(None, None) == Answer(500)
    faults.refuse(Target(), Answer(500), 0)
    assert faults.refusal("a", "r") is None
    faults.delay(Target(region="r"), 2.0)
    assert (faults.delay_of("a", "r"), faults.delay_of("a", "s")) == (2.0, 0.0)
    faults.delay(Target(region="r"), 0)
    assert faults.delay_of("a", "r") == 0
