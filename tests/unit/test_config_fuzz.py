"""No mutation of a configuration raises anything but ConfigurationFault, or shows a secret."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypermux.config import accounts_file
from hypermux.model.errors import ConfigurationFault

CANARY = "c4nary/S3cret+Text"
EXAMPLE = (Path(__file__).parents[2] / "accounts.toml.example").read_text()
EXAMPLE = EXAMPLE.replace("enabled = false", "enabled = true").replace(
    'secret_key_file = "prod.key"', f'secret_key = "{CANARY}"'
)

_lines = EXAMPLE.splitlines()
_once = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def outcome(directory: Path, text: str) -> str:
    """Load a text; return what was said, checked to be a list of problems without the secret."""
    path = directory / "accounts.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    path.chmod(0o600)
    try:
        said = repr(accounts_file.load(path))
    except ConfigurationFault as fault:
        said = "\n".join(map(str, fault.problems))
    assert said
    assert CANARY not in said
    assert "\x1b" not in said
    return said


@pytest.fixture(autouse=True)
def _no_program_and_no_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    # A mutated include such as "/*" would read whatever this machine has.
    monkeypatch.setattr("glob.glob", lambda pattern: [])


@given(data=st.data())
@_once
def test_mutated_characters(tmp_path: Path, data: st.DataObject) -> None:
    text = list(EXAMPLE)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        match data.draw(st.sampled_from(["drop", "insert", "replace"])):
            case "drop":
                del text[at]
            case "insert":
                text.insert(at, data.draw(st.sampled_from("\"'[]{}=,.#\\\n\0\x1bé9a -\ud800")))
            case _:
                text[at] = data.draw(st.sampled_from("\"'[]{}=,.#\\\n\0\x1bé9a -"))
    outcome(tmp_path, "".join(text))


@given(lines=st.lists(st.sampled_from(_lines), max_size=40))
@_once
def test_shuffled_lines(tmp_path: Path, lines: list[str]) -> None:
    outcome(tmp_path, "\n".join(lines))


_scalars = (
    st.text(max_size=8)
    | st.integers()
    | st.booleans()
    | st.floats()
    | st.dates()
    | st.sampled_from(["10s", "1MiB", "1/s", "auto", "docker", "{region}", "unix:///x", "wss://["])
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(table: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    found = []
    for key, value in table.items():
        found.append((table, key))
        if isinstance(value, dict):
            found.extend(places(value))
    return found


@given(data=st.data())
@_once
def test_mutated_values(tmp_path: Path, data: st.DataObject) -> None:
    document = tomllib.loads(EXAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        table, key = data.draw(st.sampled_from(places(document)))
        match data.draw(st.sampled_from(["value", "key", "drop", "secret"])):
            case "value":
                table[key] = data.draw(_values)
            case "key":
                table[data.draw(st.text(max_size=5) | st.just(f"{key}s"))] = table.pop(key)
            case "drop":
                del table[key]
            case _:
                # Pasted where it does not belong, while its right place has it too.
                table[key] = CANARY
    outcome(tmp_path, f'x-secret = "{CANARY}"\n{tomli_w.dumps(document)}')


@given(text=st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
@_once
def test_any_text(tmp_path: Path, text: str) -> None:
    outcome(tmp_path, text)
