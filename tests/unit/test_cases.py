"""The case lists in tests/cases agree with core.filters, on events made here.

So a row that fails against a real server is the server's or the connection's doing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from hypermux.core.filters import HYPER_FIELDS, Filters

ROOT = Path(__file__).parents[2]
SIZES = {"container": 6, "image": 7, "label": 15, "event": 6}


def load() -> Any:
    path = ROOT / "scripts" / "util_lib" / "cases.py"
    spec = spec_from_file_location("util_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = load()
CONTAINERS = CASES.read_json("containers")["containers"]
EFFECTS = CASES.read_json("containers")["effects"]
ROWS = [
    pytest.param(name, case, id=f"{name}-{number}")
    for name in SIZES
    for number, case in enumerate(CASES.load_cases(name), 1)
]


def digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


FOUND = {
    key: CASES.Found(key, digits(f"id {key}"), spec["name"], "running", digits(spec["image"]))
    for key, spec in CONTAINERS.items()
}


def dialect_a(key: str, action: str) -> dict[str, Any]:
    spec, found = CONTAINERS[key], FOUND[key]
    attributes = {**spec["labels"], "image": spec["image"], "name": spec["name"]}
    return {
        "status": action,
        "id": found.id,
        "from": spec["image"],
        "Type": "container",
        "Action": action,
        "Actor": {"ID": found.id, "Attributes": attributes},
        "time": 1476375774,
        "timeNano": 1476375774255155116,
    }


def engine(key: str, action: str) -> dict[str, Any]:
    """Return what a newer engine says: the legacy keys gone, a scope instead."""
    event = dialect_a(key, action) | {"scope": "local"}
    for legacy in ("status", "id", "from"):
        del event[legacy]
    return event


@pytest.mark.parametrize("shape", [dialect_a, engine])
@pytest.mark.parametrize("form", ["flags", "wire"])
@pytest.mark.parametrize(("name", "case"), ROWS)
def test_case(name: str, case: Any, form: str, shape: Any) -> None:
    filters = Filters.parse_flags(CASES.fill_in(case.filters, FOUND), fields=HYPER_FIELDS)
    if form == "wire":
        filters = Filters.parse_json(filters.encode(), fields=HYPER_FIELDS)
    arrived: dict[str, list[str]] = {}
    for verb, key in case.actions:
        image_ids = (FOUND[key].image_id, FOUND[key].image_id[:12])
        for action in EFFECTS[verb]:
            if filters.matches(shape(key, action), image_ids=image_ids):
                arrived.setdefault(key, []).append(action)
    assert arrived == case.expect


@pytest.mark.parametrize(("name", "case"), ROWS)
def test_only_a_server_knows_image_ids(name: str, case: Any) -> None:
    filters = Filters.parse_flags(CASES.fill_in(case.filters, FOUND))
    events = [engine(key, action) for verb, key in case.actions for action in EFFECTS[verb]]
    if any("IMAGE_ID" in text for text in case.filters):
        assert case.only == "hyper"
        assert not any(filters.matches(event) for event in events)
    else:
        assert any(filters.matches(event) for event in events) == bool(case.expect)


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_lists(name: str, size: int) -> None:
    cases = CASES.load_cases(name)
    assert len(cases) == size
    assert all(any(f"{name}=" in text for text in case.filters) for case in cases)
    assert len({tuple(case.filters) for case in cases}) == size
    assert len({case.title for case in cases}) == size
    assert any(not case.expect for case in cases), "a list needs a row that finds nothing"
    for case in cases:
        assert all(verb in EFFECTS and on in CONTAINERS for verb, on in case.actions)
        assert all(case.expect.values())
        assert case.only in (None, "hyper")


def test_every_placeholder_is_filled_in() -> None:
    texts = [text for name in SIZES for case in CASES.load_cases(name) for text in case.filters]
    filled = CASES.fill_in(texts, FOUND)
    assert not any("$" in text for text in filled)
    used = {text.partition("$")[2] for text in texts if "$" in text}
    assert used == {
        "ID_FULL",
        "ID_PREFIX",
        "NAME",
        "NAME_2",
        "IMAGE_ID_FULL_2",
        "IMAGE_ID_PREFIX_2",
    }


def test_the_names_trap_prefix_matches() -> None:
    first, second = (spec["name"] for spec in CONTAINERS.values())
    assert second.startswith(first)


def test_files() -> None:
    assert CASES.list_names() == sorted(SIZES)
    for path in CASES.CASES.glob("*.json"):
        assert isinstance(json.loads(path.read_text())["about"], str)
    with pytest.raises(CASES.Trouble, match="known are container, event"):
        CASES.load_cases("lable")


def util(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "util"), *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "HYPERMUX_EMULATOR"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=30
    )


def test_util_lists_the_cases() -> None:
    done = util("watch")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:-1] == [
        f"{name:<10} {SIZES[name]:>2} cases" for name in sorted(SIZES)
    ]
    done = util("watch", "label")
    assert done.returncode == 0
    assert r"label=env=prod\,eu" in done.stdout
    assert len(done.stdout.splitlines()) == SIZES["label"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("watch", "lable"), "util: there are no cases of 'lable': known are"),
        (("watch", "containers"), "util: there are no cases of 'containers': known are"),
        (("watch", "../cases/label"), "util: there are no cases of '../cases/label': known are"),
        (("--emulator", __file__, "ps"), f"util: {__file__} is not the line of JSON"),
        (("watch", "label", "16"), "util: label has no case 16"),
        (("ps",), "util: which emulator? Start `hypermux emulate"),
        (
            ("--control", "/nowhere", "ps"),
            "util: to reach the emulator, --url and --accounts must be given",
        ),
    ],
)
def test_util_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    done = util(*arguments)
    assert done.returncode == 69
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["x=", "x=1", "accounts=1", "[accounts]", "[accounts.a]", "[accounts.a]\nregions=[]", "\xff"],
)
def test_util_reads_the_emulators_accounts_and_nothing_else(tmp_path: Path, text: str) -> None:
    ready, accounts = tmp_path / "ready", tmp_path / "accounts.toml"
    ready.write_text('{"control":"/nowhere","url":"ws://127.0.0.1:1/events/ws"}')
    accounts.write_text(text, "latin-1")
    done = util("--emulator", str(ready), "--accounts", str(accounts), "ps")
    assert (done.returncode, done.stderr) == (
        69,
        f"util: {accounts} is not what `hypermux emulate --write-accounts` writes\n",
    )
