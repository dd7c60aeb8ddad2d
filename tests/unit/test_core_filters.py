"""Filters: parsing, encoding, and every rule of what matches."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypermux.core.filters import (
    DOCKER_FIELDS,
    HYPER_FIELDS,
    FilterError,
    Filters,
    strip_tag,
)

ID = "f296" + 60 * "0"
IMAGE_ID = "sha256:" + 64 * "a"

START: dict[str, Any] = {
    "status": "start",
    "id": ID,
    "from": "xjimmyshcn/busybox:1",
    "Type": "container",
    "Action": "start",
    "Actor": {
        "ID": ID,
        "Attributes": {
            "": "",
            "exitCode": "0",
            "image": "xjimmyshcn/busybox:1",
            "name": "test4",
            "test1": "",
            "test2": "test2",
            "test3": "test3=test3",
            "a,b": "c,d",
        },
    },
    "scope": "local",
    "time": 1476375774,
    "timeNano": 1476375774255155116,
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
PULL: dict[str, Any] = {
    "Type": "image",
    "Action": "pull",
    "Actor": {"ID": "alpine:3", "Attributes": {"name": "alpine", "image": "other"}},
}


def exec_event(action: str) -> dict[str, Any]:
    return {**START, "Action": action, "status": action}


def flags(*texts: str) -> Filters:
    return Filters.parse_flags(texts)


# Parsing


@pytest.mark.parametrize(
    ("texts", "fields"),
    [
        ([], {}),
        ([""], {}),
        (["event=start"], {"event": ["start"]}),
        (["event=start,event=die", "event=start"], {"event": ["start", "die"]}),
        (["container=a, image=b"], {"container": ["a"], "image": ["b"]}),
        (["label=a=b=c"], {"label": ["a=b=c"]}),
        ([r"label=a\,b=c\,d,event=die"], {"label": ["a,b=c,d"], "event": ["die"]}),
        (["label="], {"label": [""]}),
        (['label=""'], {"label": [""]}),
        (['label=""='], {"label": ["="]}),
        (['label=""=v'], {"label": ["=v"]}),
        (['container=""'], {"container": ['""']}),
        (["event=exec_create: /bin/true "], {"event": ["exec_create: /bin/true "]}),
    ],
)
def test_flags(texts: list[str], fields: dict[str, list[str]]) -> None:
    parsed = Filters.parse_flags(texts)
    assert parsed.fields == tuple((k, tuple((x, True) for x in v)) for k, v in fields.items())
    assert bool(parsed) == bool(fields)
    again = Filters.parse_json(parsed.encode())
    assert {k: dict(v) for k, v in again.fields} == {k: dict(v) for k, v in parsed.fields}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("start", "'start' has no '=': a filter is written key=value"),
        ("event=start,", "'' has no '='"),
        ("event=start,die", "'die' has no '='"),
        ("=start", "empty key"),
        (" =start", "empty key"),
        ("evnt=start", "unknown filter 'evnt': did you mean 'event'?"),
        ("Label=x", "did you mean 'label'?"),
        ("zzz=start", "known are container, event, image, label"),
        ("type=container", "unknown filter 'type'"),
        ("label=\udc80", "Unicode"),
    ],
)
def test_bad_flags_say_what_is_right(text: str, says: str) -> None:
    with pytest.raises(FilterError) as caught:
        Filters.parse_flags([text], fields=HYPER_FIELDS)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", ()),
        ("{}", ()),
        ('{"event":{}}', ()),
        ('{"event":[]}', ()),
        ('{"event":{"start":true,"die":false}}', (("event", (("start", True), ("die", False))),)),
        ('{"event":["start","die"]}', (("event", (("start", True), ("die", True))),)),
        ('{"label":{"":true}}', (("label", (("", True),)),)),
        ('{"label":{"\\"\\"":true}}', (("label", (('""', True),)),)),
        (' {"event" : ["a\\u0026b"] } ', (("event", (("a&b", True),)),)),
    ],
)
def test_json(text: str, fields: object) -> None:
    assert Filters.parse_json(text).fields == fields


@pytest.mark.parametrize(
    "text",
    [
        "event=start",
        " ",
        "['a']",
        '["a"]',
        "null",
        "7",
        '{"event":"start"}',
        '{"event":{"start":1}}',
        '{"event":{"start":"true"}}',
        '{"event":[1]}',
        '{"event":null}',
        '{"event":["a"],"label":{"b":true}}',
        '{"label":{"test1":true,"test2=test2","test3=test3=test3":true}}',
        '{"unknown":["a"]}',
        '{"":["a"]}',
        '{"label":["\\ud800"]}',
        "[" * 100_000,
        '{"event":' + "9" * 5000 + "}",
    ],
)
def test_bad_json_is_one_clear_sentence(text: str) -> None:
    with pytest.raises(FilterError) as caught:
        Filters.parse_json(text)
    assert 20 < len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_mapping_is_what_a_configuration_file_has() -> None:
    made = Filters.from_mapping({"event": ["start", "die"], "label": ['""=x'], "image": []})
    assert made == flags("event=start,event=die", "label==x")
    for bad in ({"event": "start"}, {"event": [1]}, {"event": {"a": True}}, {"evnt": ["a"]}):
        with pytest.raises(FilterError):
            Filters.from_mapping(bad)  # type: ignore[arg-type]


def test_encoding_is_that_of_the_original_client() -> None:
    made = flags("label=b", "event=start", "label=a&<>é", "label=")
    text = '{"event":{"start":true},"label":{"":true,"a\\u0026\\u003c\\u003eé":true,"b":true}}'
    assert made.encode() == text
    assert made.query().startswith("filters=%7B%22event%22%3A")
    assert "+" not in made.query()
    assert unquote(made.query().partition("=")[2]) == text
    assert (Filters().encode(), Filters().query()) == ("", "")


def test_filters_are_values() -> None:
    assert flags("event=a") == flags("event=a") != flags("event=b")
    assert len({flags("event=a"), flags("event=a"), Filters()}) == 2
    assert repr(flags("event=a")) == "Filters(fields=(('event', (('a', True),)),))"


# Matching


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], True),
        (["event=start"], True),
        (["event=star"], False),
        (["event=start*"], False),
        (["event=die"], False),
        (["event=die", "event=start"], True),
        (["event=start", "container=other"], False),
        (["type=container"], True),
        (["type=cont"], False),
        (["scope=local"], True),
        (["scope=swarm"], False),
        (["container=test4"], True),
        (["container=test"], True),
        (["container=est4"], False),
        (["container=f296"], True),
        ([f"container={ID}"], True),
        (["container=f2960x"], False),
        (["container=no", "container=test4"], True),
        (["volume=test"], True),
        (["network=f296"], True),
        (["daemon=x"], False),
        (["image=xjimmyshcn/busybox"], True),
        (["image=xjimmyshcn/busybox:1"], True),
        (["image=xjimmyshcn/busybox:2"], False),
        (["image=xjimmyshcn"], False),
        (["image=busybox"], False),
        ([f"image={ID}"], True),
        ([f"image={IMAGE_ID}"], False),
        (["label=test1"], True),
        (["label=test"], False),
        (["label=test1="], True),
        (["label=test2="], False),
        (["label=test2=test2"], True),
        (["label=test2=test"], False),
        (["label=test3=test3=test3"], True),
        (["label=test3=test3"], False),
        (["label=test1", "label=test2=test2"], True),
        (["label=test1", "label=nope"], False),
        (['label=""'], True),
        (['label=""='], True),
        (['label=""=x'], False),
        ([r"label=a\,b=c\,d"], True),
        (["label=name=test4"], True),
    ],
)
def test_what_a_container_event_matches(texts: list[str], expected: bool) -> None:
    assert Filters.parse_flags(texts).matches(START) is expected


@pytest.mark.parametrize("trigger", ["health_status", "exec_create", "exec_start"])
def test_three_events_make_every_event_value_a_prefix(trigger: str) -> None:
    assert flags(f"event={trigger}").matches(exec_event(f"{trigger}: /bin/true "))
    assert flags(f"event={trigger}").matches(exec_event(trigger))
    assert not flags(f"event={trigger}").matches(exec_event("exec_die"))
    assert flags(f"event={trigger}", "event=sta").matches(START)
    assert not flags(f"event={trigger}:", "event=sta").matches(START)
    assert not flags(f"event={trigger}: ").matches(exec_event(f"{trigger}: /bin/true "))
    assert flags(f"event={trigger}: /bin/true ").matches(exec_event(f"{trigger}: /bin/true "))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"event":{"start":false}}', False),
        ('{"event":{"start":false,"exec_create":false}}', True),
        ('{"event":{"start":false,"die":true}}', False),
        ('{"type":{"container":false}}', False),
        ('{"image":{"xjimmyshcn/busybox":false}}', False),
        ('{"container":{"test4":false}}', True),
        ('{"label":{"test1":false}}', True),
        ('{"label":{"nope":false}}', False),
        ('{"event":{},"label":{}}', True),
    ],
)
def test_false_disables_exact_matches_only(text: str, expected: bool) -> None:
    assert Filters.parse_json(text).matches(START) is expected


def test_image_ids_are_known_to_a_server_only() -> None:
    wanted = flags(f"image={IMAGE_ID}")
    assert not wanted.matches(START)
    assert wanted.matches(START, image_ids=[IMAGE_ID, "a" * 12])
    assert flags("image=aaaaaaaaaaaa").matches(START, image_ids=[IMAGE_ID, "a" * 12])
    assert not flags("image=aaaaaaaaaaa").matches(START, image_ids=[IMAGE_ID, "a" * 12])


def test_image_events_are_known_by_id_and_name() -> None:
    for image, expected in [("alpine:3", True), ("alpine", True), ("other", False), ("a", False)]:
        assert flags(f"image={image}").matches(PULL) is expected
    assert flags("container=alpine").matches(PULL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("event=MODIFIED", True),
        ("event=Running", True),
        ("event=running", False),
        ("container=d1", True),
        ("container=test2", True),
        ("image=busybox", True),
        ("label=env=x", True),
        ("label=env", True),
        ("label=ExitCode=", True),
        ("label=env=y", False),
        ("type=container", True),
    ],
)
def test_dialect_b(text: str, expected: bool) -> None:
    assert flags(text).matches(POD) is expected


def test_an_event_of_before_actors_matches_by_its_old_fields() -> None:
    old = {"status": "start", "id": ID, "from": "busybox:1", "time": 1}
    assert flags("event=start", "container=f296", "image=busybox").matches(old)
    assert not flags("type=container").matches(old)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"Actor": None, "Action": 7},
        {"Actor": {"ID": 1, "Attributes": []}},
        {"Actor": {"Attributes": {"name": None, "image": [1], "k": None, "n": 1}}},
    ],
)
def test_odd_events_match_without_trouble(event: dict[str, Any]) -> None:
    for text in ("event=a", "container=a", "image=a", "label=a", "type=a", "scope=a"):
        assert not flags(text).matches(event)
    assert Filters().matches(event)
    assert not flags("label=n=1").matches(event)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("busybox", "busybox"),
        ("busybox:1.2", "busybox"),
        ("docker.io/library/busybox:1", "busybox"),
        ("index.docker.io/library/busybox", "busybox"),
        ("docker.io/xjimmyshcn/busybox", "xjimmyshcn/busybox"),
        ("lab:5000/app", "lab:5000/app"),
        ("lab:5000/app:2", "lab:5000/app"),
        ("localhost/a/b:1", "localhost/a/b"),
        ("quay.io/a/b@sha256:" + 64 * "0", "quay.io/a/b"),
        ("a:1@sha256:" + 64 * "0", "a"),
        (64 * "a", 64 * "a"),
        ("Not A Reference:1", "Not A Reference:1"),
        ("UPPER:1", "UPPER:1"),
        ("", ""),
        ("/", "/"),
        ("a" * 2000 + ":1", "a" * 2000 + ":1"),
    ],
)
def test_strip_tag(image: str, name: str) -> None:
    assert strip_tag(image) == name


# Properties

VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FIELDS = st.sampled_from(sorted(DOCKER_FIELDS))


@given(st.dictionaries(FIELDS, st.dictionaries(VALUES, st.booleans(), max_size=3)))
def test_encoding_comes_back(tree: dict[str, dict[str, bool]]) -> None:
    made = Filters.parse_json(json.dumps(tree))
    again = Filters.parse_json(made.encode())
    assert dict(again.fields).keys() == {k for k, v in tree.items() if v}
    assert {k: dict(v) for k, v in again.fields} == {k: v for k, v in tree.items() if v}
    assert again.encode() == made.encode()
    assert again.matches(START) == made.matches(START)


@given(st.dictionaries(FIELDS, st.lists(VALUES, min_size=1, max_size=3, unique=True), max_size=4))
def test_flags_mappings_and_lists_agree(tree: dict[str, list[str]]) -> None:
    written = [f"{k}={v}" for k, values in tree.items() for v in values]
    if not any(text.endswith("\\") or "\\," in text or '=""' in text for text in written):
        escaped = [text.replace(",", "\\,") for text in written]
        assert Filters.parse_flags(escaped) == Filters.from_mapping(tree)
        assert Filters.parse_flags([",".join(escaped)]) == Filters.from_mapping(tree)
        assert Filters.parse_json(json.dumps(tree)) == Filters.from_mapping(tree)


@given(st.text(max_size=30) | st.text('{}[]":,truefalsnl\\ ev', max_size=30))
def test_any_text_is_filters_or_an_error(text: str) -> None:
    for parse in (Filters.parse_json, lambda t: Filters.parse_flags([t])):
        try:
            made = parse(text)
        except FilterError:
            continue
        made.matches(START)
        made.query()


@given(st.text(max_size=40) | st.text("abA:/.@-_0", max_size=40))
def test_stripping_a_tag_never_fails(image: str) -> None:
    strip_tag(image)
