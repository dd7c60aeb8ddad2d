"""`[http]`: where it may listen, and the token."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve
from test_config_accounts_file import load, only, problems, write

from hypermux.config.changes import compare
from hypermux.model.accounts import Secret

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [
        ("127.0.0.1:8787", "127.0.0.1", 8787),
        ("127.8.9.1:1", "127.8.9.1", 1),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_this_computer_needs_no_token(tmp_path: Path, listen: str, host: str, port: int) -> None:
    http = load(tmp_path, f"[http]\nlisten = '{listen}'").http
    assert (http.host, http.port, http.loopback) == (host, port, True)
    assert http.token is None


@pytest.mark.parametrize("text", ["", "[http]\n", "[http]\nlisten = ''"])
def test_off_by_default(tmp_path: Path, text: str) -> None:
    http = load(tmp_path, text).http
    assert http.listen is None
    assert http.ready_when == "all"


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "10.0.0.5:80", "[::]:80", "[2001:db8::1]:80"])
def test_others_need_one(tmp_path: Path, listen: str) -> None:
    found = only(tmp_path, f"[http]\nlisten = '{listen}'")
    assert found.startswith("http.listen: ")
    assert "token_file" in found
    write(tmp_path / "token", TOKEN + "\n")
    http = load(tmp_path, f"[http]\nlisten = '{listen}'\ntoken_file = 'token'").http
    assert http.token == Secret(TOKEN)
    assert TOKEN not in repr(http)


@pytest.mark.parametrize(
    "listen",
    ["8787", "localhost:8787", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536",
     "::1:80", "[::1]", "[127.0.0.1]:80", "[fe80::1%eth0]:80", "127.0.0.1:+8", "1:2:3"],
)  # fmt: skip
def test_what_is_no_address(tmp_path: Path, listen: str) -> None:
    found = only(tmp_path, f"[http]\nlisten = '{listen}'")
    assert found.startswith("http.listen: is not an address and a port")


@pytest.mark.parametrize(
    ("text", "mode", "word"),
    [
        (None, 0o600, "no such file"),
        (TOKEN, 0o644, "chmod 600"),
        ("short", 0o600, "16 characters"),
        ("", 0o600, "16 characters"),
        ("two words of a token", 0o600, "ASCII"),
        ("two-lines-of-a-token\nx", 0o600, "ASCII"),
        ("x" * 2000, 0o600, "larger"),
    ],
)
def test_a_token_that_will_not_do(tmp_path: Path, text: str | None, mode: int, word: str) -> None:
    if text is not None:
        write(tmp_path / "token", text, mode)
    found = problems(tmp_path, "[http]\nlisten = '127.0.0.1:1'\ntoken_file = 'token'")
    assert len(found) == 1
    assert found[0].startswith("http.token_file: ")
    assert word in found[0]
    assert not text or text not in found[0]


@pytest.mark.parametrize("value", ["all", "any", "1%", "80%", "100%"])
def test_ready_when(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, f"[http]\nready_when = '{value}'").http.ready_when == value


@pytest.mark.parametrize("value", ["0%", "101%", "%", "most", "80", "-1%", "8 %"])
def test_never_ready(tmp_path: Path, value: str) -> None:
    assert only(tmp_path, f"[http]\nready_when = '{value}'").startswith("http.ready_when: ")


def test_a_reload_takes_up_the_token_and_never_shows_it(tmp_path: Path) -> None:
    write(tmp_path / "token", TOKEN)
    text = "[http]\nlisten = '127.0.0.1:1'\ntoken_file = 'token'"
    old = load(tmp_path, text)
    write(tmp_path / "token", TOKEN[::-1])
    new = load(tmp_path, text)
    changes = compare(old, new)
    assert changes.settings.http.token == Secret(TOKEN[::-1])
    assert changes.text.startswith("http.token_file = ")
    assert TOKEN not in changes.text
    assert TOKEN[::-1] not in changes.text
    moved = evolve(new, http=evolve(new.http, listen="127.0.0.1:2", ready_when="any"))
    changes = compare(old, moved)
    assert changes.settings.http.listen == "127.0.0.1:1"
    assert changes.settings.http.ready_when == "any"
    assert changes.needs_restart == (
        'http.listen stays "127.0.0.1:1": "127.0.0.1:2" takes a restart',
    )
