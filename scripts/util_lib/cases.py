"""The lists of filter cases in tests/cases, read and with their placeholders filled in."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CASES = Path(__file__).resolve().parents[2] / "tests" / "cases"


class Trouble(Exception):
    """What util cannot do, in one sentence for the user."""


class Case(NamedTuple):
    """One row of a list: `filters` as given to --filter, placeholders not yet filled in."""

    title: str
    filters: list[str]
    actions: list[tuple[str, str]]
    expect: dict[str, list[str]]
    only: str | None


class Found(NamedTuple):
    """A test container as it is: `image_id` is None where nobody tells it."""

    key: str
    id: str
    name: str
    state: str
    image_id: str | None = None


def read_json(name: str) -> dict[str, Any]:
    """Return one of the files of tests/cases."""
    data: dict[str, Any] = json.loads((CASES / f"{name}.json").read_text())
    return data


def list_names() -> list[str]:
    """Return the names of the lists."""
    return sorted(path.stem for path in CASES.glob("*.json") if path.stem != "containers")


def keys_by_name() -> dict[str, str]:
    """Return the key ("1", "2") of each test container's name."""
    return {spec["name"]: key for key, spec in read_json("containers")["containers"].items()}


def load_cases(name: str) -> list[Case]:
    """Return one list; "all" in an expectation stands for every event that the actions cause."""
    if name not in list_names():
        raise Trouble(f"there are no cases of {name!r}: known are {', '.join(list_names())}")
    listed, effects = read_json(name), read_json("containers")["effects"]
    cases = []
    for row in listed["cases"]:
        actions = [tuple(action.split()) for action in row.get("do", listed["do"])]
        expect = {
            key: [event for verb, on in actions if on == key for event in effects[verb]]
            if wanted == "all"
            else list(wanted)
            for key, wanted in row["expect"].items()
        }
        cases.append(Case(row["title"], row["filters"], actions, expect, row.get("only")))
    return cases


def fill_in(filters: Sequence[str], containers: Mapping[str, Found]) -> list[str]:
    """Put the containers' ids and names in place of $ID_FULL, $ID_PREFIX, $NAME_2 and so on."""
    values = {}
    for key, found in containers.items():
        end = "" if key == "1" else f"_{key}"
        values[f"ID_FULL{end}"] = found.id
        values[f"ID_PREFIX{end}"] = found.id[:12]
        values[f"NAME{end}"] = found.name
        if found.image_id is not None:
            values[f"IMAGE_ID_FULL{end}"] = found.image_id
            values[f"IMAGE_ID_PREFIX{end}"] = found.image_id[:12]
    return [string.Template(text).substitute(values) for text in filters]
