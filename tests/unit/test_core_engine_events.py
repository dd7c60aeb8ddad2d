"""Records as an Engine's events: their shape, the filters' and times' choice, spoofed labels."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypermux.core.engine_events import EngineEvents, EventsQuery
from hypermux.core.filters import Filters
from hypermux.core.recording import Encoder, rfc3339
from hypermux.model.accounts import SourceId
from hypermux.model.records import (
    Checkpoint,
    Event,
    Gap,
    Item,
    StateChange,
    TimeFrom,
    Unparsed,
)

NOW = 1_795_561_934_097_274_562
PROD = SourceId("prod", "us-1")
OURS = {"hypermux.account": "prod", "hypermux.region": "us-1"}
ID = "f296" + 60 * "0"

START: dict[str, Any] = {
    "status": "start",
    "id": ID,
    "from": "lab:5000/app:2",
    "Type": "container",
    "Action": "start",
    "Actor": {"ID": ID, "Attributes": {"image": "lab:5000/app:2", "name": "test4", "env": "a=b"}},
    "scope": "local",
    "time": NOW // 10**9,
    "timeNano": NOW,
}
VOLUME: dict[str, Any] = {
    "Type": "volume",
    "Action": "create",
    "Actor": {"ID": "data", "Attributes": {"driver": "local"}},
    "scope": "local",
    "time": NOW // 10**9,
    "timeNano": NOW,
}
POD: dict[str, Any] = {
    "Action": "MODIFIED",
    "Actor": {
        "Attributes": {"ExitCode": "", "Image": "busybox", "Labels": {"env": "x"}, "Name": "test2"},
        "Id": "d180",
    },
    "From": "busybox",
    "Id": "d180",
    "Status": "Running",
    "Time": 1476017460,
    "TimeNano": 1476017460533640000,
    "Type": "container",
}


def line(
    item: Item | Checkpoint,
    source: SourceId | None = PROD,
    *,
    received_ns: int = NOW,
    durable: int | None = None,
) -> bytes:
    return Encoder().encode(
        7, item, source=source, at_ns=received_ns, received_ns=received_ns, durable=durable
    )


def event(
    value: Any,
    time_ns: int | None = NOW,
    time_from: TimeFrom = "timeNano",
    *,
    synthetic: bool = False,
) -> Event:
    raw = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return Event(raw, time_ns, time_from, synthetic=synthetic)


def show(block: bytes, query: EventsQuery | None = None) -> list[dict[str, Any]]:
    shown = EngineEvents(query or EventsQuery()).show(block)
    assert all(text.endswith(b"\n") and text.count(b"\n") == 1 for text in shown)
    return [json.loads(text) for text in shown]


def asking(**filters: list[str]) -> EventsQuery:
    return EventsQuery(filters=Filters.from_mapping(filters))


def with_ours(value: dict[str, Any], **more: str) -> dict[str, Any]:
    actor = value["Actor"]
    return {**value, "Actor": {**actor, "Attributes": {**actor["Attributes"], **OURS, **more}}}


# Shape


@pytest.mark.parametrize("value", [START, VOLUME])
def test_an_engines_event_is_spliced(value: dict[str, Any]) -> None:
    text = EngineEvents(EventsQuery()).show(line(event(value)))[0]
    assert json.loads(text) == with_ours(value)
    raw = json.dumps(value, separators=(",", ":")).encode()
    added = b'"hypermux.account":"prod","hypermux.region":"us-1",'
    assert text == raw.replace(b'"Attributes":{', b'"Attributes":{' + added) + b"\n"


def test_the_head_of_a_record_may_hold_more_than_the_source() -> None:
    """The first record of a batch says what is durable, and other sources other names."""
    other = SourceId('a"b,\\', "b")
    block = line(event(START), durable=6) + line(event(START), other) + line(event(START))
    shown = [e["Actor"]["Attributes"] for e in show(block)]
    assert [a["hypermux.account"] for a in shown] == ["prod", 'a"b,\\', "prod"]
    assert [a["hypermux.region"] for a in shown] == ["us-1", "b", "us-1"]


def test_what_was_never_sent_says_so() -> None:
    shown = show(line(event(START, synthetic=True)) + line(event(START)))
    assert shown == [with_ours(START, **{"hypermux.synthetic": "true"}), with_ours(START)]


LEGACY = {"status": "start", "id": ID, "from": "lab:5000/app:2"}
NEWER = {key: value for key, value in START.items() if key not in LEGACY}
PULL: dict[str, Any] = {**VOLUME, "Type": "image", "Action": "pull"}


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        pytest.param(NEWER, with_ours(START), id="API 1.52 has no status, id and from"),
        pytest.param(
            PULL, with_ours({**PULL, "status": "pull", "id": "data"}), id="an image is from none"
        ),
        pytest.param(
            {**VOLUME, "Actor": {"ID": "", "Attributes": {}}},
            with_ours({**VOLUME, "Actor": {"ID": "", "Attributes": {}}}),
            id="no attributes",
        ),
        pytest.param(
            {**VOLUME, "Actor": {"ID": "x", "Attributes": None}},
            with_ours({**VOLUME, "Actor": {"ID": "x", "Attributes": {}}}),
            id="null",
        ),
        pytest.param({**START, "more": [1.5]}, with_ours({**START, "more": [1.5]}), id="unknown"),
        pytest.param(
            {**START, "HealthStatus": "ok"}, with_ours({**START, "HealthStatus": "ok"}), id="Podman"
        ),
        pytest.param(
            {"status": "die", "id": ID, "from": "busybox", "time": 3},
            with_ours(
                {
                    "status": "die",
                    "id": ID,
                    "from": "busybox",
                    "Type": "container",
                    "Action": "die",
                    "Actor": {"ID": ID, "Attributes": {}},
                    "time": 3,
                    "timeNano": NOW,
                }
            ),
            id="the oldest Engines",
        ),
        pytest.param(
            POD,
            {
                "status": "Running",
                "id": "d180",
                "from": "busybox",
                "Type": "container",
                "Action": "MODIFIED",
                "Actor": {
                    "ID": "d180",
                    "Attributes": {
                        **OURS,
                        "env": "x",
                        "exitCode": "",
                        "image": "busybox",
                        "name": "test2",
                    },
                },
                "time": NOW // 10**9,
                "timeNano": NOW,
            },
            id="dialect B",
        ),
        pytest.param(
            {**POD, "Actor": {"Attributes": {"Labels": None, "Name": "n", "n": 1}, "Id": "i"}},
            {
                "status": "Running",
                "id": "d180",
                "from": "busybox",
                "Type": "container",
                "Action": "MODIFIED",
                "Actor": {"ID": "i", "Attributes": {**OURS, "name": "n", "n": "1"}},
                "time": NOW // 10**9,
                "timeNano": NOW,
            },
            id="dialect B without labels",
        ),
        pytest.param({**START, "timeNano": 1.5e18}, with_ours(START), id="a float"),
        pytest.param({**START, "timeNano": 0}, with_ours(START), id="a zero time"),
    ],
)
def test_what_is_not_an_engines_gets_its_shape(sent: Any, shown: dict[str, Any]) -> None:
    assert show(line(event(sent))) == [shown]


def test_an_event_without_a_time_has_that_of_its_receipt() -> None:
    sent = {key: value for key, value in START.items() if key not in ("time", "timeNano")}
    assert show(line(event(sent, None, "received"))) == [with_ours(START)]


SPOOF = {**START, "Actor": {"ID": ID, "Attributes": {"hypermux.account": "other", "name": "n"}}}


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(SPOOF).encode(),
        json.dumps(SPOOF, separators=(",", ":")).encode(),
        json.dumps(SPOOF, separators=(",", ":")).encode().replace(b"hyper", b"\\u0068yper"),
        json.dumps({**SPOOF, "Status": "Running"}).encode(),
        json.dumps({**POD, "Actor": {"Attributes": {"Labels": {**OURS, "hypermux.account": "o"}}}})
        .encode(),
        # Twice the same key: readers take the last, so the last is the one to change.
        json.dumps(START, separators=(",", ":"))
        .encode()
        .replace(b',"scope"', b',"Actor":{"ID":"i","Attributes":{"a":"b"}},"scope"'),
        json.dumps(START, separators=(",", ":"))
        .encode()
        .replace(b',"scope"', b',"Actor":{"ID":"i","Attributes":{"hypermux.region":"x"}},"scope"'),
    ],
)  # fmt: skip
def test_no_label_says_whose_an_event_is(raw: bytes) -> None:
    [shown] = show(line(event(raw)))
    attributes = shown["Actor"]["Attributes"]
    assert {name: attributes[name] for name in OURS} == OURS
    assert not show(line(event(raw)), asking(label=["hypermux.account=other"]))
    assert show(line(event(raw)), asking(label=["hypermux.account=prod"]))


HEAD = b'{"Type":"volume","Action":"create","time":1,"timeNano":1,"Actor":'


@pytest.mark.parametrize(
    "actors",
    [
        b'{"ID":"a","Attributes":{"hypermux.account":"o"},"Attributes" :{}}',
        b'{"ID":"a","Attributes":{"hypermux.account":"o","k":"v"},"\\u0041ttributes":{"k":"v"}}',
        b'{"ID":"a","Attributes":{"hypermux.account":"o"}},"Actor" :{"ID":"a","Attributes" :{}}',
        b'{"ID":"a","Attributes":{}},"actor":{"attributes":{"hypermux.account":"o"}}',
        b'{"ID":"a","Attributes":{}},"ACTOR":{"ATTRIBUTES":{"hypermux.account":"o"}}',
    ],
)
def test_a_key_that_readers_differ_about_breaks_and_spoofs_nothing(actors: bytes) -> None:
    """Clients in Go take the last of two, in any case; and what is no JSON ends their streams."""
    pairs: list[tuple[str, Any]] = []

    def note(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs.extend((key.casefold(), value) for key, value in found)
        return dict(found)

    [shown] = EngineEvents(EventsQuery()).show(line(event(HEAD + actors + b"}")))
    json.loads(shown, object_pairs_hook=note)
    assert [value for key, value in pairs if key == "hypermux.account"] == ["prod"]
    assert [key for key, _ in pairs].count("actor") == 1


# Losses

GAP = Gap(NOW - 5 * 10**9, NOW, "start", "possible")


def test_a_gap() -> None:
    [shown] = show(line(GAP))
    assert shown == {
        "Type": "hypermux",
        "Action": "gap",
        "Actor": {
            "ID": "prod/us-1",
            "Attributes": {
                **OURS,
                "cause": "start",
                "certainty": "possible",
                "from": rfc3339(NOW - 5 * 10**9),
                "to": rfc3339(NOW),
            },
        },
        "scope": "local",
        "time": NOW // 10**9,
        "timeNano": NOW,
    }
    [counted] = show(line(Gap(NOW, NOW, "overflow", "proven", 12)))
    assert counted["Actor"]["Attributes"]["lost"] == "12"


def test_what_was_not_readable_is_lost_too() -> None:
    [shown] = show(line(Unparsed("text", 4, "not JSON")))
    assert (shown["Type"], shown["Action"]) == ("hypermux", "unparsed")
    assert shown["Actor"]["Attributes"] == {**OURS, "reason": "not JSON", "size": "4"}


@pytest.mark.parametrize("item", [StateChange("up"), Checkpoint(NOW)])
def test_what_has_no_counterpart_is_not_shown(item: Item | Checkpoint) -> None:
    assert show(line(item, None if isinstance(item, Checkpoint) else PROD)) == []


@pytest.mark.parametrize(
    ("filters", "of_one", "of_all"),
    [
        ({}, True, True),
        ({"type": ["container"]}, False, False),
        ({"type": ["container", "hypermux"]}, True, True),
        ({"event": ["gap"]}, True, True),
        ({"event": ["die"]}, False, False),
        ({"container": ["prod"]}, True, False),  # as a prefix of the Actor's ID, like all kinds
        ({"image": ["busybox"]}, False, False),
        ({"scope": ["local"]}, True, True),
        ({"label": ["hypermux.account=prod"]}, True, True),
        ({"label": ["hypermux.account=prod", "hypermux.region=us-1"]}, True, True),
        ({"label": ["hypermux.account"]}, True, True),
        ({"label": ["hypermux.account=lab"]}, False, True),
        ({"label": ["hypermux.account=prod", "env"]}, False, False),
        ({"label": ["cause=start"]}, True, True),
    ],
)
def test_a_gap_is_shown_unless_a_filter_leaves_it_out(
    filters: dict[str, list[str]], of_one: bool, of_all: bool
) -> None:
    query = asking(**filters)
    assert bool(show(line(GAP), query)) == of_one
    shown = show(line(GAP, None), query)
    assert [e["Actor"]["ID"] for e in shown] == (["hypermux"] if of_all else [])


@pytest.mark.parametrize(
    ("since_s", "until_s", "passes"),
    [
        (None, None, True),
        (0, None, True),
        (0.001, None, False),
        (-5, -5, True),
        (None, -5, True),
        (None, -6, False),
        (-3, -2, True),
    ],
)
def test_a_gap_passes_when_any_part_of_it_is_in_time(
    since_s: float | None, until_s: float | None, passes: bool
) -> None:
    since, until = (None if s is None else NOW + int(s * 10**9) for s in (since_s, until_s))
    assert bool(show(line(GAP), EventsQuery(since, until))) == passes


# What is chosen


@pytest.mark.parametrize(
    ("since", "until", "passes"),
    [
        (None, None, True),
        (NOW, NOW, True),
        (NOW + 1, None, False),
        (None, NOW - 1, False),
        (-(10**30), 10**30, True),
        (10**30, None, False),
        (None, 0, True),
        (0, -1, True),
        (None, 1, False),
    ],
)
def test_times_are_the_events_own_and_inclusive(
    since: int | None, until: int | None, passes: bool
) -> None:
    late = line(event(START), received_ns=NOW + 10**12)
    assert bool(show(late, EventsQuery(since, until))) == passes


MATCHES: list[tuple[dict[str, list[str]], bool]] = [
    ({"type": ["container"]}, True),
    ({"type": ["cont"]}, False),
    ({"type": ["volume", "container"]}, True),
    ({"event": ["start"]}, True),
    ({"event": ["sta"]}, False),
    ({"event": ["sta", "exec_start"]}, True),
    ({"container": ["f296"]}, True),
    ({"container": ["test"]}, True),
    ({"container": ["est4"]}, False),
    ({"volume": ["test4"]}, True),  # whatever the event's own type
    ({"network": ["x"]}, False),
    ({"daemon": ["x"]}, False),
    ({"scope": ["local"]}, True),
    ({"scope": ["swarm"]}, False),
    ({"node": ["f296"]}, True),
    ({"service": ["x"]}, False),
    ({"secret": ["x"]}, False),
    ({"config": ["x"]}, False),
    ({"plugin": ["x"]}, False),
    ({"image": ["lab:5000/app:2"]}, True),
    ({"image": ["lab:5000/app"]}, True),
    ({"image": ["app"]}, False),
    ({"label": ["env=a=b"]}, True),
    ({"label": ["env=a"]}, False),
    ({"label": ["env", "name=test4"]}, True),
    ({"label": ["env", "none"]}, False),
    ({"label": ["hypermux.account=prod"]}, True),
    ({"label": ["hypermux.account=pro"]}, False),
    ({"label": ["hypermux.account", "hypermux.region=us-1"]}, True),
    ({"type": ["container"], "label": ["hypermux.account=lab"]}, False),
]


@pytest.mark.parametrize(("filters", "passes"), MATCHES)
@pytest.mark.parametrize("way", ["spliced", "converted"])
def test_filters_look_at_what_is_shown(
    filters: dict[str, list[str]], passes: bool, way: str
) -> None:
    sent = START if way == "spliced" else {**START, "more": None}
    assert bool(show(line(event(sent)), asking(**filters))) == passes


def test_dialect_b_is_found_by_its_action_and_its_status() -> None:
    pod = line(event(POD))
    for word in ("MODIFIED", "Running"):
        assert show(pod, asking(event=[word], image=["busybox"], container=["test2"]))
    assert not show(pod, asking(event=["start"]))
    assert show(pod, asking(label=["env=x", "name=test2"]))


def test_unknown_fields_select_nothing_out() -> None:
    query = EventsQuery(filters=Filters.parse_json('{"label!":["x"],"":["y"]}', fields=None))
    assert show(line(event(START)) + line(GAP), query)


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@given(
    attributes=st.dictionaries(TEXT | st.sampled_from([*OURS, "name", '"Attributes', "a"]), TEXT),
    actor_id=TEXT,
    action=TEXT.filter(bool),
    escaped=st.booleans(),
    spaced=st.booleans(),
    filters=st.dictionaries(
        st.sampled_from(["event", "container", "label"]), st.lists(TEXT, max_size=2)
    ),
)
def test_both_ways_show_the_same(
    attributes: dict[str, str],
    actor_id: str,
    action: str,
    escaped: bool,
    spaced: bool,
    filters: dict[str, list[str]],
) -> None:
    """Whatever an upstream sends, splicing is only the quick way to the same event."""
    sent = {**START, "Action": action, "Actor": {"ID": actor_id, "Attributes": attributes}}
    separators = (", ", ": ") if spaced else (",", ":")
    raw = json.dumps(sent, separators=separators).encode()
    if escaped:
        raw = raw.replace(b"Attributes", b"\\u0041ttributes")
    query = asking(**filters)
    quick = show(line(event(raw)), query)
    slow = show(line(event(raw[:-1] + b',"more":1}')), query)
    assert [{**e, "more": 1} for e in quick] == slow
    for shown in quick:
        assert shown["Actor"] == {"ID": actor_id, "Attributes": {**attributes, **OURS}}
