"""What a list of containers shows that the stream did not: a test per row."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hypermux.core.containers import (
    MAX_CONTAINERS,
    Container,
    Happening,
    Implied,
    Inspected,
    Listed,
    Outage,
    missing,
    read_inspection,
    read_list,
    selected,
    to_inspect,
)
from hypermux.core.decoding import decode
from hypermux.core.filters import Filters
from hypermux.core.recollection import Recollection
from hypermux.model.records import Event

S = 1_000_000_000
FROM, BEFORE = 1000 * S, 2000 * S
IN, EARLIER, LATER = 1500 * S, 500 * S, 2500 * S


def event(action: str, time_ns: int = IN, key: str = "c", **attributes: str) -> bytes:
    tree: dict[str, Any] = {
        "Type": "container",
        "Action": action,
        "Actor": {"ID": key, "Attributes": {"image": "img", "name": "n", **attributes}},
        "timeNano": time_ns,
    }
    return json.dumps(tree).encode()


def implied(*events: bytes) -> Implied:
    found = Implied()
    for raw in events:
        found.apply(raw)
    return found


def look(
    created: int = EARLIER, started: int = 0, finished: int = 0, *, running: bool = False
) -> Inspected:
    return Inspected(running, created, started, finished, 3)


def found(
    inspected: Inspected | None, before: Implied, told: Implied | None = None
) -> list[tuple[str, int | None]]:
    listed = []
    looks = {}
    if inspected is not None:
        listed.append(Listed("c", "n", "img", inspected.running, inspected.created_ns, ""))
        looks["c"] = inspected
    happenings = missing(listed, looks, before, told or before, Outage(FROM, BEFORE))
    return [(happening.action, happening.time_ns) for happening in happenings]


NONE = implied()
CREATED = implied(event("create", EARLIER))
RUNNING = implied(event("create", EARLIER), event("start", EARLIER + 1))
ENDED = implied(event("create", EARLIER), event("start", EARLIER + 1), event("die", EARLIER + 2))


@pytest.mark.parametrize(
    ("says", "known", "inspected", "expected"),
    [
        ("created", NONE, look(IN), [("create", IN)]),
        (
            "created and started",
            NONE,
            look(IN, IN + 1, running=True),
            [("create", IN), ("start", IN + 1)],
        ),
        (
            "created, run and ended",
            NONE,
            look(IN, IN + 1, IN + 2),
            [("create", IN), ("start", IN + 1), ("die", IN + 2)],
        ),
        (
            "ended by a clock coarser than the start's",
            NONE,
            look(IN, IN + 2, IN + 1),
            [("create", IN), ("start", IN + 2), ("die", IN + 1)],
        ),
        ("known, and started", CREATED, look(started=IN, running=True), [("start", IN)]),
        ("known to run, and ended", RUNNING, look(started=EARLIER, finished=IN), [("die", IN)]),
        (
            "known to run, ended and started again",
            RUNNING,
            look(started=IN + 1, finished=IN, running=True),
            [("die", IN), ("start", IN + 1)],
        ),
        (
            "known to run, restarted and ended again",
            RUNNING,
            look(started=IN, finished=IN + 1),
            [("start", IN), ("die", IN + 1)],
        ),
        (
            "known to have ended, and started",
            ENDED,
            look(started=IN, running=True),
            [("start", IN)],
        ),
        ("as it was known: never started", CREATED, look(), []),
        ("as it was known: running", RUNNING, look(started=EARLIER, running=True), []),
        ("as it was known: ended", ENDED, look(started=EARLIER, finished=EARLIER + 1), []),
        ("older than our watch, never heard of", NONE, look(EARLIER, EARLIER, running=True), []),
        (
            "older than our watch, started in the outage",
            NONE,
            look(EARLIER, IN, EARLIER, running=True),
            [("start", IN)],
        ),
        ("older than our watch, ended in it", NONE, look(EARLIER, EARLIER, IN), [("die", IN)]),
        ("created since: the live stream's", NONE, look(LATER, LATER, running=True), []),
        ("created before, started since", CREATED, look(started=LATER, running=True), []),
        ("removed, not running", ENDED, None, [("destroy", None)]),
        ("removed while it ran", RUNNING, None, [("die", None), ("destroy", None)]),
        ("created and removed in the outage", NONE, None, []),
        ("paused, renamed: not covered", RUNNING, look(started=EARLIER, running=True), []),
        ("in the first moment of it", CREATED, look(started=FROM, running=True), [("start", FROM)]),
        ("and a moment before", CREATED, look(started=FROM - 1, running=True), []),
    ],
)
def test_missing(
    says: str, known: Implied, inspected: Inspected | None, expected: list[tuple[str, int | None]]
) -> None:
    assert found(inspected, known) == expected, says


@pytest.mark.parametrize(
    ("says", "told", "inspected", "expected"),
    [
        ("the ring has it all", [event("create"), event("start", IN + 9)],
         look(IN - 1, IN, running=True), []),
        ("the ring has the start only", [event("start", IN + 9)], look(IN - 1, IN, running=True),
         [("create", IN - 1)]),
        ("the ring has the last start; the end before it is missing", [event("start", IN + 9)],
         look(EARLIER, IN + 8, IN, running=True), [("die", IN)]),
        ("the ring has the removal", [event("destroy")], None, []),
        ("created while the list was on its way", [event("create", LATER, key="new")], None,
         [("destroy", None)]),
    ],
)  # fmt: skip
def test_what_is_about_to_be_told_is_not_missing(
    says: str,
    told: list[bytes],
    inspected: Inspected | None,
    expected: list[tuple[str, int | None]],
) -> None:
    before = CREATED if inspected is None else NONE
    after = before.copy()
    for raw in told:
        after.apply(raw)
    assert found(inspected, before, after) == expected, says


def test_many_containers_come_in_order_of_time() -> None:
    listed = [Listed(key, key, "i", True, IN, "") for key in "abc"]
    looks = {"a": look(IN + 5, IN + 9, running=True), "b": look(IN), "c": look(IN + 7)}
    happenings = missing(listed, looks, NONE, NONE, Outage(FROM, None))
    assert [(h.id, h.action) for h in happenings] == [
        ("b", "create"), ("a", "create"), ("c", "create"), ("a", "start"),
    ]  # fmt: skip
    assert missing(listed, {}, NONE, NONE, Outage(FROM, None)) == []


def test_exit_codes() -> None:
    ended = missing(
        [Listed("c", "n", "i", False, IN, "")],
        {"c": look(EARLIER, EARLIER, IN)},
        RUNNING,
        RUNNING,
        Outage(FROM, BEFORE),
    )
    assert ended[0].exit_code == 3
    again = missing(
        [Listed("c", "n", "i", True, IN, "")],
        {"c": look(EARLIER, IN + 1, IN, running=True)},
        RUNNING,
        RUNNING,
        Outage(FROM, BEFORE),
    )
    assert again[0].exit_code is None  # the engine forgot it with the next start


@pytest.mark.parametrize(
    ("listed", "known", "short", "looked_at"),
    [
        (Listed("c", "n", "i", True, IN, "Up 3 hours"), NONE, True, True),  # created in it
        (Listed("c", "n", "i", True, EARLIER, "Up 3 hours"), NONE, True, False),
        (Listed("c", "n", "i", True, EARLIER, "Up 3 hours"), NONE, False, True),
        (Listed("c", "n", "i", True, EARLIER, "Up 3 seconds"), RUNNING, True, True),
        (Listed("c", "n", "i", True, EARLIER, "Up 2 days (healthy)"), RUNNING, True, False),
        (Listed("c", "n", "i", True, EARLIER, "Up About an hour"), RUNNING, True, True),
        (Listed("c", "n", "i", True, EARLIER, "Up 2 days"), ENDED, True, True),  # differs
        (Listed("c", "n", "i", False, EARLIER, "Exited (0) 3 weeks ago"), ENDED, True, False),
        (Listed("c", "n", "i", False, EARLIER, "Exited (0) 3 weeks ago"), RUNNING, True, True),
    ],
)
def test_who_is_looked_at(listed: Listed, known: Implied, short: bool, looked_at: bool) -> None:
    now_ns = FROM + (600 if short else 7200) * S
    assert to_inspect([listed], known, from_ns=FROM, now_ns=now_ns) == ["c"] * looked_at


def test_those_that_differ_are_looked_at_first() -> None:
    same = Listed("same", "n", "i", True, EARLIER, "")
    new = Listed("new", "n", "i", False, IN, "")
    assert to_inspect([same, new], NONE, from_ns=FROM, now_ns=LATER) == ["new", "same"]


def test_implied_follows_a_life_and_forgets_it() -> None:
    life = implied(
        event("create", 1), event("start", 2), event("die", 3), event("rename", 4, name="m"),
        event("exec_create: sh", 5), event("pause", 6),
    )  # fmt: skip
    assert life.containers == {"c": Container("m", "img", True, False, 2, 3)}
    for word in ("destroy", "remove"):
        gone = life.copy()
        gone.apply(event(word))
        assert gone.containers == {}
    assert len(life.containers) == 1
    assert Implied.unpack(life.pack()) == life


@pytest.mark.parametrize(
    "raw",
    [
        b'{"Type":"network","Action":"create","Actor":{"ID":"x","Attributes":{"container":"c"}}}',
        b'{"Type":"container","Action":"create"}',
        b'{"Type":"container","Action":"create","Actor":{"ID":""}}',
        b'{"Type":"container","Action":"create","Actor":{"ID":"x","Attributes":{"name":7}}}',
        b'{"Type":"container","Action":["create"],"Actor":{"ID":"x"}}',
        b'"container"',
        b'{"Action":"MODIFIED","Status":"Running","Type":"container","Id":"x"}',
    ],
)
def test_other_events_imply_nothing(raw: bytes) -> None:
    assert implied(raw).containers == {}


def test_odd_times_count_as_none() -> None:
    for time in ("-5", "1e30", "0"):
        raw = event("start").replace(str(IN).encode(), time.encode())
        assert implied(raw).containers["c"].started_ns == 0


def test_the_longest_unheard_of_is_forgotten_first() -> None:
    many = implied(*(event("create", key=f"{n}") for n in range(MAX_CONTAINERS)))
    many.apply(event("start", key="0"))
    many.apply(event("create", key="new"))
    assert len(many.containers) == MAX_CONTAINERS
    assert "1" not in many.containers
    assert {"0", "new"} <= many.containers.keys()


def test_an_event_of_docker_s_shape() -> None:
    labels = {"env": "prod", "é": "\x7f"}
    happening = Happening("die", IN + 7, "c", "n", "img:1", labels, 3)
    (message,) = selected([happening], Filters())
    decoded = decode(message)
    assert isinstance(decoded, Event)
    assert (decoded.time_ns, decoded.time_from, decoded.action) == (IN + 7, "timeNano", "die")
    assert json.loads(message) == {
        "status": "die", "id": "c", "from": "img:1", "Type": "container", "Action": "die",
        "Actor": {"ID": "c", "Attributes": {**labels, "exitCode": "3", "image": "img:1",
                                            "name": "n"}},
        "scope": "local", "time": 1500, "timeNano": IN + 7,
    }  # fmt: skip
    (message,) = selected([Happening("destroy", None, "c", "n", "img:1")], Filters())
    decoded = decode(message)
    assert isinstance(decoded, Event)
    assert (decoded.time_ns, decoded.time_from) == (None, "received")


@pytest.mark.parametrize(
    ("flags", "actions"),
    [
        ([], ["create", "die", "destroy"]),
        (["event=create"], ["create"]),
        (["type=volume"], []),
        (["type=container", "container=n"], ["create", "die", "destroy"]),
        (["image=other"], []),
        (["label=env=prod"], ["create", "die", "destroy"]),  # a removed one has no labels any more
        (["label=env=lab"], ["destroy"]),
    ],
)
def test_the_source_s_filters(flags: list[str], actions: list[str]) -> None:
    labels = {"env": "prod"}
    happenings = [
        Happening("create", IN, "c", "n", "img", labels),
        Happening("die", IN, "c", "n", "img", labels, 0),
        Happening("destroy", None, "c", "n", "img"),
    ]
    messages = selected(happenings, Filters.parse_flags(flags))
    assert [json.loads(message)["Action"] for message in messages] == actions


def test_the_engine_s_answers() -> None:
    body = b"""[{"Id":"7c0","Names":["/c2","/other/link"],"Image":"img:1","ImageID":"sha256:1",
        "Created":1795549213,"Ports":[],"Labels":{"a":"b"},"State":"running",
        "Status":"Up 1 second"},
        {"Id":"8","Names":null,"Image":"","Created":1,"Labels":null,"State":"exited"}]"""
    assert read_list(body) == [
        Listed("7c0", "c2", "img:1", True, 1795549213 * S, "Up 1 second", {"a": "b"}),
        Listed("8", "", "", False, S, ""),
    ]
    body = b"""{"Id":"1","Created":"2026-11-24T19:40:13.216933244Z","State":{"Status":"running",
        "Running":true,"ExitCode":0,"StartedAt":"2026-11-24T19:40:13.550359882Z",
        "FinishedAt":"0001-01-01T00:00:00Z"}}"""
    created = 1795549213216933244
    assert read_inspection(body) == Inspected(True, created, 1795549213550359882, 0, 0)
    for bad in (b"", b"{}", b"[]", b'{"Created":"yesterday","State":{}}', b"[" * 100_000):
        with pytest.raises(ValueError, match="engine"):
            read_inspection(bad)
    for bad in (b"", b"{}", b'[{"Names":[]}]', b'[{"Id":7}]'):
        with pytest.raises(ValueError, match="list of containers"):
            read_list(bad)


def test_a_recollection_keeps_the_engine_s_events_and_what_all_imply() -> None:
    kept = Recollection()
    kept.note(Event(event("create", 1), 1, "timeNano"))
    kept.note(Event(event("start", 2), 2, "timeNano", synthetic=True))
    assert kept.implied.containers["c"].running
    assert len(kept.seen.counts()) == 1
    kept.seen.anchor = b"\x01"
    kept.since_ns = 7
    assert Recollection.of(kept.stored()) == kept
    other = kept.copy()
    other.note(Event(event("destroy", 3), 3, "timeNano"))
    assert other != kept
